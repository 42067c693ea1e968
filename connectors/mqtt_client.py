"""The MQTT session of a source: acknowledges when it is told to, and takes messages in bulk.

paho-mqtt acknowledges by itself and spends about 40 µs on a message; so PUBLISH packets are cut from the
socket's bytes by a kernel, and everything else is left to paho.
"""

import logging
import ssl
import threading
import zlib
from collections import deque
from typing import Any

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCodes
from paho.mqtt.subscribeoptions import SubscribeOptions

from voltmill.connectors.mqtt_delivered import Receipt
from voltmill.connectors.mqtt_inbox import Inbox
from voltmill.connectors.mqtt_session import Session
from voltmill.connectors.mqtt_settings import MqttSettings
from voltmill.kernels.mqtt_packets import BODY, END, MALFORMED, OTHER, POSITION, pubacks

log = logging.getLogger("voltmill.mqtt")

_READ_BYTES = 1 << 18
_READS_PER_TURN = 16  # TLS gives 16 KiB a read; between turns acknowledgements go out
_PINGREQ = b"\xc0\x00"
_PAUSE_SECONDS = 0.1  # how long a full inbox stops the network thread before it sees to the keep-alive


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
        self._asked: deque[Receipt | None] = deque()  # one for each PINGREQ under way
        self._confirmed: deque[Receipt] = deque()
        self._buffer = np.empty(_READ_BYTES, np.uint8)
        self._start = self._end = 0
        self.on_subscribe = self._answered

    def acknowledge(self, receipt: Receipt) -> None:
        """Send the PUBACKs, and a ping behind them; from any thread.

        If their connection is gone nothing is sent: the broker delivers the messages once more.
        """
        with self._acknowledging:
            if self._open and receipt.connection == self._connection and receipt.packet_ids.size:
                self._asked.append(receipt)
                self._packet_queue(paho.PUBACK, pubacks(receipt.packet_ids) + _PINGREQ, 0, 1)

    def confirmed(self) -> list[Receipt]:
        """Receipts whose PUBACKs the broker has read since the last call: it answered the ping behind them."""
        return [self._confirmed.popleft() for _ in range(len(self._confirmed))]

    def close(self) -> None:
        """As in ``Session``; a full inbox does not hold it up."""
        self.inbox.close()
        super().close()

    def established(self, session_present: bool, properties: Properties | None) -> None:
        """Subscribe if the broker does not know us, or if we cannot be sure that it does."""
        with self._acknowledging:
            self._connection += 1
            self._open = True
            self._asked.clear()
        self.inbox.new_connection(self._connection)
        if session_present and self.subscribed:
            self._works()
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
            self._works()
        else:
            self._word(logging.ERROR, "subscription refused", self._where, granted[0])

    def _send_pingreq(self) -> Any:
        with self._acknowledging:
            self._asked.append(None)
            return super()._send_pingreq()

    def _handle_pingresp(self) -> Any:
        if self._asked and (receipt := self._asked.popleft()) is not None:
            self._confirmed.append(receipt)
        return super()._handle_pingresp()

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
                self._word(logging.WARNING, "connection broken", self._where, error)
                size = 0
            if size == 0:
                return int(self._loop_rc_handle(paho.MQTT_ERR_CONN_LOST))
            self._heard()
            self._end += size
            code = self._digest()
            if code != paho.MQTT_ERR_SUCCESS:
                return int(self._loop_rc_handle(code))
        return int(paho.MQTT_ERR_SUCCESS)

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
