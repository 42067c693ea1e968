"""The rows that the SOC networks are trained on: random views of measured and simulated records."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from records import Record
from soc_network import NAMES, seen_by_networks
from soc_views import Matrix, disturbed, see, simulated

#: Each network does without one of these: an easy start of the drive (Mixed1, 2, 4, 6) with a hard one.
GROUPS: Final = (("Mixed1", "Mixed3"), ("Mixed2", "Mixed7"), ("Mixed4", "Mixed5"), ("Mixed6", "Mixed8"))
#: How often a row is drawn, up to this ambient temperature, °C: the cold is where the voltage says least.
DRAWS: Final = ((-10, 3), (0, 2), (100, 1))


class Examples(NamedTuple):
    """Rows to learn from."""

    inputs: Matrix
    """What the networks see."""
    truth: Matrix
    """SOC, percent."""
    group: NDArray[np.int64]
    """Index in GROUPS, or -1."""
    draws: NDArray[np.int64]
    """How often the row is drawn."""

    def drawn(self, group: int) -> NDArray[np.int64]:
        """Rows to draw from without a group; a row may stand there more than once."""
        rows = np.flatnonzero(self.group != group)
        return np.repeat(rows, self.draws[rows])


def group_of(record: Record) -> int:
    """Index of the record's group, -1 if it has none."""
    return next((k for k, names in enumerate(GROUPS) if record.name in names), -1)


def examples(records: Sequence[Record], views: int, every_seconds: int, rng: np.random.Generator) -> list[Examples]:
    """Random views of each record, a row about every so many seconds."""
    found = []
    for record in records:
        some = [v for v in (disturbed(record, rng) for _ in range(views)) if len(v) > 5]
        draws = next(n for celsius, n in DRAWS if record.ambient <= celsius)
        for seen in see(some, NAMES):
            stride = max(1, round(every_seconds / float(np.median(seen.interval_seconds[1:]))))
            inputs = seen_by_networks(seen.features[::stride])
            n = len(inputs)
            truth = seen.view.soc[::stride].astype(np.float32)
            found.append(Examples(inputs, truth, np.full(n, group_of(record)), np.full(n, draws)))
    return found


def training_set(records: Sequence[Record], rng: np.random.Generator) -> Examples:
    """Drive cycles above all; pulses, constant discharges and simulated charges for generality."""
    mixed = [r for r in records if r.name.startswith("Mixed")]
    parts = (
        examples(mixed, 30, 5, rng),
        examples([r for r in records if not r.name.startswith("Mixed")], 10, 15, rng),
        examples(simulated(mixed, 120, 6.0, rng), 3, 15, rng),
    )
    print("rows: drive cycles, other records, simulated:", [sum(len(e.truth) for e in part) for part in parts])
    every = [e for part in parts for e in part]
    return Examples(*(np.concatenate(columns) for columns in zip(*every, strict=True)))
