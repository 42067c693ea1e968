"""Each command that reads or writes a lake, as a user calls it, with lakes in Azurite only."""

import json
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.asyn import sync
from servers import Azurite
from session_rows import CHARGE, DISCHARGE, REST, series
from spool_files import letters
from telemetry import batch
from test_replay_sessions import models

from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.connectors.lake_reader import read_table
from voltmill.flows.cli import main
from voltmill.kernels.schema import DEAD_LETTER, TELEMETRY

_numbers = count()
#: Refused by another configuration than the present one.
GOOD = (
    b'{"device_id":"m-9","event_time":"2026-11-22T12:00:00Z","current_ampere":1.0,"cell_voltage_volt":[3.7],'
    b'"cell_temperature_celsius":[25.0]}'
)
CONFIG = """
[run]
shards = 2
log_level = "error"
[lake]
url = "{url}/lake"
storage_options = {{ connection_string = "${{LAKE_CONNECTION}}" }}
max_file_rows = 500
[[fleet]]
match = "m*"
cell_type = "lg-hg2"
capacity_ah = 3.0
operating_volt = [2.7, 4.2]
"""

Call = Callable[..., list[str]]


def _filled(settings: LakeSettings) -> None:
    """An archive of two devices with sessions, in files that a compaction merges, and two dead letters."""
    samples = [
        each
        for k in range(2)
        for each in series(*[REST, CHARGE, REST, DISCHARGE] * 2, REST, device=f"m-{k}", begin=100.0 * k)
    ]
    samples.sort(key=lambda each: each["event_time"])
    telemetry = batch(each | {"source_offset": k} for k, each in enumerate(samples))
    refused = letters([GOOD, b"{"])
    for name, rows in (("telemetry", telemetry), ("dead_letters", refused)):
        schema = {"telemetry": TELEMETRY, "dead_letters": DEAD_LETTER}[name]
        sink = LakeSink(settings, table=name, schema=schema, shards=["00"], store="20261122T1Z-a")
        part = sink.build_part("sink", "00", None)
        for first in range(0, rows.num_rows, 200):
            part.write_batch([rows.slice(first, 200)])
        part.close()


@pytest.fixture
def url(azurite: Azurite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A container; the configuration of its lake is in ``c.toml`` here."""
    monkeypatch.setenv("LAKE_CONNECTION", azurite.connection_string)
    monkeypatch.chdir(tmp_path)
    found = f"abfs://commands-{next(_numbers)}"
    Path("c.toml").write_text(CONFIG.format(url=found))
    _filled(LakeSettings(url=f"{found}/lake", storage_options=azurite.options, max_file_rows=500))
    return found


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], azurite: Azurite) -> Iterator[Call]:
    """Calls a command that must end with the status; what it says on both streams."""
    told: list[str] = []

    def call(*command: str, status: int = 0) -> list[str]:
        ended = 0
        try:
            main([*command, "-c", "c.toml"])
        except SystemExit as end:
            ended = int(end.code or 0)
        out, err = capsys.readouterr()
        told.extend((out, err))
        assert ended == status, (command, out, err)
        return [*out.splitlines(), *err.splitlines()]

    yield call
    assert not any(azurite.key in text for text in told)


def test_replay_compare_explain_dataset_and_compact(url: str, call: Call, azurite: Azurite, tmp_path: Path) -> None:
    def lake(name: str) -> LakeSettings:
        return LakeSettings(url=f"{url}/{name}", storage_options=azurite.options)

    named = [option for entry in models(tmp_path) for option in ("--model", entry.name)]
    here = ["--model", "lg_hg2_soc", *named]
    call("replay", "--lake", f"{url}/lake", "--out", f"{url}/out", *here)
    stored = read_table(lake("out"), "predictions")
    assert set(stored["target"].to_pylist()) == {"soc", "soh", "rul"} and read_table(lake("out"), "sessions").num_rows
    assert json.loads(lake("out").open().read("_replay.json"))["rows"] == read_table(lake("lake"), "telemetry").num_rows
    assert not list(Path("voltmill-data").glob("replay-*"))
    assert "is the archive" in call("replay", "--lake", f"{url}/lake", "--out", f"{url}/lake/x", *here, status=2)[0]
    assert "holds files already" in call("replay", "--lake", f"{url}/lake", "--out", f"{url}/out", *here, status=2)[0]
    # A container that is not there yet; sessions; and from Azure to a disk.
    call("replay", "--lake", f"{url}/out", "--table", "sessions", "--out", f"{url}-new/again", *named)
    sessions = read_table(LakeSettings(url=f"{url}-new/again", storage_options=azurite.options), "predictions")
    assert set(sessions["target"].to_pylist()) == {"soh", "rul"}
    call("replay", "--lake", f"{url}/lake", "--out", "local", *here)
    assert any(line.startswith("identical: ") for line in call("compare", f"{url}/out", "local"))
    found = stored.filter(pa.compute.equal(stored["target"].cast(pa.string()), "soc")).slice(50, 1).to_pylist()[0]
    explained = call(
        "explain", found["device_id"], found["event_time"].isoformat(), "--lake", f"{url}/out", "--target", "soc"
    )
    assert any("bit" in line for line in explained), explained
    call("dataset", "--table", "features", "--lake", f"{url}/lake", "--out", "t.parquet")
    assert pq.read_metadata("t.parquet").num_rows > 100

    all_days = ["--before", "2100-01-01", "--finished", "20261122T1Z-a"]
    before = lake("lake").open().find("telemetry")
    rows = read_table(lake("lake"), "telemetry")
    assert any("would become" in line for line in call("compact", *all_days, "--dry-run"))
    assert lake("lake").open().find("telemetry") == before
    call("compact", *all_days)
    assert len(lake("lake").open().find("telemetry")) < len(before)
    assert read_table(lake("lake"), "telemetry").equals(rows)
    assert "telemetry: nothing to merge" in call("compact", *all_days)
    call("replay", "--lake", f"{url}/lake", "--out", f"{url}/merged", *here, "--compare", f"{url}/out")


def test_dead_letters(url: str, call: Call, azurite: Azurite) -> None:
    assert any(re.match(r"decode +missing_key +2 ", line) for line in call("dead-letters", "list"))
    listed = [json.loads(line) for line in call("dead-letters", "list", "--all", "--json")]
    good = next(row["id"] for row in listed if row["bytes"] == len(GOOD))
    assert any("m-9" in line for line in call("dead-letters", "show", good))
    assert "1 letter can be taken" in call("dead-letters", "redrive", "--dry-run")
    store = LakeSettings(url=f"{url}/lake", storage_options=azurite.options).open()
    assert store.names("redrive") == []
    call("dead-letters", "redrive", "-y")
    assert store.names("redrive") == ["0000000000.parquet"]
    assert "1 redriven letters wait for a live flow, in 0000000000" in call("dead-letters", "list")
    assert any("1 letter left out" in line for line in call("dead-letters", "redrive", "-y"))


def test_directories_of_a_hierarchical_account_are_no_files(url: str, azurite: Azurite) -> None:
    """With a hierarchical namespace each folder is listed too: as an empty blob that says what it is."""
    settings = LakeSettings(url=f"{url}/tree", storage_options=azurite.options)
    store = settings.open()
    folder = "telemetry/date=2026-11-22/shard=00"
    for depth in range(1, 4):
        path = store.path("/".join(folder.split("/")[:depth]))
        container, _, name = path.partition("/")
        client = store.fs.service_client.get_blob_client(container, name)
        sync(store.fs.loop, client.upload_blob, b"", metadata={"hdi_isfolder": "true"})
    assert store.names("") == ["telemetry"] and store.find("telemetry") == []
    sink = LakeSink(
        msgspec.structs.replace(settings, max_file_rows=5),
        table="telemetry",
        schema=TELEMETRY,
        shards=["00"],
        store="s",
    )
    part = sink.build_part("sink", "00", None)
    part.write_batch([batch(series(REST)[:5])])
    part.close()
    assert store.find("telemetry") == ["date=2026-11-22/shard=00/s-0000000000.parquet"]
    assert store.names("telemetry") == ["date=2026-11-22"] and store.names(folder) == ["s-0000000000.parquet"]
    assert read_table(settings, "telemetry").num_rows == 5
    store.remove(f"{folder}/s-0000000000.parquet")
    assert store.find("telemetry") == [] and store.names("telemetry") == ["date=2026-11-22"]  # the folder stays
