"""Publishing over MQTT with QoS 1: bounded, and nothing is lost while the broker is away."""

import logging
import threading
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.properties import Properties

from voltmill.connectors.mqtt_session import Session
from voltmill.connectors.mqtt_settings import MqttSettings

log = logging.getLogger("voltmill.mqtt")


class _Sender(Session):
    def __init__(self, settings: MqttSettings, client_id: str, owner: "Publisher") -> None:
        super().__init__(settings, client_id, persistent=False)
        self._owner = owner
        self.max_inflight_messages_set(0)  # bounded by the owner, which blocks instead of queueing

    def established(self, session_present: bool, properties: Properties | None) -> None:
        """Heed the broker's limit."""
        self._works()
        self._owner.limit(getattr(properties, "ReceiveMaximum", None))


class Publisher:
    """Publishes with QoS 1 from any thread; what is not acknowledged is sent again after a reconnect.

    So a message may arrive twice, never not at all, while this process lives.

    Args:
        settings: the broker; ``topics`` and ``client_id`` are not used.
        client_id: name of this connection.
        max_in_flight: messages that may be unacknowledged before ``publish`` blocks.

    Example:
        with Publisher(MqttSettings(), "gateway-1") as publisher:
            publisher.publish("voltmill/gateway-1", b"{}")
            publisher.drain(10.0)
    """

    def __init__(self, settings: MqttSettings, client_id: str, *, max_in_flight: int = 4096) -> None:
        self.sent = 0
        self.acknowledged = 0
        self._place = f"{settings.host}:{settings.port}"
        self._most = min(max_in_flight, 65_535)
        self._allowed = 0  # nothing before the broker has said how much it takes
        self._changed = threading.Condition()
        self._client = _Sender(settings, client_id, self)
        self._client.on_publish = self._on_publish
        self._client.loop_start()

    @property
    def in_flight(self) -> int:
        """Messages that are not yet acknowledged."""
        return self.sent - self.acknowledged

    def limit(self, receive_maximum: int | None) -> None:
        """The broker is there and takes so many messages at a time; None: as many as there are."""
        with self._changed:
            self._allowed = min(self._most, receive_maximum or self._most)
            self._changed.notify_all()

    def publish(self, topic: str, payload: bytes, timeout: float | None = None) -> None:
        """Send one message; blocks while too many are unacknowledged, or the broker was never reached.

        Raises:
            TimeoutError: it could not be sent within ``timeout`` seconds; it will not be.
            ValueError: the topic has a wildcard or is empty, or the payload is above 256 MB.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.in_flight < self._allowed, timeout):
                what = f"{self.in_flight} messages unacknowledged" if self.sent else "not reached"
                raise TimeoutError(f"mqtt broker {self._place}: {what}, nothing sent for {timeout:g} s")
            self.sent += 1
        try:
            while self._client.publish(topic, payload, qos=1).rc == paho.MQTT_ERR_QUEUE_SIZE:
                pass  # that packet id is still in use by an older message: the next one
        except ValueError:
            with self._changed:
                self.sent -= 1
            raise

    def drain(self, timeout: float) -> None:
        """Wait until everything sent is acknowledged.

        Raises:
            TimeoutError: it was not within ``timeout`` seconds; says how many are not.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.in_flight == 0, timeout):
                what = f"{self.in_flight} of {self.sent} messages unacknowledged after {timeout:g} s"
                raise TimeoutError(f"mqtt broker {self._place}: {what}")

    def close(self) -> None:
        """Disconnect; what is unacknowledged is given up, so ``drain`` first."""
        if self.in_flight:
            log.warning("mqtt publisher closed unacknowledged=%d", self.in_flight)
            self._client._out_messages.clear()  # the network thread would wait for them
        self._client.close()

    def _on_publish(self, client: Any, userdata: Any, mid: int) -> None:
        with self._changed:
            self.acknowledged += 1
            self._changed.notify_all()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()
