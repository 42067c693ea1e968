"""What ``probe`` says of a database, for each dialect: what is wrong, and what mends it."""

import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from mssql_tables import at, fresh, serving
from servers import PostgreSQL
from sql_tables import at as file_in
from sql_tables import on, query, table
from tds_server import TdsServer

from voltmill.connectors.sql_probe import probe
from voltmill.connectors.sql_settings import SqlSettings


def test_a_sqlite_file(tmp_path: Path) -> None:
    where = file_in(tmp_path)
    assert probe(where).facts == "made at the first start" and not where.path.exists()
    table(where).prepare()
    assert str(probe(where)).startswith(f"database {where.path}: works, schema at version ")
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE a (b)").connection.close()
    assert probe(SqlSettings(url=f"sqlite:///{tmp_path}/other.db")).facts == "no schema yet"
    for name, problem in (("text", "file is not a database"), ("text/v.db", f"{tmp_path}/text is a file")):
        (tmp_path / "text").write_bytes(b"no database" * 1000)
        found = probe(SqlSettings(url=f"sqlite:///{tmp_path}/{name}"))
        assert (found.problem, bool(found.mend)) == (problem, True)
    if os.geteuid():
        tmp_path.chmod(0o500)
        assert "may not write" in probe(where).problem
        tmp_path.chmod(0o700)


def test_a_postgresql_server(postgresql: PostgreSQL) -> None:
    where = on(postgresql)
    found = probe(where)
    assert found.works and found.facts.startswith("no schema yet; the first start applies 001_tables")
    assert query(where, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    server, path = where.server, where.url.rpartition("/")[0]
    if not query(where, "SELECT 1 FROM pg_roles WHERE rolname = 'probe'"):
        query(where, "CREATE ROLE probe LOGIN PASSWORD 's3cret'")
    mine = f"postgresql://probe:s3cret@{server.host}:{server.port}/{server.database}"
    assert "may make no tables; run voltmill db apply" in str(probe(msgspec.structs.replace(where, url=mine)))
    table(where).prepare()
    assert probe(where).facts.startswith("schema at version")
    for url, problem, mend in (
        (mine, "permission denied for table", "GRANT SELECT, INSERT, UPDATE"),
        (mine.replace("s3cret", "wrong"), "password authentication failed", "mend user and password"),
        (f"{path}/nowhere", 'database "nowhere" does not exist', "CREATE DATABASE"),
        ("postgresql://u:p@127.0.0.1:1/d", "Connection refused", "check host and port"),
        (f"{mine}?sslmode=require", "server does not support SSL", ""),
    ):
        found = probe(msgspec.structs.replace(where, url=url))
        assert problem in found.problem and mend in found.mend and "\n" not in str(found), found
    found = probe(msgspec.structs.replace(where, driver="/no/such.so"))
    assert "file not found" in found.problem and found.mend == "apt-get install odbc-postgresql, or set [sql] driver"


@pytest.fixture(scope="module")
def server() -> Iterator[TdsServer]:
    with serving() as made:
        yield made


def test_an_azure_sql_database(server: TdsServer) -> None:
    where = fresh(server)
    server.answer(pattern="HAS_PERMS_BY_NAME", columns=[("", "bigint")], rows=[(1,)])
    assert probe(where).facts.startswith("no schema yet; the first start applies 001_tables")
    server.answer(pattern="HAS_PERMS_BY_NAME", columns=[("", "bigint")], rows=[(0,)])
    assert "may make no tables; run voltmill db apply" in str(probe(where))
    table(where).prepare()
    assert probe(where).facts.startswith("schema at version")
    for what, number, mend in (
        ("login", 18456, "mend user and password"),
        ("login", 40615, "open the firewall: az sql server firewall-rule create"),
        ("login", 4060, "mend the name of the database"),
        ("MERGE", 229, "GRANT SELECT, INSERT, UPDATE"),
        ("MERGE", 208, "voltmill db apply"),
    ):
        server.fail(pattern=what, number=number, message="as the server says it")
        found = probe(where)
        assert found.problem == "as the server says it" and found.mend.startswith((mend, f"make the tables: {mend}"))
    found = probe(msgspec.structs.replace(where, driver="/no/such.so"))
    assert "file not found" in found.problem and "apt-get install -y unixodbc msodbcsql18" in found.mend
    found = probe(SqlSettings(url="mssql://u:p@127.0.0.1:1/d", driver=where.driver))
    assert "check host and port" in found.mend


def test_a_server_that_hangs_is_given_up(server: TdsServer) -> None:
    where = fresh(server)
    server.fail(pattern="login", number=0, seconds=30.0)
    began = time.monotonic()
    found = probe(at(server, database="fleet?Encrypt=no"))
    assert not found.works and "check host and port" in found.mend and time.monotonic() - began < 10
    assert where.place in str(found)
