"""Bytewax's recovery partitions: where a flow would resume, and the state it would resume with.

A recovery store is a folder of SQLite files, ``part-K.sqlite3``, over which the rows are spread:

- ``exs``: each execution, its number of workers and the epoch it began at;
- ``fronts``: for each execution and worker, the first epoch that was not finished;
- ``snaps``: per step, key and epoch a snapshot. It goes to the partition that SeaHash of step and key
  names, and older ones of a key are removed in that partition alone.

A flow resumes at the least front of the last execution, with the newest snapshot before it of each key.

**What a crash leaves behind must not stay.** A crash can leave snapshots of epochs that were never
finished. Bytewax 0.21.1 overwrites them only where the same key has rows in the same epoch again; a key
that is idle then keeps the snapshot of the lost epoch, and after a second crash that is what it resumes
with: rows of a shard were counted twice, or acknowledged and lost. ``settle`` removes them before a flow
starts.

Run it as ``python -m voltmill.flows.partitions settle|look|drop FOLDER [STEP ...]``: a process that runs
a flow must not open these files itself, for closing one would drop the engine's locks on it.
"""

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

_WORD: Final = (1 << 64) - 1
_PRIME: Final = 0x6EED0E9DA4D94A4F
_SEEDS: Final = (0x16F11FE89B0D677C, 0xB480A793D8E6C86C, 0x6FE2E5AAF078EBC9, 0x14F994A4C5259381)

#: Execution of a store that no flow has run on.
NONE_YET: Final = -1


class Progress(NamedTuple):
    """Where the next execution of a flow begins."""

    execution: int
    """Number of the last execution; ``NONE_YET`` if there was none."""
    epoch: int
    """The first epoch that is not finished."""


class PartitionError(RuntimeError):
    """The files of a recovery store cannot be used: one line that says which and why."""


def place(step_id: str, key: str, partitions: int) -> int:
    """The partition that holds the state of a key of a step.

    Example:
        >>> [place("voltmill.quality-4.judge", key, 3) for key in ("00", "01", "02", "03")]
        [0, 1, 1, 2]
    """
    return _sea_hash(step_id.encode() + b"\xff" + key.encode() + b"\xff") % partitions


def _sea_hash(data: bytes) -> int:
    """SeaHash 4 (ticki, Redox OS), with which Bytewax spreads keys over partitions."""
    state = list(_SEEDS)
    for at in range(0, len(data), 8):
        word = int.from_bytes(data[at : at + 8], "little")
        state = [*state[1:], _diffuse(state[0] ^ word)]
    return _diffuse(state[0] ^ state[1] ^ state[2] ^ state[3] ^ len(data))


def _diffuse(x: int) -> int:
    x = x * _PRIME & _WORD
    return (x ^ ((x >> 32) >> (x >> 60))) * _PRIME & _WORD


def files(folder: Path) -> list[Path]:
    """The partitions of a store, by number."""
    return sorted(folder.glob("part-*.sqlite3"), key=lambda file: (len(file.name), file.name))


@contextmanager
def opened(folder: Path, *, alone: bool = False) -> Iterator[list[sqlite3.Connection]]:
    """The partitions of a store; with ``alone`` no other process may have one open.

    Raises:
        PartitionError: A file is damaged, or another process has it open.
    """
    connections: list[sqlite3.Connection] = []
    at = folder
    try:
        for at in files(folder):
            connections.append(sqlite3.connect(f"file:{at}?mode=rw", uri=True, timeout=1.0, isolation_level=None))
            if alone:  # in WAL mode every connection holds a shared lock on the file for as long as it is open
                connections[-1].execute("pragma locking_mode=exclusive")
                connections[-1].execute("begin immediate")
        yield connections
        for connection in connections:
            if alone:
                connection.execute("commit")
    except sqlite3.Error as e:
        locked = getattr(e, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        why = "a flow is running on it: stop that first" if locked else f"{e}"
        raise PartitionError(f"{at}: {why}") from None
    finally:
        for connection in connections:
            connection.close()


def progress(parts: list[sqlite3.Connection]) -> Progress:
    """Where the next execution begins."""
    executions = [row for part in parts for row in part.execute("select ex_num, worker_count, resume_epoch from exs")]
    if not executions:
        return Progress(NONE_YET, 1)
    last, workers, began = max(executions)
    fronts = dict.fromkeys(range(workers), began)
    for part in parts:
        query = "select worker_index, worker_frontier from fronts where ex_num = ?"
        for worker, front in part.execute(query, (last,)):
            fronts[worker] = max(fronts.get(worker, front), front)
    return Progress(last, min(fronts.values()))


def newest(parts: list[sqlite3.Connection], before: int) -> dict[tuple[str, str], tuple[int, int]]:
    """For each (step, key) the epoch of its newest snapshot before an epoch, and the partition it is in.

    Keys that were discarded, which is a snapshot without a state, are left out.
    """
    found: dict[tuple[str, str], tuple[int, int, bool]] = {}
    query = """select step_id, state_key, max(snap_epoch), ser_change is null from snaps where snap_epoch < ?
               group by step_id, state_key"""  # beside max(), SQLite gives the columns of that row
    for k, part in enumerate(parts):
        for step, key, epoch, discarded in part.execute(query, (before,)):
            if (step, key) not in found or epoch > found[step, key][0]:
                found[step, key] = (epoch, k, bool(discarded))
    return {of: (epoch, k) for of, (epoch, k, discarded) in found.items() if not discarded}


def look(folder: Path) -> dict[str, Any]:
    """Where the store stands, and how many keys of each step have state."""
    with opened(folder) as parts:
        return _described(parts, removed=0)


def settle(folder: Path) -> dict[str, Any]:
    """Remove the snapshots of epochs that were not finished; no flow may run on the store.

    Returns:
        What ``look`` does, and how many were removed.
    """
    with opened(folder, alone=True) as parts:
        epoch = progress(parts).epoch
        removed = sum(part.execute("delete from snaps where snap_epoch >= ?", (epoch,)).rowcount for part in parts)
        return _described(parts, removed)


def drop(folder: Path, steps: list[str]) -> None:
    """Remove the state of steps."""
    with opened(folder) as parts:
        for part in parts:
            part.executemany("delete from snaps where step_id = ?", [(step,) for step in steps])


def _described(parts: list[sqlite3.Connection], removed: int) -> dict[str, Any]:
    execution, epoch = progress(parts)
    steps: dict[str, int] = {}
    for step, _ in newest(parts, epoch):
        steps[step] = steps.get(step, 0) + 1
    return {"execution": execution, "epoch": epoch, "removed": removed, "steps": dict(sorted(steps.items()))}


def copy(old: Path, new: Path, on_progress: Any = lambda done, total: None) -> int:
    """Put the state that a flow would resume with into the empty partitions of another store.

    Returns:
        How many states there were.

    Raises:
        PartitionError: A store cannot be used, or its rows are not where this Bytewax should have put them.
    """
    with opened(old, alone=True) as parts, opened(new, alone=True) as others:
        at = progress(parts)
        states = newest(parts, at.epoch)
        for (step, key), (_, part) in states.items():
            if place(step, key, len(parts)) != part:
                raise PartitionError(f"{old}: state of {step} {key} is in partition {part}: of another Bytewax?")
        if at.execution != NONE_YET:
            row = (at.execution, 1, at.epoch)  # one worker that came so far stands for all of them
            others[0].execute("insert into exs (ex_num, worker_count, resume_epoch) values (?, ?, ?)", row)
        for done, ((step, key), (epoch, part)) in enumerate(sorted(states.items()), start=1):
            _copy_row(parts[part], others[place(step, key, len(others))], step, key, epoch)
            on_progress(done, len(states))
    return len(states)


def _copy_row(old: sqlite3.Connection, new: sqlite3.Connection, step: str, key: str, epoch: int) -> None:
    query = "select * from snaps where step_id = ? and state_key = ? and snap_epoch = ?"
    with closing(old.execute(query, (step, key, epoch))) as rows:
        new.execute("insert into snaps values (?, ?, ?, ?, ?)", rows.fetchone())


def main(arguments: list[str]) -> int:
    """Do what is asked and print what was found as JSON."""
    what, folder, *steps = arguments
    try:
        if what == "drop":
            drop(Path(folder), steps)
        else:
            print(json.dumps({"settle": settle, "look": look}[what](Path(folder))))
    except PartitionError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
