"""dataset: archived telemetry as a training table, with the very columns that the stream gives a model.

The archive is streamed in order of arrival through ``quality`` and ``features`` or ``sessions`` with the settings of
the configuration, and written as it comes: memory grows with the devices, not with the rows. Devices, never rows,
are split into training, validation and test: rows of one device are too alike to test on.
"""

import hashlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voltmill import __version__
from voltmill.connectors.lake_source import PARTITION, LakeSource
from voltmill.connectors.store import LakeError
from voltmill.flows.config import Config, ConfigError
from voltmill.flows.dataset_columns import BASE, SESSION, Columns, Kind, Label
from voltmill.flows.dataset_devices import Devices
from voltmill.flows.dataset_file import DatasetFile
from voltmill.flows.stages import Stages
from voltmill.kernels.schema import REFUSED, Quality
from voltmill.operators.patterns import DevicePatterns

#: Tables of the configuration that a training table depends on.
_SETTINGS: Final = ("quality", "features", "sessions", "fleet")


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What goes into a training table."""

    table: Kind
    """features: a row a sample. sessions: a row a finished session. telemetry: a row a sample, as it was archived."""
    start: datetime | None = None
    """First event time; None: from the first row."""
    stop: datetime | None = None
    """Event time to stop before; None: to the last row."""
    warm_up_seconds: float = 3600.0
    """How far before ``start`` is read, s, so that averages and windows are warm."""
    devices: tuple[str, ...] = ()
    """Patterns on ``device_id``; none: all."""
    columns: tuple[str, ...] = ()
    """Names or shell patterns; none: all of the table's own."""
    labels: tuple[Label, ...] = ()
    """What is to be learnt; rows without one are left out."""
    every_seconds: float = 0.0
    """One row of a device in each such period of event time, s; 0: all."""
    without: tuple[str, ...] = ()
    """Rows with one of these quality bits are left out."""
    shares: tuple[float, float, float] = (70.0, 15.0, 15.0)
    """Parts of the devices for training, validation and test."""
    seed: str = ""
    """Another one gives another split."""

    @property
    def unwanted(self) -> int:
        """The quality bits of ``without``.

        Raises:
            ConfigError: One is no quality bit.
        """
        bits = 0
        for name in self.without:
            if name.upper() not in Quality.__members__:
                raise ConfigError(f"--without {name}: no quality bit; there are: {', '.join(Quality.__members__)}")
            bits |= Quality[name.upper()]
        return bits


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What a training table holds; it stands in the metadata of the file."""

    voltmill: str
    """Version."""
    lake: str
    recipe: Recipe
    settings: dict[str, str]
    """SHA-256 of each table of the configuration that it depends on."""
    read: int
    """Telemetry rows read, those of the warm-up included."""
    rows: int
    """Rows in the table."""
    flagged: int
    """Rows left out for a quality bit."""
    unlabelled: int
    """Rows left out for want of a label."""
    devices: dict[str, int]
    """By split, devices with rows."""
    sha256: str
    """Of the data: for ``training_data_sha256`` in the contract of a model."""


def dataset(
    config: Config,
    lake: str,
    out: Path,
    recipe: Recipe,
    *,
    on_progress: Callable[[int, int, int], None] = lambda done, total, rows: None,
) -> Made:
    """Write a training table.

    Args:
        config: Fleet and settings.
        lake: Folder or URL that holds ``telemetry/``.
        out: The Parquet file, which must not be there yet.
        recipe: What goes in.
        on_progress: Called with files done, files in all and rows read.

    Raises:
        ConfigError: The file is there; the recipe asks for what there is not.
        LakeError: The archive cannot be read.
    """
    if out.exists():
        raise ConfigError(f"{out}: is there already; remove it, or name another file")
    if min(recipe.shares) < 0 or not sum(recipe.shares) > 0:
        raise ConfigError("--split: three shares, none below 0 and not all 0")
    table = _Table(config, recipe)
    batches = _read(config, lake, recipe, on_progress)
    with DatasetFile(out, table.columns.schema) as file:
        for batch in batches:
            if len(rows := table.rows(batch)):
                file.write(rows)
        made = Made(
            voltmill=__version__,
            lake=lake,
            recipe=recipe,
            settings={name: _digest(getattr(config, name)) for name in _SETTINGS},
            read=table.read,
            rows=file.rows,
            flagged=table.flagged,
            unlabelled=table.unlabelled,
            devices=table.devices.count(),
            sha256=file.sha256(),
        )
        file.finish(msgspec.json.encode(made))
    return made


class _Table:
    """Turns telemetry into rows of the table."""

    def __init__(self, config: Config, recipe: Recipe) -> None:
        self.columns = Columns(recipe.table, config, recipe.columns, recipe.labels)
        self.devices = Devices(config.devices, recipe.shares, recipe.seed, recipe.every_seconds)
        self.read = self.flagged = self.unlabelled = 0
        self._recipe, self._unwanted = recipe, np.uint32(recipe.unwanted)
        self._stages = Stages(config, list, () if recipe.table == "telemetry" else (recipe.table,))

    def rows(self, telemetry: pa.RecordBatch) -> pa.RecordBatch:
        """The rows that come of a batch."""
        self.read += len(telemetry)
        passed = self._stages.apply(telemetry)
        accepted = (passed.telemetry.column("quality_bits").to_numpy() & np.uint32(REFUSED)) == 0
        samples = passed.telemetry if accepted.all() else passed.telemetry.filter(pa.array(accepted))
        table = self._recipe.table
        rows = samples if table == "telemetry" else passed.rows.get(table)
        if rows is None or not len(rows):
            return pa.RecordBatch.from_pylist([], schema=self.columns.schema)
        if table == "sessions" and self.columns.from_telemetry:
            samples = _finishing(rows, samples)
        return self._chosen(rows, None if table == "telemetry" else samples)

    def _chosen(self, rows: pa.RecordBatch, samples: pa.RecordBatch | None) -> pa.RecordBatch:
        slots = self.devices.slots(rows.column("device_id"))
        carried = {name: rows.column(name) for name in (*BASE, *SESSION) if name in rows.schema.names}
        made = self.columns.select(carried | self.devices.facts(slots), rows, samples)
        times = rows.column("event_time").cast(pa.int64()).to_numpy()
        keep = np.ones(len(rows), np.bool_)
        if self._recipe.start is not None:
            keep &= times >= round(self._recipe.start.timestamp() * 1e6)
        good = (rows.column("quality_bits").to_numpy() & self._unwanted) == 0
        labelled = self.columns.labelled(made)
        self.flagged += int((keep & ~good).sum())
        self.unlabelled += int((keep & good & ~labelled).sum())
        where = np.flatnonzero(keep & good & labelled)
        where = where[self.devices.thin(slots[where], times[where])]
        return made if len(where) == len(made) else made.take(pa.array(where))


def _read(
    config: Config, lake: str, recipe: Recipe, on_progress: Callable[[int, int, int], None]
) -> Iterator[pa.RecordBatch]:
    warm_up = timedelta(seconds=recipe.warm_up_seconds)
    source = LakeSource(
        msgspec.structs.replace(config.lake, url=lake),
        start=recipe.start - warm_up if recipe.start else None,
        stop=recipe.stop,
        devices=DevicePatterns(recipe.devices) if recipe.devices else None,
        payload="payload" in recipe.columns,
        on_progress=on_progress,
    )
    reader = source.build_part("dataset", PARTITION, None)

    def batches() -> Iterator[pa.RecordBatch]:
        while True:
            try:
                yield from reader.next_batch()
            except StopIteration:
                return

    return batches()


def _finishing(sessions: pa.RecordBatch, samples: pa.RecordBatch) -> pa.RecordBatch:
    """The sample that finished each session: of the same batch, device and place."""

    def places(rows: pa.RecordBatch) -> list[tuple[Any, ...]]:
        names = ("device_id", "source_partition", "source_offset")
        return list(zip(*(rows.column(name).to_pylist() for name in names), strict=True))

    wanted = np.isin(samples.column("source_offset").to_numpy(), sessions.column("source_offset").to_numpy())
    rows: NDArray[np.intp] = np.flatnonzero(wanted)
    at = {place: row for row, place in zip(rows, places(samples.take(pa.array(rows))), strict=True)}
    try:
        return samples.take(pa.array([at[place] for place in places(sessions)], pa.int64()))
    except KeyError as e:
        raise LakeError(f"a session was finished by the row {e}, which is not in its batch") from None


def _digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()
