"""The T-SQL of the schema is read by two parsers, for no server that runs it can be reached here."""

import logging
import re
from pathlib import Path

import pytest
import sqlglot
from sqlfluff.core import Linter
from sqlglot import exp

from voltmill.connectors.sql_schema import statements
from voltmill.kernels.schema import ALERT, PREDICTION, Quality

SQL = Path(__file__).parent.parent / "deploy" / "sql"
TSQL = sorted([*(SQL / "mssql").glob("*.sql"), *(SQL / "synapse").rglob("*.sql")])
#: What sqlglot does not know, of Synapse; sqlfluff does. The rest of such a statement is read.
UNKNOWN = ((r"WITH \(DISTRIBUTION = .*\);", ";"), (r"OPENROWSET\(.*?\n\) WITH \(.*?\n\)", "lake"))
#: What sqlglot keeps as text without looking into it; sqlfluff does.
UNREAD = ("CREATE TRIGGER", "CREATE PROCEDURE", "CREATE EXTERNAL", "CREATE MASTER KEY", "CREATE DATABASE SCOPED")


def code(text: str) -> str:
    """A statement without its comments, and without what sqlglot does not know."""
    for unknown, instead in UNKNOWN:
        text = re.sub(unknown, instead, text, flags=re.S if "OPENROWSET" in unknown else 0)
    return re.sub(r"^\s*--.*$", "", text, flags=re.M).strip()


@pytest.mark.parametrize("file", TSQL, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_sqlglot_reads_it(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "sqlglot")
    for text in map(code, statements(file.read_text())):
        trees = sqlglot.parse(text, read="tsql")
        kept = [tree for tree in trees if isinstance(tree, exp.Command)]
        assert not kept or text.startswith(UNREAD), text


@pytest.mark.parametrize("file", TSQL, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_sqlfluff_reads_it(file: Path) -> None:
    found = Linter(dialect="tsql").parse_string(file.read_text())
    assert not found.violations, found.violations[:3]
    assert found.tree is not None and not list(found.tree.recursive_crawl("unparsable"))


def tables(file: Path) -> dict[str, exp.Schema]:
    trees = [sqlglot.parse_one(text, read="tsql") for text in map(code, statements(file.read_text()))]
    made = [tree.find(exp.Create) for tree in trees]
    return {one.this.this.name: one.this for one in made if one is not None and isinstance(one.this, exp.Schema)}


def test_the_tables_have_the_columns_of_their_schemas() -> None:
    file = SQL / "mssql" / "001_tables.sql"
    found = tables(file)
    keys = dict(re.findall(r"CONSTRAINT (\w+)_key PRIMARY KEY CLUSTERED \((.*)\)", file.read_text()))
    for name, schema in (("predictions", PREDICTION), ("alerts", ALERT)):
        columns = {column.name: column for column in found[name].find_all(exp.ColumnDef)}
        assert list(columns) == schema.names
        lengths = [re.search(r"NVARCHAR\((\d+)\)", columns[each].sql("tsql")) for each in keys[name].split(", ")]
        assert sum(2 * int(length[1]) if length else 8 for length in lengths) <= 900  # bytes: a clustered key's most
        for field in schema:
            required = "NOT NULL" in columns[field.name].sql("tsql").upper()
            assert required != field.nullable, field.name


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mssql"])
def test_every_bit_is_counted_under_its_name(dialect: str) -> None:
    text = (SQL / dialect / "002_reports.sql").read_text()
    found = re.findall(r"quality_bits & (\d+) <> 0 THEN predictions ELSE 0 END\)(?:::bigint)? AS (\w+)", text)
    assert found == [(str(int(bit)), str(bit.name).lower()) for bit in Quality]


@pytest.mark.parametrize("file", sorted(SQL.rglob("*.sql")), ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_no_line_is_long_and_each_file_says_what_it_is(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert lines[0].startswith("-- ") and max(map(len, lines)) <= 120
