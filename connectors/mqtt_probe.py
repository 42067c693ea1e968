"""Tries the connection of the ``[mqtt]`` table: reaches the broker, logs in, asks for each topic filter.

The session is another one than that of a flow, with a name of its own: the same name would push a running
flow out. It ends with the connection, and retained messages are not asked for, so nothing changes.
"""

import contextlib
import os
import time
from typing import Any

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from voltmill.connectors.mqtt_session import Session
from voltmill.connectors.mqtt_settings import MqttSettings
from voltmill.connectors.probe import Finding
from voltmill.connectors.probe_network import explain

_SECONDS = 3.5  # to connect, and again for what the broker answers
_TURN_SECONDS = 0.1

#: What the codes of a refused login mean (MQTT 3.1.1 section 3.2.2.3, MQTT 5 section 3.2.2.2).
_LOGIN = ("the login is refused", "mend username and password, or the rights of the client at the broker")
_REFUSED = {
    1: ("it does not speak this version of MQTT", 'set protocol = "3.1.1"'),
    4: _LOGIN,
    5: _LOGIN,
    132: ("it does not speak this version of MQTT", 'set protocol = "3.1.1"'),
    134: _LOGIN,
    135: _LOGIN,
    140: _LOGIN,
}


def probe(settings: MqttSettings, *, reads: bool = True) -> Finding:
    """Whether the broker lets us in and grants each topic filter; within ten seconds, raises nothing.

    Args:
        settings: where it is, and who we are.
        reads: whether the topic filters are asked for; one that only publishes may lack the right to read.
    """
    place = f"MQTT broker {settings.host}:{settings.port}"
    try:
        limited = msgspec.structs.replace(settings, timeout_seconds=min(_SECONDS, settings.timeout_seconds))
        trial = _Trial(limited, reads)
    except ValueError as error:  # files of [mqtt.tls]; the message names them
        return Finding(place, str(error))
    try:
        trial.run()
        problem, mend = trial.wrong
    except OSError as error:
        problem, mend = explain(error, seconds=trial.settings.timeout_seconds)
    finally:
        trial.close()
    filters = len(settings.topics)
    granted = f"{filters} topic filter{'s' if filters > 1 else ''} granted" if reads else "lets us in"
    facts = f"{'TLS, ' if settings.tls else ''}{granted}"
    return Finding(place, problem, mend, "" if problem else facts)


class _Trial(Session):
    """One connection: log in, subscribe, and what went wrong.

    Attributes:
        wrong: the problem and its mend; both empty: nothing is.
    """

    def __init__(self, settings: MqttSettings, reads: bool) -> None:
        super().__init__(settings, f"{settings.client_id}-check-{os.getpid()}", persistent=False)
        self.wrong = ("", "")
        self._done = False
        self._reads = reads
        self._waiting: dict[int, str] = {}  # packet id of a SUBSCRIBE -> its filter
        self._denied: list[str] = []
        self._broken: BaseException | None = None
        self.on_subscribe = self._answered

    def run(self) -> None:
        """Connect, and go on until all is known; OSError if there is no connection."""
        self.reconnect()
        until = time.monotonic() + _SECONDS
        while not self._done and not self.wrong[0]:
            if time.monotonic() > until:
                self.wrong = explain(TimeoutError(), seconds=_SECONDS)
            elif (code := self.loop(_TURN_SECONDS)) != paho.MQTT_ERR_SUCCESS and not self.wrong[0]:
                silent = code == paho.MQTT_ERR_KEEPALIVE
                broken = TimeoutError() if silent else self._broken or ConnectionResetError()
                self.wrong = explain(broken, seconds=self.settings.timeout_seconds)

    def established(self, session_present: bool, properties: Properties | None) -> None:
        """Ask for the topic filters; of retained messages none are sent (MQTT 3.1.1 has no way to say that)."""
        self._done = not self._reads
        for topic in self.settings.topics if self._reads else ():
            if self.version5:
                options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
                _, packet = self.subscribe(topic, options=options)
            else:
                _, packet = self.subscribe(topic, qos=1)
            self._waiting[packet] = topic

    def _connected(self, client: Any, userdata: Any, flags: dict[str, int], code: Any, *rest: Any) -> None:
        number = code.value if self.version5 else code
        if number:
            self.wrong = _REFUSED.get(number, (f"it lets nobody in: {code}", ""))
        else:
            self.established(False, None)

    def _answered(self, client: Any, userdata: Any, packet: int, granted: Any, *rest: Any) -> None:
        topic = self._waiting.pop(packet, "")
        if (granted[0].value if self.version5 else granted[0]) >= 0x80:
            self._denied.append(topic)
        if not self._waiting:
            self._done = True
            if self._denied:
                mend = "give this user the right to read it at the broker"
                self.wrong = (f"the login is good, but topic filter {', '.join(self._denied)} is denied", mend)

    def _disconnected(self, client: Any, userdata: Any, code: Any, *rest: Any) -> None:
        pass  # what went wrong is known from elsewhere, in better words

    def _sock_recv(self, size: int) -> Any:
        try:
            return super()._sock_recv(size)
        except ConnectionError as error:  # paho drops it, and with it what TLS said
            self._broken = error
            raise

    def _sock_send(self, data: bytes) -> Any:
        try:
            return super()._sock_send(data)
        except ConnectionError as error:  # the server has gone: why, it may have said before
            self._broken = error
            with contextlib.suppress(ConnectionError):
                self._sock_recv(1)
            raise
