"""The schema is applied once, whole or not at all, and by one of many."""

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from servers import PostgreSQL
from sql_tables import at, by_key, is_postgresql, on, query, rows_of, table
from stored_flow import predictions

from voltmill.connectors import sql_schema
from voltmill.connectors.sql import SqlError, SqlSettings, read_rows
from voltmill.connectors.sql_schema import Migration, migrations, statements
from voltmill.flows.cli import main

NAMES = ["001_tables", "002_reports"]

#: What the version before the migrations made by itself.
EARLIER = {
    "sqlite": [
        'CREATE TABLE predictions_rows ("device_id" TEXT NOT NULL, "event_time" INTEGER NOT NULL, "value" REAL, '
        '"lo90" REAL, "hi90" REAL, "quality_bits" INTEGER, "source_offset" INTEGER, "key_labels_id" INTEGER NOT NULL, '
        '"labels_id" INTEGER, PRIMARY KEY ("event_time", "device_id", "key_labels_id")) WITHOUT ROWID',
        'CREATE TABLE predictions_key_labels (id INTEGER PRIMARY KEY, "target" TEXT, "model_sha256" TEXT, '
        'UNIQUE ("target", "model_sha256"))',
        'CREATE TABLE predictions_labels (id INTEGER PRIMARY KEY, "unit" TEXT, "model_name" TEXT, "model_version" '
        'TEXT, "mode" TEXT, "source" TEXT, "source_partition" TEXT, UNIQUE ("unit", "model_name", "model_version", '
        '"mode", "source", "source_partition"))',
        "CREATE VIEW predictions AS SELECT device_id, event_time, target, model_sha256, value, lo90, hi90, unit, "
        "model_name, model_version, mode, quality_bits, source, source_partition, source_offset FROM predictions_rows "
        "JOIN predictions_key_labels k ON k.id = key_labels_id JOIN predictions_labels l ON l.id = labels_id",
        f"INSERT INTO predictions_key_labels VALUES (1, 'soc', '{'ab' * 32}')",
        "INSERT INTO predictions_labels VALUES (1, 'percent', 'lg', '1', 'live', 'test', 'part-0')",
        "INSERT INTO predictions_rows VALUES ('m-0', 1795391990000000, 0.0, -1.0, NULL, 0, 0, 1, 1)",
    ],
    "postgresql": [
        'CREATE TABLE "predictions" ("device_id" text COLLATE "C" NOT NULL, "event_time" timestamp with time zone '
        'NOT NULL, "target" text COLLATE "C" NOT NULL, "model_sha256" text COLLATE "C" NOT NULL, "value" real, "lo90" '
        'real, "hi90" real, "unit" text COLLATE "C" NOT NULL, "model_name" text COLLATE "C" NOT NULL, "model_version" '
        'text COLLATE "C" NOT NULL, "mode" text COLLATE "C" NOT NULL, "quality_bits" bigint NOT NULL, "source" text '
        'COLLATE "C" NOT NULL, "source_partition" text COLLATE "C" NOT NULL, "source_offset" bigint NOT NULL, '
        'PRIMARY KEY ("device_id", "event_time", "target", "model_sha256"))',
        f"INSERT INTO predictions VALUES ('m-0', '2026-11-22T23:59:50Z', 'soc', '{'ab' * 32}', 0, -1, NULL, "
        "'percent', 'lg', '1', 'live', 0, 'test', 'part-0', 0)",
    ],
}


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> SqlSettings:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return at(tmp_path)
    return on(request.getfixturevalue("postgresql"))


def apply(where: SqlSettings, seconds: float = 30.0) -> list[str]:
    """What was said of it."""
    said: list[str] = []
    table(where, seconds=seconds).with_schema(lambda schema: schema.apply(said.append))
    return said


def applied(where: SqlSettings) -> list[str]:
    return [name for (name,) in query(where, "SELECT name FROM voltmill_schema ORDER BY version")]


def test_it_is_applied_once(where: SqlSettings) -> None:
    assert apply(where) == [f"{name} applied" for name in NAMES]
    assert apply(where) == []
    assert applied(where) == NAMES
    table(where).prepare()  # the flow's start finds it done
    assert applied(where) == NAMES


def test_the_start_of_a_flow_applies_it(where: SqlSettings) -> None:
    table(where).prepare()
    assert applied(where) == NAMES and apply(where) == []


def test_what_an_earlier_version_made_is_taken_over(where: SqlSettings) -> None:
    for text in EARLIER[where.dialect]:
        query(where, text)
    assert read_rows(where).to_pylist() == by_key(predictions(0, 1))
    made = table(where)
    made.prepare()
    assert applied(where) == NAMES
    out = made.writer()
    assert out.write([predictions(0, 10)]) == []
    out.close()
    assert read_rows(where).to_pylist() == by_key(predictions(0, 10))
    assert query(where, "SELECT count(*) FROM module_latest") == [(5,)]


def add(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A third file."""
    more = Migration(3, "003_more", text)
    monkeypatch.setattr(sql_schema, "migrations", lambda dialect: [*migrations(dialect), more])


def test_a_file_that_fails_leaves_nothing_of_it(where: SqlSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(where)
    table(where).writer().write([predictions(0, 5)])
    with monkeypatch.context() as patched:
        add(patched, "CREATE TABLE more (a integer);\n\nDELETE FROM more;\n\nINSERT INTO nowhere VALUES (1);\n")
        for work in (lambda: apply(where), table(where).prepare):
            with pytest.raises(SqlError, match=r"^[^\n]*: schema 003_more: [^\n]*nowhere[^\n]*$"):
                work()
        assert applied(where) == NAMES
        with pytest.raises(Exception, match="more"):
            query(where, "SELECT * FROM more")
    add(monkeypatch, "CREATE TABLE more (a integer);\n")
    assert apply(where) == ["003_more applied"]
    assert query(where, "SELECT * FROM more") == []
    assert read_rows(where).num_rows == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (f"UPDATE voltmill_schema SET sha256 = '{'0' * 64}' WHERE version = 1", "001_tables was applied with another"),
        (
            f"INSERT INTO voltmill_schema (version, name, sha256) VALUES (9, '009_later', '{'0' * 64}')",
            r"its schema is at version 9 \(009_later\), and this voltmill knows none above 2: install the newer",
        ),
    ],
)
def test_a_changed_or_newer_schema_is_refused(where: SqlSettings, change: str, message: str) -> None:
    apply(where)
    query(where, change)
    works: list[Callable[[], object]] = [
        lambda: apply(where),
        table(where).prepare,
        lambda: table(where).with_schema(lambda schema: schema.status()),
    ]
    for work in works:
        with pytest.raises(SqlError, match=message) as raised:
            work()
        assert str(raised.value).startswith(f"{where.place}: ") and "\n" not in str(raised.value)


def test_of_many_at_once_one_applies_each_file(where: SqlSettings) -> None:
    where = msgspec.structs.replace(where, timeout_seconds=10.0)
    said: list[str] = []
    errors: list[BaseException] = []
    together = threading.Barrier(4)

    def work() -> None:
        try:
            together.wait(10)
            said.extend(apply(where))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert sorted(said) == [f"{name} applied" for name in NAMES]
    assert applied(where) == NAMES


def test_a_login_without_rights_is_told_what_to_do(postgresql: PostgreSQL) -> None:
    where = on(postgresql)
    if not query(where, "SELECT 1 FROM pg_roles WHERE rolname = 'runner'"):
        query(where, "CREATE ROLE runner LOGIN")
    query(where, "ALTER ROLE runner PASSWORD 'secret'")
    server = where.server
    runner = msgspec.structs.replace(
        where, url=f"postgresql://runner:secret@{server.host}:{server.port}/{server.database}"
    )
    with pytest.raises(SqlError, match="permission denied for schema public; run voltmill db apply with a login that"):
        table(runner).prepare()
    apply(where)
    with pytest.raises(SqlError, match="permission denied for table voltmill_schema"):
        table(runner).prepare()
    query(where, "GRANT SELECT ON voltmill_schema TO runner")  # docs/database.md: what a flow's login needs
    query(where, "GRANT SELECT, INSERT, UPDATE ON predictions, alerts TO runner")
    made = table(runner)
    made.prepare()
    assert made.writer().write([predictions(0, 5)]) == []
    assert read_rows(runner).num_rows == 5


def test_names_and_statements() -> None:
    """Each file is one of a row of numbers without a hole, the same in all dialects; no statement is empty."""
    for dialect in ("sqlite", "postgresql", "mssql"):
        found = migrations(dialect)
        assert [one.name for one in found] == NAMES and [one.version for one in found] == [1, 2]
        for one in found:
            parts = statements(one.text)
            assert len(parts) > 1 and all(
                any(line and not line.startswith("--") for line in part.split("\n")) for part in parts
            )


def config(where: SqlSettings, folder: Path) -> str:
    file = folder / "f.toml"
    file.write_text(f"[sql]\nurl = {msgspec.json.encode(where.url).decode()}\ndriver = '{where.driver}'\n")
    return str(file)


def test_the_command(where: SqlSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> list[str]:
        with pytest.raises(SystemExit) as ended:
            main(["db", *words, "-c", config(where, tmp_path)])
        assert ended.value.code == 0
        return capsys.readouterr().out.splitlines()

    place = f"database {where.place}"
    nothing = ["001_tables  not applied", "002_reports  not applied", "version 0: run voltmill db apply"]
    assert run("status") == [place, *nothing]
    shown = run("apply", "--dry-run")
    assert shown[:2] == [f"-- {place}", "-- 001_tables"] and "CREATE VIEW module_latest AS" in shown
    assert run("status")[-1] == "version 0: run voltmill db apply"
    assert run("apply") == [place, "001_tables applied", "002_reports applied"]
    assert run("apply") == [place, "up to date at version 2"]
    assert run("apply", "--dry-run") == [f"-- {place}", "-- nothing to apply"]
    lines = run("status")
    assert lines[-1] == "version 2, up to date" and lines[1].startswith("001_tables  applied 20")
    query(where, "INSERT INTO voltmill_schema (version, name, sha256) VALUES (9, '009_later', '')")
    with pytest.raises(SystemExit) as ended:
        main(["db", "status", "-c", config(where, tmp_path)])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.startswith(f"voltmill: {where.place}: its schema is at version 9")
    assert said.count("\n") == 1


def test_alerts_are_written_again_when_they_close(where: SqlSettings) -> None:
    from db_rows import ALERTS, fill

    fill(where)
    assert query(where, "SELECT count(*) FROM alerts") == [(3,)]
    assert len(ALERTS) == 2 and query(where, "SELECT value FROM alerts WHERE alert_id = '2'") == [(63.0,)]
    assert query(where, "SELECT alert_id FROM alerts WHERE closed_at IS NULL ORDER BY 1") == [("1",), ("3",)]
    assert is_postgresql(where) or query(where, f"SELECT count(*) FROM {rows_of(where)}")[0][0] > 20
