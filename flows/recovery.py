"""The recovery store: made once, described beside it, and refused when it does not fit.

``store.json`` stands beside Bytewax's own files. Its name is part of the file names in the lake, its
shard count of the step ids; a store that was made for other ones would be misread, so it is refused.

Whoever opens a store holds its lock until the process ends or ``close_store``: two flows on one store,
or a flow and ``voltmill rescale``, would destroy it. Before a flow starts, the first of its processes
removes what a crash left behind (``voltmill.flows.partitions``).
"""

import contextlib
import json
import logging
import secrets
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from voltmill import __version__
from voltmill.flows.config import ConfigError, RunSettings
from voltmill.flows.partitions import files
from voltmill.flows.store_lock import StoreLock

#: 1: before 0.2, without the versions; 2: with them.
FORMAT: Final = 2
DESCRIPTION: Final = "store.json"
#: What a store that was rescaled is kept as.
KEPT: Final = "before-rescale"

#: How long a start waits for the processes of an execution that is just ending, s: the others of a
#: cluster end within about 4 s of the first.
_PATIENCE_SECONDS: Final = 30.0

log = logging.getLogger("voltmill.recovery")


class StoreInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What ``store.json`` says; a newer format may say more, and is refused by its number."""

    format: int
    """Version of this description, and of how the store is laid out."""
    name: str
    """Name of the store: sorts by the time it was made."""
    shards: int
    """Number of shards of the flow."""
    recovery_partitions: int
    """Number of Bytewax's recovery partitions."""
    made_by: str = ""
    """Version of voltmill that made the store; empty: one before 0.2."""
    run_by: str = ""
    """Version of voltmill that ran on it last."""
    replaced: str = ""
    """When ``voltmill rescale`` put another store in its place; such a one must not run again."""


@dataclass
class _Opened:
    """A store that this process holds the lock of."""

    lock: StoreLock
    steps: dict[str, int]
    """The steps that have state in it, and how many keys each."""


_opened: dict[Path, _Opened] = {}


def store_name(now: datetime) -> str:
    """A name for a new store: the time, which sorts, and four random digits."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def has_store(settings: RunSettings) -> bool:
    """Whether a flow has a recovery store already."""
    return (Path(settings.state) / DESCRIPTION).exists()


def open_store(settings: RunSettings) -> StoreInfo:
    """Find the recovery store of a flow, or make it, and hold it until this process ends.

    The processes of a cluster may all come here at once: each makes a store of its own beside the
    folder and renames it to it, which only the first one can.

    Args:
        settings: Where the store is and what it must have been made for.

    Raises:
        ConfigError: The store was made by another version or for other settings.
        RuntimeError: Another flow runs on it.
    """
    folder = Path(settings.state)
    if not (folder / DESCRIPTION).exists():
        _refuse_half_rescaled(folder)
        _make(folder, settings)
    _checked(read(folder), settings, folder)
    held = _opened.get(folder.resolve())
    if held is None or not held.lock.stands:
        close_store(folder)
        _opened[folder.resolve()] = _enter(folder)
    info = _checked(read(folder), settings, folder)  # it may have been rescaled while we waited
    now = msgspec.structs.replace(info, format=FORMAT, run_by=__version__)
    if now != info:
        log.info("recovery store", extra={"made_by": info.made_by, "ran_by": info.run_by, "format": info.format})
        write(folder, now)
    return now


def close_store(folder: Path) -> None:
    """Give the lock of a store back, once no flow of this process runs on it any more."""
    if held := _opened.pop(folder.resolve(), None):
        held.lock.close()


def steps_with_state(folder: Path) -> dict[str, int]:
    """The steps that had state in a store when this process opened it, and how many keys each."""
    return _opened[folder.resolve()].steps


def read(folder: Path) -> StoreInfo:
    """The description of a store.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    file = folder / DESCRIPTION
    try:
        return msgspec.json.decode(file.read_bytes(), type=StoreInfo)
    except OSError as e:
        raise ConfigError(f"{file}: cannot be read: {e.strerror or e}; name another [run] state") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise ConfigError(f"{file}: is not the description of a store: {e}; name another [run] state") from None


def write(folder: Path, info: StoreInfo) -> None:
    """Replace the description of a store, at once."""
    scratch = folder / f".{DESCRIPTION}.{secrets.token_hex(4)}"
    scratch.write_bytes(msgspec.json.encode(info))
    scratch.replace(folder / DESCRIPTION)


def make_partitions(folder: Path, count: int) -> None:
    """Make Bytewax's partitions in an empty folder."""
    # In a process of its own: a flow's process must never open the store by itself as well.
    _python("bytewax.recovery", str(folder), str(count), failing=f"{folder}: the recovery store cannot be made")


def partitions(what: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """What ``voltmill.flows.partitions`` finds, asked in a process of its own."""
    said = _python("voltmill.flows.partitions", what, str(folder), *arguments, failing="the recovery store")
    found: dict[str, Any] = json.loads(said or "{}")
    return found


def _python(module: str, *arguments: str, failing: str) -> str:
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{failing}: {' '.join(done.stderr.split())[-300:]}")
    return done.stdout


def _refuse_half_rescaled(folder: Path) -> None:
    """Between its two renames a rescale leaves no store: a new one in its place would forget everything."""
    kept = sorted(folder.parent.glob(f"{folder.name}.{KEPT}-*")) if folder.parent.is_dir() else []
    if kept and not folder.exists():
        raise ConfigError(
            f"{folder}: is not there, but {kept[-1]} is: rescaling was interrupted; run voltmill rescale again, "
            "or rename that one back"
        )


def _make(folder: Path, settings: RunSettings) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / "store"
        made.mkdir()
        make_partitions(made, settings.recovery_partitions)
        info = StoreInfo(
            format=FORMAT,
            name=store_name(datetime.now(UTC)),
            shards=settings.shards,
            recovery_partitions=settings.recovery_partitions,
            made_by=__version__,
            run_by=__version__,
        )
        write(made, info)
        try:
            made.rename(folder)
        except OSError:  # another process was first, or the folder holds something else: the reader will see
            log.info("recovery store not made", extra={"folder": str(folder)})


def _enter(folder: Path) -> _Opened:
    """Get the lock, and leave the store as the last finished epoch left it."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        with contextlib.suppress(FileNotFoundError):  # between the two renames of a rescale there is none
            lock, found = StoreLock(folder), None
            try:
                found = _try(lock, folder)
            finally:
                if found is None:
                    lock.close()
            if found is not None:
                return _Opened(lock, found["steps"])
        if time.monotonic() > deadline:
            raise RuntimeError(f"{folder}: another flow is running on this recovery store: stop that first")
        time.sleep(0.1)


def _try(lock: StoreLock, folder: Path) -> dict[str, Any] | None:
    """The first process of an execution settles the store; the others find by its note that it did."""
    if lock.take(shared=False):
        if not lock.stands:
            return None
        found = partitions("settle", folder)
        if found["removed"]:
            log.info("recovery store settled", extra={"unfinished_snapshots": found["removed"]})
        lock.note = found["execution"]
        return found if lock.take(shared=True) else None
    if lock.take(shared=True) and lock.stands:
        # Who holds it has not begun to run, or else there would be a newer execution: it waits for us.
        found = partitions("look", folder)
        return found if found["execution"] == lock.note else None
    return None


def _checked(info: StoreInfo, settings: RunSettings, folder: Path) -> StoreInfo:
    file = folder / DESCRIPTION
    check_format(info, file)
    for name, mend in (
        ("shards", "set it back, or name another [run] state and replay the archive"),
        ("recovery_partitions", "set it back, or run voltmill rescale"),
    ):
        if getattr(info, name) != getattr(settings, name):
            raise ConfigError(
                f"{file}: made for {name} = {getattr(info, name)}, the configuration says {getattr(settings, name)}; "
                f"{mend}"
            )
    return info


def check_format(info: StoreInfo, file: Path) -> None:
    """Refuse a store of a newer format, one that was replaced, and one that lacks a part.

    Raises:
        ConfigError: It is one of these.
    """
    if not 1 <= info.format <= FORMAT:
        maker = info.run_by or "another version"
        raise ConfigError(
            f"{file}: format {info.format}, made by a newer voltmill ({maker}), this is {__version__} and reads "
            f"{FORMAT}: run that one, or name another [run] state"
        )
    if info.replaced:
        raise ConfigError(
            f"{file}: replaced by voltmill rescale at {info.replaced}: the flow went on with the other store since, "
            "and would be set back with this one"
        )
    found = len(files(file.parent))
    if found != info.recovery_partitions:
        raise ConfigError(
            f"{file}: names {info.recovery_partitions} recovery partitions, {found} are there; "
            "put the missing ones back, or name another [run] state"
        )
