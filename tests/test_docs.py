"""The documentation is true: what comes from the code is equal to it, and every example runs."""

import contextlib
import importlib.util
import json
import re
import shlex
import sqlite3
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import pytest
from payloads import canonical
from spool_files import letters, spool, spool_file

from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.connectors.outage import Patience
from voltmill.connectors.sql import SqlSettings, SqlTable
from voltmill.flows.config import load, parse
from voltmill.flows.simulate import FaultSettings, SimulateSettings, telemetry
from voltmill.flows.warm_up import raw_batch
from voltmill.kernels.feature_table import features
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.schema import DEAD_LETTER, RAW, TELEMETRY, Quality, label
from voltmill.operators.decode import Decoder
from voltmill.operators.estimate import EstimateState
from voltmill.operators.features import FeatureSettings, FeatureState
from voltmill.operators.model import Chosen
from voltmill.operators.model import load as load_model
from voltmill.operators.quality import QualitySettings, QualityState
from voltmill.operators.refusal import REASONS
from voltmill.operators.sample import DecodeSettings, Wire

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = generator()


def blocks(kind: str) -> list[Any]:
    """The fenced blocks whose info string begins so, as parameters that name their page."""
    found = [
        pytest.param(text, id=f"{page.name}-{k}")
        for page in PAGES
        for k, (info, text) in enumerate(BLOCK.findall(page.read_text()))
        if info == kind or info.startswith(kind + " ")
    ]
    assert found, f"no {kind} block: the pages have changed, or the pattern is wrong"
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_generated_parts_are_what_the_code_says(page):
    text = page.read_text()
    assert GENERATE.generated(text) == text, f"run python {ROOT / 'docs/generate.py'}"


def test_every_part_stands_on_a_page():
    shown = {name for page in PAGES for name in re.findall(r"<!-- generated: (.*?) -->", page.read_text())}
    assert shown == set(GENERATE.PARTS)


def test_a_changed_table_is_noticed():
    page = (ROOT / "docs" / "quality.md").read_text()
    changed = page.replace("`STUCK`", "`STICKY`", 1)
    assert changed != page and GENERATE.generated(changed) == page


def test_parts_leave_the_words_between_them_alone():
    text = "a\n<!-- generated: state -->\n<!-- end -->\nb\n<!-- generated: metrics -->\n<!-- end -->\nc\n"
    made = GENERATE.generated(text)
    assert "\n<!-- end -->\nb\n<!-- generated" in made and made.endswith("-->\nc\n")
    assert GENERATE.generated(made) == made


def anchors(page: Path) -> set[str]:
    """The anchors of a page as code hosts make them: lower case, no punctuation, hyphens for spaces."""
    text = BLOCK.sub("", page.read_text())
    headings = [re.sub(r"<[^>]*>", "", h) for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    made = {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}
    return made | set(re.findall(r'<a id="(.*?)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_relative_link_resolves(page):
    links = re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text()))
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("text", blocks("toml"))
def test_every_toml_block_is_a_configuration(text):
    hub = "Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=x;SharedAccessKey=x"
    secrets = dict.fromkeys(("PASSWORD", "CONNECTION_STRING", "ENDPOINT_KEY", "WEBHOOK_TOKEN"), "x")
    secrets |= {"WEBHOOK_SECRET": f"whsec_{'A' * 32}", "HUB_CONNECTION_STRING": hub}
    secrets |= {"GATEWAY_CONNECTION_STRING": "HostName=x.azure-devices.net;DeviceId=x;SharedAccessKey=eA=="}
    secrets |= {"IOTHUB_EVENTS": f"{hub};EntityPath=bms"}
    assert parse(tomllib.loads(text), "block", secrets)


def test_the_examples_load():
    live = load(ROOT / "docs/examples/live.toml", {"MQTT_PASSWORD": "x"})
    assert live.mqtt.password == "x" and live.mqtt.tls is not None and live.mapping.keys() == {"rack"}
    assert live.devices.facts("site-a/gw/m-1").parallel == 2
    hub = "Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=x;SharedAccessKey=x"
    secrets = {"WEBHOOK_TOKEN": "x", "WEBHOOK_SECRET": f"whsec_{'A' * 32}", "HUB_CONNECTION_STRING": hub}
    alerts = load(ROOT / "docs/examples/alerts.toml", secrets)
    assert [place.name for place in alerts.notify] == ["duty", "phones", "plant"]
    events = load(ROOT / "docs/examples/iothub.toml", {"IOTHUB_EVENTS": f"{hub};EntityPath=bms"})
    assert events.run.source == "iothub" and events.iothub.place == "IoT Hub bms at x.servicebus.windows.net"
    assert load(ROOT / "docs/examples/vehicle.toml").mapping.keys() == {"ev_car1", "ev_car2"}


@pytest.mark.parametrize("text", blocks("json canonical"))
def test_every_canonical_message_decodes(text):
    rows, letters = Decoder(DecodeSettings())(raw_batch([text.encode()]))
    assert letters is None and rows is not None and rows.num_rows == 1
    said = json.loads(text)
    row = rows.to_pylist()[0]
    assert row["device_id"] == said["device_id"] and len(row["cell_voltage_volt"]) == len(said["cell_voltage_volt"])


def test_the_first_message_shows_every_key():
    first = next(text for info, text in BLOCK.findall((ROOT / "docs/telemetry.md").read_text()) if "canonical" in info)
    assert set(json.loads(first)) == set(Wire.__struct_fields__)
    assert set(json.loads(first)) <= set(TELEMETRY.names)


def test_every_reason_of_a_dead_letter_is_told():
    page = (ROOT / "docs/telemetry.md").read_text()
    told = re.findall(r"^\| `(\w+)` +\| (?:decode|estimate)", page, re.MULTILINE)
    assert sorted(told) == sorted([*REASONS, "model_failed"])


def test_every_feature_is_told_once():
    page = (ROOT / "docs/features.md").read_text()
    assert [name for name in re.findall(r"^\| `(\w+)`", page, re.MULTILINE)] == [f.name for f in features()]


def test_bits_have_their_numbers():
    page = (ROOT / "docs/quality.md").read_text()
    rows = re.findall(r"^\| (\d+) +\| (\d+) +\| `(\w+)` +\| (\w+)", page, re.MULTILINE)
    assert [(name, int(value)) for _, value, name, _ in rows] == [(b.name, b.value) for b in Quality]
    assert all(1 << int(bit) == int(value) for bit, value, *_ in rows)
    assert [name for *_, name, state in rows if state == "no"] == ["DUPLICATE", "LATE", "OUT_OF_ORDER", "CLOCK_SKEW"]


# --- queries, on a tiny lake and database of the default names -----------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``run live`` leaves it, with one broken message and a device without a model."""
    folder = tmp_path_factory.mktemp("results")
    fleet = Fleet([FleetEntry(match="*-01", cell_type="lg-hg2", capacity_ah=3.0, series=16)])
    faults = FaultSettings(double_rate=0.05, drop_rate=0.05)
    settings = SimulateSettings(
        gateways=1, packs_per_gateway=1, modules_per_pack=2, duration_seconds=900.0, faults=faults
    )
    judge, extract = QualityState(QualitySettings(), fleet), FeatureState(FeatureSettings(), fleet)
    chosen = [Chosen(load_model("lg_hg2_soc"), "live")]
    estimate = EstimateState(lambda: chosen, fleet)
    lake = LakeSettings(url=str(folder / "voltmill-data/lake"))
    tables = {
        name: LakeSink(lake, table=name, schema=schema, shards=["00"], store="s").build_part("sink", "00", None)
        for name, schema in {"telemetry": TELEMETRY, "dead_letters": DEAD_LETTER}.items()
    }
    where = SqlSettings(url=f"sqlite:///{folder}/voltmill-data/voltmill.db")
    table = SqlTable(where, patience=Patience("the database"))
    table.prepare()
    database = table.writer()
    for batch in telemetry(settings):
        judged = judge.apply(batch)
        tables["telemetry"].write_batch([judged])
        rows = extract.apply(judged)
        if rows.num_rows:
            database.write([made.batch for made in estimate.apply(rows)])
    tables["dead_letters"].write_batch([Decoder(DecodeSettings())(raw_batch([b"what?"]))[1]])
    assert spool(folder / "voltmill-data/lake").add(spool_file(letters([canonical()])), 0)
    redriven = raw_batch([canonical()], source="redrive")
    at = RAW.get_field_index("source_partition")
    redriven = redriven.set_column(at, RAW.field(at), label("redrive/0000000000.parquet", 1))
    tables["telemetry"].write_batch([judge.apply(Decoder(DecodeSettings())(redriven)[0])])
    for part in (*tables.values(), database):
        part.close()
    return folder


@pytest.mark.parametrize("query", blocks("sql duckdb"))
def test_every_duckdb_query_finds_something(query, results, monkeypatch):
    monkeypatch.chdir(results)
    with duckdb.connect() as db:
        found = db.sql(query).to_arrow_table()  # fetchall() of a time with a zone needs pytz
    assert found.num_rows or "RANGE, 32" in query  # the simulated modules have no reading outside its limits


@pytest.mark.parametrize("query", blocks("sql sqlite"))
def test_every_sqlite_query_finds_something(query, results):
    with contextlib.closing(sqlite3.connect(results / "voltmill-data/voltmill.db")) as db:
        found = db.execute(query).fetchall()
    assert found or "CREATE INDEX" in query


def test_the_query_by_bit_counts_as_the_bits_say(results, monkeypatch):
    monkeypatch.chdir(results)
    query = next(p.values[0] for p in blocks("sql duckdb") if "each bit" in p.values[0])
    with duckdb.connect() as db:
        counted = dict(db.execute(query).fetchall())
        rows = db.execute("SELECT quality_bits FROM 'voltmill-data/lake/telemetry/**/*.parquet'").fetchall()
    bits = [row[0] for row in rows]
    assert counted == {k: n for k in range(17) if (n := sum(b >> k & 1 for b in bits))}
    assert counted[0] > 0 and counted[4] > 0


# --- the command line ----------------------------------------------------------------------------


def command_lines() -> list[str]:
    """Every line of a code block, and every piece of code in a sentence, that calls voltmill."""
    found = []
    for page in PAGES:
        text = page.read_text()
        code = [line for info, block in BLOCK.findall(text) if info in ("", "sh") for line in block.splitlines()]
        prose = BLOCK.sub("", text)
        code += [line for line in prose.splitlines() if line.startswith("    ")]
        code += re.findall(r"`([^`\n]+)`", prose)
        calls = [re.sub(r"^(\w+=\S+ )*", "", line.strip()) for line in code]
        found += [(page.name, call) for call in calls if call.startswith(("voltmill ", ".venv/bin/voltmill "))]
    assert len(found) > 10
    return [pytest.param(call, id=f"{name}-{k}") for k, (name, call) in enumerate(found)]


@pytest.mark.parametrize("line", command_lines())
def test_every_command_exists_with_its_options(line):
    words = shlex.split(re.sub(r"[\[\]…]|\.\.\.", " ", line), comments=True)[1:]
    commands = dict(GENERATE.commands())
    words = [word for word in words if word not in ("--debug", "COMMAND")]
    if not words or words[0].startswith("-"):
        assert all(word in ("--help", "--version") for word in words)
        return
    groups = ("run", "dead-letters")
    of_group = words[0] in groups or " ".join(["voltmill", *words[:2]]) in commands
    name = "voltmill " + (" ".join(words[:2]) if of_group else words[0])
    if name.removeprefix("voltmill ") in groups:  # named in a sentence, without a command of it
        return
    assert name in commands, line
    options = {o for p in commands[name].params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= options, line
