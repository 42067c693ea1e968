"""What a replay is to do, and the folder in which it keeps what it needs to go on after a stop.

    _replay/plan.json     what is replayed: another replay must not go on with it
    _replay/state/        the recovery store
    _replay.json          in the outputs, when it is done: what was replayed, and what came of it

The folder stands in the outputs' own where that is local, for a recovery store must be. It is made
before anything is written, and removed when the outputs are whole and ``_replay.json`` says so.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa

from voltmill import __version__
from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.lake_reader import listed, open_parquet
from voltmill.connectors.store import Store
from voltmill.flows.config import Config, ConfigError
from voltmill.flows.forms import Replayable
from voltmill.operators.model import Chosen

FOLDER: Final = "_replay"
REPORT: Final = "_replay.json"
TABLES: Final = ("predictions", "dead_letters", "telemetry")

#: By what is replayed, the tables of the configuration that what it gives depends on; ``run.shards`` and the models
#: are looked at apart.
_TABLES: Final[dict[Replayable, tuple[str, ...]]] = {
    "telemetry": ("quality", "features", "sessions", "health", "fleet"),
    "sessions": ("health", "fleet"),
}
_PLAN: Final = "plan.json"


class ReplayedModel(msgspec.Struct, frozen=True):
    """A model that is replayed with."""

    name: str
    sha256: str
    mode: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay is to do, as far as its outputs depend on it."""

    voltmill: str
    """Version: another one may read state and archive otherwise."""
    lake: str
    """The archive: a folder's full path, or a URL."""
    start: datetime | None
    stop: datetime | None
    warm_up_seconds: float
    """0 without ``start``."""
    devices: tuple[str, ...]
    """Patterns, sorted."""
    table: Replayable = "telemetry"
    """What is read."""
    telemetry: bool
    shards: int
    models: tuple[ReplayedModel, ...]
    settings: dict[str, str]
    """Digest of each table of the configuration that matters."""

    def differences(self, other: "Plan") -> list[str]:
        """What another plan has otherwise, for people, in the words of the command line."""
        found = []
        for field, word in _WORDS.items():
            was, now = getattr(self, field), getattr(other, field)
            if was != now:
                found.append(f"{word} was {_shown(was)}, now {_shown(now)}")
        both = [name for name in self.settings if name in other.settings]
        changed = [name for name in both if self.settings[name] != other.settings[name]]
        return found + [f"[[{name}]] differs" if name == "fleet" else f"[{name}] differs" for name in changed]


_WORDS: Final = {
    "voltmill": "the version of voltmill",
    "lake": "--lake",
    "start": "--from",
    "stop": "--to",
    "warm_up_seconds": "the warm-up in seconds",
    "devices": "--device",
    "table": "--table",
    "telemetry": "--telemetry",
    "shards": "[run] shards",
    "models": "the model",
}


def plan_of(
    config: Config,
    lake: str,
    *,
    start: datetime | None,
    stop: datetime | None,
    warm_up_seconds: float,
    devices: tuple[str, ...],
    table: Replayable,
    telemetry: bool,
    models: Sequence[Chosen],
) -> Plan:
    """The plan of a replay."""
    return Plan(
        voltmill=__version__,
        lake=_full(config.lake, lake),
        start=start,
        stop=stop,
        warm_up_seconds=warm_up_seconds if start else 0.0,
        devices=tuple(sorted(set(devices))),
        table=table,
        telemetry=telemetry,
        shards=config.run.shards,
        models=tuple(
            ReplayedModel(model.contract.name, model.sha256, mode)
            for model, mode in models
            if table == "telemetry" or model.contract.table != "features"
        ),
        settings={name: _digest(getattr(config, name)) for name in _TABLES[table]},
    )


class Work:
    """The folder of a replay, which may have been begun.

    Args:
        settings: Of the lake that the outputs are, credentials included.
        out: Its folder or URL as the user named it.
        state: Where the folder is to be; empty: in the outputs, or, where these are remote, below ``voltmill-data``.

    Attributes:
        folder: where it is.
    """

    def __init__(self, settings: LakeSettings, out: str, state: str = "") -> None:
        self._files = settings.open()
        self._out = out.rstrip("/")
        self.folder = Path(state) if state else self._default()

    @property
    def state(self) -> Path:
        """Folder of the recovery store."""
        return self.folder / "state"

    @property
    def begun(self) -> bool:
        """Whether a replay was begun here and is not done."""
        return (self.folder / _PLAN).exists()

    def begin(self, plan: Plan) -> bool:
        """Set out, or go on; return whether it is the former.

        Raises:
            ConfigError: The outputs hold files of something else, or an unfinished replay of another plan.
        """
        if self.begun and REPORT in self._files.names(""):  # it was done, and stopped while it cleared up
            self.remove()
        if self.begun:
            self._check(plan)
            return False
        self._files.make()
        for table in TABLES:
            if self._files.find(table):
                raise ConfigError(f"{self._out}/{table}: holds files already; name another folder for the replay")
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / f".{_PLAN}"
        scratch.write_bytes(msgspec.json.format(msgspec.json.encode(plan)))
        scratch.replace(self.folder / _PLAN)
        return True

    def predictions(self) -> int:
        """Predictions in the outputs, by the files' own count."""
        total = 0
        for path in listed(self._files, "predictions").paths:
            with open_parquet(self._files, f"predictions/{path}") as file:
                total += file.metadata.num_rows
        return total

    def finish(self, plan: Plan, found: dict[str, Any]) -> None:
        """Leave the report, and remove what was needed to go on."""
        report = msgspec.to_builtins(plan) | found | {"finished": datetime.now(UTC).isoformat(timespec="seconds")}
        self._files.write(REPORT, pa.py_buffer(msgspec.json.format(msgspec.json.encode(report))))
        for path in self._files.find("_set_aside"):  # rows of epochs that a kill undid, and that came again
            self._files.remove(f"_set_aside/{path}")
        if self._files.local:
            shutil.rmtree(self._files.path("_set_aside"), ignore_errors=True)
        self.remove()

    def remove(self) -> None:
        """Remove the folder: the replay is done, or never began."""
        (self.folder / _PLAN).unlink(missing_ok=True)  # first: without it the rest is nothing
        shutil.rmtree(self.folder, ignore_errors=True)

    def _default(self) -> Path:
        if self._files.local:
            return Path(self._files.path(FOLDER))
        return Path("voltmill-data") / f"replay-{hashlib.sha256(self._out.encode()).hexdigest()[:8]}"

    def _check(self, plan: Plan) -> None:
        file = self.folder / _PLAN
        try:
            begun = msgspec.json.decode(file.read_bytes(), type=Plan)
        except msgspec.MsgspecError as e:
            raise ConfigError(f"{file}: is not the plan of a replay of this version: {e}; name another --out") from None
        if differences := begun.differences(plan):
            raise ConfigError(
                f"{self._out}: holds an unfinished replay of something else: {'; '.join(differences)}; "
                f"give it the same again to go on, or name another --out (or delete this one, and {self.folder})"
            )


def refuse_lake(config: Config, lake: str, out: str) -> None:
    """See that the outputs do not fall into an archive: the one that is read, or that of the live flow.

    Raises:
        ConfigError: They would.
    """
    place = _place(msgspec.structs.replace(config.lake, url=out).open())
    for url, what in ((lake, "the archive that is replayed"), (config.lake.url, "the lake of the live flow")):
        other = _place(msgspec.structs.replace(config.lake, url=url).open())
        if place[:-1] == other[:-1] and f"{place[-1]}/".startswith(f"{other[-1]}/"):
            raise ConfigError(f"--out {out}: is {what}, or within it; name another folder")


def _place(files: Store) -> tuple[str, str, str]:
    """Kind of file system, account and path of a lake's root."""
    root = os.path.realpath(files.root) if files.local else str(files.root).rstrip("/")
    return type(files.fs).__name__, str(getattr(files.fs, "account_name", "")), root


def _full(settings: LakeSettings, lake: str) -> str:
    files = msgspec.structs.replace(settings, url=lake).open()
    return os.path.realpath(files.root) if files.local else files.url


def _digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, ReplayedModel):
        return f"{value.name} ({value.sha256[:8]}{'' if value.mode == 'replay' else f', {value.mode}'})"
    if isinstance(value, datetime):
        return value.isoformat()
    if value is None or isinstance(value, bool):
        return "given" if value else "not given"
    return str(value)
