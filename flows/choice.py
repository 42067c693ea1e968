"""Which models run: those that the configuration names, and those in the folder of models.

The folder is looked at again while the flow runs. A file that is new or was replaced there takes over at
the next epoch boundary, without a restart; one that cannot be used is told once and changes nothing.
"""

import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path
from threading import Lock
from typing import Literal

from voltmill.flows.config import Config, ConfigError, ModelEntry
from voltmill.flows.endpoint import open_endpoint
from voltmill.flows.metrics import Metrics
from voltmill.kernels.feature_table import Feature
from voltmill.kernels.feature_table import features as feature_table
from voltmill.kernels.health_table import health_columns
from voltmill.kernels.session_table import Column, session_columns
from voltmill.operators.model import (
    Choice,
    Chosen,
    Columns,
    Mode,
    Model,
    ModelError,
    OnnxModel,
    check_columns,
    check_model,
    load,
)

log = logging.getLogger("voltmill.models")

Table = Literal["features", "sessions", "health"]
TABLES: tuple[Table, ...] = ("features", "sessions", "health")

#: What tells a file from another that took its place: size, time of change and inode.
_Stamp = tuple[int, int, int]


def tables(config: Config) -> dict[Table, list[Feature | Column]]:
    """The columns of each table that models can be asked about, with unit and meaning."""
    return {
        "features": [*feature_table(config.features.windows_seconds)],
        "sessions": [*session_columns()],
        "health": [*session_columns(), *health_columns()],
    }


def table_columns(config: Config) -> dict[str, Collection[str]]:
    """The names of the columns of each table."""
    return {table: {c.name for c in columns} for table, columns in tables(config).items()}


def load_entry(entry: ModelEntry, columns: Columns, metrics: Metrics) -> Model:
    """The model that a ``[[model]]`` names, or that its endpoint serves.

    Raises:
        ModelError: it cannot be used; says why in one line.
    """
    if entry.endpoint is None:
        return load(entry.name, columns=columns)
    model = check_model(entry.name, open_endpoint(entry.endpoint, **metrics.endpoint(entry.name)))
    check_columns(entry.name, model.contract, columns)
    return model


class Models:
    """The models in force. A replay takes those of its start to its end.

    Args:
        config: Names them, and the folder.
        mode: Of those that count: live or replay.
        metrics: What counts the requests to models behind HTTP.
        clock: Seconds; for tests.

    Attributes:
        problems: A line for each file of the folder that is not used, or for a folder that is not there.

    Raises:
        ConfigError: A model that the configuration names cannot be used.
    """

    def __init__(
        self,
        config: Config,
        mode: Literal["live", "replay"] = "live",
        *,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._mode: Mode = mode
        self._columns = table_columns(config)
        self._folder = Path(config.models.folder) if config.models.folder else None
        self._look_seconds, self._clock = config.models.look_seconds, clock
        self._entries = {entry.name: entry for entry in config.model}
        self._lock = Lock()  # worker threads share one choice
        self._stamps: dict[str, _Stamp] = {}
        self.problems: list[str] = []
        self._in_folder: dict[str, Chosen] = {}
        self._look(first=True)
        self._looked = clock()
        self._named = self._from_configuration()

    def current(self) -> tuple[Chosen, ...]:
        """The models in force: those named, in their order, then others of the folder. Looks at the folder anew."""
        with self._lock:
            if self._folder and self._mode == "live" and self._clock() - self._looked >= self._look_seconds:
                self._looked = self._clock()
                self._look()
            by_file = {**self._named, **self._in_folder}
        by_digest: dict[str, Chosen] = {}  # a copy of a model under another name would make the same keys twice
        for chosen in by_file.values():
            by_digest.setdefault(chosen.model.sha256, chosen)
        return tuple(by_digest.values())

    def of(self, table: Table) -> Choice:
        """What gives the models of one table, as ``estimate`` takes it."""
        return lambda: [each for each in self.current() if each.model.contract.table == table]

    def _from_configuration(self) -> dict[str, Chosen]:
        out = {}
        for name, entry in self._entries.items():
            try:
                out[name] = Chosen(load_entry(entry, self._columns, self._metrics), self._mode_of(entry))
            except ModelError as e:
                if name not in self._in_folder:
                    raise ConfigError(f"[[model]] {e}") from None
                out[name] = self._in_folder[name]
        return out

    def _mode_of(self, entry: ModelEntry | None) -> Mode:
        """A file that nobody named must not count unseen: it runs in shadow."""
        if entry is None:
            return "shadow"
        return self._mode if entry.mode == "live" else entry.mode

    def _look(self, *, first: bool = False) -> None:
        """Load what is new in the folder; forget what is gone."""
        if self._folder is None:
            return
        if first and not self._folder.is_dir():
            self._tell(f"[models] folder: {self._folder} is not there: make it, or mend its name")
        there = set()
        for path in sorted(self._folder.glob("*.onnx")):
            try:
                stat = path.stat()
            except OSError:
                continue  # it was taken away this moment
            there.add(path.stem)
            stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
            if self._stamps.get(path.stem) != stamp:
                self._stamps[path.stem] = stamp
                self._take(path, first)
        for name in self._stamps.keys() - there:
            del self._stamps[name]
            if self._in_folder.pop(name, None):
                goes_on = "what was read at the start goes on" if name in self._named else "it is not asked any more"
                log.warning("model file removed", extra={"model": name, "then": goes_on})

    def _take(self, path: Path, first: bool) -> None:
        try:
            model = OnnxModel(path, columns=self._columns)
        except ModelError as e:
            if first and path.stem in self._entries:
                raise ConfigError(f"[[model]] {e}") from None
            self._tell(str(e))
            return
        chosen = Chosen(model, self._mode_of(self._entries.get(path.stem)))
        self._in_folder[path.stem] = chosen
        facts = {"version": model.contract.version, "sha256": model.sha256, "mode": chosen.mode}
        log.info("model in force", extra={"model": path.stem} | facts)

    def _tell(self, problem: str) -> None:
        self.problems.append(problem)
        log.warning("model not used", extra={"reason": problem})
