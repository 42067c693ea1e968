"""The schema over Microsoft's driver: what is sent to Azure SQL, in which transactions, and what becomes of its errors.

The stand-in takes any statement: whether the real server does is not shown here.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mssql_tables import at, serving
from sql_tables import table
from stored_flow import predictions
from tds_server import TdsServer
from test_db_synapse import STORE, Lake

from voltmill.connectors import sql_schema, synapse
from voltmill.connectors.sql import SqlError, SqlSettings
from voltmill.connectors.sql_schema import Migration, migrations, statements
from voltmill.flows.cli import main


@pytest.fixture(scope="module")
def server() -> Iterator[TdsServer]:
    with serving() as made:
        yield made


@pytest.fixture
def where(server: TdsServer) -> SqlSettings:
    """A database without a table."""
    server.reset()
    return at(server, timeout_seconds=5.0)


def apply(where: SqlSettings) -> list[str]:
    said: list[str] = []
    table(where, seconds=5.0).with_schema(lambda schema: schema.apply(said.append))
    return said


def sent(server: TdsServer) -> list[str]:
    return [text for text, _ in server.statements()]


def test_each_file_is_one_transaction_and_each_statement_a_batch(where: SqlSettings, server: TdsServer) -> None:
    assert apply(where) == ["001_tables applied", "002_reports applied"]
    found = sent(server)
    begins = [k for k, text in enumerate(found) if text == "BEGIN TRANSACTION"]
    for begin, one in zip(begins[1:], migrations("mssql"), strict=True):
        end = found.index("COMMIT TRANSACTION", begin)
        record, *rest = found[begin + 1 : end]
        assert record.startswith(f"INSERT INTO dbo.voltmill_schema (version, name, sha256) VALUES ({one.version}, ")
        assert rest == statements(one.text) and not any("\nGO" in text for text in rest)
    assert apply(where) == []
    assert not any("CREATE" in text or "BEGIN" in text for text in sent(server))
    out = table(where).writer()
    assert out.write([predictions(0, 5)]) == []
    out.close()
    assert len(server.rows(name="predictions")) == 5


def test_the_start_of_a_flow_that_may_not_make_tables_says_what_to_do(where: SqlSettings, server: TdsServer) -> None:
    denied = "CREATE TABLE permission denied in database 'fleet'."
    server.fail(pattern="CREATE TABLE", number=262, message=denied)
    with pytest.raises(SqlError) as raised:
        table(where, seconds=5.0).prepare()
    said = str(raised.value)
    assert said.startswith(f"{where.place}: schema 000_schema: {denied}") and "voltmill db apply" in said
    assert "\n" not in said


def test_a_file_that_fails_is_named_and_not_committed(
    where: SqlSettings, server: TdsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(where)
    more = Migration(3, "003_more", "CREATE VIEW dbo.more AS SELECT 1 AS a;\nGO\n\nCREATE VIEW dbo.x AS SELEC;\nGO\n")
    monkeypatch.setattr(sql_schema, "migrations", lambda dialect: [*migrations(dialect), more])
    server.fail(pattern="SELEC;?$", number=102, message="Incorrect syntax near 'SELEC'.")
    sent(server)
    server.answer(  # it undoes the record; the stand-in would not
        pattern="FROM dbo.voltmill_schema",
        columns=[["version", "bigint"], ["name", "nvarchar"], ["sha256", "nvarchar"], ["applied_at", "nvarchar"]],
        rows=[[one.version, one.name, one.sha256, ""] for one in migrations("mssql")],
    )
    with pytest.raises(SqlError, match=r"schema 003_more: Incorrect syntax near 'SELEC'\.$"):
        apply(where)
    assert "COMMIT TRANSACTION" not in sent(server)


@pytest.mark.parametrize("number", [1205, 40501, 40613])
def test_errors_that_pass_are_waited_for(where: SqlSettings, server: TdsServer, number: int) -> None:
    server.fail(pattern="CREATE VIEW dbo.module_latest", number=number, times=1)
    server.answer(
        pattern="FROM dbo.voltmill_schema",
        columns=[["version", "bigint"], ["name", "nvarchar"], ["sha256", "nvarchar"], ["applied_at", "nvarchar"]],
        rows=[],
    )
    found = ["001_tables applied", "001_tables applied", "002_reports applied"]
    assert apply(where) == found  # the first file again, for this stand-in says that nothing is recorded


def test_what_is_new_in_the_lake_is_loaded(
    where: SqlSettings,
    server: TdsServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lake = Lake(tmp_path / "lake")
    lake.write(5)
    monkeypatch.setattr(synapse, "address", lambda url, options: "https://bms.dfs.core.windows.net/fleet")
    columns = [["store", "nvarchar"], ["shard", "nvarchar"], ["first_number", "bigint"], ["last_number", "bigint"]]
    server.answer(pattern="FROM dbo.loaded_files", columns=columns, rows=[[STORE, "00", 0, 1]])
    server.answer(pattern="EXEC dbo.voltmill_load", columns=[["rows_read", "bigint"]], rows=[[20]])
    file = tmp_path / "f.toml"
    file.write_text(f'[lake]\nurl = "{tmp_path}/lake"\n[sql]\nurl = "{where.url}"\ndriver = "{where.driver}"\n')
    sent(server)
    with pytest.raises(SystemExit) as ended:
        main(["db", "copy", "-c", str(file), "--finished", STORE])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "3 files with 60 rows loaded; 0 files are not settled yet\n"
    loads = [text for text in sent(server) if text.startswith("EXEC")]
    assert [text.rpartition("@first = ")[2] for text in loads] == ["2, @last = 2", "3, @last = 3", "4, @last = 4"]
    file.write_text(f'[lake]\nurl = "{tmp_path}/lake"\n')
    with pytest.raises(SystemExit) as ended:
        main(["db", "copy", "-c", str(file)])
    assert ended.value.code == 2 and "[sql] url names no pool of Synapse: mssql://" in capsys.readouterr().err
