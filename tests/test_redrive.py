"""The redrive source and its spool: each row once, in order, whatever is killed, late or not a spool file."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import msgspec
import pyarrow as pa
import pytest
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.testing import TestingSink
from conftest import RunFlow
from servers import Azurite
from spool_files import NOON, letters, spool, spool_file, until

from voltmill.connectors.drain import Drain
from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.redrive import RedrivePartition, RedriveSettings, RedriveSource, State
from voltmill.connectors.spool import ROW_GROUP_ROWS, Claim, Spool
from voltmill.kernels.schema import RAW

SOON = RedriveSettings(poll_seconds=0.02)


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    (tmp_path / "lake").mkdir()
    return tmp_path / "lake"


Start = Callable[..., RedrivePartition]


@pytest.fixture
def start(lake: Path) -> Iterator[Start]:
    parts: list[RedrivePartition] = []

    def start(state: State | None = None, *, store: str = "s", drain: Drain | None = None) -> RedrivePartition:
        source = RedriveSource(SOON, LakeSettings(url=str(lake)), store=store, drain=drain)
        parts.append(source.build_part("redrive", "redrive", state))
        return parts[-1]

    yield start
    for part in parts:
        part.close()


def payloads(first: int, count: int) -> list[bytes]:
    return [b"%d" % n for n in range(first, first + count)]


def put(lake: Path, number: int, first: int, count: int, **columns: Any) -> None:
    assert spool(lake).add(spool_file(letters(payloads(first, count), first, **columns)), number)


def take(part: RedrivePartition, rows: int) -> list[dict[str, Any]]:
    """The next rows, so many at least."""
    found: list[dict[str, Any]] = []

    def enough() -> bool:
        for batch in part.next_batch():
            assert batch.schema.equals(RAW)
            found.extend(batch.to_pylist())
        return len(found) >= rows

    until(enough, f"{rows} rows wanted, {len(found)} came")
    return found


def nothing(part: RedrivePartition) -> None:
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        assert part.next_batch() == []
        time.sleep(0.01)


def claim(lake: Path, number: int) -> dict[str, Any] | None:
    file = lake / f"redrive/{number:010d}.json"
    return msgspec.json.decode(file.read_bytes()) if file.exists() else None


def test_rows_lead_back_to_their_letters(lake: Path, start: Start) -> None:
    put(lake, 0, 0, 3, topic="site/gw-7")
    rows = take(start(), 3)
    assert [row["payload"] for row in rows] == payloads(0, 3)
    place = {(row["source"], row["source_partition"]) for row in rows}
    assert place == {("redrive", "redrive/0000000000.parquet")}
    assert [row["source_offset"] for row in rows] == [0, 1, 2]
    assert {(row["topic"], row["ingest_time"]) for row in rows} == {("site/gw-7", NOON)}


def test_files_come_in_name_order_and_new_ones_while_it_runs(lake: Path, start: Start) -> None:
    for number in (1, 0, 2):
        put(lake, number, 10 * number, 10)
    part = start()
    assert [row["payload"] for row in take(part, 30)] == payloads(0, 30)
    nothing(part)
    put(lake, 3, 30, 5)
    assert [row["payload"] for row in take(part, 5)] == payloads(30, 5)
    nothing(part)


def test_it_goes_on_at_the_row(lake: Path, start: Start) -> None:
    rows = 2 * ROW_GROUP_ROWS + 10
    put(lake, 0, 0, rows)
    part = start()
    first = take(part, 1)
    state = part.snapshot()
    assert state == ("v1", "redrive/0000000000.parquet", ROW_GROUP_ROWS) and len(first) == ROW_GROUP_ROWS
    take(part, rows - ROW_GROUP_ROWS)  # lost with the epoch
    part.close()
    again = take(start(state), rows - ROW_GROUP_ROWS)
    assert [row["payload"] for row in [*first, *again]] == payloads(0, rows)
    assert [row["source_offset"] for row in again] == list(range(ROW_GROUP_ROWS, rows))
    middle = start(("v1", "redrive/0000000000.parquet", ROW_GROUP_ROWS + 7))
    assert take(middle, 1)[0]["payload"] == b"%d" % (ROW_GROUP_ROWS + 7)


def test_a_file_that_was_taken_in_a_lost_epoch_is_read_again(lake: Path, start: Start) -> None:
    put(lake, 0, 0, 3)
    part = start()
    state = part.snapshot()
    assert len(take(part, 3)) == 3
    part.close()
    assert claim(lake, 0) == {"store": "s", "rows": 0, "of": 3}
    assert len(take(start(state), 3)) == 3


def test_the_claim_says_what_is_durable(lake: Path, start: Start) -> None:
    put(lake, 0, 0, 3)
    part = start()
    take(part, 3)
    nothing(part)
    assert claim(lake, 0) == {"store": "s", "rows": 0, "of": 3}
    state = part.snapshot()
    nothing(part)  # the first call after the snapshot: its epoch is durable
    until(lambda: claim(lake, 0) == {"store": "s", "rows": 3, "of": 3}, "not recorded")
    nothing(start())  # the recovery store lost its state: what is durable does not come twice
    nothing(start(state))


def test_a_flow_that_ended_before_it_could_say_so_does_at_the_next_start(lake: Path, start: Start) -> None:
    put(lake, 0, 0, 3)
    part = start()
    take(part, 3)
    state = part.snapshot()
    part.close()
    assert claim(lake, 0) == {"store": "s", "rows": 0, "of": 3}
    put(lake, 1, 3, 1)
    assert len(take(start(state), 1)) == 1
    until(lambda: claim(lake, 0) == {"store": "s", "rows": 3, "of": 3}, "not recorded")


def test_the_files_of_another_flow_are_left_to_it(lake: Path, start: Start) -> None:
    put(lake, 0, 0, 3)
    assert spool(lake).take(0, Claim(store="other", of=3))
    part = start()
    nothing(part)
    put(lake, 1, 3, 2)
    assert [row["payload"] for row in take(part, 2)] == payloads(3, 2)


def test_of_two_flows_one_gets_each_file(lake: Path, start: Start) -> None:
    parts = [start(store=name) for name in ("a", "b")]
    for number in range(10):
        put(lake, number, number, 1)
    found: list[bytes] = []

    def all_there() -> bool:
        for part in parts:
            found.extend(p for batch in part.next_batch() for p in batch["payload"].to_pylist())
        return len(found) >= 10

    until(all_there, "letters are missing")
    for part in parts:
        nothing(part)
    assert sorted(found) == payloads(0, 10)


def test_what_else_lies_in_the_folder_is_passed_over(
    lake: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    folder = lake / "redrive"
    put(lake, 5, 0, 2)
    (folder / "readme.parquet").write_bytes(b"?")
    (folder / "12.parquet").write_bytes(b"?")
    (folder / ".0000000001.parquet.tmp").write_bytes(b"?")
    (folder / "0000000002.parquet").write_bytes(b"half a fi")
    (folder / "0000000003.parquet").mkdir()
    (folder / "0000000003.parquet").rmdir()
    (folder / "0000000004.parquet").write_bytes(b"")
    assert [row["payload"] for row in take(start(), 2)] == payloads(0, 2)
    said = [getattr(record, "file", "") for record in caplog.records if "passed over" in record.message]
    assert said == ["redrive/0000000002.parquet", "redrive/0000000004.parquet"]


def test_letters_that_are_no_messages_only_count_as_read(lake: Path, start: Start) -> None:
    put(lake, 0, 0, 3, stage="sql")
    put(lake, 1, 3, 1)
    part = start()
    assert [row["payload"] for row in take(part, 1)] == payloads(3, 1)
    part.snapshot()
    part.next_batch()
    until(lambda: (claim(lake, 0) or {}).get("rows") == 3, "not recorded")


def test_a_lake_that_is_away_is_waited_for(lake: Path, start: Start) -> None:
    put(lake, 0, 0, 3)
    away = lake.with_name("away")
    lake.rename(away)
    part = start()
    nothing(part)
    away.rename(lake)
    assert len(take(part, 3)) == 3


def test_a_lake_without_a_spool_is_no_error(lake: Path, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    nothing(start())
    assert caplog.records == []


class TestDrain:
    def test_with_nothing_read_it_ends_at_once(self, lake: Path, start: Start) -> None:
        drain = Drain()
        part = start(drain=drain)
        drain.request()
        with pytest.raises(StopIteration):
            part.next_batch()

    def test_what_was_handed_out_is_durable_first(self, lake: Path, start: Start) -> None:
        put(lake, 0, 0, 3)
        drain = Drain()
        part = start(drain=drain)
        take(part, 3)
        drain.request()
        assert part.next_batch() == []
        part.snapshot()
        with pytest.raises(StopIteration):
            part.next_batch()
        part.close()
        assert claim(lake, 0) == {"store": "s", "rows": 3, "of": 3}

    def test_what_was_not_handed_out_stays(self, lake: Path, start: Start) -> None:
        put(lake, 0, 0, 3 * ROW_GROUP_ROWS)
        drain = Drain()
        part = start(drain=drain)
        first = take(part, 1)
        drain.request()
        part.next_batch()
        state = part.snapshot()
        with pytest.raises(StopIteration):
            part.next_batch()
        part.close()
        rest = take(start(state), 2 * ROW_GROUP_ROWS)
        assert [row["payload"] for row in [*first, *rest]] == payloads(0, 3 * ROW_GROUP_ROWS)

    def test_a_lake_that_is_away_does_not_delay_it(self, lake: Path, start: Start) -> None:
        lake.rename(lake.with_name("away"))
        drain = Drain()
        part = start(drain=drain)
        nothing(part)
        drain.request()
        began = time.monotonic()
        with pytest.raises(StopIteration):
            part.next_batch()
        part.close()
        assert time.monotonic() - began < 3.0


def test_the_next_call_is_never_far_off(lake: Path, start: Start) -> None:
    awake = start().next_awake()
    assert awake is not None and awake - datetime.now(UTC) < timedelta(seconds=0.2)


@pytest.mark.parametrize("state", [("v2", "redrive/0000000000.parquet", 1), ("v1",), 7])
def test_a_state_of_another_version_is_refused(start: Start, state: Any) -> None:
    with pytest.raises(ValueError, match="this release reads v1"):
        start(state)


def test_settings_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="poll_seconds"):
        RedriveSettings(poll_seconds=0)


class TestSpool:
    def test_of_many_who_create_a_file_at_once_one_does(self, lake: Path) -> None:
        files = [spool_file(letters([b"%d" % n])) for n in range(8)]
        gate, made = threading.Barrier(8), []

        def create(n: int) -> None:
            gate.wait()
            made.append((spool(lake).add(files[n], 0), n))

        threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [n for won, n in made if won]
        assert (lake / "redrive/0000000000.parquet").read_bytes() == files[winner].to_pybytes()
        assert [path.name for path in (lake / "redrive").iterdir()] == ["0000000000.parquet"]

    def test_in_an_object_store_too(self, azurite: Azurite) -> None:
        settings = LakeSettings(url="abfs://redrive-test/lake", storage_options=azurite.options)
        store = settings.open()
        store.make()
        data = spool_file(letters(payloads(0, 3)))
        assert Spool(store).numbers() == ([], set())
        assert Spool(store).add(data, 0)
        assert not Spool(store).add(spool_file(letters([b"other"])), 0)
        assert store.read("redrive/0000000000.parquet") == data.to_pybytes()
        part = RedriveSource(SOON, settings, store="s").build_part("redrive", "redrive", None)
        try:
            assert [row["payload"] for row in take(part, 3)] == payloads(0, 3)
            part.snapshot()
            part.next_batch()
            done = Claim(store="s", rows=3, of=3)
            until(lambda: Spool(settings.open()).claim(0) == done, "not recorded")
        finally:
            part.close()
        assert not Spool(store).take(0, Claim(store="other", of=3)) and Spool(store).claim(0) == done

    def test_large_payloads_make_small_row_groups(self, lake: Path) -> None:
        assert spool(lake).add(spool_file(letters([bytes(1 << 20)] * 20)), 0)
        with spool(lake).open(0) as file:
            sizes = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
        assert sum(sizes) == 20 and max(sizes) <= 8


class _Silent(StatefulSourcePartition[pa.RecordBatch, int]):
    """Another source beside it: ends when the sink has seen enough."""

    def __init__(self, seen: list[pa.RecordBatch], wanted: int, drain: Drain) -> None:
        self.seen, self.wanted, self.drain = seen, wanted, drain

    def next_batch(self) -> list[pa.RecordBatch]:
        if sum(batch.num_rows for batch in self.seen) >= self.wanted:
            self.drain.request()
            raise StopIteration
        return []

    def next_awake(self) -> datetime:
        return datetime.now(UTC) + timedelta(milliseconds=10)

    def snapshot(self) -> int:
        return 0


class _SilentSource(FixedPartitionedSource[pa.RecordBatch, int]):
    def __init__(self, *of: Any) -> None:
        self.of = of

    def list_parts(self) -> list[str]:
        return ["silent"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Silent:
        return _Silent(*self.of)


@pytest.mark.parametrize("workers", [1, 2])
def test_in_a_flow_beside_another_source(lake: Path, tmp_path: Path, run_flow: RunFlow, workers: int) -> None:
    put(lake, 0, 0, 5000)
    for count in (5000, 300):  # the second run goes on after the first
        seen: list[pa.RecordBatch] = []
        drain, flow = Drain(), Dataflow("both")
        other = op.input("other", flow, _SilentSource(seen, count, drain))
        source = RedriveSource(SOON, LakeSettings(url=str(lake)), store="s", drain=drain)
        op.output("out", op.merge("all", other, op.input("redrive", flow, source)), TestingSink(seen))
        run_flow(flow, recovery=tmp_path / "recovery", workers=workers)
        found = [p for batch in seen for p in batch["payload"].to_pylist()]
        assert found == (payloads(0, 5000) if count == 5000 else payloads(5000, 300))
        if count == 5000:
            put(lake, 1, 5000, 300)
    assert claim(lake, 1) == {"store": "s", "rows": 300, "of": 300}
