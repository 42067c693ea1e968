"""The recovery store: made once, described beside it, and refused when it does not fit.

``store.json`` stands beside Bytewax's own files. Its name is part of the file names in the lake, its
shard count of the step ids; a store that was made for other ones would be misread, so it is refused.
"""

import logging
import secrets
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from voltmill.flows.config import ConfigError, RunSettings

_FORMAT: Final = 1
_DESCRIPTION: Final = "store.json"

log = logging.getLogger("voltmill.recovery")


class StoreInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What ``store.json`` says; another format may say more, and is refused by its number."""

    format: int
    """Version of what the snapshots hold."""
    name: str
    """Name of the store: sorts by the time it was made."""
    shards: int
    """Number of shards of the flow."""
    recovery_partitions: int
    """Number of Bytewax's recovery partitions."""


def store_name(now: datetime) -> str:
    """A name for a new store: the time, which sorts, and four random digits."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def has_store(settings: RunSettings) -> bool:
    """Whether a flow has a recovery store already."""
    return (Path(settings.state) / _DESCRIPTION).exists()


def open_store(settings: RunSettings) -> StoreInfo:
    """Find the recovery store of a flow, or make it.

    The processes of a cluster may all come here at once: each makes a store of its own beside the
    folder and renames it to it, which only the first one can.

    Raises:
        ConfigError: The store was made by another version or for other settings.
    """
    folder = Path(settings.state)
    if not (folder / _DESCRIPTION).exists():
        _make(folder, settings)
    file = folder / _DESCRIPTION
    try:
        info = msgspec.json.decode(file.read_bytes(), type=StoreInfo)
    except OSError as e:
        raise ConfigError(f"{file}: cannot be read: {e.strerror or e}; name another [run] state") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise ConfigError(f"{file}: is not the description of a store: {e}; name another [run] state") from None
    return _checked(info, settings, file)


def _make(folder: Path, settings: RunSettings) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / "store"
        made.mkdir()
        # In a process of its own: a flow's process must never open the store by itself as well.
        command = [sys.executable, "-m", "bytewax.recovery", str(made), str(settings.recovery_partitions)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            words = " ".join(done.stderr.split())
            raise RuntimeError(f"{folder}: the recovery store cannot be made: {words[-300:]}")
        info = StoreInfo(
            format=_FORMAT,
            name=store_name(datetime.now(UTC)),
            shards=settings.shards,
            recovery_partitions=settings.recovery_partitions,
        )
        (made / _DESCRIPTION).write_bytes(msgspec.json.encode(info))
        try:
            made.rename(folder)
        except OSError:  # another process was first, or the folder holds something else: the reader will see
            log.info("recovery store not made", extra={"folder": str(folder)})


def _checked(info: StoreInfo, settings: RunSettings, file: Path) -> StoreInfo:
    if info.format != _FORMAT:
        raise ConfigError(
            f"{file}: format {info.format}, this voltmill reads {_FORMAT}; start with an empty [run] state"
        )
    for name in ("shards", "recovery_partitions"):
        if getattr(info, name) != getattr(settings, name):
            raise ConfigError(
                f"{file}: made for {name} = {getattr(info, name)}, the configuration says {getattr(settings, name)}; "
                "set it back, or name another [run] state and replay the archive"
            )
    found = len(list(file.parent.glob("part-*.sqlite3")))
    if found != info.recovery_partitions:
        raise ConfigError(
            f"{file}: names {info.recovery_partitions} recovery partitions, {found} are there; "
            "put the missing ones back, or name another [run] state"
        )
    return info
