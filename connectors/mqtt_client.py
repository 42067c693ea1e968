"""The MQTT sessions: paho-mqtt does the protocol, and here is what it lacks.

Lacking are acknowledgement at a time of our choosing, messages in bulk (paho spends about 40 µs on
each), waits with jitter between connection attempts, and a network thread that survives TLS errors.
paho-mqtt 1.6.1 is the last of its line, so the methods overridden here will not move.
"""

import logging
import random
import socket
import ssl
import sys
import threading
import time
import zlib
from typing import Any

import numpy as np
import paho.mqtt.client as paho
from numpy.typing import NDArray
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCodes
from paho.mqtt.subscribeoptions import SubscribeOptions

from voltmill.connectors.mqtt_inbox import Inbox
from voltmill.connectors.mqtt_settings import MqttSettings
from voltmill.kernels.mqtt_packets import BODY, END, MALFORMED, OTHER, POSITION, pubacks

log = logging.getLogger("voltmill.mqtt")

_READ_BYTES = 1 << 18
_READS_PER_TURN = 16  # TLS gives 16 KiB a read; between turns acknowledgements go out
_FAREWELL_SECONDS = 2.0
_HANDSHAKE_SECONDS = 10.0
_PAUSE_SECONDS = 0.1  # how long a full inbox stops the network thread before it sees to the keep-alive


class Session(paho.Client):  # type: ignore[misc]
    """A paho client that keeps trying to connect, and logs what happens."""

    def __init__(self, settings: MqttSettings, client_id: str, *, persistent: bool) -> None:
        self.settings = settings
        self.version5 = settings.protocol == "5"
        self._refusals = 0
        self._closing = threading.Event()
        protocol = paho.MQTTv5 if self.version5 else paho.MQTTv311
        super().__init__(client_id, clean_session=None if self.version5 else not persistent, protocol=protocol)
        self._where = f"host={settings.host} port={settings.port} client={client_id}"
        if settings.username:
            self.username_pw_set(settings.username, settings.password)
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
        self._sock_close()  # still open if the thread was about to connect

    # Called by paho on the network thread.

    def established(self, session_present: bool, properties: Properties | None) -> None:
        """The broker has let us in."""

    def lost(self) -> None:
        """The connection is gone."""

    def _connected(self, client: Any, userdata: Any, flags: dict[str, int], code: Any, *rest: Any) -> None:
        if code != 0:
            reason = str(code) if self.version5 else paho.connack_string(code).removeprefix("Connection Refused: ")
            log.error('mqtt login refused %s user=%r reason="%s"', self._where, self.settings.username, reason)
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
            log.warning('mqtt connection lost %s reason="%s"', self._where, reason)

    def _handle_on_connect_fail(self) -> None:
        log.warning('mqtt broker not reached %s error="%s"', self._where, sys.exc_info()[1])

    def _reconnect_wait(self) -> None:
        # Full jitter over the upper half: a fleet of flows must not come back all at once.
        longest = self.settings.reconnect_max_seconds
        delay = min(longest, self.settings.reconnect_min_seconds * 2.0 ** min(self._refusals, 60))
        self._refusals += 1
        self._closing.wait(delay * random.uniform(0.5, 1.0))

    def _create_socket_connection(self) -> Any:
        # paho's own TLS set-up leaks the socket of a failed handshake and waits for the keep-alive time.
        connection = super()._create_socket_connection()
        if self._tls is None:
            return connection
        connection.settimeout(_HANDSHAKE_SECONDS)
        return self._tls.wrap_socket(connection, server_hostname=self.settings.host)

    def _sock_close(self) -> None:
        # A broker that sees our next connection before it has read the last acknowledgements of this one
        # drops them (Mosquitto does): wait until it has closed its side.
        if self._closing.is_set() and self._sock is not None:
            deadline = time.monotonic() + _FAREWELL_SECONDS
            try:
                self._sock.shutdown(socket.SHUT_WR)
                self._sock.settimeout(_FAREWELL_SECONDS)
                while self._sock.recv(_READ_BYTES) and time.monotonic() < deadline:
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


class Receiver(Session):
    """Subscribes one topic filter with QoS 1 and a persistent session; acknowledges only when told.

    Attributes:
        inbox: where the messages go.
        subscribed: whether the broker has confirmed the subscription.
        failure: what ended the network thread, if anything did.
    """

    def __init__(self, settings: MqttSettings, topic_filter: str, inbox: Inbox) -> None:
        # The name depends on the filter alone, so reordering the filters keeps each with its own session.
        client_id = f"{settings.client_id}-{zlib.crc32(topic_filter.encode()):08x}"
        super().__init__(settings, client_id, persistent=True)
        self._where += f" topic={topic_filter}"
        self.inbox = inbox
        self.failure: BaseException | None = None
        self._filter = topic_filter
        self.subscribed = False
        self._denied = False
        self._connection = 0
        self._open = False
        self._acknowledging = threading.Lock()
        self._buffer = np.empty(_READ_BYTES, np.uint8)
        self._start = self._end = 0
        self.on_subscribe = self._answered

    def acknowledge(self, connection: int, packet_ids: NDArray[np.uint16]) -> None:
        """Send the PUBACKs of messages that came over ``connection``; from any thread.

        If that connection is gone nothing is sent: the broker delivers them once more.
        """
        with self._acknowledging:
            if self._open and connection == self._connection:
                self._packet_queue(paho.PUBACK, pubacks(packet_ids[packet_ids != 0]), 0, 1)

    def close(self) -> None:
        """As in ``Session``; a full inbox does not hold it up."""
        self.inbox.close()
        super().close()

    def established(self, session_present: bool, properties: Properties | None) -> None:
        """Subscribe if the broker does not know us, or if we cannot be sure that it does."""
        with self._acknowledging:
            self._connection += 1
            self._open = True
        self.inbox.new_connection(self._connection)
        if session_present and self.subscribed:
            self._refusals = 0
            return
        self.subscribed = self._denied = False
        if self.version5:  # send retained messages once only
            options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
            self.subscribe(self._filter, options=options)
        else:
            self.subscribe(self._filter, qos=1)

    def lost(self) -> None:
        """Acknowledge no more."""
        with self._acknowledging:
            self._open = False

    def _answered(self, client: Any, userdata: Any, mid: int, granted: Any, *rest: Any) -> None:
        code = granted[0].value if self.version5 else granted[0]
        self.subscribed = code < 0x80
        self._denied = not self.subscribed
        if self.subscribed:
            log.info("mqtt subscribed %s", self._where)
        if self._denied:
            log.error('mqtt subscription refused %s reason="%s"', self._where, granted[0])
        else:
            self._refusals = 0

    def _thread_main(self) -> None:
        try:
            super()._thread_main()
        except BaseException as error:
            self.failure = error
            log.exception("mqtt network thread ended %s", self._where)

    def reconnect(self) -> Any:
        """Connect anew; half a packet of the old connection is of no use."""
        self._start = self._end = 0
        return super().reconnect()

    def loop_read(self, max_packets: int = 1) -> int:
        """Read what the socket holds, as far as the inbox has room."""
        for _ in range(_READS_PER_TURN):
            if self._sock is None:
                return int(paho.MQTT_ERR_NO_CONN)
            if not self.inbox.wait_for_room(_PAUSE_SECONDS):
                # The answer to our ping may stand behind the messages that we leave unread.
                self._ping_t = 0
                self._heard()
                return int(paho.MQTT_ERR_SUCCESS)
            try:
                size = self._sock.recv_into(self._buffer[self._end :].data)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return int(paho.MQTT_ERR_SUCCESS)
            except OSError as error:
                log.warning('mqtt connection broken %s error="%s"', self._where, error)
                size = 0
            if size == 0:
                return int(self._loop_rc_handle(paho.MQTT_ERR_CONN_LOST))
            self._heard()
            self._end += size
            code = self._digest()
            if code != paho.MQTT_ERR_SUCCESS:
                return int(self._loop_rc_handle(code))
        return int(paho.MQTT_ERR_SUCCESS)

    def _heard(self) -> None:
        with self._msgtime_mutex:
            self._last_msg_in = time.monotonic()

    def _digest(self) -> int:
        """Take the complete packets out of the buffer."""
        while True:
            why, cursor = self.inbox.add(self._buffer, self._start, self._end, self.version5)
            self._start = int(cursor[POSITION])
            stop = int(cursor[END])
            if why == MALFORMED:
                return int(paho.MQTT_ERR_PROTOCOL)
            if why != OTHER:
                self._make_room(stop - self._start)
                return int(paho.MQTT_ERR_SUCCESS)
            head, body = int(self._buffer[self._start]), self._buffer[int(cursor[BODY]) : stop].tobytes()
            self._start = stop
            code = self._hand_over(head, body)
            if code != paho.MQTT_ERR_SUCCESS or self._sock is None:
                return code

    def _make_room(self, wanted: int) -> None:
        """Move the rest to the front of a buffer that can take the packet, and a good read besides."""
        rest = self._buffer[self._start : self._end]
        size = _READ_BYTES if wanted <= _READ_BYTES // 2 else wanted + _READ_BYTES // 2
        if size != self._buffer.size and size > self._end - self._start:
            self._buffer = np.empty(size, np.uint8)
        self._buffer[: rest.size] = rest.copy() if rest.size else rest
        self._start, self._end = 0, rest.size

    def _hand_over(self, head: int, body: bytes) -> int:
        """Let paho handle a packet that is no PUBLISH."""
        if head & 0xF0 == paho.DISCONNECT and self.version5:
            reason = ReasonCodes(PacketTypes.DISCONNECT, identifier=body[0] if body else 0)
            log.warning('mqtt broker ends the connection %s reason="%s"', self._where, reason)
            return int(paho.MQTT_ERR_CONN_LOST)
        self._in_packet = {"command": head, "remaining_length": len(body), "packet": bytearray(body), "pos": 0}
        code = int(self._packet_handle())
        if self._denied:  # perhaps the rights are mended later: come again
            self._denied = False
            return int(paho.MQTT_ERR_CONN_REFUSED)
        return code
