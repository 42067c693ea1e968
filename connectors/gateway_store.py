"""Where messages wait for IoT Hub: a SQLite file, first in first out, bounded.

**Stored once.** Bytewax repeats an epoch after a crash. Each message comes with the number that its source
gave it and a hash of what it says; while the epoch may still be repeated the store remembers both, and
takes the same message under the same number only once. (A number alone would not do: a message of QoS 0 is
not delivered again, so after a crash the numbers behind it are given to other messages.)

**Durable.** What ``put`` has taken survives a loss of power. A removal may be undone by one: then the hub
gets those messages twice.

**Never stuck.** Even to remove something SQLite needs a little disk. ``gateway.db.reserve`` keeps that; when the
disk is full the file goes, and comes again later.

One process at a time: ``gateway.db.lock`` is held while the store is open.
"""

import contextlib
import fcntl
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Disk that a message takes beside its own bytes: its row, and its key while the epoch may be repeated.
ROW_BYTES: Final = 48

_FORMAT: Final = 1
#: How long a start waits for a gateway that was just killed, and may still be ending, s.
_PATIENCE_SECONDS: Final = 5.0
_TABLES: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE entries (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL, total INTEGER, entry BLOB);
CREATE TABLE taken (part TEXT, number INTEGER, hash INTEGER, PRIMARY KEY (part, number, hash)) WITHOUT ROWID;
CREATE TABLE dead_letters (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL, reason TEXT, bytes INTEGER, entry BLOB);
CREATE TABLE about (name TEXT);
INSERT INTO about VALUES ('{{name}}');
PRAGMA user_version = {_FORMAT};
COMMIT;
"""


class StoreFull(RuntimeError):
    """The store has reached its bound, or its disk is full or does not answer; passes, with luck. One line."""


class GatewayStoreError(RuntimeError):
    """The store cannot be used; one line that says why and what to do."""


@dataclass(frozen=True)
class Message:
    """A message on its way into the store.

    Attributes:
        part: the partition of the source that it came from.
        number: its number there.
        hash: of what it says, 64 bits, signed.
        at: when it came, s since 1970.
        entry: as it will stand in a pack.
    """

    part: str
    number: int
    hash: int
    at: float
    entry: bytes


@dataclass(frozen=True)
class Waiting:
    """A message in the store."""

    id: int
    at: float
    entry: bytes


class GatewayStore:
    """The store of one gateway: one thread puts, another takes.

    Args:
        path: of the file; made, with its folder, if it is not there.
        max_bytes: of messages; beyond it nothing is taken.
        max_entry_bytes: a longer message is none for the hub: it becomes a dead letter.
        max_dead_letter_bytes: beyond it the oldest dead letters are removed.
        reserve_bytes: of disk that are kept for removals.
        on_dead_letter: called with the reason and number of new ones.
        on_removed: called with the number of old ones that had to go.

    Attributes:
        name: of this store, random: no two have the same.
        added: set when messages were put.

    Raises:
        GatewayStoreError: the file cannot be used, or another gateway uses it.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        max_entry_bytes: int,
        max_dead_letter_bytes: int = 1 << 26,
        reserve_bytes: int = 16 << 20,
        on_dead_letter: Callable[[str, int], None] = lambda reason, count: None,
        on_removed: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._path, self._max_bytes, self._max_entry_bytes = path, max_bytes, max_entry_bytes
        self._max_dead_letter_bytes = max_dead_letter_bytes
        self._on_dead_letter, self._on_removed = on_dead_letter, on_removed
        self._reserve, self._reserve_bytes = Path(f"{path}.reserve"), reserve_bytes
        self.added = threading.Event()
        self._lock = threading.Lock()  # one writes at a time; SQLite would make the other poll
        self._held = _hold(path)
        try:
            self._putting = self._open("FULL")
            self._taking = self._open("NORMAL")  # a removal that power loss undoes is only sent twice
        except BaseException:
            os.close(self._held)
            raise
        self.name: str = self._putting.execute("SELECT name FROM about").fetchone()[0]
        self._total = 0
        self._next: dict[str, int] = {}
        self._marks: list[dict[str, int]] = []
        self._forgotten: dict[str, int] = {}
        self._measure(self._putting)
        self._keep_reserve()

    @property
    def messages(self) -> int:
        """How many wait."""
        return self._messages

    @property
    def size(self) -> int:
        """Bytes of disk that they take."""
        return self._size

    @property
    def entry_bytes(self) -> int:
        """Bytes that they have in packs, with a byte between two."""
        return self._size - self._messages * (ROW_BYTES - 1)

    @property
    def oldest_at(self) -> float | None:
        """When the oldest came, s since 1970; None: none waits."""
        return self._oldest_at

    def put(self, messages: Sequence[Message]) -> int:
        """Store messages that are not stored yet, all or none; return how many those were.

        Raises:
            StoreFull: there is no room. An empty store takes any number of bytes.
            GatewayStoreError: the file is damaged.
        """
        with self._writing(self._putting) as db:
            new = self._without_repeated(db, messages)
            entries = [m for m in new if len(m.entry) <= self._max_entry_bytes]
            size = sum(len(m.entry) + ROW_BYTES for m in entries)
            if self._messages and self._size + size > self._max_bytes:
                raise StoreFull(f"{self._path} holds {self._size} of {self._max_bytes} bytes")
            db.executemany("INSERT INTO taken VALUES (?, ?, ?)", [(m.part, m.number, m.hash) for m in new])
            db.executemany("INSERT INTO entries (at, total, entry) VALUES (?, ?, ?)", self._rows(entries))
            buried = [m for m in new if len(m.entry) > self._max_entry_bytes]
            removed = self._bury(db, [(m.at, "too_large", len(m.entry), m.entry) for m in buried])
        for message in messages:
            self._next[message.part] = message.number + 1
        if buried:
            self._on_dead_letter("too_large", len(buried))
        if removed:
            self._on_removed(removed)
        if entries:
            self.added.set()
        return len(new)

    def oldest(self, max_bytes: int) -> list[Waiting]:
        """The oldest messages, at least one if there is any, else as many as fit with a byte between two of them."""
        found: list[Waiting] = []
        size = 0
        rows = self._taking.execute("SELECT id, at, entry FROM entries ORDER BY id")
        with contextlib.closing(rows):
            for row in rows:
                size += len(row[2]) + 1
                if found and size > max_bytes:
                    break
                found.append(Waiting(*row))
        return found

    def remove(self, upto: int) -> None:
        """Forget the messages up to this id: the hub has them.

        Raises:
            StoreFull: the disk has no room even for that.
        """
        try:
            self._delete(upto)
        except StoreFull:
            if not self._reserve.exists():
                raise
            self._reserve.unlink()
            self._delete(upto)

    def _delete(self, upto: int) -> None:
        with self._writing(self._taking) as db:
            db.execute("DELETE FROM entries WHERE id <= ?", (upto,))

    def _keep_reserve(self) -> None:
        """Take the disk that removals may need, if it is to be had."""
        if self._reserve.exists():
            return
        scratch = Path(f"{self._reserve}.new")
        try:
            with scratch.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self._reserve_bytes)
            scratch.rename(self._reserve)
        except OSError:
            scratch.unlink(missing_ok=True)

    def bury(self, message: Waiting, reason: str) -> None:
        """Make the oldest message a dead letter: the hub will never take it."""
        with self._writing(self._taking) as db:
            removed = self._bury(db, [(message.at, reason, len(message.entry), message.entry)])
            db.execute("DELETE FROM entries WHERE id = ?", (message.id,))
        self._on_dead_letter(reason, 1)
        if removed:
            self._on_removed(removed)

    def end_epoch(self) -> None:
        """An epoch ends: forget the keys of those that are durable by now, being three older.

        Only what was put since this process began says how far the source is: what is older may all come again.
        """
        self._keep_reserve()
        self._marks.append(dict(self._next))
        if len(self._marks) <= 3:
            return
        durable = self._marks.pop(0)
        if durable == self._forgotten:
            return  # nothing has come since
        self._forgotten = durable
        with self._writing(self._taking) as db:
            db.executemany("DELETE FROM taken WHERE part = ? AND number < ?", list(durable.items()))

    def close(self) -> None:
        """Close the file; what is in it stays there."""
        with self._lock:
            self._taking.close()
            self._putting.close()
            os.close(self._held)

    def _without_repeated(self, db: sqlite3.Connection, messages: Sequence[Message]) -> list[Message]:
        known: set[tuple[str, int, int]] = set()
        for part in {m.part for m in messages}:
            numbers = [m.number for m in messages if m.part == part]
            known.update(
                db.execute(
                    "SELECT part, number, hash FROM taken WHERE part = ? AND number BETWEEN ? AND ?",
                    (part, min(numbers), max(numbers)),
                )
            )
        return [m for m in messages if (m.part, m.number, m.hash) not in known] if known else list(messages)

    def _rows(self, entries: Sequence[Message]) -> Iterator[tuple[float, int, bytes]]:
        total = self._total
        for m in entries:
            total += len(m.entry) + ROW_BYTES
            yield m.at, total, m.entry

    def _bury(self, db: sqlite3.Connection, letters: list[tuple[float, str, int, bytes]]) -> int:
        """Add dead letters; return how many old ones had to go."""
        if not letters:
            return 0
        db.executemany("INSERT INTO dead_letters (at, reason, bytes, entry) VALUES (?, ?, ?, ?)", letters)
        sizes = db.execute("SELECT id, bytes FROM dead_letters ORDER BY id DESC").fetchall()
        kept = 0
        for k, (number, size) in enumerate(sizes):
            kept += size
            if k and kept > self._max_dead_letter_bytes:
                db.execute("DELETE FROM dead_letters WHERE id <= ?", (number,))
                return len(sizes) - k
        return 0

    @contextlib.contextmanager
    def _writing(self, db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
        """One transaction; after it, what waits is measured."""
        with self._lock:
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled it back already
                    db.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise StoreFull(f"{self._path}: {error}") from error
                if isinstance(error, sqlite3.Error):
                    raise GatewayStoreError(f"{self._path}: {error}; {_MEND}") from error
                raise
            self._measure(db)

    def _measure(self, db: sqlite3.Connection) -> None:
        """How much waits: each row knows the bytes up to its own, so two rows say it."""
        first = db.execute("SELECT id, at, total - length(entry) FROM entries ORDER BY id LIMIT 1").fetchone()
        last = db.execute("SELECT id, total FROM entries ORDER BY id DESC LIMIT 1").fetchone()
        if first is None:
            self._messages, self._size, self._oldest_at = 0, 0, None
        else:
            self._messages, self._oldest_at = last[0] - first[0] + 1, first[1]
            self._total = last[1]
            self._size = last[1] - first[2] + ROW_BYTES

    def _open(self, synchronous: str) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(self._path, timeout=10.0, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA synchronous = {synchronous}")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                db.executescript(_TABLES.format(name=secrets.token_hex(4)))
        except sqlite3.Error as error:
            raise GatewayStoreError(f"{self._path}: cannot be used as [gateway] store: {error}; {_MEND}") from error
        if version not in (0, _FORMAT):
            raise GatewayStoreError(f"{self._path}: of format {version}, this release reads {_FORMAT}: {_MEND}")
        return db


def in_use(path: Path) -> bool:
    """Whether a gateway has the store open."""
    try:
        held = os.open(f"{path}.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(held)
    return False


_MEND: Final = "name another file, or mend this one; what is in it is not sent until then"


def _hold(path: Path) -> int:
    """Take the lock, which ends with the process however that ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise GatewayStoreError(f"{path}: cannot be used as [gateway] store: {error.strerror}") from error
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return held
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(held)
                raise GatewayStoreError(f"{path}: another gateway uses this store: stop that first") from None
            time.sleep(0.05)
