"""What the reporting views say of rows that were written as the flow writes them, worked out by hand.

The T-SQL views run too: translated to PostgreSQL by sqlglot, over the same rows. That shows what they mean; that the
server takes them, only a server can show.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlglot
from db_rows import EVERY_BIT, GHOST, LONE, M1, M2, M3, START, YEAR, columns, fill, minute, view
from servers import PostgreSQL
from sql_tables import at, on, query, table
from sqlglot import exp

from voltmill.connectors.sql import SqlSettings
from voltmill.connectors.sql_schema import migrations, statements
from voltmill.kernels.schema import Quality

VIEWS = (
    "modules",
    "module_latest",
    "soc_over_time",
    "soh_trend",
    "rul_ranking",
    "fleet_summary",
    "open_alerts",
    "gateway_quality",
)
BITS = [bit.name.lower() for bit in Quality if bit.name]


class Filled:
    """A database with all rows, and the schema that its views are in."""

    def __init__(self, where: SqlSettings, schema: str = "") -> None:
        self.where, self._schema = where, schema

    def view(self, name: str, rest: str = "") -> list[dict[str, Any]]:
        return view(self.where, f"{self._schema}{name} {rest}")

    def columns(self, name: str) -> list[str]:
        return columns(self.where, f"{self._schema}{name}")


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mssql"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    if request.param == "sqlite":
        where = at(tmp_path_factory.mktemp("reports"))
    else:
        server: PostgreSQL = request.getfixturevalue("postgresql")
        where = on(server)
    fill(where)
    if request.param != "mssql":
        return Filled(where)
    translate(where)
    return Filled(where, "dbo.")


def translate(where: SqlSettings) -> None:
    """The T-SQL views in a schema ``dbo`` of PostgreSQL, where a view stands for each table that they read."""
    query(where, "DROP SCHEMA IF EXISTS dbo CASCADE")
    query(where, "CREATE SCHEMA dbo")
    for name in ("predictions", "alerts"):
        query(where, f"CREATE VIEW dbo.{name} AS SELECT * FROM public.{name}")
    query(where, "CREATE VIEW dbo.modules AS SELECT * FROM public.modules")  # a table there, kept by a trigger
    for tree in tsql_views():
        query(where, tree.sql(dialect="postgres"))


def tsql_views() -> Iterator[exp.Create]:
    for migration in migrations("mssql"):
        for text in statements(migration.text):
            if "CREATE VIEW" in text:
                tree = sqlglot.parse_one(text, read="tsql")
                assert isinstance(tree, exp.Create)
                yield tree


def by(rows: list[dict[str, Any]], name: str) -> dict[Any, dict[str, Any]]:
    found = {each[name]: each for each in rows}
    assert len(found) == len(rows)
    return found


def test_the_newest_state_of_each_module(filled: Filled) -> None:
    found = by(filled.view("module_latest"), "device_id")
    assert set(found) == {M1, M2, M3, LONE}  # and none that only shadow models speak of
    year = START + YEAR
    assert list(found[M1].values()) == [
        M1, "g1", year, int(Quality.WARM_UP),
        minute(1), 51.0, 50.0, 52.0, "a",
        year, 97.0, 96.0, 98.0, "a",
        year, 300.0, 299.0, 301.0, "a",
        1,
    ]  # fmt: skip
    assert list(found[M2].values()) == [
        M2, "g1", minute(5), int(Quality.MODEL_FAILED),
        minute(5), 40.0, 39.0, 41.0, "coulomb",
        None, None, None, None, None,
        minute(3), 200.0, 199.0, 201.0, "a",
        1,
    ]  # fmt: skip
    m3 = found[M3]
    assert (m3["soc_percent"], m3["soc_model"]) == (60.0, "z")  # live before a fallback of the same time
    assert (m3["last_time"], m3["quality_bits"]) == (minute(1), 0)  # SOC before what has no value
    assert (m3["rul_time"], m3["rul_cycles"]) == (minute(0), 200.0)  # the newest that has a value
    lone = found[LONE]
    assert (lone["gateway"], lone["last_time"], lone["quality_bits"]) == (LONE, minute(1), int(Quality.UNKNOWN_CELL))
    assert lone["soc_time"] is lone["soc_percent"] is lone["rul_cycles"] is None and lone["open_alerts"] == 0
    assert filled.view("module_latest", f"WHERE device_id = '{M2}'") == [found[M2]]


def test_every_module_has_its_gateway(filled: Filled) -> None:
    found = {each["device_id"]: each["gateway"] for each in filled.view("modules")}
    assert found == {M1: "g1", M2: "g1", M3: "g2", LONE: LONE, GHOST: "g3"}


def test_soc_over_time(filled: Filled) -> None:
    found = filled.view("soc_over_time", f"WHERE device_id = '{M1}' ORDER BY event_time, model_name")
    assert [(each["event_time"], each["soc_percent"], each["model_name"]) for each in found] == [
        (minute(0), 50.0, "a"),
        (minute(1), 51.0, "a"),
        (minute(1), 52.0, "b"),
    ]
    assert {each["gateway"] for each in found} == {"g1"}
    fallback = [(each["mode"], each["quality_bits"]) for each in filled.view("soc_over_time") if each["mode"] != "live"]
    assert sorted(fallback) == [("fallback", int(Quality.MODEL_FAILED)), ("fallback", EVERY_BIT)]


def test_the_trend_of_soh(filled: Filled) -> None:
    """Of (0 a, 100), (0.5 a, 99), (1 a, 97): mean 98.667, slope -1.5 / 0.5 a; a new version goes on with it."""
    found = filled.view("soh_trend", f"WHERE device_id = '{M1}' ORDER BY model_name, event_time")
    assert [(each["model_name"], each["soh_percent"], each["model_version"]) for each in found] == [
        ("a", 100.0, "1"),
        ("a", 99.0, "1"),
        ("a", 97.0, "2"),
        ("other", 90.0, "1"),
    ]
    assert [each["mean_percent"] for each in found] == pytest.approx([100.0, 99.5, 296 / 3, 90.0])
    assert [each["trend_percent_per_year"] for each in found[:2]] == [None, None]
    assert found[2]["trend_percent_per_year"] == pytest.approx(-3.0)
    assert found[3]["trend_percent_per_year"] is None
    assert len(filled.view("soh_trend")) == 5


def test_who_has_the_fewest_cycles_left(filled: Filled) -> None:
    found = filled.view("rul_ranking", "ORDER BY rul_rank, device_id")
    assert [(each["rul_rank"], each["device_id"], each["rul_cycles"], each["soh_percent"]) for each in found] == [
        (1, M2, 200.0, None),
        (1, M3, 200.0, 79.0),
        (3, M1, 300.0, 97.0),
    ]


def test_the_fleet_in_one_row(filled: Filled) -> None:
    (found,) = filled.view("fleet_summary")
    assert found.pop("soc_mean_percent") == pytest.approx(151 / 3)
    assert found == {
        "modules": 4,
        "oldest_last_time": minute(1),
        "newest_last_time": START + YEAR,
        "modules_with_soc": 3,
        "soc_lowest_percent": 40.0,
        "soc_highest_percent": 60.0,
        "modules_with_soh": 2,
        "soh_lowest_percent": 79.0,
        "soh_mean_percent": 88.0,
        "modules_below_80_percent_soh": 1,
        "modules_with_rul": 3,
        "rul_lowest_cycles": 200.0,
        "open_alerts": 2,
        "open_critical_alerts": 1,
    }


def test_open_alerts(filled: Filled) -> None:
    found = filled.view("open_alerts", "ORDER BY severity_rank, alert_id")
    about = [(each["alert_id"], each["gateway"], each["severity_rank"], each["value"], each["limit"]) for each in found]
    assert about == [("1", "g1", 1, 61.5, 60.0), ("3", "g1", 3, None, None)]
    assert {each["opened_at"] for each in found} == {minute(1)}


def test_the_quality_of_each_gateway(filled: Filled) -> None:
    found = {(each["gateway"], each["day"], each["target"]): each for each in filled.view("gateway_quality")}
    assert "g3" not in {gateway for gateway, *_ in found}
    first = "2026-01-01"

    def counts(gateway: str, day: str, target: str) -> dict[str, int]:
        of_one = found[gateway, day, target]
        return {name: int(of_one[name]) for name in ("predictions", "without_value", "clean", *BITS) if of_one[name]}

    g1 = {"predictions": 6, "without_value": 1, "clean": 4, "out_of_domain": 1, "model_failed": 1}
    assert counts("g1", first, "soc") == g1
    assert counts("g2", first, "soc") == {"predictions": 2, "clean": 1} | dict.fromkeys(BITS, 1)
    assert counts(LONE, first, "soc") == {"predictions": 1, "without_value": 1, "unknown_cell": 1}
    assert counts("g2", first, "rul") == {"predictions": 2, "without_value": 1, "clean": 2}
    assert counts("g1", "2027-01-01", "rul") == {"predictions": 1, "warm_up": 1}
    assert sum(int(each["predictions"]) for each in found.values()) == 18
    assert len(filled.view("gateway_quality", "WHERE day > '2026-02-01'")) == 3


def test_every_database_has_the_same_columns(filled: Filled, tmp_path: Path) -> None:
    table(at(tmp_path)).prepare()
    assert {name: filled.columns(name) for name in VIEWS} == {name: columns(at(tmp_path), name) for name in VIEWS}
    assert {tree.this.name for tree in tsql_views()} == set(VIEWS) - {"modules"}


def test_the_page_names_each_column(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "database.md").read_text()
    table(at(tmp_path)).prepare()
    for name in VIEWS:
        part = page.split(f"### `{name}`\n")[1].split("\n#")[0]
        first = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
        assert re.findall(r"`(\w+)`", " ".join(first)) == columns(at(tmp_path), name)


def test_an_empty_database_has_empty_reports(tmp_path: Path, postgresql: PostgreSQL) -> None:
    for where in (at(tmp_path), on(postgresql)):
        table(where).prepare()
        assert {name: len(view(where, name)) for name in VIEWS} == dict.fromkeys(VIEWS, 0) | {"fleet_summary": 1}


def test_a_report_needs_rights_on_the_views_alone(postgresql: PostgreSQL) -> None:
    where = on(postgresql)
    fill(where)
    with contextlib.suppress(Exception):
        query(where, "CREATE ROLE reader")
    query(where, f"GRANT SELECT ON {', '.join(VIEWS)} TO reader")
    for name in VIEWS:
        query(where, f"SET ROLE reader; SELECT * FROM {name}")
    with pytest.raises(Exception, match="permission denied for table predictions"):
        query(where, "SET ROLE reader; SELECT * FROM predictions")


def test_the_newest_is_found_by_index(postgresql: PostgreSQL) -> None:
    """However long the archive: no plan reads all rows, also where a module has no value of a target."""
    where = on(postgresql)
    fill(where)
    query(
        where,
        "INSERT INTO predictions SELECT 'x/' || d, timestamptz '2026-01-01' + i * interval '1 minute', 'soc', 'ab', "
        "50, 45, 55, 'percent', 'a', '1', 'live', 0, 'test', 'part', i FROM generate_series(1, 20) d, "
        "generate_series(1, 1000) i",
    )
    query(where, "ANALYZE predictions")
    for text in (
        "module_latest",
        "fleet_summary",
        "rul_ranking",
        "modules",
        "soh_trend",
        "soc_over_time WHERE device_id = 'x/3' AND event_time > '2026-01-01 12:00'",
    ):
        plan = " ".join(line for (line,) in query(where, f"EXPLAIN (ANALYZE, TIMING OFF) SELECT * FROM {text}"))
        assert "Seq Scan on predictions" not in plan, plan
