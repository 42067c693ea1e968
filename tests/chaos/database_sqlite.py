"""SQLite under chaos: another process's locks, and a trigger that refuses rows."""

import sqlite3
import threading
import time
from pathlib import Path

import pyarrow as pa

from chaos.databases import COLUMNS, REFUSED_DEVICES, table
from chaos.disk import Disk
from chaos.faults import DATABASE, Fault


class Sqlite:
    """A file; another process's lock is ours."""

    name = "SQLite"

    def __init__(self, folder: Path) -> None:
        self._disk = Disk(folder / "database")
        self.path = self._disk.folder / "voltmill.db"
        self.config = f'[sql]\nurl = "sqlite:///{self.path}"\n'
        self._holder: sqlite3.Connection | None = None
        self._hiccups = False

    def faults(self) -> list[Fault]:
        full = Fault("database's disk full", DATABASE, self._disk.fill, self._disk.empty, (0.5, 8.0))
        return [
            *([full] if self._disk.mounted else []),
            Fault("database locked", DATABASE, self._lock, self._unlock, (0.5, 8.0)),
            Fault("database locked, minutes", DATABASE, self._lock, self._unlock, (60.0, 90.0), rare=True),
            Fault("SQL refuses some rows", DATABASE, self._refuse, self._accept, (1.0, 4.0)),
            Fault("SQL busy now and then", DATABASE, self._start_hiccups, self._stop_hiccups, (2.0, 5.0)),
        ]

    def newest(self) -> int:
        return self._number("SELECT max(event_time) FROM predictions_rows")

    def since(self, event_time_us: int) -> int:
        return self._number(f"SELECT count(*) FROM predictions_rows WHERE event_time >= {event_time_us}")

    def rows(self) -> pa.Table:
        connection = sqlite3.connect(self.path)
        try:
            return table(connection.execute(f"SELECT {COLUMNS} FROM predictions"))
        finally:
            connection.close()

    def close(self) -> None:
        self._unlock()
        self._disk.close()

    def _number(self, query: str) -> int:
        try:
            connection = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=0.5)
        except sqlite3.Error:
            return 0
        try:
            return int(connection.execute(query).fetchone()[0] or 0)
        except sqlite3.Error:
            return 0
        finally:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=30.0, isolation_level=None, check_same_thread=False)

    def _lock(self) -> None:
        self._holder = self._connect()
        self._holder.execute("BEGIN IMMEDIATE")

    def _unlock(self) -> None:
        if self._holder is not None:
            self._holder.close()
            self._holder = None

    def _do(self, statement: str) -> None:
        connection = self._connect()
        try:
            connection.execute(statement)
        finally:
            connection.close()

    def _refuse(self) -> None:
        self._do(
            "CREATE TRIGGER IF NOT EXISTS chaos BEFORE INSERT ON predictions_rows "
            f"WHEN NEW.device_id LIKE '{REFUSED_DEVICES}' BEGIN SELECT RAISE(ABORT, 'refused by chaos'); END"
        )

    def _accept(self) -> None:
        self._do("DROP TRIGGER IF EXISTS chaos")

    def _start_hiccups(self) -> None:
        self._hiccups = True
        threading.Thread(target=self._hiccup, daemon=True).start()

    def _hiccup(self) -> None:
        """Take the lock for a moment, again and again."""
        while self._hiccups:
            connection = self._connect()
            try:
                connection.execute("BEGIN IMMEDIATE")
                time.sleep(0.2)
            except sqlite3.OperationalError:
                pass  # the flow had it all the time
            finally:
                connection.close()
            time.sleep(0.05)

    def _stop_hiccups(self) -> None:
        self._hiccups = False
