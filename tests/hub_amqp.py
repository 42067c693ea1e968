"""The AMQP side of the hub stand-in: one connection of a consumer, its login, its links."""

import asyncio
import base64
import hashlib
import hmac
import re
import struct
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from amqp import (
    ACCEPTED,
    APPLICATION,
    ATTACH,
    BEGIN,
    CLOSE,
    DELIVERY_ANNOTATIONS,
    DETACH,
    DISPOSITION,
    END,
    ERROR,
    FLOW,
    OPEN,
    PROPERTIES,
    SASL,
    SASL_MECHANISMS,
    SASL_OUTCOME,
    SOURCE,
    TARGET,
    TRANSFER,
    VALUE,
    Described,
    Message,
    Symbol,
    decode,
    encode,
    frame,
    message,
    sint,
    timestamp,
    transfers,
    ubyte,
    uint,
    ulong,
    ushort,
)
from hub_partitions import Hub, Partition

_WIDE = 2**31 - 1
_NODES = ("$cbs", "$management")


@dataclass
class Access:
    """Who may read.

    Attributes:
        keys: SAS keys by policy name.
        tokens: Entra tokens, and whether the role that may read is theirs.
        groups: consumer groups.
    """

    keys: Mapping[str, str]
    tokens: Mapping[str, bool]
    groups: tuple[str, ...]

    def refusal(self, token: str) -> str | None:
        """Why a token is no good; None: it is one. Whether it may read shows when it does."""
        if not token.startswith("SharedAccessSignature "):
            return None if token in self.tokens else "InvalidIssuer: Token issuer is invalid."
        parts = dict(part.split("=", 1) for part in token.partition(" ")[2].split("&"))
        key = self.keys.get(unquote(parts["skn"]), "")
        digest = hmac.digest(key.encode(), f"{parts['sr']}\n{parts['se']}".encode(), hashlib.sha256)
        if not key or base64.b64encode(digest).decode() != unquote(parts["sig"]):
            return "InvalidSignature: The token has an invalid signature."
        return None

    def may_read(self, token: str) -> bool:
        return self.tokens.get(token, token.startswith("SharedAccessSignature "))


@dataclass(eq=False)
class Link:
    """One link of a session: of a reader, or of requests and their answers."""

    connection: "Connection"
    channel: int
    handle: int
    node: str
    to_client: bool
    credit: int = 0
    sent: int = 0
    received: bytes = b""
    delivery: int = 0
    group: str = ""
    partition: int = -1
    epoch: int | None = None
    position: int = 0
    tells_last: bool = False


@dataclass(eq=False)
class Readers:
    """What the connections share: the hub, who may read it and who does, and what was counted."""

    hub: Hub
    access: Access
    links: list[Link] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    positions: list[str] = field(default_factory=list)
    """The selectors that readers asked for, in turn."""
    silent: bool = False
    """Whether connections are left without a sign of life, as by a network that has forgotten them."""

    def pump(self) -> None:
        for link in list(self.links):
            link.connection.pump(link)


class Connection:
    """Serves one client until it leaves or is dropped."""

    def __init__(self, shared: Readers, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._shared = shared
        self._reader = reader
        self._writer = writer
        self._links: dict[tuple[int, int], Link] = {}
        self._deliveries: Counter[int] = Counter()
        self._token = ""
        self._open = True
        self._alive: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        try:
            header = await self._reader.readexactly(8)
            if header[4] == 3:
                await self._log_in()
            self._writer.write(b"AMQP\x00\x01\x00\x00")
            while self._open:
                self._heed(*await self._frame())
                await self._writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client has gone, or was dropped
        finally:
            self._open = False
            if self._alive is not None:
                self._alive.cancel()
            self._forget(self._links.values())
            self._writer.close()

    def abort(self) -> None:
        """Cut the connection as a network does."""
        self._open = False
        self._writer.transport.abort()

    async def _log_in(self) -> None:
        """SASL is a formality: what counts is the token that is put to ``$cbs``."""
        self._writer.write(b"AMQP\x03\x01\x00\x00")
        self._writer.write(frame(0, SASL_MECHANISMS, [Symbol("ANONYMOUS")], kind=SASL))
        await self._frame()
        self._writer.write(frame(0, SASL_OUTCOME, [ubyte(0)], kind=SASL))
        await self._reader.readexactly(8)

    async def _frame(self) -> tuple[int, int, list[Any], bytes]:
        size, data_offset, _, channel = struct.unpack(">IBBH", await self._reader.readexactly(8))
        body = (await self._reader.readexactly(size - 8))[4 * data_offset - 8 :]
        if not body:
            return channel, 0, [], b""  # sign of life
        performative, at = decode(body)
        return channel, performative.code, performative.value + [None] * (14 - len(performative.value)), body[at:]

    def _send(self, channel: int, code: int, fields: list[Any]) -> None:
        self._writer.write(frame(channel, code, fields))

    def _heed(self, channel: int, code: int, fields: list[Any], payload: bytes) -> None:
        if code == OPEN:
            product = {Symbol("product"): "hub-stand-in"}
            limits = [uint(65_536), ushort(255), uint(240_000)]
            self._send(0, OPEN, ["hub", None, *limits, None, None, None, None, product])
            if fields[4]:
                self._show_life(fields[4] / 2000)
        elif code == BEGIN:
            self._send(channel, BEGIN, [ushort(channel), uint(0), uint(_WIDE), uint(_WIDE), uint(4095), None, None, {}])
        elif code == ATTACH:
            self._attach(channel, fields)
        elif code == FLOW and fields[4] is not None:
            link = self._links.get((channel, fields[4]))
            if link is not None and link.to_client:
                link.credit = (fields[5] or 0) + (fields[6] or 0) - link.sent
                self.pump(link)
        elif code == TRANSFER:
            self._receive(self._links[channel, fields[0]], fields, payload)
        elif code == DETACH:
            self._forget([self._links.pop((channel, fields[0]), None)])
            self._send(channel, DETACH, [uint(fields[0]), True, None])
        elif code == END:
            self._forget(link for link in self._links.values() if link.channel == channel)
            self._send(channel, END, [None])
        elif code == CLOSE:
            self._send(0, CLOSE, [None])
            self._open = False

    def _show_life(self, seconds: float) -> None:
        """Send an empty frame now and then, as a client asks that takes silence for an end (part 2, section 2.4.5)."""
        if self._shared.silent:
            return
        self._writer.write(struct.pack(">IBBH", 8, 2, 0, 0))
        self._alive = asyncio.get_running_loop().call_later(seconds, self._show_life, seconds)

    def _forget(self, links: Iterable[Link | None]) -> None:
        for link in list(links):
            if link in self._shared.links:
                self._shared.links.remove(link)

    def _attach(self, channel: int, fields: list[Any]) -> None:
        name, handle, to_client = fields[0], fields[1], bool(fields[2])
        source = fields[5].value if fields[5] else [None]
        target = fields[6].value if fields[6] else [None]
        node = str((source if to_client else target)[0])
        link = self._links[channel, handle] = Link(self, channel, handle, node, to_client)
        ends = [Described(SOURCE, [source[0]] + [None] * 10), Described(TARGET, [target[0]] + [None] * 6)]
        settle = [ubyte(fields[3] or 0), ubyte(fields[4] or 0)]
        counts = [None, None, uint(0) if to_client else None, ulong(1 << 20), None, None, {}]
        self._send(channel, ATTACH, [name, uint(handle), not to_client, *settle, *ends, *counts])
        if not to_client:
            self._grant(link)
        elif node not in _NODES:
            self._begin_reading(link, source, fields)

    def _grant(self, link: Link) -> None:
        """Let the client send requests."""
        window = [uint(0), uint(_WIDE), uint(0), uint(_WIDE)]
        self._send(link.channel, FLOW, [*window, uint(link.handle), uint(link.sent), uint(100), None, None, False])

    def _begin_reading(self, link: Link, source: list[Any], fields: list[Any]) -> None:
        shared = self._shared
        name = re.escape(shared.hub.name)
        match = re.search(rf"(?:^|/){name}/ConsumerGroups/([^/]+)/Partitions/(\d+)$", link.node)
        if match is None or match[1] not in shared.access.groups:
            shown = match[1] if match else link.node
            self.detach(link, "amqp:not-found", f"The messaging entity '{shown}' could not be found.")
            return
        if not shared.access.may_read(self._token):
            text = "Unauthorized access. 'Listen' claim(s) are required to perform this operation."
            self.detach(link, "amqp:unauthorized-access", text)
            return
        link.group, link.partition = match[1], int(match[2])
        link.epoch = (fields[13] or {}).get("com.microsoft:epoch")
        link.tells_last = "com.microsoft:enable-receiver-runtime-metric" in (fields[12] or [])
        for other in [o for o in shared.links if (o.group, o.partition) == (link.group, link.partition)]:
            if link.epoch is not None and (other.epoch is None or other.epoch <= link.epoch):
                text = f"New receiver with higher epoch of '{link.epoch}' is created."
                other.connection.detach(other, "amqp:link:stolen", text)
                shared.counted["stolen"] += 1
            elif other.epoch is not None:
                text = f"At least one receiver for the endpoint is created with epoch of '{other.epoch}'."
                self.detach(link, "amqp:link:stolen", text)
                return
        filters = (source[7] if len(source) > 7 else None) or {}
        selector = next((f.value if isinstance(f, Described) else f for f in filters.values()), "")
        link.position = shared.hub.partitions[link.partition].start(selector)
        shared.positions.append(f"{link.partition} {selector}")
        shared.links.append(link)
        shared.counted["attached"] += 1

    def detach(self, link: Link, condition: str, text: str) -> None:
        """End a link with an error."""
        self._forget([self._links.pop((link.channel, link.handle), None)])
        self._send(link.channel, DETACH, [uint(link.handle), True, Described(ERROR, [Symbol(condition), text, None])])

    def pump(self, link: Link) -> None:
        """Send a reader what it has credit for."""
        if link not in self._shared.links or self._writer.transport.is_closing():
            return
        with self._shared.hub.lock:
            held = self._shared.hub.partitions[link.partition]
            link.position = max(link.position, held.first)
            start = link.position - held.first
            events = held.events[start : start + max(0, link.credit)]
            prefix = _last(held) if link.tells_last and events else b""
        link.position += len(events)
        self._writer.write(b"".join(self._deliver(link, prefix + event.encoded) for event in events))
        self._shared.counted["sent"] += len(events)

    def _deliver(self, link: Link, payload: bytes) -> bytes:
        """A message as it goes over the link."""
        delivery = self._deliveries[link.channel]
        self._deliveries[link.channel] += 1
        link.sent += 1
        link.credit -= 1
        return transfers(link.channel, link.handle, delivery, payload)

    def _receive(self, link: Link, fields: list[Any], payload: bytes) -> None:
        """A request, perhaps in several frames."""
        link.received += payload
        link.delivery = link.delivery if fields[1] is None else fields[1]
        if fields[5]:
            return
        asked, link.received = message(link.received), b""
        number = uint(link.delivery)
        self._send(link.channel, DISPOSITION, [True, number, number, True, Described(ACCEPTED, []), None])
        link.sent += 1
        self._grant(link)
        self._shared.counted[link.node] += 1
        status, text, value = self._put_token(asked) if link.node == "$cbs" else self._properties(asked)
        self._answer(link, asked, status, text, value)

    def _put_token(self, asked: Message) -> tuple[int, str, Any]:
        self._token = str(asked.value)
        refusal = self._shared.access.refusal(self._token)
        return (401, refusal, None) if refusal else (202, "Accepted", None)

    def _properties(self, asked: Message) -> tuple[int, str, Any]:
        """Of the hub, or of one of its partitions."""
        hub, wanted = self._shared.hub, asked.application
        if self._shared.access.refusal(token := str(wanted["security_token"])) or not self._shared.access.may_read(
            token
        ):
            return 401, "Unauthorized access. 'Listen' claim(s) are required to perform this operation.", None
        if wanted["name"] != hub.name:
            return 404, f"The messaging entity '{wanted['name']}' could not be found.", None
        with hub.lock:
            if wanted["type"] == "com.microsoft:eventhub":
                ids = tuple(str(number) for number in range(len(hub.partitions)))
                about = {"created_at": timestamp(0), "partition_count": sint(len(ids)), "partition_ids": ids}
            else:
                about = _about(hub.partitions[int(wanted["partition"])]) | {"partition": wanted["partition"]}
        return 200, "OK", {"name": hub.name, "type": wanted["type"], **about}

    def _answer(self, link: Link, asked: Message, status: int, text: str, value: Any) -> None:
        back = next(other for other in self._links.values() if other.to_client and other.node == link.node)
        asked_id = asked.properties[0]
        number = ulong(asked_id) if isinstance(asked_id, int) else asked_id
        sections = [
            Described(PROPERTIES, [None] * 5 + [number] + [None] * 7),
            Described(APPLICATION, {"status-code": sint(status), "status-description": text}),
            Described(VALUE, value),
        ]
        self._writer.write(self._deliver(back, b"".join(map(encode, sections))))


def _about(held: Partition) -> dict[str, Any]:
    last = held.events[-1] if held.events else None
    return {
        "begin_sequence_number": held.first if last else 0,
        "last_enqueued_sequence_number": held.end - 1,
        "last_enqueued_offset": str(last.offset if last else -1),
        "last_enqueued_time_utc": timestamp(last.enqueued_ms if last else 0),
        "is_partition_empty": last is None,
    }


def _last(held: Partition) -> bytes:
    """What a reader is told of the partition with each event, if it asks for that."""
    last = held.events[-1]
    annotations = {
        Symbol("last_enqueued_sequence_number"): last.sequence,
        Symbol("last_enqueued_offset"): str(last.offset),
        Symbol("last_enqueued_time_utc"): timestamp(last.enqueued_ms),
        Symbol("runtime_info_retrieval_time_utc"): timestamp(int(time.time() * 1000)),
    }
    return encode(Described(DELIVERY_ANNOTATIONS, annotations))
