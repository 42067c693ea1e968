"""The IoT Hub source and the unmodified client, against the stand-in of ``hub_server``."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hub_server import HubServer
from iothub_parts import SOCKETS_LEFT, collected, numbers, offsets, part_of, payloads, read, settings_for, until

from voltmill.connectors import iothub_client, iothub_reader, pack
from voltmill.connectors.drain import Drain
from voltmill.connectors.iothub import HubError, IotHubPartition, IotHubSource, Watch
from voltmill.connectors.iothub_events import Event
from voltmill.connectors.iothub_inbox import Inbox
from voltmill.kernels.schema import RAW

__all__ = ["collected"]

Build = Callable[..., IotHubPartition]
pytestmark = SOCKETS_LEFT
PACK = {pack.PROPERTY: pack.SCHEMA}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(2) as server:
        yield server


@pytest.fixture
def build(hub: HubServer) -> Iterator[Build]:
    """Builds partitions of ``hub`` and closes them at the end of the test."""
    parts: list[IotHubPartition] = []

    def make(state: Any = None, *, ready: bool = True, drain: Drain | None = None, watch: Any = None, **changed: Any):
        parts.append(part_of(settings_for(hub, **changed), "0", state, drain, watch))
        if ready:
            until(lambda: parts[-1].connected)
        return parts[-1]

    yield make
    for part in parts:
        part.close()


def fill(hub: HubServer, bodies: list[bytes], **details: Any) -> None:
    for body in bodies:
        hub.append(body, **{"partition": 0, "device_id": "gw-1", **details})


def nothing_more(part: IotHubPartition, seconds: float = 0.4) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert part.next_batch() == []
        time.sleep(0.01)


def test_rows_are_raw_and_in_order(hub: HubServer, build: Build) -> None:
    fill(hub, numbers(3), enqueued_ms=1_700_000_000_123)
    hub.append(b"3", partition=0, enqueued_ms=1_700_000_000_456)  # not of a device: of another sender to the endpoint
    part = build()
    batches = read(part, 4)
    table = pa.Table.from_batches(batches)
    assert table.schema.equals(RAW, check_metadata=True)
    table.validate(full=True)
    assert payloads(batches) == numbers(4)
    assert offsets(batches) == [0, 1, 2, 3]
    assert table["topic"].to_pylist() == ["gw-1"] * 3 + [None]
    assert set(table["source"].to_pylist()) == {"iothub"} and set(table["source_partition"].to_pylist()) == {"0"}
    assert table["ingest_time"][0].as_py() == datetime.fromtimestamp(1_700_000_000.123, UTC)
    assert table["ingest_time"][3].as_py() == datetime.fromtimestamp(1_700_000_000.456, UTC)
    version, name, sequence, offset, level = part.snapshot()
    assert (version, name, sequence, offset) == ("v1", hub.hub.name, 3, str(hub.hub.partitions[0].at(3).offset))
    assert abs(level - time.time() * 1000) < 60_000


def test_the_partitions_are_those_of_the_hub(hub: HubServer) -> None:
    assert IotHubSource(settings_for(hub)).list_parts() == ["0", "1"]


def test_a_pack_is_a_row_a_message_and_a_broken_one_is_kept_as_it_came(hub: HubServer, build: Build) -> None:
    broken: list[int] = []
    entries = [pack.entry(f"site/m-{k}", body) for k, body in enumerate([b'{"a": 1}', b"\xff", b""])]
    fill(hub, [pack.pack(entries), b"[{oh no", pack.pack([])], properties=PACK | {"late": "true"})
    fill(hub, [b"last"])
    batches = read(build(watch=Watch(on_broken_pack=broken.append)), 5)
    assert payloads(batches) == [b'{"a": 1}', b"\xff", b"", b"[{oh no", b"last"]
    assert pa.Table.from_batches(batches)["topic"].to_pylist() == ["site/m-0", "site/m-1", "site/m-2", "gw-1", "gw-1"]
    assert offsets(batches) == [0, 0, 0, 1, 3] and sum(broken) == 1


def test_an_event_is_handed_out_whole(hub: HubServer, build: Build) -> None:
    packs = [pack.pack([pack.entry("t", b"%d" % (10 * k + n)) for n in range(7)]) for k in range(6)]
    fill(hub, packs, properties=PACK)
    part = build(max_batch_rows=10)
    seen, state = [], None
    while len(seen) < 42:
        for batch in part.next_batch():
            seen += payloads([batch])
            assert batch.num_rows == 7
            state = part.snapshot()
            assert len(seen) == 7 * (state[2] + 1)
            if len(seen) == 21:
                part.close()
                part = build(state, max_batch_rows=10)
    assert seen == [b"%d" % (10 * k + n) for k in range(6) for n in range(7)]


def test_it_resumes_after_the_last_event_handed_out(hub: HubServer, build: Build) -> None:
    fill(hub, numbers(50))
    first = build(max_batch_rows=10)
    batches = read(first, 10)
    state = first.snapshot()
    read(first, 10)  # handed out after the snapshot: comes again
    first.close()
    again = read(build(state), 50 - len(payloads(batches)))
    assert payloads(batches + again) == numbers(50)


@pytest.mark.parametrize("hole", [True, False])
def test_latest_stays_the_place_that_it_first_was(hub: HubServer, build: Build, hole: bool) -> None:
    fill(hub, numbers(5) if hole else [])
    part = build(start="latest")
    state = part.snapshot()
    hub.leave()
    until(lambda: not part.connected)
    fill(hub, numbers(5, 5))  # while no connection stands
    hub.come()
    assert payloads(read(part, 5)) == numbers(5, 5)
    part.close()
    assert payloads(read(build(state, start="latest"), 5)) == numbers(5, 5)


def test_it_begins_at_a_time(hub: HubServer, build: Build) -> None:
    for k in range(10):
        hub.append(b"%d" % k, partition=0, enqueued_ms=1_700_000_000_000 + 1000 * k)
    assert payloads(read(build(start="2023-11-14T22:13:24Z"), 6)) == numbers(6, 4)
    assert payloads(read(build(start="2023-11-14T23:13:24+01:00"), 6)) == numbers(6, 4)


def test_lost_connections_lose_nothing_and_double_nothing(hub: HubServer, build: Build) -> None:
    lost: list[str] = []
    part = build(watch=Watch(on_reconnect=lost.append), max_batch_rows=50)
    seen: list[bytes] = []
    for k in range(4):
        fill(hub, numbers(500, 500 * k))
        seen += payloads(read(part, 100))
        hub.drop()
        until(lambda k=k: len(lost) > k and part.connected)  # type: ignore[misc]
    seen += payloads(read(part, 2000 - len(seen)))
    assert seen == numbers(2000)
    nothing_more(part)
    assert len(lost) >= 4 and set(lost) == {"0"}


def test_messages_of_250_kb(hub: HubServer, build: Build) -> None:
    bodies = [bytes([k]) * 250_000 for k in range(20)]
    fill(hub, bodies)
    part = build(max_queue_bytes=1 << 20, max_batch_bytes=600_000)
    until(lambda: part.queued >= 4)
    batches = read(part, 20)
    assert payloads(batches) == bodies
    assert max(batch.num_rows for batch in batches) <= 2


def test_what_waits_is_bounded(hub: HubServer, build: Build) -> None:
    fill(hub, numbers(2000))
    part = build(max_queue_messages=300, prefetch=1000)
    until(lambda: part.queued >= 300)
    time.sleep(0.3)
    assert part.queued == 300
    assert payloads(read(part, 2000)) == numbers(2000)
    fill(hub, [b"x" * 10_000] * 50)
    until(lambda: part.queued >= 50)
    part.close()
    part = build(part.snapshot(), max_queue_bytes=95_000)
    until(lambda: part.queued >= 10)
    time.sleep(0.3)
    assert part.queued == 10


def test_events_are_taken_as_they_come(hub: HubServer, build: Build) -> None:
    """The client's own loop would hand them on after 1000, or 0.2 s without one."""
    part = build(prefetch=1000)
    ended = threading.Event()

    def trickle() -> None:
        for k in range(100):
            hub.append(b"%d" % k, partition=0)
            time.sleep(0.02)
        ended.set()

    thread = threading.Thread(target=trickle)
    thread.start()
    seen = payloads(read(part, 5))
    assert not ended.is_set()
    thread.join()
    assert seen + payloads(read(part, 100 - len(seen))) == numbers(100)


def test_no_thread_reads_beside_the_reader(build: Build) -> None:
    build()
    targets = [getattr(thread, "_target", None) for thread in threading.enumerate()]
    assert not any(getattr(target, "__name__", "") == "_keep_alive" for target in targets)


def test_what_the_hub_delivers_again_is_held_back(hub: HubServer, build: Build) -> None:
    again: list[int] = []
    fill(hub, numbers(20))
    part = build(watch=Watch(on_redelivered=again.append))
    seen = payloads(read(part, 20))
    hub.seek(0, 5)
    until(lambda: sum(again) == 15)
    fill(hub, numbers(5, 20))
    assert seen + payloads(read(part, 5)) == numbers(25)
    nothing_more(part)


def test_a_rewind_of_the_hub_comes_as_new_events(hub: HubServer, build: Build) -> None:
    rewound = [b"1", b"2", b"1", b"2", b"3", b"1", b"2", b"3", b"4"]
    fill(hub, rewound)
    batches = read(build(), 9)
    assert payloads(batches) == rewound and offsets(batches) == list(range(9))


def test_events_that_are_missing_are_asked_for_again(hub: HubServer, build: Build) -> None:
    lost: list[str] = []
    expired: list[int] = []
    fill(hub, numbers(10))
    part = build(watch=Watch(on_reconnect=lost.append, on_expired=lambda partition, events: expired.append(events)))
    seen = payloads(read(part, 10))
    hub.hub.on_append = lambda: None  # nobody is told
    fill(hub, numbers(10, 10))
    hub.seek(0, 15)
    seen += payloads(read(part, 10))
    assert seen == numbers(20) and lost == ["0"] and not expired


def test_expired_events_are_reported(hub: HubServer, build: Build, caplog: pytest.LogCaptureFixture) -> None:
    expired: list[tuple[str, int]] = []
    fill(hub, numbers(10))
    first = build()
    read(first, 10)
    state = first.snapshot()
    first.close()
    fill(hub, numbers(30, 10))
    hub.expire(0, 25)
    part = build(state, watch=Watch(on_expired=lambda partition, events: expired.append((partition, events))))
    assert payloads(read(part, 15)) == numbers(15, 25)
    assert expired == [("0", 15)]
    record = next(record for record in caplog.records if "expired" in record.message)
    assert (record.lost, record.after, record.first_available) == (15, 9, 25)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["", "another-hub"])
def test_a_hub_that_counts_anew_is_read_from_the_earliest(
    hub: HubServer, build: Build, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """After a failover: another hub behind the name, or another name."""
    fill(hub, numbers(10))
    state = ("v1", name or hub.hub.name, 2 if name else 5000, "0", 7)
    part = build(state, start="latest")
    assert payloads(read(part, 10)) == numbers(10)
    assert part.snapshot()[1:3] == (hub.hub.name, 9)
    assert any("from the earliest" in record.message for record in caplog.records)


def test_a_process_that_starts_later_takes_over(hub: HubServer, build: Build) -> None:
    old = build()
    fill(hub, numbers(10))
    read(old, 10)
    new = build(old.snapshot())
    with pytest.raises(HubError, match=r"partition 0: another process reads consumer group \$Default.*; run one flow"):
        until(lambda: bool(old.next_batch()), 10)
    fill(hub, numbers(10, 10))
    assert payloads(read(new, 10)) == numbers(10, 10)
    assert hub.stats()["stolen"] == 1 and new.connected


def test_a_stale_process_does_not_come_back(hub: HubServer, build: Build) -> None:
    """Cut off while another took over, it is refused: levels of later starts are higher."""
    old = build(reconnect_min_seconds=1.0, reconnect_max_seconds=1.0)
    hub.drop()
    until(lambda: not old.connected)
    new = build(("v1", hub.hub.name, None, "", int(time.time() * 1000) + 5000))
    with pytest.raises(HubError, match="another process"):
        until(lambda: bool(old.next_batch()), 10)
    nothing_more(new)


def test_a_clock_set_back_does_not_lower_the_level(hub: HubServer, build: Build) -> None:
    ahead = int(time.time() * 1000) + 3_600_000
    part = build(("v1", hub.hub.name, None, "", ahead))
    fill(hub, numbers(1))
    read(part, 1)
    assert part.snapshot()[4] > ahead


def test_draining_waits_until_all_is_durable(hub: HubServer, build: Build) -> None:
    drain = Drain()
    part = build(drain=drain)
    fill(hub, numbers(10))
    read(part, 10)
    fill(hub, numbers(10, 10))
    until(lambda: part.queued == 10)
    drain.request()
    assert part.next_batch() == []
    state = part.snapshot()
    with pytest.raises(StopIteration):
        part.next_batch()
    assert state[2] == 9
    assert payloads(read(build(state), 10)) == numbers(10, 10)


def test_links_are_renewed_before_the_client_has_grown(
    hub: HubServer, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iothub_reader, "RENEW_AFTER", 100)
    lost: list[str] = []
    fill(hub, numbers(350))
    part = build(prefetch=50, watch=Watch(on_reconnect=lost.append))
    assert payloads(read(part, 350)) == numbers(350)
    assert not lost and hub.stats()["attached"] >= 4


def test_a_connection_without_a_sign_of_life_is_made_again(
    hub: HubServer, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iothub_client, "IDLE_SECONDS", 1)
    lost: list[str] = []
    hub.silence(True)
    part = build(watch=Watch(on_reconnect=lost.append))
    until(lambda: bool(lost))
    hub.silence(False)
    until(lambda: part.connected)
    del lost[:]
    nothing_more(part, 1.5)
    assert not lost


def test_counts_and_lag(hub: HubServer, build: Build) -> None:
    events: list[tuple[int, int]] = []
    lag: list[tuple[str, int]] = []
    fill(hub, [b"abc"] * 30)
    watch = Watch(on_events=lambda n, size: events.append((n, size)), on_lag=lambda *told: lag.append(told))
    read(build(watch=watch, max_batch_rows=10), 30)
    assert events == [(10, 30)] * 3 and lag == [("0", 20), ("0", 10), ("0", 0)]


def test_a_store_of_another_version_is_refused(hub: HubServer) -> None:
    with pytest.raises(ValueError, match="version 'v9', this release reads v1"):
        IotHubSource(settings_for(hub)).build_part("in", "0", ("v9", 1))


def test_a_batch_is_due_when_it_is_full_or_has_waited(hub: HubServer) -> None:
    now = 0.0
    inbox = Inbox(settings_for(hub, max_batch_rows=3, linger_ms=50), lambda: now)
    events = [Event(k, "", k, 0, ((None, b"x"),), 1) for k in range(4)]
    assert inbox.take() == [] and inbox.due_in() == 0.05
    inbox.add(events[0])
    now = 0.02
    assert inbox.take() == [] and inbox.due_in() == pytest.approx(0.03)
    now = 0.06
    assert inbox.take() == events[:1]
    for event in events:
        inbox.add(event)
    assert inbox.due_in() == 0 and inbox.take() == events[:3] and inbox.take() == []
