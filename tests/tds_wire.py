"""TDS 7.4 on the wire, as much of it as Microsoft's ODBC driver needs of a server ([MS-TDS])."""

import datetime
import re
import socket
import ssl
import struct
from collections.abc import Sequence
from typing import Any, Final

COLLATION: Final = b"\x09\x04\xd0\x00\x34"
PACKET: Final = 4088
#: Types of messages.
BATCH, RPC, REPLY, TRANSACTION, LOGIN, ATTENTION, PRELOGIN = 0x01, 0x03, 0x04, 0x0E, 0x10, 0x06, 0x12
_EPOCH: Final = datetime.date(1, 1, 1).toordinal()
_PROCEDURES: Final = {10: "sp_executesql", 12: "sp_execute", 13: "sp_prepexec", 15: "sp_unprepare"}


class Wire:
    """Messages over one connection, in the clear or inside of TLS."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._tls: ssl.SSLObject | None = None
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()

    def read(self) -> tuple[int, bytes]:
        """Type and content of the next message."""
        content = b""
        while True:
            kind, status, length = struct.unpack(">BBH4x", self._take(8))
            content += self._take(length - 8)
            if status & 1:
                return kind, content

    def write(self, content: bytes, kind: int = REPLY) -> None:
        packets = []
        while True:
            part, content = content[:PACKET], content[PACKET:]
            packets.append(struct.pack(">BBHHBB", kind, not content, len(part) + 8, 0, 1, 0) + part)
            if not content:
                break
        data = b"".join(packets)
        if self._tls is not None:
            self._tls.write(data)
            data = self._out.read()
        self._socket.sendall(data)

    def encrypt(self, context: ssl.SSLContext) -> None:
        """The handshake goes in messages of its own; what follows is inside of TLS."""
        tls = context.wrap_bio(self._in, self._out, server_side=True)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                if self._out.pending:
                    self.write(self._out.read(), PRELOGIN)
                self._in.write(self.read()[1])
        if self._out.pending:
            self.write(self._out.read(), PRELOGIN)
        self._tls = tls

    def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self._some(count - len(data))
        return data

    def _some(self, count: int) -> bytes:
        while True:
            try:
                found = self._socket.recv(count) if self._tls is None else self._tls.read(count)
            except ssl.SSLWantReadError:
                arrived = self._socket.recv(1 << 16)
                if not arrived:
                    raise ConnectionError from None
                self._in.write(arrived)
                continue
            if not found:
                raise ConnectionError
            return found


def short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode("utf-16-le")


def token(kind: int, content: bytes) -> bytes:
    return struct.pack("<BH", kind, len(content)) + content


def environment(kind: int, new: bytes, old: bytes = b"") -> bytes:
    return token(0xE3, bytes([kind, len(new)]) + new + bytes([len(old)]) + old)


def done(rows: int = 0, *, status: int = 0x10, kind: int = 0xFD) -> bytes:
    return struct.pack("<BHHQ", kind, status, 0xC3, rows)


def error(number: int, message: str, severity: int = 16) -> bytes:
    long = struct.pack("<H", len(message)) + message.encode("utf-16-le")
    return token(
        0xAA, struct.pack("<iBB", number, 1, severity) + long + short("stand-in") + b"\0" + struct.pack("<i", 1)
    )


def prelogin(encrypted: bool, federated: bool) -> bytes:
    values = [b"\x10\0\x03\xe8\0\0", b"\x01" if encrypted else b"\x02", b"\0", b"", b"\0"]
    options = list(enumerate(values)) + ([(6, b"\x01")] if federated else [])
    at, head, body = 5 * len(options) + 1, b"", b""
    for kind, value in options:
        head += struct.pack(">BHH", kind, at + len(body), len(value))
        body += value
    return head + b"\xff" + body


def options(content: bytes) -> dict[int, bytes]:
    """Of a PRELOGIN message."""
    found, at = {}, 0
    while content[at] != 0xFF:
        kind, start, length = struct.unpack_from(">BHH", content, at)
        found[kind] = content[start : start + length]
        at += 5
    return found


def login(content: bytes) -> dict[str, str]:
    """Who logs in to what: of a LOGIN7 message."""

    def text(at: int) -> str:
        start, length = struct.unpack_from("<HH", content, at)
        return content[start : start + 2 * length].decode("utf-16-le")

    hidden = text(44).encode("utf-16-le")
    password = bytes(((b ^ 0xA5) & 0x0F) << 4 | (b ^ 0xA5) >> 4 for b in hidden).decode("utf-16-le")
    found = {"user": text(40), "password": password, "app": text(48), "database": text(68), "token": ""}
    if content[27] & 0x10:
        at = struct.unpack_from("<I", content, struct.unpack_from("<H", content, 56)[0])[0]
        while content[at] != 0xFF:
            kind, length = struct.unpack_from("<BI", content, at)
            if kind == 2:  # FEDAUTH: a byte of options, the length of the token, the token
                size = struct.unpack_from("<I", content, at + 6)[0]
                found["token"] = content[at + 10 : at + 10 + size].decode("utf-16-le")
            at += 5 + length
    return found


def logged_in(*, federated: bool) -> bytes:
    acknowledged = b"\x01\x74\0\0\x04" + short("Microsoft SQL Server") + b"\x10\0\x03\xe8"
    features = b"\x02" + struct.pack("<I", 0) if federated else b""
    database = short("db")
    return (
        token(0xE3, b"\x01" + database + short("master"))
        + environment(7, COLLATION)
        + token(0xAD, acknowledged)
        + token(0xE3, b"\x04" + short("4096") + short("4096"))
        + b"\xae" + features + b"\xff"
        + done()
    )  # fmt: skip


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[Any]]) -> bytes:
    """Rows of columns of ``nvarchar``, ``bigint``, ``real``, ``float`` and ``datetime2``."""
    about = {
        "bigint": b"\x26\x08",
        "real": b"\x6d\x04",
        "float": b"\x6d\x08",
        "datetime2": b"\x2a\x06",
        "nvarchar": b"\xe7" + struct.pack("<H", 8000) + COLLATION,
    }
    out = [b"\x81" + struct.pack("<H", len(columns))]
    out += [struct.pack("<IH", 0, 9) + about[type_] + short(name) for name, type_ in columns]
    for row in rows:
        out.append(b"\xd1")
        out += [_value(value, type_) for value, (_, type_) in zip(row, columns, strict=True)]
    return b"".join(out)


def _value(value: Any, type_: str) -> bytes:
    if value is None:
        return b"\xff\xff" if type_ == "nvarchar" else b"\0"
    if type_ == "nvarchar":
        return struct.pack("<H", 2 * len(value.encode("utf-16-le")) // 2) + value.encode("utf-16-le")
    if type_ == "datetime2":
        when = datetime.datetime.fromisoformat(value)
        seconds = (when.hour * 60 + when.minute) * 60 + when.second
        days = when.toordinal() - _EPOCH
        return b"\x08" + (seconds * 10**6 + when.microsecond).to_bytes(5, "little") + days.to_bytes(3, "little")
    packed: bytes = struct.pack(
        {"bigint": "<Bq", "real": "<Bf", "float": "<Bd"}[type_], 4 if type_ == "real" else 8, value
    )
    return packed


def calls(content: bytes) -> list[tuple[str, list[Any]]]:
    """Procedures and parameters of an RPC message."""
    at, found = 0, []
    while at < len(content):
        (length,) = struct.unpack_from("<H", content, at)
        if length == 0xFFFF:
            number = struct.unpack_from("<H", content, at + 2)[0]
            name, at = _PROCEDURES.get(number, str(number)), at + 4
        else:
            name, at = content[at + 2 : at + 2 + 2 * length].decode("utf-16-le"), at + 2 + 2 * length
        at += 2
        values = []
        while at < len(content) and content[at] not in (0x80, 0xFE, 0xFF):
            at += 2 + 2 * content[at]  # its name, and whether it goes out
            value, at = _parameter(content, at)
            values.append(value)
        at += 1
        found.append((name, values))
    return found


def _parameter(content: bytes, at: int) -> tuple[Any, int]:
    kind = content[at]
    if kind == 0x26:
        length = content[at + 2]
        data = content[at + 3 : at + 3 + length]
        return (int.from_bytes(data, "little", signed=True) if length else None), at + 3 + length
    assert kind == 0xE7, f"a parameter of type {kind:#x}"
    (most,) = struct.unpack_from("<H", content, at + 1)
    at += 8
    if most != 0xFFFF:
        (length,) = struct.unpack_from("<H", content, at)
        return content[at + 2 : at + 2 + length].decode("utf-16-le"), at + 2 + length
    data, at = b"", at + 8
    while length := struct.unpack_from("<I", content, at)[0]:
        data, at = data + content[at + 4 : at + 4 + length], at + 4 + length
    return data.decode("utf-16-le"), at + 4


def handle(number: int) -> bytes:
    """The number of a prepared statement, as an output parameter."""
    return b"\xac" + struct.pack("<HBBIH", 0, 0, 1, 0, 0) + b"\x26\x04\x04" + struct.pack("<i", number)


def names(text: str) -> list[str]:
    """The names in brackets of a piece of T-SQL, without the schema's."""
    return re.findall(r"\[(?!dbo\])(\w+)\]", text)
