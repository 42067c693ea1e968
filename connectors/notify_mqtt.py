"""An MQTT topic as a place that alerts go to: CloudEvents in JSON, QoS 1."""

import time
from typing import Final

from voltmill.connectors.mqtt_publisher import Publisher
from voltmill.connectors.mqtt_settings import MqttSettings
from voltmill.connectors.notify_errors import NotifyError
from voltmill.connectors.notify_notice import Notice
from voltmill.connectors.notify_places import NotifyMqttSettings

_SHORTEST_SECONDS: Final = 0.1


class Topic:
    """Publishes each notification and waits until the broker has it.

    Args:
        settings: which topic.
        broker: where.
        client_id: name of the connection: unique at the broker.
        source: ``source`` of the events.
        timeout: of an attempt, s.

    Raises:
        ValueError: a file of the broker's TLS cannot be used.
    """

    def __init__(
        self, settings: NotifyMqttSettings, broker: MqttSettings, client_id: str, source: str, timeout: float
    ) -> None:
        self._settings, self._source, self._timeout = settings, source, timeout
        self._publisher = Publisher(broker, client_id)
        self._under_way = ""

    def send(self, notice: Notice) -> None:
        """Send it; NotifyError if the broker did not acknowledge it in time."""
        until = time.monotonic() + self._timeout
        try:
            if self._under_way != notice.id or not self._publisher.in_flight:
                topic = self._settings.topic_of(notice.device_id, notice.code, notice.severity)
                self._publisher.publish(topic, notice.cloud_event(self._source), self._timeout)
                self._under_way = notice.id  # sent again by the client by itself: once more would be a copy
            self._publisher.drain(max(until - time.monotonic(), _SHORTEST_SECONDS))
        except TimeoutError as error:
            raise NotifyError(str(error), outcome="timeout") from error
        except ValueError as error:  # paho's, of a topic that is none or too long
            text = f"no topic or message of MQTT: {error}"
            raise NotifyError(text, outcome="topic", passes=False, away=False) from error

    def close(self) -> None:
        """Disconnect."""
        self._publisher.close()
