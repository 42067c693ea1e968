import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import stored_flow
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_flow import predictions

from voltmill.connectors import sql as sql_module
from voltmill.connectors.sql import SqlError, SqlPartition, SqlSettings, SqlSink, read_rows
from voltmill.kernels.schema import ALERT, PREDICTION, PREDICTION_KEY, TELEMETRY


def at(folder: Path, **options: Any) -> SqlSettings:
    return SqlSettings(url=f"sqlite:///{folder}/v.db", **options)


def part(where: SqlSettings, **options: Any) -> SqlPartition:
    return SqlSink(where, **options).build_part("out", "sql", None)


def query(where: SqlSettings, text: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(where.path)
    try:
        return connection.execute(text).fetchall()
    finally:
        connection.close()


def by_key(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    return sorted(rows, key=lambda row: tuple(row[name] for name in PREDICTION_KEY))


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    out = part(at(tmp_path))
    out.write_batch([predictions(0, 40), predictions(40, 3, unit="x", mode="fallback"), predictions(0, 0)])
    out.close()
    found = read_rows(at(tmp_path))
    assert found.schema.equals(PREDICTION)
    wanted = pa.Table.from_batches([predictions(0, 40), predictions(40, 3, unit="x", mode="fallback")])
    assert found.to_pylist() == by_key(wanted)


def test_the_same_batch_twice_is_there_once(tmp_path: Path) -> None:
    out = part(at(tmp_path))
    out.write_batch([predictions(0, 50), predictions(20, 50)])
    out.write_batch([predictions(0, 50)])
    assert query(at(tmp_path), "SELECT count(*), count(DISTINCT source_offset) FROM predictions") == [(70, 70)]


def test_the_key_is_what_it_says_and_no_more(tmp_path: Path) -> None:
    """Another mode or unit overwrites; another target, model, time or device is another row."""
    out = part(at(tmp_path))
    changes: list[dict[str, Any]] = [
        {"mode": "replay", "unit": "ppm", "value": 9.0},
        {"target": "soh"},
        {"model_sha256": "cd" * 32},
        {"device_id": "other"},
        {"event_time": datetime(2026, 1, 1, tzinfo=UTC)},
    ]
    out.write_batch([predictions(3, 1)] + [predictions(3, 1, **change) for change in changes])
    found = read_rows(at(tmp_path)).to_pylist()
    assert len(found) == 5
    assert [row["mode"] for row in found if row["value"] == 9.0] == ["replay"]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "device_id": st.text(st.characters(codec="utf-8"), max_size=4),
                "target": st.sampled_from(["soc", "soh", "it's; DROP TABLE x"]),
                "value": st.none() | st.floats(width=32, allow_nan=False),
                "source": st.sampled_from(["a", "b", ""]),
            }
        ),
        max_size=12,
    )
)
def test_any_text_and_number(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    where = at(tmp_path_factory.mktemp("sql"))
    full = predictions(0, 1).to_pylist()[0]
    batch = pa.RecordBatch.from_pylist([full | row for row in rows], schema=PREDICTION)
    out = part(where)
    out.write_batch([batch])
    last = {tuple(row[name] for name in PREDICTION_KEY): row for row in batch.to_pylist()}
    found = {tuple(row[name] for name in PREDICTION_KEY): row for row in read_rows(where).to_pylist()}
    assert found == last
    out.close()


def test_nan_and_null_are_null(tmp_path: Path) -> None:
    out = part(at(tmp_path))
    out.write_batch([predictions(0, 1, value=float("nan"), lo90=None)])
    assert query(at(tmp_path), "SELECT value, lo90 FROM predictions") == [(None, None)]


def test_the_views_name_each_column_and_tell_the_time(tmp_path: Path) -> None:
    out = part(at(tmp_path))
    out.write_batch([predictions(1, 1)])
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


def test_any_schema_will_do(tmp_path: Path) -> None:
    """An alert is opened, and written again when it closes; its times may be null."""
    where = at(tmp_path, table="alerts")
    alert = {"alert_id": "x", "device_id": "m", "code": "OVER_TEMP_ALARM", "severity": "alarm", "quality_bits": 0}
    alert |= {"opened_at": stored_flow.START, "closed_at": None, "value": 61.5, "limit": 60.0}
    out = part(where, schema=ALERT, key=["alert_id"])
    for closed in (None, stored_flow.START):
        out.write_batch([pa.RecordBatch.from_pylist([alert | {"closed_at": closed}], schema=ALERT)])
        assert read_rows(where, schema=ALERT, key=["alert_id"]).to_pylist() == [alert | {"closed_at": closed}]
    with pytest.raises(ValueError, match="column seq: uint64 has no SQL type"):
        SqlSink(where, schema=TELEMETRY, key=["device_id"])
    with pytest.raises(ValueError, match="no column nought for its key"):
        SqlSink(where, key=["nought"])


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
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        kills += child.returncode == -signal.SIGKILL
    subprocess.run(command, check=True)
    assert kills >= 2
    assert read_rows(where).to_pylist() == by_key(pa.Table.from_batches([predictions(0, rows)]))


def test_a_locked_database_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_module, "FIRST_PAUSE_SECONDS", 0.001)
    where = at(tmp_path, busy_timeout_seconds=0, tries=3)
    out = part(where)
    other = sqlite3.connect(where.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(SqlError, match=r"v.db: table predictions: database is locked"):
        out.write_batch([predictions(0, 5)])
    patient = part(at(tmp_path / "later", busy_timeout_seconds=0, tries=1000))
    other.execute("ROLLBACK")
    other.close()
    other = sqlite3.connect(tmp_path / "later/v.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    pauses = threading.Event()

    def pause(seconds: float) -> None:
        pauses.set()
        if other.in_transaction:
            other.execute("ROLLBACK")

    monkeypatch.setattr("time.sleep", pause)
    patient.write_batch([predictions(0, 5)])
    assert pauses.is_set()
    other.close()
    assert read_rows(at(tmp_path / "later")).num_rows == 5


def test_a_failed_transaction_leaves_nothing_and_the_next_succeeds(tmp_path: Path) -> None:
    out = part(at(tmp_path))
    null_key = predictions(5, 1, device_id=None)
    with pytest.raises(SqlError, match="NOT NULL constraint failed: predictions_rows.device_id"):
        out.write_batch([predictions(0, 5), null_key])
    assert read_rows(at(tmp_path)).num_rows == 0
    out.write_batch([predictions(0, 5)])
    assert read_rows(at(tmp_path)).num_rows == 5


def test_committed_rows_are_reported(tmp_path: Path) -> None:
    seen: list[int] = []
    out = part(at(tmp_path), on_written=lambda batch: seen.append(read_rows(at(tmp_path)).num_rows))
    out.write_batch([predictions(0, 5), predictions(5, 5)])
    assert seen == [10, 10]


def test_a_snapshot_empties_the_log_into_the_file(tmp_path: Path) -> None:
    out = part(at(tmp_path))
    out.write_batch([predictions(0, 500)])
    small = at(tmp_path).path.stat().st_size
    assert out.snapshot() == ("v1",)
    assert at(tmp_path).path.stat().st_size > small


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(SqlError, match=r"v.db: no such file"):
        read_rows(at(tmp_path))
    with pytest.raises(SqlError, match="state"):
        SqlSink(at(tmp_path)).build_part("out", "sql", ("v2",))
    part(at(tmp_path), schema=ALERT, key=["alert_id"]).close()
    with pytest.raises(SqlError, match="the table has other columns; name another"):
        part(at(tmp_path))
    (tmp_path / "v.db").write_bytes(b"no database" * 1000)
    with pytest.raises(SqlError, match=r"v.db: file is not a database"):
        part(at(tmp_path))
    for nonsense in ({"url": "postgres://x"}, {"url": "sqlite:///"}, {"table": "a b"}, {"tries": 0}):
        with pytest.raises(ValueError, match=r"must be"):
            SqlSettings(**nonsense)
