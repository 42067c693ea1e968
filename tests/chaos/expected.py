"""What must be stored, by the ledger alone: the rows and dead letters of everything that was published."""

from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chaos.arrays import Bools, Ints, column, keys
from chaos.ledger import Ledger
from voltmill.flows.warm_up import raw_batch
from voltmill.operators.decode import Decoder
from voltmill.operators.sample import DecodeSettings

_CHUNK: Final = 20_000


class Group(msgspec.Struct, frozen=True):
    """Things that may come more than once, each of them with how often."""

    least: Ints
    """How often the broker confirmed it: so often it must be there."""
    most: Ints
    """How often it may have reached the broker."""


class Expected(msgspec.Struct, frozen=True):
    """What must be stored."""

    devices: pa.Array
    telemetry: pa.Table
    """One row a sample, ordered by ``keys``; of copies the first."""
    keys: Ints
    """Device and counter of each row, sorted."""
    rows: Group
    """How often each of them was sent."""
    letters: dict[bytes, tuple[int, int]]
    """Payload of each dead letter → at least and at most how often."""


def expected(ledger: Ledger) -> Expected:
    """Decode everything that was published."""
    decoder = Decoder(DecodeSettings())
    telemetry, letters = [], []
    for begin in range(0, len(ledger.payload), _CHUNK):
        raw = raw_batch(ledger.payload.slice(begin, _CHUNK).to_pylist(), offset=begin)
        good, bad = decoder(raw)
        telemetry += [good] if good is not None else []
        letters += [bad] if bad is not None else []
    table = pa.Table.from_batches(telemetry)
    devices = pc.unique(column(table, "device_id"))
    every = keys(table, devices, "seq")
    order = np.argsort(every, kind="stable")
    unique, first = np.unique(every[order], return_index=True)
    entries = column(table, "source_offset").to_numpy()[order]
    return Expected(
        devices=devices,
        telemetry=table.take(pa.array(order[first])),
        keys=unique,
        rows=_grouped(ledger, entries, first),
        letters=_letters(ledger, letters),
    )


def _grouped(ledger: Ledger, entries: Ints, first: Ints) -> Group:
    confirmed = ledger.confirmed[entries].astype(np.int64)
    return Group(np.add.reduceat(confirmed, first), np.add.reduceat(ledger.attempts[entries], first))


def _letters(ledger: Ledger, batches: list[pa.RecordBatch]) -> dict[bytes, tuple[int, int]]:
    found: dict[bytes, tuple[int, int]] = {}
    for batch in batches:
        payloads, entries = batch.column("payload").to_pylist(), batch.column("source_offset").to_pylist()
        for payload, entry in zip(payloads, entries, strict=True):
            least, most = found.get(payload, (0, 0))
            found[payload] = (least + int(ledger.confirmed[entry]), most + int(ledger.attempts[entry]))
    return found


def accepted(quality_bits: Ints, refused: int) -> Bools:
    """Rows that get predictions."""
    return (quality_bits & refused) == 0
