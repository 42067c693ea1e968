"""An MQTT session that keeps trying: paho-mqtt does the protocol, and here is what it lacks.

Lacking are waits with jitter between connection attempts, a limit for how long a broker may say nothing,
and a network thread that survives TLS errors. paho-mqtt 1.6.1 is the last of its line, so the methods
overridden here will not move.
"""

import logging
import random
import socket
import sys
import threading
import time
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from voltmill.connectors.mqtt_settings import MqttSettings

log = logging.getLogger("voltmill.mqtt")

_FAREWELL_SECONDS = 2.0
_TURN_SECONDS = 0.25  # how often an idle network thread looks at the clock
_WORD_EVERY_SECONDS = 60.0


class Session(paho.Client):  # type: ignore[misc]
    """A paho client that keeps trying to connect, and logs what happens."""

    def __init__(self, settings: MqttSettings, client_id: str, *, persistent: bool) -> None:
        self.settings = settings
        self.version5 = settings.protocol == "5"
        self._refusals = 0
        self._said: dict[str, float] = {}
        self._closing = threading.Event()
        protocol = paho.MQTTv5 if self.version5 else paho.MQTTv311
        super().__init__(client_id, clean_session=None if self.version5 else not persistent, protocol=protocol)
        self._where = f"host={settings.host} port={settings.port} client={client_id}"
        if settings.username:
            self.username_pw_set(settings.username, settings.password)
        self.connect_timeout = settings.timeout_seconds
        self._tls = settings.tls.context() if settings.tls is not None else None
        self.on_connect = self._connected
        self.on_disconnect = self._disconnected
        properties, extra = None, {}
        if self.version5:
            properties = Properties(PacketTypes.CONNECT)
            if persistent:
                properties.SessionExpiryInterval = settings.session_expiry_seconds
                properties.ReceiveMaximum = settings.receive_maximum
            extra = {"clean_start": not persistent, "properties": properties}
        self.connect_async(settings.host, settings.port, keepalive=settings.keepalive_seconds, **extra)

    def close(self) -> None:
        """Send what is queued, take leave of the broker, end the network thread."""
        self._closing.set()
        self.disconnect()
        self.loop_stop()
        self._reset_sockets()  # also the connection, if the thread was about to make it

    # Called by paho on the network thread.

    def established(self, session_present: bool, properties: Properties | None) -> None:
        """The broker has let us in."""

    def lost(self) -> None:
        """The connection is gone."""

    def _connected(self, client: Any, userdata: Any, flags: dict[str, int], code: Any, *rest: Any) -> None:
        if code != 0:
            reason = str(code) if self.version5 else paho.connack_string(code).removeprefix("Connection Refused: ")
            self._word(logging.ERROR, "login refused", f"{self._where} user={self.settings.username!r}", reason)
            return
        session_present = bool(flags["session present"])
        log.info("mqtt connected %s session_present=%s", self._where, str(session_present).lower())
        self.established(session_present, rest[0] if rest else None)

    def _disconnected(self, client: Any, userdata: Any, code: Any, *rest: Any) -> None:
        self.lost()
        if self._closing.is_set():
            log.info("mqtt disconnected %s", self._where)
        elif code != paho.MQTT_ERR_CONN_REFUSED:
            reason = paho.error_string(code) if isinstance(code, int) else str(code)
            self._word(logging.WARNING, "connection lost", self._where, reason)

    def _handle_on_connect_fail(self) -> None:
        self._word(logging.WARNING, "broker not reached", self._where, sys.exc_info()[1])

    def _word(self, level: int, what: str, where: str, reason: Any) -> None:
        """Log what went wrong; the same again only once a minute, or an outage would fill the log."""
        now = time.monotonic()
        if now - self._said.get(what, -_WORD_EVERY_SECONDS) < _WORD_EVERY_SECONDS:
            level = logging.DEBUG
        else:
            self._said[what] = now
        log.log(level, 'mqtt %s %s reason="%s"', what, where, reason)

    def _works(self) -> None:
        """The connection is of use: the next outage is a new one."""
        self._refusals = 0
        self._said.clear()

    def _thread_main(self) -> None:
        self.loop_forever(timeout=_TURN_SECONDS, retry_first_connection=True)

    def loop_misc(self) -> int:
        """Keep the connection alive; ask a broker that is silent, and take it for away if it does not answer."""
        if self._sock is None:
            return int(paho.MQTT_ERR_NO_CONN)
        now, limit = time.monotonic(), self.settings.timeout_seconds
        # If it was this process that stood still, the broker has not been asked yet.
        asked = not self.is_connected() or (self._ping_t and now - self._ping_t >= limit / 3)
        if asked and now - self._last_msg_in >= limit:
            return int(self._loop_rc_handle(paho.MQTT_ERR_KEEPALIVE))
        idle_since = max(self._ping_t, min(self._last_msg_in, self._last_msg_out))
        if self.is_connected() and now - idle_since >= min(limit / 3, self.settings.keepalive_seconds / 2):
            self._send_pingreq()
        return int(paho.MQTT_ERR_SUCCESS)

    def loop_write(self, max_packets: int = 1) -> int:
        """Write what is queued, and note when: paho does that only of a packet which it could not write whole."""
        code = int(super().loop_write(max_packets))
        with self._msgtime_mutex:
            self._last_msg_out = time.monotonic()
        return code

    def _heard(self) -> None:
        with self._msgtime_mutex:
            self._last_msg_in = time.monotonic()

    def _reconnect_wait(self) -> None:
        # Full jitter over the upper half: a fleet of flows must not come back all at once.
        longest = self.settings.reconnect_max_seconds
        delay = min(longest, self.settings.reconnect_min_seconds * 2.0 ** min(self._refusals, 60))
        self._refusals += 1
        self._closing.wait(delay * random.uniform(0.5, 1.0))

    def _create_socket_connection(self) -> Any:
        # paho's own TLS set-up leaks the socket of a failed handshake and waits for the keep-alive time.
        connection = super()._create_socket_connection()
        if self._tls is not None:
            connection.settimeout(self.settings.timeout_seconds)
            connection = self._tls.wrap_socket(connection, server_hostname=self.settings.host)
        self._heard()
        return connection

    def _sock_close(self) -> None:
        # A broker that sees our next connection before it has read the last acknowledgements of this one
        # drops them (Mosquitto does): wait until it has closed its side.
        if self._closing.is_set() and self._sock is not None:
            deadline = time.monotonic() + _FAREWELL_SECONDS
            try:
                self._sock.shutdown(socket.SHUT_WR)
                self._sock.settimeout(_FAREWELL_SECONDS)
                while self._sock.recv(1 << 16) and time.monotonic() < deadline:
                    pass
            except OSError as error:
                log.debug('mqtt farewell %s error="%s"', self._where, error)
        super()._sock_close()

    def _sock_recv(self, size: int) -> Any:
        try:
            return super()._sock_recv(size)
        except (BlockingIOError, ConnectionError):
            raise
        except OSError as error:  # such as a TLS alert, which would end paho's thread
            raise ConnectionResetError(str(error)) from error

    def _sock_send(self, data: bytes) -> Any:
        try:
            return super()._sock_send(data)
        except (BlockingIOError, ConnectionError):
            raise
        except OSError as error:
            raise ConnectionResetError(str(error)) from error
