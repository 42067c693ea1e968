"""A broker in memory, to the letter of MQTT, and the source's own client wired to it without a network.

What is not acknowledged is sent again after a reconnect, in order, with the DUP flag, under its packet id
(section 4.4); an id is free once it is acknowledged (2.3.1), and given out again, one after the other.
"""

import socket
import struct
import threading
from collections import deque
from typing import Any

import paho.mqtt.client as paho

from voltmill.connectors.mqtt_client import Receiver
from voltmill.connectors.mqtt_delivered import Receipt
from voltmill.connectors.mqtt_inbox import Inbox
from voltmill.connectors.mqtt_settings import MqttSettings

Message = tuple[str, bytes]


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def publish_packet(message: Message, packet_id: int, again: bool, version5: bool) -> bytes:
    topic, payload = message[0].encode(), message[1]
    body = struct.pack("!H", len(topic)) + topic + struct.pack("!H", packet_id) + (b"\0" if version5 else b"")
    return bytes([0x3A if again else 0x32]) + varint(len(body) + len(payload)) + body + payload


class Session:
    """What the broker keeps of one client, and its connection, if there is one.

    Args:
        topic: all that the client has subscribed.
        ids: how many packet ids there are: few, so that they come round.
    """

    def __init__(self, topic: str, ids: int, version5: bool) -> None:
        self.topic, self._ids, self._version5 = topic, ids, version5
        self.queue: deque[Message] = deque()
        self.in_flight: dict[int, Message] = {}
        self._under: dict[int, Message] = {}
        self._last_id = 0
        self._known = False
        self._socket: socket.socket | None = None
        self._incoming, self.outgoing = bytearray(), bytearray()

    @property
    def idle(self) -> bool:
        return not (self.queue or self.in_flight or self.outgoing)

    def connect(self) -> socket.socket:
        """The client's end of a new connection; an older one is closed."""
        self.cut()
        self._socket, other = socket.socketpair()
        self._socket.setblocking(False)
        return other

    def cut(self) -> None:
        """What is under way is lost, both ways."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._incoming.clear()
        self.outgoing.clear()

    def send(self, size: int) -> None:
        """Let so many bytes reach the client."""
        if self._socket is not None:
            self._fill()
            sent = self._socket.send(self.outgoing[:size])
            del self.outgoing[:sent]

    def read(self) -> None:
        """Take what the client has sent."""
        if self._socket is None:
            return
        try:
            while data := self._socket.recv(1 << 16):
                self._incoming += data
        except (BlockingIOError, ConnectionError):
            pass
        while (packet := self._packet()) is not None:
            self._handle(*packet)

    def _packet(self) -> tuple[int, bytes] | None:
        data, length, at = self._incoming, 0, 1
        while at < len(data):
            length |= (data[at] & 0x7F) << (7 * (at - 1))
            at += 1
            if data[at - 1] < 0x80:
                if at + length > len(data):
                    return None
                head, body = data[0], bytes(data[at : at + length])
                del data[: at + length]
                return head, body
        return None

    def _handle(self, head: int, body: bytes) -> None:
        kind, properties = head & 0xF0, b"\0" if self._version5 else b""
        if kind == 0x10:
            answer = bytes([self._known, 0]) + properties
            self.outgoing += bytes([0x20, len(answer)]) + answer
            self._known = True
            for packet_id, message in self.in_flight.items():
                self.outgoing += publish_packet(message, packet_id, True, self._version5)
        elif kind == 0x80:
            answer = body[:2] + properties + b"\x01"
            self.outgoing += bytes([0x90, len(answer)]) + answer
        elif kind == 0xC0:
            self.outgoing += b"\xd0\x00"
        elif kind == 0x40:
            (packet_id,) = struct.unpack("!H", body)
            assert packet_id in self.in_flight, "acknowledged twice: the second one would hit the id's next message"
            del self.in_flight[packet_id]
        else:
            assert kind == 0xE0, f"the source sent a packet of type {kind:#x}"

    def _fill(self) -> None:
        while self._known and self.queue and (packet_id := self._free_id(self.queue[0])):
            message = self.queue.popleft()
            self.in_flight[packet_id] = self._under[packet_id] = message
            self._last_id = packet_id
            self.outgoing += publish_packet(message, packet_id, False, self._version5)

    def _free_id(self, message: Message) -> int:
        """The next free id; 0: there is none.

        An id is not given to the equal of its last message. Nobody could tell those two apart, if both came
        within one epoch; what the source does if they do not is tested elsewhere.
        """
        for step in range(1, self._ids + 1):
            packet_id = (self._last_id + step - 1) % self._ids + 1
            if packet_id not in self.in_flight and self._under.get(packet_id) != message:
                return packet_id
        return 0


class Wire(Receiver):
    """The source's client as it is, but for the network and its thread."""

    def __init__(self, session: Session, settings: MqttSettings, topic_filter: str, inbox: Inbox) -> None:
        super().__init__(settings, topic_filter, inbox)
        self._session = session
        self._turn = 0.0
        self.hidden = False
        inbox._clock = self._clock

    def _clock(self) -> float:
        """Each look at it finds a second gone, so that a batch is due whenever one is asked for."""
        self._turn += 1.0
        return self._turn

    def confirmed(self) -> list[Receipt]:
        return [] if self.hidden else super().confirmed()

    def loop_start(self) -> None:
        self._thread = threading.current_thread()  # so that paho leaves the writing to us

    def loop_stop(self, force: bool = False) -> None:
        self.write()
        self._session.read()

    def _sock_close(self) -> None:
        paho.Client._sock_close(self)  # without waiting for the broker, whose turn comes later

    def _create_socket_connection(self) -> Any:
        self._heard()
        return self._session.connect()

    def exchange(self, size: int) -> None:
        """A turn of both sides, in which at most ``size`` bytes reach the client."""
        if self._sock is None:
            self.reconnect()
        self.write()
        self._session.read()
        self._session.send(size)
        self.loop_read()
        self.write()

    def write(self) -> None:
        if self._sock is not None:
            self.loop_write()

    def cut(self, arrives: bool) -> None:
        """Lose the connection; ``arrives``: what the client has sent reaches the broker before."""
        if arrives:
            self.write()
            self._session.read()
        self._session.cut()
        if self._sock is not None:
            self.loop_read()

    def die(self, arrives: bool) -> None:
        """As ``cut``, and the process is gone as well."""
        if arrives:
            self.write()
            self._session.read()
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._session.cut()
