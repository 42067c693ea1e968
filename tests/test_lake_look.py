"""One look at a table for all shards of a start: cheap, never too old, and each shard sees its own files."""

import math
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from stored_flow import telemetry
from test_lake import STORE, files, sink

from voltmill.connectors import lake_look
from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.connectors.lake_look import Look
from voltmill.connectors.store import Store
from voltmill.kernels.schema import TELEMETRY

SHARDS = ["00", "01", "02", "03"]
DAYS = ["2026-11-20", "2026-11-21", "2026-11-22"]
_numbers = count()


@pytest.fixture
def lake() -> Iterator[LakeSettings]:
    """An object store with a file of each shard and day."""
    url = f"memory://look-{next(_numbers)}/lake"
    store = LakeSettings(url=url).open()
    store.make()
    for day in DAYS:
        for shard in SHARDS:
            store.write(f"telemetry/date={day}/shard={shard}/{shard}.parquet", pa.py_buffer(b"x"))
    yield LakeSettings(url=url)
    fsspec.filesystem("memory").rm(url.removeprefix("memory:/"), recursive=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were listed."""
    found: list[str] = []
    for name in ("names", "find"):
        real = getattr(Store, name)

        def listing(self: Store, folder: str, real: Any = real) -> list[str]:
            found.append(folder)
            return real(self, folder)

        monkeypatch.setattr(Store, name, listing)
    return found


def test_the_shards_of_a_start_share_a_look(lake: LakeSettings, asked: list[str]) -> None:
    look, store = Look(), lake.open()
    for shard in SHARDS:
        names = look.names(store, "telemetry", shard, since="2026-11-21")
        assert names == [f"telemetry/date={day}/shard={shard}/{shard}.parquet" for day in DAYS[1:]]
    assert asked == ["telemetry", *(f"telemetry/date={day}" for day in DAYS[1:])]
    look.names(store, "telemetry", "00", since="")  # again: it looks anew
    assert asked[3:] == ["telemetry", *(f"telemetry/date={day}" for day in DAYS)]


def test_what_a_shard_is_told_is_not_older_than_it_wants(
    lake: LakeSettings, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look, store = Look(), lake.open()
    look.names(store, "telemetry", "00", since="2026-11-22")
    store.write("telemetry/date=2026-11-22/shard=01/late.parquet", pa.py_buffer(b"x"))
    assert len(look.names(store, "telemetry", "01", since="2026-11-22", after=time.monotonic())) == 2
    monkeypatch.setattr(lake_look, "_SHARED_SECONDS", -math.inf)
    before = len(asked)
    look.names(store, "telemetry", "02", since="2026-11-22")
    assert len(asked) > before


def test_each_shard_finds_its_orphans_and_what_came_late(lake: LakeSettings) -> None:
    def build(states: dict[str, Any], **options: Any) -> dict[str, Any]:
        made = LakeSink(
            LakeSettings(url=f"{lake.url}/orphans", max_file_rows=5, **options),
            table="telemetry",
            schema=TELEMETRY,
            shards=SHARDS,
            store=STORE,
        )
        return {shard: made.build_part("out", shard, states.get(shard)) for shard in SHARDS}

    def there() -> list[str]:
        return [path.removeprefix("telemetry/date=2026-11-22/") for path in files(f"{lake.url}/orphans")]

    parts = build({})
    for part in parts.values():
        part.write_batch([telemetry(0, 5)])
    states = {shard: part.snapshot() for shard, part in parts.items()}
    for part in parts.values():
        part.write_batch([telemetry(5, 5)])
    assert len(there()) == 8
    parts = build(states, attempt_seconds=0.05)
    assert there() == [f"shard={shard}/{STORE}-0000000000.parquet" for shard in SHARDS]
    store = LakeSettings(url=f"{lake.url}/orphans").open()
    for shard in SHARDS:
        store.write(f"telemetry/date=2026-11-22/shard={shard}/{STORE}-0000000007.parquet", pa.py_buffer(b"late"))
    time.sleep(0.1)
    for part in parts.values():
        part.write_batch([telemetry(5, 5)])
    assert there() == [f"shard={shard}/{STORE}-000000000{n}.parquet" for shard in SHARDS for n in (0, 1)]


def test_on_a_disk_each_shard_looks_by_itself_and_sees_hidden_files(tmp_path: Path) -> None:
    part = sink(str(tmp_path), max_file_rows=5).build_part("out", "00", None)
    part.write_batch([telemetry(0, 5)])
    state = part.snapshot()
    store = LakeSettings(url=str(tmp_path)).open()
    half = f"telemetry/date=2026-11-22/shard=00/.{STORE}-0000000001.parquet.tmp"
    store.write(half, pa.py_buffer(b"half"))
    sink(str(tmp_path)).build_part("out", "00", state)
    assert store.names("telemetry/date=2026-11-22/shard=00") == [f"{STORE}-0000000000.parquet"]
