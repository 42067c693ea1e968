"""rescale: the same state in another number of recovery partitions.

The new store is made whole beside the old one and then takes its place by a rename, so a crash leaves
one of them. What the flow would have resumed with is copied, and nothing else: one snapshot a key, in
the partition where Bytewax will write the next one.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from voltmill import __version__
from voltmill.flows import partitions, recovery
from voltmill.flows.config import ConfigError
from voltmill.flows.store_lock import StoreLock


@dataclass(frozen=True)
class Rescaled:
    """What was done, or would be."""

    before: int
    """Partitions of the store before."""
    shards: int
    """Shards of the store: the most workers that can share the work."""
    steps: dict[str, int]
    """The steps that have state, and how many keys each."""
    epoch: int
    """Where the flow goes on."""
    kept: Path | None
    """Where the old store stays; None: nothing was done."""


def rescale(
    folder: Path,
    count: int,
    *,
    dry_run: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rescaled:
    """Change the number of recovery partitions of a store that no flow runs on.

    Args:
        folder: The store.
        count: Partitions that it shall have.
        dry_run: Only look whether it could be done.
        on_progress: Called with the states copied and their total.

    Raises:
        ConfigError: There is no such store, or this version cannot use it.
        RuntimeError: A flow runs on it, or a file is damaged.
    """
    if not 1 <= count <= 1000:
        raise ConfigError("recovery_partitions must be 1 to 1000")
    _mend(folder)
    info = recovery.read(folder)
    recovery.check_format(info, folder / recovery.DESCRIPTION)
    lock = StoreLock(folder)
    try:
        if not lock.take(shared=False):
            raise RuntimeError(f"{folder}: a flow is running on this recovery store: stop that first")
        found = partitions.settle(folder)
        kept = None
        if not dry_run and count != info.recovery_partitions:
            kept = _replaced(folder, info, count, on_progress)
    finally:
        lock.close()
    return Rescaled(info.recovery_partitions, info.shards, found["steps"], found["epoch"], kept)


def _mend(folder: Path) -> None:
    """Take the old store back where a crash came between the two renames."""
    kept = sorted(folder.parent.glob(f"{folder.name}.{recovery.KEPT}-*"))
    if kept and not folder.exists():
        kept[-1].rename(folder)


def _replaced(folder: Path, info: recovery.StoreInfo, count: int, on_progress: Callable[[int, int], None]) -> Path:
    """Put a store with ``count`` partitions in the place of the old one; return where that is now."""
    now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    kept = folder.with_name(f"{folder.name}.{recovery.KEPT}-{now}")
    if kept.exists():
        raise RuntimeError(f"{kept}: is there already; wait a second")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / "store"
        made.mkdir()
        recovery.make_partitions(made, count)
        partitions.copy(folder, made, on_progress)
        if partitions.look(made) != partitions.look(folder):
            raise RuntimeError(f"{folder}: the copy differs from the store: nothing was changed")
        changed = msgspec.structs.replace(
            info, format=recovery.FORMAT, recovery_partitions=count, run_by=info.run_by or __version__
        )
        recovery.write(made, changed)
        folder.rename(kept)
        made.rename(folder)
    recovery.write(kept, msgspec.structs.replace(info, format=recovery.FORMAT, replaced=now))
    return kept
