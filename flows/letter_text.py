"""A dead letter as text for a terminal, where nothing that a message says can be taken for a command."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa

from voltmill.flows.config import Config
from voltmill.flows.dead_letters import decode_letters, decoder
from voltmill.kernels.schema import DEAD_LETTER
from voltmill.operators.rows import DEVICE_FIELDS


def plain(text: str) -> str:
    r"""Text without control characters: they could move the cursor, or more.

    Example:
        >>> plain("site/\x1b[2Jgw")
        'site/\\x1b[2Jgw'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown_time(time: datetime | None) -> str:
    """A time for people, UTC, to the second; empty if there is none."""
    return "" if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def described(letter: dict[str, Any], redriven: datetime | None) -> Iterator[tuple[str, str]]:
    """Name and text of what is known of a letter, but for its payload."""
    for name in ("stage", "reason", "detail", "topic"):
        if letter[name] is not None:
            yield name, plain(letter[name])
    if letter["ingest_time"] is not None:
        yield "arrived", letter["ingest_time"].astimezone(UTC).isoformat()
    yield "source", plain(f"{letter['source']}, {letter['source_partition']}, {letter['source_offset']}")
    yield "redriven", "no" if redriven is None else redriven.isoformat()
    payload = letter["payload"]
    yield "payload", "none" if payload is None else f"{len(payload)} bytes"


def payload_lines(payload: bytes | None) -> list[str]:
    r"""The payload as text, or as a hex dump if it is none.

    Example:
        >>> payload_lines(b"\xffab")
        ['00000000  ff 61 62                                         .ab']
    """
    if not payload:
        return []
    try:
        return [plain(line.expandtabs()) for line in payload.decode().splitlines()]
    except UnicodeDecodeError:
        return [_dumped(payload, place) for place in range(0, len(payload), 16)]


def verdict(letter: dict[str, Any], config: Config) -> Iterable[str]:
    """What the present configuration makes of a letter of stage decode: its samples, and what is refused still."""
    if letter["stage"] != "decode":
        return
    telemetry, refused = decode_letters(pa.RecordBatch.from_pylist([letter], schema=DEAD_LETTER), decoder(config))
    for row in [] if telemetry is None else telemetry.select(DEVICE_FIELDS).to_pylist():
        values = {name: value for name, value in row.items() if value is not None}
        yield f"{'now':12}a sample: {plain(msgspec.json.encode(values).decode())}"
    for row in [] if refused is None else refused.to_pylist():
        yield f"{'now':12}refused: {row['reason']}: {plain(row['detail'])}"


def _dumped(payload: bytes, place: int) -> str:
    part = payload[place : place + 16]
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)
    return f"{place:08x}  {part.hex(' '):47}  {text}"
