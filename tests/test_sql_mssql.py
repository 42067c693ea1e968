"""Azure SQL: Microsoft's real driver against a stand-in that keeps rows and fails as it is told."""

import json
import logging
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
import sqlfluff
import sqlglot
import stored_flow
from conftest import RunFlow
from mssql_tables import at, fresh, serving
from sql_tables import by_key, table, writer
from stored_flow import START, predictions
from tds_server import TdsServer
from test_sql import flow_into

from voltmill.connectors import sql_mssql
from voltmill.connectors.outage import Patience
from voltmill.connectors.sql import SqlError, SqlSettings, open_database, read_rows
from voltmill.connectors.sql_dialect import Failure
from voltmill.connectors.sql_mssql import MssqlDatabase
from voltmill.connectors.sql_mssql_errors import classify
from voltmill.connectors.sql_mssql_text import SESSION, Column, Statements, columns_query
from voltmill.kernels.schema import ALERT, PREDICTION, PREDICTION_KEY, TELEMETRY


@pytest.fixture(scope="module")
def server() -> Iterator[TdsServer]:
    with serving() as made:
        yield made


@pytest.fixture
def where(server: TdsServer) -> SqlSettings:
    return fresh(server, timeout_seconds=2.0)


def merges(server: TdsServer) -> list[list[dict[str, Any]]]:
    """The rows of each MERGE since the last look."""
    return [json.loads(sent[0]) for text, sent in server.statements() if text.startswith("MERGE") and sent != ["[]"]]


def test_what_goes_in_comes_out_however_often(where: SqlSettings, server: TdsServer) -> None:
    out = writer(where)
    sent = [predictions(0, 40), predictions(40, 3, unit="Ω", mode="fallback"), predictions(0, 0)]
    assert out.write(sent) == [] == out.write(sent)
    assert out.write([predictions(30, 900)]) == []
    found = read_rows(where)
    assert found.schema.equals(PREDICTION)
    assert found.to_pylist() == by_key(predictions(0, 40), predictions(40, 890))


def test_a_call_is_one_statement_of_sorted_keys_each_once(where: SqlSettings, server: TdsServer) -> None:
    out = writer(where)
    merges(server)
    nothing = {"value": math.nan, "lo90": None, "hi90": 1.5}
    out.write([predictions(3, 1), predictions(0, 30, value=1.0), predictions(2, 1, device_id="m-2  ", **nothing)])
    (rows,) = merges(server)
    keys = [tuple(row[name].strip() for name in PREDICTION_KEY) for row in rows]
    assert len(keys) == 30 and keys == sorted(keys)
    assert list(rows[0]) == PREDICTION.names
    assert rows[0]["event_time"] == "2026-11-22 23:59:50.000000" and rows[0]["value"] == 1.0
    (last,) = [row for row in rows if row["source_offset"] == 2]  # the server takes no notice of spaces at the end
    assert (last["device_id"], last["value"], last["lo90"], last["hi90"]) == ("m-2  ", None, None, 1.5)


def test_any_schema_will_do(where: SqlSettings) -> None:
    alert = {"alert_id": "x", "device_id": "m", "code": "OVER_TEMP_ALARM", "severity": "alarm", "quality_bits": 0}
    alert |= {"opened_at": START, "closed_at": None, "value": 61.5, "limit": 60.0}
    out = writer(where, table="alerts", schema=ALERT, key=["alert_id"])
    for closed in (None, datetime(1, 1, 1, tzinfo=UTC)):
        out.write([pa.RecordBatch.from_pylist([alert | {"closed_at": closed}], schema=ALERT)])
        assert read_rows(where, table="alerts", schema=ALERT, key=["alert_id"]).to_pylist() == [
            alert | {"closed_at": closed}
        ]
    with pytest.raises(ValueError, match="column seq: uint64 has no SQL type"):
        table(where, schema=TELEMETRY, key=["device_id"])


@pytest.mark.parametrize("number", [1205, 40501, 40197, 10928, 49918, 1222, 0])
def test_what_passes_is_tried_again_and_loses_nothing(where: SqlSettings, server: TdsServer, number: int) -> None:
    """By number, for the driver's classes tell nothing; 0: the socket is cut, the server may have stored the rows."""
    out = writer(where, seconds=20.0)
    out.write([predictions(0, 1)])
    merges(server)
    server.fail(pattern="MERGE", number=number, times=2)
    server.logins()
    assert out.write([predictions(0, 30)]) == []
    assert len(merges(server)) == 3 and len(server.logins()) == 2  # each attempt over a new connection
    assert read_rows(where).to_pylist() == by_key(predictions(0, 30))


@pytest.mark.parametrize("number", [40613, 49920, 0])
def test_a_login_that_fails_is_tried_again(where: SqlSettings, server: TdsServer, number: int) -> None:
    server.fail(pattern="login", number=number, message="Database 'fleet' is not currently available.", times=2)
    assert writer(where, seconds=20.0).write([predictions(0, 3)]) == []
    assert read_rows(where).num_rows == 3


@pytest.mark.parametrize("what", ["login", "MERGE"])
def test_a_server_that_hangs_is_given_up_and_waited_for(where: SqlSettings, server: TdsServer, what: str) -> None:
    out = writer(msgspec.structs.replace(where, timeout_seconds=0.5), seconds=20.0)
    out.close()
    server.fail(pattern=what, number=0, seconds=6.0)
    began = time.monotonic()
    assert out.write([predictions(0, 3)]) == []
    assert time.monotonic() - began < 5
    assert read_rows(where).num_rows == 3


@pytest.mark.parametrize("number", [2627, 2601, 547, 2628, 8152, 245, 8115, 8672, 50001])
def test_a_row_that_is_refused_is_told_from_one_that_is_not(where: SqlSettings, server: TdsServer, number: int) -> None:
    out = writer(where)
    server.fail(pattern="MERGE", number=number, message="not\nthis one", times=1)
    assert out.write([predictions(0, 8)]) == []  # each half alone is taken
    server.fail(pattern="MERGE", number=number, message="not\nthis one", times=1)
    (refused,) = out.write([predictions(8, 1)])
    assert refused.message == "not this one" and refused.row.num_rows == 1
    assert read_rows(where).num_rows == 8


def test_refused_rows_become_dead_letters_and_stop_no_other(
    where: SqlSettings, server: TdsServer, run_flow: RunFlow
) -> None:
    made = table(where)
    made.prepare()
    server.refuse(column="source_offset", values=[7, 31, 32])
    letters: list[pa.RecordBatch] = []
    nulls = predictions(60, 1, device_id=None)
    sent = [*((f"{n}", predictions(20 * n, 20)) for n in range(3)), ("3", nulls), ("3", predictions(61, 5))]
    run_flow(flow_into(made, sent, letters), workers=2)
    rows = sorted(pa.Table.from_batches(letters).to_pylist(), key=lambda row: row["source_offset"])
    assert [row["source_offset"] for row in rows] == [7, 31, 32, 60]
    assert rows[0]["detail"] == "no room for it" and "NULL into column 'device_id'" in rows[3]["detail"]
    assert read_rows(where).num_rows == 62


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device_id": "ü" * 257}, "device_id has 257 characters, and its column is nvarchar(256)"),
        ({"device_id": "\U0001f50b" * 129}, "device_id has 258 characters, and its column is nvarchar(256)"),
        ({"unit": "x" * 17}, "unit has 17 characters, and its column is nvarchar(16)"),
        ({"value": math.inf}, "value is infinite, and no number of T-SQL is"),
        ({"lo90": -math.inf}, "lo90 is infinite, and no number of T-SQL is"),
    ],
)
def test_what_a_column_cannot_hold_is_refused(where: SqlSettings, change: dict[str, Any], message: str) -> None:
    """``OPENJSON`` would cut it, or make null of it, without a word."""
    out = writer(where)
    parts = [predictions(0, 5), predictions(5, 1, **change), predictions(6, 5)]
    (whole,) = pa.Table.from_batches(parts).combine_chunks().to_batches()  # its halves share their labels
    (refused,) = out.write([whole])
    assert refused.message == message and refused.row.column("source_offset")[0].as_py() == 5
    assert out.write([predictions(11, 1, device_id="ü" * 256), predictions(12, 1, device_id="\U0001f50b" * 128)]) == []
    assert read_rows(where).num_rows == 12


@pytest.mark.parametrize(
    ("what", "number", "mend"),
    [
        ("login", 18456, "mend user and password"),
        ("login", 40615, "az sql server firewall-rule create"),
        ("login", 4060, "mend the name of the database"),
        ("MERGE", 208, "voltmill db apply"),
        ("MERGE", 229, "GRANT SELECT, INSERT, UPDATE"),
        ("MERGE", 207, ""),
    ],
)
def test_what_does_not_pass_is_not_waited_for(
    where: SqlSettings, server: TdsServer, what: str, number: int, mend: str
) -> None:
    where = at(server, database=f"fleet-{number}?Encrypt=no")
    server.fail(pattern=what, number=number, message="said\nthe server", times=99)
    began = time.monotonic()
    with pytest.raises(SqlError, match=rf"fleet-{number}: .*said the server.*{mend}") as raised:
        table(where, seconds=60.0).prepare()
    assert time.monotonic() - began < 10 and "\n" not in str(raised.value)


@pytest.mark.parametrize("number", [4060, 40615])
def test_what_comes_of_a_failover_is_waited_for_once_we_were_let_in(
    where: SqlSettings, server: TdsServer, number: int
) -> None:
    out = writer(where, seconds=20.0)
    server.fail(pattern="MERGE", number=0)
    server.fail(pattern="login", number=number, times=2)
    assert out.write([predictions(0, 3)]) == []


def test_errors_without_a_number_of_the_server() -> None:
    """As the driver words them; the classes stand for those of pyodbc."""
    said = "[Microsoft][ODBC Driver 18 for SQL Server]"
    of_pyodbc = type("Error", (Exception,), {"__module__": "pyodbc"})

    def found(state: str, text: str) -> Failure:
        return classify(of_pyodbc(state, f"[{state}] {said}{text}"), let_in=False)

    verify = "SSL Provider: [error:0A000086:SSL routines::certificate verify failed:self-signed certificate] (-1) "
    assert found("08001", f"{verify}(SQLDriverConnect)") is Failure.FATAL
    assert found("08001", "TCP Provider: Error code 0x2749 (10057) (SQLDriverConnect)") is Failure.TRANSIENT
    assert found("08S01", "TCP Provider: Error code 0x68 (104) (SQLExecDirectW)") is Failure.TRANSIENT
    assert found("HYT00", "Login timeout expired (0) (SQLDriverConnect)") is Failure.TRANSIENT
    assert found("22003", "Numeric value out of range (0) (SQLExecDirectW)") is Failure.REFUSED
    assert found("42000", "Incorrect syntax near 'x'. (102) (SQLExecDirectW)") is Failure.FATAL
    assert classify(TypeError("a bug"), let_in=True) is Failure.FATAL


def test_a_table_that_is_missing_or_other_is_named(where: SqlSettings, server: TdsServer) -> None:
    names = [
        (name, "bigint" if name.startswith("source_o") else "real", 8, 0, None)
        for name in PREDICTION.names
        if name != "unit"
    ]
    for columns, message in (
        (names, "device_id is real, not nvarchar or varchar or nchar or char"),
        ([("device_id", "nvarchar", 400, 0, "SQL_Latin1_General_CP1_CI_AS")], "device_id has collation SQL_Latin1"),
        ([("device_id", "nvarchar", -1, 0, "Latin1_General_100_BIN2")], "event_time is missing"),
    ):
        server.table(name="predictions", columns=columns, key=[])
        with pytest.raises(SqlError, match=rf"table predictions: the table has other columns: {message}"):
            open_database(where).check()
    server.drop(name="predictions")
    with pytest.raises(SqlError, match=r"table predictions: there is no such table; make it: voltmill db apply"):
        open_database(where).check()


def test_statements_of_the_schema_run_in_one_transaction(where: SqlSettings, server: TdsServer) -> None:
    database = open_database(where)
    database.run(["CREATE TABLE a (b int)", "CREATE VIEW c AS SELECT 1"])
    texts = [text for text, _ in server.statements()]
    assert texts[1::3] == ["BEGIN TRANSACTION", "COMMIT TRANSACTION"]
    assert texts[2:4] == ["CREATE TABLE a (b int)", "CREATE VIEW c AS SELECT 1"]
    server.fail(pattern="CREATE VIEW", number=2714, message="There is already an object named 'c'.")
    with pytest.raises(Exception, match="already an object"):
        database.run(["CREATE TABLE a (b int)", "CREATE VIEW c AS SELECT 1"])
    assert "COMMIT TRANSACTION" not in [text for text, _ in server.statements()]
    server.answer(pattern="SELECT 1", columns=[("n", "bigint"), ("s", "nvarchar")], rows=[(1, "a"), (2, None)])
    assert database.rows("SELECT 1") == [(1, "a"), (2, None)]
    assert len(server.logins()) == 2  # what failed was undone by closing its connection
    database.close()


def test_the_driver_that_is_missing_is_named_with_the_mend(where: SqlSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    install = r"apt-get update && ACCEPT_EULA=Y apt-get install -y unixodbc msodbcsql18, or set \[sql\] driver$"
    with pytest.raises(SqlError, match=rf"Can't open lib '/no/such.so' : file not found; .*{install}"):
        table(msgspec.structs.replace(where, driver="/no/such.so")).prepare()
    monkeypatch.setattr(sql_mssql, "find_spec", lambda name: None)
    with pytest.raises(SqlError, match=rf"'ODBC Driver 18 for SQL Server' : file not found; .*{install}"):
        table(msgspec.structs.replace(where, driver="")).prepare()


def test_the_drivers_of_the_system_come_before_that_of_a_package() -> None:
    assert sql_mssql._driver(["ODBC Driver 18 for SQL Server"]) == "ODBC Driver 18 for SQL Server"
    assert "libmsodbcsql-18" in sql_mssql._driver([])


def test_the_password_is_never_shown(where: SqlSettings, server: TdsServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    word = """s3cret '"\\ %41 {;}@:/?#&=+,$~`^|<>é"""
    mine = at(server, login=f"mill:{word}")
    out = writer(mine)
    assert {who["password"] for who in server.logins()} == {word}
    said = [repr(mine), repr(mine.server), mine.place, repr(out.__dict__)]
    for what, number in (("MERGE", 50000), ("MERGE", 229), ("login", 18456)):
        server.fail(pattern=what, number=number, message=f"why {word} and ODBC's PWD={word}")
        out.close()
        try:
            said += [one.message for one in out.write([predictions(0, 1)])]
        except SqlError as error:
            said += [str(error), str(error.__cause__ and "")]
    said.append(caplog.text)
    assert len(said) >= 8 and not [text for text in said if "s3cret" in text]
    assert out.write([predictions(0, 1)]) == []


def test_many_shards_write_at_once(where: SqlSettings, server: TdsServer) -> None:
    made = table(where, patience=Patience("a database", seconds=60.0))
    made.prepare()
    threads = [threading.Thread(target=made.writer().write, args=[[predictions(50 * n, 60)]]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert read_rows(where).to_pylist() == by_key(predictions(0, 210))


@pytest.mark.slow
def test_kill_9_of_the_writer_leaves_each_prediction_once(
    where: SqlSettings, server: TdsServer, tmp_path: Path
) -> None:
    """With cut sockets, deadlocks and a busy server in between."""
    rows = 600
    command = [sys.executable, stored_flow.__file__, str(tmp_path), str(rows), where.url, where.driver]
    table(where).prepare()
    for number in (0, 1205, 40501):
        server.fail(pattern="MERGE", number=number, times=3)
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    while child.poll() is None and len(server.rows(name="predictions")) < 200:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    subprocess.run(command, check=True)
    assert read_rows(where).to_pylist() == by_key(predictions(0, rows))


def statements() -> list[str]:
    types = {"device_id": Column.of("nvarchar", 512, 0, ""), "event_time": Column.of("datetime2", 8, 6, None)}
    texts = {name: Column.of("nvarchar", -1, 0, "") for name in PREDICTION.names}
    texts |= {name: Column("real") for name in ("value", "lo90", "hi90")} | {"source_offset": Column("bigint")} | types
    made = Statements.of("predictions", PREDICTION, PREDICTION_KEY, texts)
    return [made.upsert.replace("?", "@P1"), made.select, columns_query("predictions"), SESSION.format(1000)]


def test_two_parsers_of_t_sql_take_every_statement() -> None:
    for text in statements():
        assert sqlglot.parse(text, dialect="tsql")
        assert "unparsable" not in json.dumps(sqlfluff.parse(text, dialect="tsql")), text
    (merge,) = sqlglot.parse(statements()[0], dialect="tsql")
    assert isinstance(merge, sqlglot.exp.Merge)


@pytest.mark.parametrize(
    ("text", "place", "login", "options"),
    [
        (
            "Driver={ODBC Driver 18 for SQL Server};Server=tcp:bms.database.windows.net,1433;Database=fleet;Uid=mill;"
            "Pwd={a;b}}c};Encrypt=yes;TrustServerCertificate=no;Connection Timeout=30;",
            "bms.database.windows.net:1433/fleet",
            "mill:a;b}c",
            {"encrypt": "yes", "trustservercertificate": "no"},
        ),
        (
            "Server=tcp:bms.database.windows.net,1433;Initial Catalog=fleet;Persist Security Info=False;User ID=mill;"
            'Password="x;""=y";MultipleActiveResultSets=False;Encrypt=True;TrustServerCertificate=False;',
            "bms.database.windows.net:1433/fleet",
            'mill:x;"=y',
            {"encrypt": "yes", "trustservercertificate": "no"},
        ),
        (
            'Server=tcp:h;Initial Catalog=d;Authentication="Active Directory Default";',
            "h:1433/d",
            ":",
            {"authentication": "Active Directory Default"},
        ),
        ("mssql://u:p:w@h:1444/d?encrypt=strict", "h:1444/d", "u:p:w", {"encrypt": "strict"}),
    ],
)
def test_connection_strings_of_the_portal(text: str, place: str, login: str, options: dict[str, str]) -> None:
    found = SqlSettings(url=text)
    server = found.server
    assert found.place == f"mssql://{place}" and found.dialect == "mssql"
    assert f"{server.user}:{server.password}" == login and server.options == options


@pytest.mark.parametrize(
    "text",
    [
        "Server=tcp:h,1433;Uid=u;Pwd=s3cret",
        "Server=h\\INSTANCE;Database=d;Pwd=s3cret",
        "Server=h,99999;Database=d;Pwd=s3cret",
        "Server=h;Database=d;s3cret",
        "Server=h;Database=d;{s3cret}=1",
        "mssql://u:s3cret@h",
        "synapse://u:s3cret@h/d",
    ],
)
def test_what_cannot_be_used_is_refused_without_a_secret(text: str) -> None:
    with pytest.raises(ValueError, match="url must be") as raised:
        SqlSettings(url=text)
    assert "s3cret" not in str(raised.value)


def test_a_database_of_its_own_for_each_table() -> None:
    with pytest.raises(ValueError, match="no column nought for its key"):
        MssqlDatabase(SqlSettings(url="mssql://h/d"), "predictions", PREDICTION, ["nought"])
