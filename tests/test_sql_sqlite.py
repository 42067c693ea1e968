import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import duckdb
import pytest
import stored_flow
from sql_tables import at, by_key, locked, query, table, writer
from stored_flow import predictions

from voltmill.connectors import outage
from voltmill.connectors.drain import Drain
from voltmill.connectors.outage import Patience
from voltmill.connectors.sql import SqlError, SqlSettings, read_rows
from voltmill.connectors.sql_dialect import Failure
from voltmill.connectors.sql_sqlite import SqliteDatabase
from voltmill.kernels.schema import PREDICTION, PREDICTION_KEY


def test_the_views_name_each_column_and_tell_the_time(tmp_path: Path) -> None:
    writer(at(tmp_path)).write([predictions(1, 1)])
    connection = sqlite3.connect(at(tmp_path).path)
    names = [name for name, *_ in connection.execute("SELECT * FROM predictions").description]
    connection.close()
    assert names == PREDICTION.names
    readable = query(at(tmp_path), "SELECT event_time FROM predictions_readable")
    assert readable == [("2026-11-22T23:59:50.010000Z",)]
    text = "SELECT datetime(event_time / 1000000, 'unixepoch') FROM predictions"
    assert query(at(tmp_path), text) == [("2026-11-22 23:59:50",)]
    micros = query(at(tmp_path), "SELECT event_time FROM predictions")[0][0]
    assert duckdb.sql(f"SELECT make_timestamp({micros})").fetchall() == [(datetime(2026, 11, 22, 23, 59, 50, 10_000),)]  # noqa: DTZ001


def test_kill_9_leaves_each_prediction_once(tmp_path: Path) -> None:
    rows, kills = 2_400, 0
    command = [sys.executable, stored_flow.__file__, str(tmp_path), str(rows)]
    where = SqlSettings(url=f"sqlite:///{tmp_path}/voltmill.db")
    choose = random.Random(7)

    def stored() -> int:
        try:
            return int(query(where, "SELECT count(*) FROM predictions_rows")[0][0])
        except sqlite3.OperationalError:
            return 0

    for wanted in (100, 700, 1500):
        child = subprocess.Popen(command, stderr=subprocess.PIPE)
        more = wanted + choose.randrange(200)
        while child.poll() is None and stored() < more:
            threading.Event().wait(0.002)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        kills += child.returncode == -signal.SIGKILL
    subprocess.run(command, check=True)
    assert kills >= 2
    assert read_rows(where).to_pylist() == by_key(predictions(0, rows))
    assert not Path(f"{where.path}-wal").exists()  # folded in when the stream ended


def test_a_locked_database_is_waited_for(tmp_path: Path) -> None:
    waiting: list[bool] = []
    patience = Patience("a database", on_waiting=waiting.append)
    out = writer(at(tmp_path, timeout_seconds=0.01), patience=patience)
    other = locked(at(tmp_path))
    work = threading.Thread(target=out.write, args=[[predictions(0, 5)]])
    work.start()
    while not waiting:
        work.join(0.01)
    other.close()
    work.join(10)
    assert waiting == [True, False]
    assert read_rows(at(tmp_path)).num_rows == 5


def test_a_wait_that_is_too_long_ends_with_one_line(tmp_path: Path) -> None:
    out = writer(at(tmp_path, timeout_seconds=0.01), seconds=0.05)
    other = locked(at(tmp_path))
    with pytest.raises(SqlError, match=r"^[^\n]*v\.db: table predictions: database is locked$"):
        out.write([predictions(0, 5)])
    other.close()
    assert read_rows(at(tmp_path)).num_rows == 0
    assert out.write([predictions(0, 5)]) == []
    assert read_rows(at(tmp_path)).num_rows == 5


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    """Once as SQLite's own limit of a file, which is gone with the connection, once as the system's."""
    out = writer(at(tmp_path), seconds=5.0)
    database = out._database
    assert isinstance(database, SqliteDatabase) and database._connection("rw").execute("PRAGMA max_page_count = 9")
    assert out.write([predictions(0, 2_000)]) == []
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (where_size(tmp_path) + 100_000, hard))
    try:
        short = writer(at(tmp_path), seconds=0.1)
        with pytest.raises(SqlError, match=r"disk I/O error|database or disk is full"):
            for n in range(1, 9):
                short.write([predictions(2_000 * n, 2_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    short.close()
    out.write([predictions(0, 18_000)])
    assert read_rows(at(tmp_path)).num_rows == 18_000


def where_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def test_each_error_of_sqlite_has_its_class(tmp_path: Path) -> None:
    where = at(tmp_path)
    writer(where).write([predictions(0, 1)])
    database = SqliteDatabase(where, "predictions", PREDICTION, PREDICTION_KEY)
    fresh = f"VALUES ({', '.join('?' * len(database._statements.columns))})"
    columns = (1, "x", None, None, None, 0, 0, 1, 1)
    insert = f"INSERT INTO predictions_rows {fresh}"
    execute = database._connection("rw").execute

    def failed(*statement: object) -> Exception:
        with pytest.raises((sqlite3.Error, OverflowError)) as raised:
            execute(*statement)  # type: ignore[arg-type]
        return raised.value

    assert database.classify(failed(insert, (None, *columns[1:]))) is Failure.REFUSED
    assert database.classify(failed(insert, (2**70, *columns[1:]))) is Failure.REFUSED
    execute("CREATE TRIGGER t BEFORE INSERT ON predictions_rows BEGIN SELECT RAISE(FAIL, 'no'); END")
    assert database.classify(failed(insert, columns)) is Failure.REFUSED
    execute("DROP TRIGGER t")
    execute("CREATE TABLE strict (a INTEGER CHECK (a < 3)) STRICT")
    assert database.classify(failed("INSERT INTO strict VALUES (4)")) is Failure.REFUSED
    assert database.classify(failed("INSERT INTO strict VALUES ('x')")) is Failure.REFUSED
    assert database.classify(failed("SELECT zeroblob(3000000000)")) is Failure.REFUSED
    assert database.classify(failed("INSERT INTO gone VALUES (4)")) is Failure.FATAL
    assert database.classify(failed("INSERT INTO strict (b) VALUES (4)")) is Failure.FATAL
    execute("PRAGMA query_only = on")
    assert database.classify(failed(insert, columns)) is Failure.TRANSIENT
    assert database.classify(MemoryError()) is Failure.FATAL
    database.close()


def test_what_no_row_is_to_blame_for_gives_no_row_up(tmp_path: Path) -> None:
    out = writer(at(tmp_path))
    query(at(tmp_path), "DROP TABLE predictions_rows")
    with pytest.raises(SqlError, match=r"v\.db: table predictions: no such table: (main\.)?predictions_rows"):
        out.write([predictions(0, 5)])


def test_a_file_that_is_gone_is_no_loss_in_silence(tmp_path: Path) -> None:
    """While it is written to, the snapshot tells, before anything is acknowledged; else it is waited for."""
    out = writer(at(tmp_path))
    out.write([predictions(0, 5)])
    shutil.move(at(tmp_path).path, tmp_path / "elsewhere.db")
    with pytest.raises(SqlError, match=r"v\.db: was removed or replaced"):
        out.durable()
    out.close()
    with pytest.raises(SqlError, match="unable to open database file"):
        out.write([predictions(0, 5)])


def test_a_snapshot_empties_the_log_into_the_file(tmp_path: Path) -> None:
    out = writer(at(tmp_path))
    out.durable()  # nothing was opened yet
    out.write([predictions(0, 500)])
    small = at(tmp_path).path.stat().st_size
    out.durable()
    assert at(tmp_path).path.stat().st_size > small


def test_a_drain_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "DRAIN_SECONDS", 0.05)
    drain = Drain()
    out = writer(at(tmp_path, timeout_seconds=0.01), patience=Patience("a database", drain=drain))
    other = locked(at(tmp_path))
    drain.request()
    with pytest.raises(SqlError, match="database is locked"):
        out.write([predictions(0, 5)])
    other.close()


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(SqlError, match=r"v\.db: no such file"):
        read_rows(at(tmp_path))
    (tmp_path / "v.db").write_bytes(b"no database" * 1000)
    with pytest.raises(SqlError, match=r"v\.db: file is not a database"):
        table(at(tmp_path)).prepare()
    with pytest.raises(SqlError, match=r"v\.db: (Not a directory|File exists)"):
        table(at(tmp_path / "v.db")).prepare()
    (tmp_path / "folder" / "v.db").mkdir(parents=True)
    with pytest.raises(SqlError, match=r"folder/v\.db: unable to open database file"):
        table(at(tmp_path / "folder")).prepare()
