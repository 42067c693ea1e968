"""What holds for a table in any database, shown on real ones."""

import math
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bytewax.operators as op
import msgspec
import pyarrow as pa
import pytest
import stored_flow
from bytewax.dataflow import Dataflow
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.testing import TestingSink, TestingSource
from conftest import RunFlow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sql_tables import at, by_key, locked, on, query, reject, rows_of, table, writer
from stored_flow import predictions

from voltmill.connectors import sql_writer
from voltmill.connectors.outage import Patience
from voltmill.connectors.sql import SqlError, SqlSettings, SqlTable, open_database, read_rows
from voltmill.connectors.sql_dialect import Failure
from voltmill.connectors.sql_writer import Writer
from voltmill.kernels.schema import ALERT, DEAD_LETTER, PREDICTION, PREDICTION_KEY, TELEMETRY


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> SqlSettings:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return at(tmp_path)
    return on(request.getfixturevalue("postgresql"))


@pytest.fixture
def out(where: SqlSettings) -> Iterator[Writer]:
    made = writer(where)
    yield made
    made.close()


def test_what_goes_in_comes_out(where: SqlSettings) -> None:
    out = writer(where)
    sent = [predictions(0, 40), predictions(40, 3, unit="x", mode="fallback"), predictions(0, 0)]
    assert out.write(sent) == []
    out.close()
    found = read_rows(where)
    assert found.schema.equals(PREDICTION)
    assert found.to_pylist() == by_key(*sent)


def test_the_same_batch_twice_is_there_once(where: SqlSettings) -> None:
    out = writer(where)
    out.write([predictions(0, 50), predictions(20, 50)])
    out.write([predictions(0, 50)])
    assert read_rows(where).to_pylist() == by_key(predictions(0, 70))


def test_of_rows_with_one_key_the_last_stays(where: SqlSettings) -> None:
    out = writer(where)
    twice = pa.Table.from_batches([predictions(n, 1, value=v) for v in (1.0, 2.0) for n in range(3)])
    out.write([twice.combine_chunks().to_batches()[0], predictions(0, 1, value=3.0), predictions(0, 1, value=4.0)])
    assert sorted(read_rows(where)["value"].to_pylist()) == [2.0, 2.0, 4.0]


def test_the_key_is_what_it_says_and_no_more(where: SqlSettings) -> None:
    """Another mode or unit overwrites; another target, model, time or device is another row."""
    out = writer(where)
    changes: list[dict[str, Any]] = [
        {"mode": "replay", "unit": "ppm", "value": 9.0},
        {"target": "soh"},
        {"model_sha256": "cd" * 32},
        {"device_id": "other"},
        {"event_time": datetime(2026, 1, 1, tzinfo=UTC)},
    ]
    out.write([predictions(3, 1)] + [predictions(3, 1, **change) for change in changes])
    found = read_rows(where).to_pylist()
    assert len(found) == 5
    assert [row["mode"] for row in found if row["value"] == 9.0] == ["replay"]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "device_id": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4),
                "event_time": st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
                "target": st.sampled_from(["soc", "soh", "it's; DROP TABLE x", '"\\{}[]']),
                "value": st.none() | st.floats(width=32, allow_nan=False),
                "lo90": st.none() | st.floats(width=32, allow_nan=False),
                "source": st.sampled_from(["a", "b", "", "\U0001f50b"]),
                "quality_bits": st.integers(0, 2**32 - 1),
                "source_offset": st.integers(-(2**63), 2**63 - 1),
            }
        ),
        max_size=12,
    )
)
def test_any_text_number_and_time(where: SqlSettings, out: Writer, rows: list[dict[str, Any]]) -> None:
    full = predictions(0, 1).to_pylist()[0]
    batch = pa.RecordBatch.from_pylist([full | row for row in rows], schema=PREDICTION)
    query(where, f"DELETE FROM {rows_of(where)}")
    assert out.write([batch]) == []
    last = {tuple(row[name] for name in PREDICTION_KEY): row for row in batch.to_pylist()}
    found = {tuple(row[name] for name in PREDICTION_KEY): row for row in read_rows(where).to_pylist()}
    assert found == last


def test_nan_and_null_are_null(where: SqlSettings) -> None:
    out = writer(where)
    infinite = {"lo90": -math.inf, "hi90": math.inf}
    out.write([predictions(0, 1, value=math.nan, lo90=None), predictions(1, 1, value=None, **infinite)])
    found = read_rows(where).select(["value", "lo90", "hi90"]).to_pylist()
    assert found == [{"value": None, "lo90": None, "hi90": None}, {"value": None} | infinite]


def test_any_schema_will_do(where: SqlSettings) -> None:
    """An alert is opened, and written again when it closes; its times may be null."""
    alert = {"alert_id": "x", "device_id": "m", "code": "OVER_TEMP_ALARM", "severity": "alarm", "quality_bits": 0}
    alert |= {"opened_at": stored_flow.START, "closed_at": None, "value": 61.5, "limit": 60.0}
    out = writer(where, table="alerts", schema=ALERT, key=["alert_id"])
    for closed in (None, stored_flow.START):
        out.write([pa.RecordBatch.from_pylist([alert | {"closed_at": closed}], schema=ALERT)])
        assert read_rows(where, table="alerts", schema=ALERT, key=["alert_id"]).to_pylist() == [
            alert | {"closed_at": closed}
        ]
    with pytest.raises(ValueError, match="column seq: uint64 has no SQL type"):
        table(where, schema=TELEMETRY, key=["device_id"])
    with pytest.raises(ValueError, match="table 'a b' must be a plain name"):
        table(where, table="a b")
    with pytest.raises(ValueError, match="no column nought for its key"):
        table(where, key=["nought"])


def test_a_table_with_other_columns_is_named(where: SqlSettings) -> None:
    """Before anything is made beside it: somebody else's table is not taken over."""
    query(where, f"CREATE TABLE {rows_of(where)} (device_id text, event_time integer)")
    for _ in range(2):
        with pytest.raises(SqlError, match="predictions: the table has other columns"):
            table(where).prepare()
    assert query(where, "SELECT count(*) FROM voltmill_schema") == [(0,)]
    other = table(where, table="alerts", schema=ALERT, key=["alert_id"])
    query(where, f"DROP TABLE {rows_of(where)}")
    other.prepare()
    with pytest.raises(SqlError, match="alerts: the table has other columns"):
        table(where, table="alerts", schema=PREDICTION, key=PREDICTION_KEY).prepare()


def test_statements_of_the_schema_are_all_run_or_none(where: SqlSettings) -> None:
    """Also where one waits for a lock, and in a database that is not there yet."""
    database = open_database(where)
    with pytest.raises(Exception, match=r"no_such|does not exist"):
        database.run(["CREATE TABLE one (a integer)", "INSERT INTO one VALUES (1)", "DROP TABLE no_such"])
    database.run(["CREATE TABLE one (a integer, b text) -- really?", "INSERT INTO one VALUES (7, 'x?')"])
    assert database.rows("SELECT a, b FROM one") == [(7, "x?")]
    with pytest.raises(Exception, match=r"UNIQUE|unique") as raised:
        database.run(["CREATE UNIQUE INDEX u ON one (a)", "INSERT INTO one VALUES (8, ''), (7, '')"])
    assert database.classify(raised.value) is Failure.REFUSED
    assert database.rows("SELECT a, b FROM one") == [(7, "x?")]
    database.run([])
    database.close()
    out = writer(where)
    locking = locked(where)
    with pytest.raises(Exception, match="lock") as raised:
        open_database(msgspec.structs.replace(where, timeout_seconds=0.2)).run([f"DELETE FROM {rows_of(where)}"])
    assert database.classify(raised.value) is Failure.TRANSIENT
    locking.close()
    out.surely(lambda: database.run([f"DELETE FROM {rows_of(where)}"]))
    with pytest.raises(SqlError, match=r": table predictions: .*no_such"):
        out.surely(lambda: database.run(["DROP TABLE no_such"]))
    database.close()


@pytest.mark.parametrize("refused", [[0], [59], [7, 31, 32], list(range(20, 40)), list(range(60))])
def test_refused_rows_do_not_stop_their_neighbours(where: SqlSettings, refused: list[int]) -> None:
    """First, last, some in the middle, a run, all of them: in three batches of one call."""
    out = writer(where)
    offsets = ", ".join(map(str, refused))
    query(where, f"DELETE FROM {rows_of(where)}")
    reject(where, f"NEW.source_offset IN ({offsets})")
    found = out.write([predictions(0, 20), predictions(20, 20), predictions(40, 20)])
    assert [one.row.column("source_offset")[0].as_py() for one in found] == refused
    assert all("no room for it" in one.message and "\n" not in one.message for one in found)
    good = [n for n in range(60) if n not in refused]
    assert sorted(read_rows(where)["source_offset"].to_pylist()) == good


def test_few_transactions_find_few_refused_rows(where: SqlSettings) -> None:
    times: list[float] = []
    made = table(where)
    made.prepare()
    reject(where, "NEW.source_offset IN (11, 500)")
    out = made.writer()
    database = out._database
    original = database.upsert

    def counted(batches: Any) -> None:
        times.append(sum(len(batch) for batch in batches))
        original(batches)

    database.upsert = counted  # type: ignore[method-assign]
    assert len(out.write([predictions(0, 1024)])) == 2
    assert len(times) <= 2 * 2 * 11
    assert read_rows(where).num_rows == 1022


def test_much_at_once_is_stored_in_several_transactions(where: SqlSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_writer, "MOST_ROWS", 100)
    sizes: list[int] = []
    out = writer(where)
    upsert = out._database.upsert

    def counted(batches: Any) -> None:
        sizes.append(sum(map(len, batches)))
        upsert(batches)

    out._database.upsert = counted  # type: ignore[method-assign]
    out.write([predictions(first, rows) for first, rows in ((0, 0), (0, 60), (60, 30), (90, 125), (215, 75))])
    assert sizes == [90, 100, 100]
    assert read_rows(where).to_pylist() == by_key(predictions(0, 290))


def test_a_null_in_the_key_is_refused(where: SqlSettings) -> None:
    (refused,) = writer(where).write([predictions(0, 5), predictions(5, 1, device_id=None)])
    assert refused.row.column("source_offset")[0].as_py() == 5
    assert "device_id" in refused.message
    assert read_rows(where).num_rows == 5


def test_committed_rows_are_reported(where: SqlSettings) -> None:
    seen: list[tuple[int, int]] = []
    out = writer(where, on_written=lambda batch: seen.append((len(batch), read_rows(where).num_rows)))
    out.write([predictions(0, 5), predictions(5, 5)])
    assert seen == [(5, 10), (5, 10)]
    reject(where, "NEW.source_offset = 12")
    out.write([predictions(10, 4)])
    assert sum(rows for rows, _ in seen) == 13


def flow_into(made: SqlTable, sent: Iterable[Any], letters: list[pa.RecordBatch]) -> Dataflow:
    """Keyed batches into a table; what it refuses into a list."""
    flow = Dataflow("test")
    batches = op.input("in", flow, TestingSource(sent, batch_size=1))
    op.output("out", made.upsert("sql", batches), TestingSink(letters))
    return flow


def test_a_refused_row_becomes_a_dead_letter(where: SqlSettings, run_flow: RunFlow) -> None:
    made = table(where)
    made.prepare()
    reject(where, "NEW.source_offset IN (3, 24)")
    letters: list[pa.RecordBatch] = []
    sent = [(f"{n:02}", predictions(20 * n, 20, value=0.1)) for n in range(2)]
    run_flow(flow_into(made, sent, letters))
    found = pa.Table.from_batches(letters)
    assert found.schema.equals(DEAD_LETTER)
    first = next(row for row in found.to_pylist() if row["source_offset"] == 3)
    payload = msgspec.json.decode(first.pop("payload"))
    assert payload["event_time"] == "2026-11-22T23:59:50.030000Z" and payload["device_id"] == "m-3"
    assert math.isclose(payload["value"], 0.1, rel_tol=1e-7) and payload["hi90"] is None
    assert list(payload) == PREDICTION.names
    assert "no room for it" in first.pop("detail")
    assert first == {
        "reason": "refused_by_database",
        "stage": "sql",
        "topic": None,
        "ingest_time": None,
        "source": "test",
        "source_partition": "part-0",
        "source_offset": 3,
    }
    assert sorted(found["source_offset"].to_pylist()) == [3, 24]
    assert read_rows(where).num_rows == 38


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_of_many_shards_are_each_there_once(where: SqlSettings, run_flow: RunFlow, workers: int) -> None:
    made = table(where, seconds=30.0)
    made.prepare()
    sent = [(f"{n % 5:02}", predictions(20 * n, 25)) for n in range(30)]
    run_flow(flow_into(made, sent, []), workers=workers)
    assert read_rows(where).to_pylist() == by_key(predictions(0, 605))


def test_recovery_forgets_nothing(where: SqlSettings, run_flow: RunFlow, tmp_path: Path) -> None:
    made = table(where)
    made.prepare()
    reject(where, "NEW.source_offset = 30")
    letters: list[pa.RecordBatch] = []
    sent: list[Any] = [("00", predictions(20 * n, 20)) for n in range(6)]
    sent.insert(3, TestingSource.ABORT())
    for _ in range(2):
        run_flow(flow_into(made, sent, letters), recovery=tmp_path / "state", epoch_seconds=0)
    good = [row for row in by_key(predictions(0, 120)) if row["source_offset"] != 30]
    assert read_rows(where).to_pylist() == good
    assert {row["source_offset"] for batch in letters for row in batch.to_pylist()} == {30}


def test_while_the_database_is_away_nothing_is_read(where: SqlSettings, run_flow: RunFlow) -> None:
    """So memory stays as it is: at most one batch is on its way while a lock is held."""
    waiting, seen = threading.Event(), [0]
    where = msgspec.structs.replace(where, timeout_seconds=0.2)
    patience = Patience("a database", seconds=60.0, on_waiting=lambda waits: waiting.set() if waits else None)
    made = table(where, patience=patience)
    made.prepare()
    counts: list[int] = []

    def release() -> None:
        assert waiting.wait(30)
        for _ in range(2):
            time.sleep(0.5)
            counts.append(seen[0])
        lock.close()

    def read() -> Iterator[tuple[str, pa.RecordBatch]]:
        for n in range(50):
            seen[0] += 1
            yield "00", predictions(20 * n, 20)

    lock = locked(where)
    helper = threading.Thread(target=release)
    helper.start()
    run_flow(flow_into(made, read(), []))
    helper.join()
    assert counts[0] == counts[1] <= 2 and seen[0] == 50
    assert read_rows(where).num_rows == 1000


class _OldSink(FixedPartitionedSink[Any, Any], StatefulSinkPartition[Any, Any]):
    """Leaves in the recovery store what the SQL sink of the first version left there."""

    def list_parts(self) -> list[str]:
        return ["sql"]

    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> "_OldSink":
        return self

    def write_batch(self, values: list[Any]) -> None:
        return

    def snapshot(self) -> Any:
        return ("v1",)


def test_a_store_of_the_sink_that_this_once_was_is_resumed(
    where: SqlSettings, run_flow: RunFlow, tmp_path: Path
) -> None:
    made = table(where)
    made.prepare()
    sent: list[Any] = [("00", predictions(0, 20)), TestingSource.EOF(), ("00", predictions(20, 20))]
    old = Dataflow("test")
    op.output("predictions-1", op.input("in", old, TestingSource(sent, batch_size=1)), _OldSink())
    run_flow(old, recovery=tmp_path / "state", epoch_seconds=0)
    run_flow(flow_into(made, sent, []), recovery=tmp_path / "state", epoch_seconds=0)
    assert sorted(read_rows(where)["source_offset"].to_pylist()) == list(range(20, 40))


def test_nonsense_is_refused_where_it_is_set() -> None:
    postgresql = "postgresql://u:secret@h"
    for nonsense in (
        {"url": "postgres://x"},
        {"url": "sqlite:///"},
        {"url": postgresql},
        {"url": f"{postgresql}:99999/db"},
        {"url": f"{postgresql}:/db"},
        {"url": f"{postgresql}/db?sslmode"},
        {"timeout_seconds": 0.0},
        {"outage_seconds": -1.0},
    ):
        with pytest.raises(ValueError, match=r"must be") as raised:
            SqlSettings(**nonsense)  # type: ignore[arg-type]
        assert "secret" not in str(raised.value)
