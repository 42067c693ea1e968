"""decode: raw batches in; telemetry out, and what could not be understood as dead letters.

Every payload is accounted for: each of its samples is a row of telemetry or a dead letter with its
reason and its own bytes, in the order of arrival. Nothing is raised because of what a message says.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import bytewax.operators as op
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from bytewax.dataflow import Stream, operator

from voltmill.kernels.schema import DEAD_LETTER, TELEMETRY, label
from voltmill.operators import rows
from voltmill.operators.framing import split
from voltmill.operators.sample import DecodeSettings, Mapper, Refused, from_json

_LINEAGE: Final = ("ingest_time", "source", "source_partition", "source_offset")
#: Longest detail of a dead letter, characters: it quotes messages, and those can be long.
_MAX_DETAIL: Final = 500

Batches = tuple[pa.RecordBatch | None, pa.RecordBatch | None]
"""Telemetry and dead letters; None where there are none."""


class Decoder:
    """Turns ``RAW`` batches into ``TELEMETRY`` and ``DEAD_LETTER`` batches.

    Args:
        settings: What is taken.
        mapper: Reads another dialect; None reads canonical JSON.
        keep_payload: Fill the ``payload`` column: with the message, also if it holds many samples.
        scan: Scan what can be scanned. Off, the rows are the same, later.

    Example:
        >>> text = b'{"device_id": "gw/m", "event_time": 1795341605, "current_ampere": -1.5,'
        >>> text += b' "cell_voltage_volt": [3.6], "cell_temperature_celsius": [25]}'
        >>> from voltmill.kernels.schema import RAW
        >>> message = {"ingest_time": 0, "source": "mqtt", "source_partition": "site/#", "source_offset": 0}
        >>> raw = pa.RecordBatch.from_pylist([message | {"payload": p} for p in (text, b"what?")], schema=RAW)
        >>> telemetry, dead_letters = Decoder(DecodeSettings())(raw)
        >>> telemetry["device_id"].to_pylist(), dead_letters["reason"].to_pylist()
        (['gw/m'], ['malformed_json'])
    """

    def __init__(
        self,
        settings: DecodeSettings,
        *,
        mapper: Mapper | None = None,
        keep_payload: bool = False,
        scan: bool = True,
    ) -> None:
        self._settings = settings
        self._zone = settings.zone()
        self._mapper = mapper
        self._keep_payload = keep_payload
        self._scanner = rows.Scanner(settings) if scan and mapper is None else None

    def __call__(self, raw: pa.RecordBatch) -> Batches:
        """Decode one batch of ``RAW``."""
        payloads = raw.column("payload")
        taken, scanned = self._scan(payloads)
        found = rows.Gathered()
        found.add_rows(scanned, np.flatnonzero(taken))
        if not taken.all():
            topics = raw.column("topic")
            for row in np.flatnonzero(~taken).tolist():
                self._message(row, payloads[row].as_py() or b"", topics[row].as_py(), found)
            self._elements(found)
        found.add_samples()
        return self._telemetry(raw, found), self._dead_letters(raw, found)

    def _scan(self, payloads: Any) -> tuple[npt.NDArray[np.bool_], rows.Arrays]:
        if self._scanner is None:
            return np.zeros(len(payloads), np.bool_), {}
        return self._scanner.scan(payloads)

    def _message(self, row: int, payload: bytes, topic: str | None, found: rows.Gathered) -> None:
        """One payload that was not scanned."""
        try:
            if self._mapper is not None:
                samples, rejected = self._mapper.samples(payload, topic)
                found.samples += [(row, element, sample) for element, sample in enumerate(samples)]
                found.rejected += [(row, element, each) for element, each in enumerate(rejected)]
                return
            if len(payload) > self._settings.max_payload_bytes:
                limit = self._settings.max_payload_bytes
                raise Refused("too_large", f"{len(payload)} bytes, at most {limit} are taken")
            texts = split(payload)
        except Exception as error:
            found.reject(row, 0, payload, error)
            return
        if len(texts) == 1:
            self._object(row, 0, texts[0], payload, found)
        else:
            found.texts += [(row, element, text) for element, text in enumerate(texts)]

    def _elements(self, found: rows.Gathered) -> None:
        """The elements of all arrays and lines, scanned as if they had been messages of their own."""
        if not found.texts:
            return
        taken, scanned = self._scan(pa.array([text for _, _, text in found.texts], pa.binary()))
        places = np.array([place[:2] for place in found.texts], np.int64)
        found.add_rows(scanned, places[taken, 0], places[taken, 1])
        for i in np.flatnonzero(~taken).tolist():
            row, element, text = found.texts[i]
            self._object(row, element, text, text, found)

    def _object(self, row: int, element: int, text: bytes, payload: bytes, found: rows.Gathered) -> None:
        try:
            found.samples.append((row, element, from_json(text, self._settings, self._zone)))
        except Exception as error:
            found.reject(row, element, payload, error)

    def _telemetry(self, raw: pa.RecordBatch, found: rows.Gathered) -> pa.RecordBatch | None:
        if not found.sets:
            return None
        arrays, from_rows, bits = found.in_order()
        lineage = raw
        if len(from_rows) != raw.num_rows or (np.diff(from_rows) != 1).any():
            lineage = raw.take(pa.array(from_rows))
        columns = arrays | {name: lineage.column(name) for name in _LINEAGE}
        size = len(from_rows)
        columns["payload"] = lineage.column("payload") if self._keep_payload else pa.nulls(size, pa.binary())
        columns["quality_bits"] = pa.array(bits)
        return pa.RecordBatch.from_arrays([columns[name] for name in TELEMETRY.names], schema=TELEMETRY)

    def _dead_letters(self, raw: pa.RecordBatch, found: rows.Gathered) -> pa.RecordBatch | None:
        if not found.rejected:
            return None
        rejected = sorted(found.rejected, key=lambda each: each[:2])
        letters = [each for _, _, each in rejected]
        lineage = raw.take(pa.array([row for row, _, _ in rejected], pa.int64()))
        columns = {name: lineage.column(name) for name in (*_LINEAGE, "topic")}
        columns["payload"] = pa.array([each.payload for each in letters], pa.binary())
        columns["reason"] = pa.array([each.reason for each in letters], pa.string()).dictionary_encode()
        columns["detail"] = pa.array([_one_line(each.detail) for each in letters], pa.string())
        columns["stage"] = label("decode", len(letters))
        return pa.RecordBatch.from_arrays([columns[name] for name in DEAD_LETTER.names], schema=DEAD_LETTER)


def _one_line(detail: str) -> str:
    """A detail that a table can hold: valid UTF-8, not a whole message."""
    return detail[:_MAX_DETAIL].encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class DecodeOut:
    """The two ways out of ``decode``."""

    telemetry: Stream[pa.RecordBatch]
    """``TELEMETRY`` batches; of ``quality_bits`` only ``UNIT_CONVERTED`` may be set."""
    dead_letters: Stream[pa.RecordBatch]
    """``DEAD_LETTER`` batches."""


@operator
def decode(
    step_id: str,
    up: Stream[pa.RecordBatch],
    *,
    settings: DecodeSettings,
    mapper: Mapper | None = None,
    keep_payload: bool = False,
    observe: Callable[[float], None] = lambda _: None,
) -> DecodeOut:
    """Decode messages.

    Args:
        step_id: Unique id of the step.
        up: ``RAW`` batches.
        settings: What is taken.
        mapper: Reads a dialect; None reads canonical JSON.
        keep_payload: Fill the ``payload`` column.
        observe: Called with the seconds that each batch took.

    Returns:
        Telemetry and dead letters. Each sample of each message is in one of them, once; rows keep the
        order of arrival. A batch without any gives none. Stateless.

    Example:
        >>> from bytewax.dataflow import Dataflow
        >>> from voltmill.kernels.schema import RAW
        >>> from bytewax.testing import TestingSink, TestingSource, run_main
        >>> message = {"payload": b"what?", "ingest_time": 0, "source": "mqtt", "source_partition": "site/#"}
        >>> batch = pa.RecordBatch.from_pylist([message | {"source_offset": 7}], schema=RAW)
        >>> flow, letters = Dataflow("site"), []
        >>> out = decode("decode", op.input("raw", flow, TestingSource([batch])), settings=DecodeSettings())
        >>> op.output("letters", out.dead_letters, TestingSink(letters))
        >>> run_main(flow)
        >>> letters[0].select(["reason", "source_offset"]).to_pylist()
        [{'reason': 'malformed_json', 'source_offset': 7}]
    """
    decoder = Decoder(settings, mapper=mapper, keep_payload=keep_payload)

    def run(raw: pa.RecordBatch) -> Batches:
        begin = time.perf_counter()
        batches = decoder(raw)
        observe(time.perf_counter() - begin)
        return batches

    both = op.map("run", up, run)
    return DecodeOut(
        op.filter_map("telemetry", both, lambda batches: batches[0]),
        op.filter_map("dead_letters", both, lambda batches: batches[1]),
    )
