"""The truth of a simulated fleet, written beside the telemetry for scoring.

``messages-NNNNN.parquet`` has one row for each message that was measured, sent or not; key
(``device_id``, ``seq``). ``faults.parquet`` has one row for each lasting fault, ``counts.json`` the
numbers of messages by delivery.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from voltmill.flows.simulated_faults import DELIVERIES, DOUBLED, DROPPED, FAULTS, Episode, Marked
from voltmill.flows.simulated_fleet import PHASES
from voltmill.kernels.schema import LABEL, TIME

ROWS_PER_FILE: Final = 500_000

TRUTH: Final = pa.schema(
    [
        pa.field("device_id", pa.string(), nullable=False),
        pa.field("event_time", TIME, nullable=False),  # the true one
        pa.field("reported_time", TIME, nullable=False),  # event_time in the message: by the device's clock
        pa.field("seq", pa.uint64(), nullable=False),
        pa.field("soc_percent", pa.float32(), nullable=False),  # mean of the cells, each of its own capacity
        pa.field("phase", LABEL, nullable=False),
        pa.field("delivery", LABEL, nullable=False),  # sent, dropped, doubled, malformed:...
        pa.field("fault", LABEL, nullable=False),  # the lasting fault that acts on it; empty: none
    ]
)

FAULT: Final = pa.schema(
    [
        pa.field("device_id", pa.string(), nullable=False),
        pa.field("fault", pa.string(), nullable=False),
        pa.field("from", TIME, nullable=False),  # event time of the first sample with it
        pa.field("to", TIME),  # of the first without it; null: it lasted to the end
        pa.field("cell", pa.int32()),  # index of the cell; null: the whole module
        pa.field("messages", pa.int64(), nullable=False),  # measured with it
    ]
)


class Truth:
    """Collects what happened; ``folder=None`` only counts."""

    def __init__(self, folder: Path | None, device_ids: Sequence[str], start_us: int) -> None:
        self._folder = folder
        self._ids = pa.array(device_ids, pa.string())
        self._device_ids = device_ids
        self._start_us = start_us
        self._batches: list[pa.RecordBatch] = []
        self._files = 0
        self.by_delivery = np.zeros(len(DELIVERIES), np.int64)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def add(self, marked: Marked, rows: int | None = None) -> None:
        """Take down a tick, or its first ``rows`` messages if it was broken off."""
        rows = len(marked.delivery) if rows is None else rows
        self.by_delivery += np.bincount(marked.delivery[:rows], minlength=len(DELIVERIES))
        if self._folder is None or not rows:
            return
        samples = marked.samples
        self._batches.append(
            pa.RecordBatch.from_arrays(
                [
                    self._ids.slice(0, rows),
                    pa.array(self._start_us + samples.elapsed_us[:rows], TIME),
                    pa.array(self._start_us + marked.reported_us[:rows], TIME),
                    pa.array(np.full(rows, samples.seq, np.uint64)),
                    pa.array(samples.soc[:rows].astype(np.float32)),
                    _labels(samples.phase[:rows], PHASES),
                    _labels(marked.delivery[:rows], DELIVERIES),
                    _labels(marked.fault[:rows], FAULTS),
                ],
                schema=TRUTH,
            )
        )
        if sum(b.num_rows for b in self._batches) >= ROWS_PER_FILE:
            self._write()

    def counts(self) -> dict[str, int]:
        """Messages by what happened to them; ``published`` counts the doubled twice."""
        counts = dict(zip(DELIVERIES, self.by_delivery.tolist(), strict=True))
        measured = int(self.by_delivery.sum())
        published = measured - int(self.by_delivery[DROPPED]) + int(self.by_delivery[DOUBLED])
        return {"measured": measured, "published": published, **counts}

    def finish(self, episodes: Sequence[Episode]) -> None:
        """Write what is left, the lasting faults and the counts."""
        if self._folder is None:
            return
        if self._batches or not self._files:
            self._write()
        rows = [self._fault(e) for e in sorted(episodes, key=lambda e: (e.fault, e.from_us, e.module))]
        pq.write_table(pa.Table.from_pylist(rows, schema=FAULT), self._folder / "faults.parquet")
        (self._folder / "counts.json").write_text(json.dumps(self.counts(), indent=1) + "\n")

    def _write(self) -> None:
        assert self._folder is not None
        table = pa.Table.from_batches(self._batches, schema=TRUTH)
        pq.write_table(table, self._folder / f"messages-{self._files:05d}.parquet", compression="zstd")
        self._files += 1
        self._batches.clear()

    def _fault(self, e: Episode) -> dict[str, object]:
        name = FAULTS[e.fault]
        return {
            "device_id": self._device_ids[e.module],
            "fault": name,
            "from": None if e.from_us is None else self._start_us + e.from_us,
            "to": None if e.to_us is None else self._start_us + e.to_us,
            "cell": None if name == "clock_jump" else e.cell,
            "messages": e.messages,
        }


def _labels(index: np.ndarray[tuple[int], np.dtype[np.int8]], names: Sequence[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), pa.array(names, pa.string()))
