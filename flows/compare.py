"""How two sets of predictions differ, by device and by target, to the bit.

Rows are matched by device, time, target and model, or, where the sets are of different models, by the
pairs that ``pair_models`` makes. All is compared but ``mode``, which says where a prediction was made,
not what it is. Values are compared as bit patterns, so that not even the sign of a zero may differ;
between two models, their names and digests are not compared, and no row is identical.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import datetime

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.lake_range import EventRange
from voltmill.connectors.lake_reader import read_batches, read_table
from voltmill.flows.compare_result import Comparison, Report
from voltmill.flows.compare_spill import COMPARED, PARTS, Encoder, Spill, check_columns
from voltmill.flows.compare_tally import Tally, pair_models
from voltmill.operators.patterns import DevicePatterns

__all__ = ["Comparison", "Report", "Selection", "compare", "compare_lakes", "read"]


class Selection(msgspec.Struct, frozen=True):
    """Which predictions are compared."""

    start: datetime | None = None
    """First event time; None: from the first one."""
    stop: datetime | None = None
    """Event time to stop before; None: to the last one."""
    devices: tuple[str, ...] = ()
    """Patterns on ``device_id``; none: all devices."""
    targets: tuple[str, ...] = ()
    """Targets, such as soc; none: all."""


def read(folder: str | LakeSettings) -> pa.Table:
    """The predictions of a lake, in order of arrival; for sets that fit into memory."""
    return read_table(folder, "predictions", COMPARED)


def compare(left: pa.Table, right: pa.Table) -> Comparison:
    """What differs between two tables of ``read``, in all."""
    return report(left.to_batches(), right.to_batches()).total


def compare_lakes(
    left: LakeSettings,
    right: LakeSettings,
    selection: Selection | None = None,
    *,
    tolerance: float | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Report:
    """Compare the predictions of two lakes, of any size, in bounded memory.

    Args:
        left: One lake.
        right: The other.
        selection: Which predictions; None: all.
        tolerance: How far value and interval may be apart, in their unit; None: not a bit.
        on_progress: Called with the rows read so far, of both together.

    Raises:
        LakeError: A lake has no predictions, or a file of them cannot be read.
    """
    sides = (_selected(side, selection or Selection()) for side in (left, right))
    return report(*sides, tolerance=tolerance, on_progress=on_progress)


def report(
    left: Iterable[pa.RecordBatch],
    right: Iterable[pa.RecordBatch],
    *,
    tolerance: float | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Report:
    """Compare predictions as they come; of several rows with one key the first are compared with the first."""
    encoder, done = Encoder(), 0
    with ExitStack() as stack:
        ours, theirs = stack.enter_context(Spill()), stack.enter_context(Spill())
        for spill, batches in ((ours, left), (theirs, right)):
            for batch in batches:
                spill.add(encoder.rows(batch))
                done += len(batch)
                on_progress(done)
        return _result(encoder, ours, theirs, tolerance)


def _result(encoder: Encoder, left: Spill, right: Spill, tolerance: float | None) -> Report:
    kinds = encoder.kinds.known
    pairs = pair_models(*([kinds[k] for k in sorted(spill.kinds)] for spill in (left, right)))
    tally = Tally(kinds, len(encoder.devices), pairs, tolerance)
    for part in range(PARTS):
        tally.add(left.part(part), right.part(part))
    differing, same = tally.differing(encoder.devices.device_ids())
    return Report(tolerance, tuple(pairs), tally.total(), tally.by_target(), same, tuple(differing))


def _selected(lake: LakeSettings, selection: Selection) -> Iterator[pa.RecordBatch]:
    times, devices = EventRange(selection.start, selection.stop), DevicePatterns(selection.devices)
    targets = pa.array(selection.targets, pa.string())
    for batch in read_batches(lake, "predictions", COMPARED, times=times):
        check_columns(batch)
        batch = devices.filter(times.filter(batch))
        if len(targets):
            batch = batch.filter(pc.is_in(batch.column("target").cast(pa.string()), value_set=targets))
        yield batch
