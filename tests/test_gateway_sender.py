"""What the sender makes of a hub that fails in every way, and of one that works."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gateway_hubs import ScriptedHub, connection_string

from voltmill.connectors.gateway_hub import HubError, Outgoing
from voltmill.connectors.gateway_sender import LEAST_BYTES, Sender, body_bytes, entry_bytes
from voltmill.connectors.gateway_settings import GatewaySettings
from voltmill.connectors.gateway_store import GatewayStore, Message
from voltmill.connectors.pack import entry


class Rig:
    """A store, a hub and the sender between them."""

    def __init__(self, folder: Path, **values: object) -> None:
        quick = {"linger_seconds": 0.0, "retry_min_seconds": 0.01, "retry_max_seconds": 0.05}
        self.settings = GatewaySettings(connection_string=connection_string(), **(quick | values))  # type: ignore[arg-type]
        self.counted: Counter[str] = Counter()
        self.away: list[bool] = []
        self.packs: list[tuple[int, int, bool]] = []
        self.store = GatewayStore(
            folder / "g.db",
            max_bytes=1 << 30,
            max_entry_bytes=entry_bytes(self.settings),
            on_dead_letter=lambda reason, count: self.counted.update({reason: count}),
        )
        self.hub, self.now, self.number = ScriptedHub(), 1000.0, 0
        self.sender = Sender(
            self.settings,
            self.store,
            self.hub,
            on_sent=lambda *pack: self.packs.append(pack),
            on_failure=lambda kind: self.counted.update([kind]),
            on_away=self.away.append,
            clock=lambda: self.now,
        )

    def put(self, count: int, size: int = 20, at: float = 1000.0) -> None:
        first, self.number = self.number, self.number + count
        rows = [Message("a", k, k, at, entry(f"t{k}", b'"%s"' % (b"x" * size))) for k in range(first, first + count)]
        self.store.put(rows)

    def sent(self, within: float = 10.0) -> None:
        """Wait until all is sent."""
        deadline = time.monotonic() + within
        while self.store.messages:
            assert time.monotonic() < deadline, (self.store.messages, self.counted)
            time.sleep(0.005)

    def in_order(self) -> bool:
        return self.hub.topics == [f"t{k}" for k in range(self.number)]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def build(**values: object) -> Rig:
        made.append(Rig(tmp_path, **values))
        return made[-1]

    yield build
    for one in made:
        if one.sender._thread.ident is None:
            one.sender.start()
        assert one.sender.close(0.1) and one.hub.closed
        one.store.close()


def failure(kind: str, **more: object) -> HubError:
    return HubError(f"for a test: {kind}", kind, **more)  # type: ignore[arg-type]


def test_packs_are_full_and_in_order_and_no_larger_than_the_hub_takes(rig):
    r = rig()
    r.put(2000, 400)
    r.sender.start()
    r.sent()
    assert r.in_order() and len(r.hub.taken) == 4
    sizes = [len(m.body) for m in r.hub.taken]
    assert all(body_bytes(r.settings) - 500 < size <= body_bytes(r.settings) for size in sizes[:-1])
    assert body_bytes(r.settings) + 1024 <= 255 * 1024 and sum(n for n, *_ in r.packs) == 2000
    assert (
        len({m.message_id for m in r.hub.taken}) == 4
        and r.hub.taken[0].message_id == f"{r.store.name}-1-{r.packs[0][0]}"
    )


def test_the_largest_message_of_all_fits(rig):
    r = rig(max_message_bytes=4096)
    most = entry_bytes(r.settings) - len(entry("t0", b'""'))
    r.put(1, most)
    r.put(1, most + 1)
    r.put(1)
    assert r.counted == {"too_large": 1} and r.store.messages == 2
    r.sender.start()
    r.sent()
    assert r.hub.topics == ["t0", "t2"] and len(r.hub.taken[0].body) == body_bytes(r.settings)


def test_messages_wait_for_others_but_not_for_ever(rig):
    r = rig(linger_seconds=0.3)
    r.sender.start()
    began = time.monotonic()
    for _ in range(5):
        r.put(1)
        time.sleep(0.02)
    r.sent()
    assert 0.2 < time.monotonic() - began and len(r.hub.taken) == 1 and r.in_order()
    r.put(1000, 400)  # more than fills one: that goes at once
    deadline = time.monotonic() + 0.25
    while len(r.hub.taken) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(r.hub.taken) == 2


def test_what_was_kept_back_is_late(rig):
    r = rig(late_seconds=60.0)
    r.put(1, at=1000.0)
    r.now = 1060.5
    r.sender.start()
    r.sent()
    r.put(1, at=1001.0)
    r.sent()
    assert [m.late for m in r.hub.taken] == [True, False] and [late for *_, late in r.packs] == [True, False]


@pytest.mark.parametrize("kind", ["unreachable", "timeout", "throttled", "server", "refused"])
def test_it_tries_again_until_the_hub_takes_it(rig, kind, caplog):
    r = rig()
    r.hub.script = [failure(kind, sending=True)] * 6
    r.put(3)
    with caplog.at_level("INFO", "voltmill.gateway"):
        r.sender.start()
        r.sent()
    assert r.in_order() and r.counted == {kind: 6} and r.away == [True, False]
    words = [f"{record.levelname} {record.message}" for record in caplog.records]
    level = "ERROR" if kind == "refused" else "WARNING"
    assert words[0].startswith(f"{level} waiting for IoT Hub localhost, device gw-1: for a test: {kind}")
    assert words[1:] == ["INFO IoT Hub localhost, device gw-1 is back"], "six failures are one line"


def test_it_leaves_the_hub_alone_for_as_long_as_it_asks(rig):
    r = rig()
    r.hub.script = [failure("throttled", retry_after=0.4)]
    r.put(1)
    began = time.monotonic()
    r.sender.start()
    r.sent()
    assert time.monotonic() - began >= 0.4


def test_a_slow_network_gets_smaller_packs_until_they_pass(rig):
    r = rig()
    r.put(2000, 400)

    def slow(message: Outgoing) -> None:
        if len(message.body) > 20_000:
            raise failure("timeout", sending=True)

    r.hub.usual = slow
    r.sender.start()
    r.sent(20)
    assert r.in_order() and max(len(m.body) for m in r.hub.taken) <= 20_000
    assert min(len(m.body) for m in r.hub.tried) > 2000


def test_packs_never_get_smaller_than_a_block_nor_wait_for_one(rig):
    r = rig()
    r.put(100, 400)
    r.hub.script = [failure("timeout", sending=True)] * 12
    r.sender.start()
    r.sent()
    assert r.in_order() and LEAST_BYTES - 500 < len(r.hub.taken[0].body) <= LEAST_BYTES
    assert len(r.hub.taken[1].body) > len(r.hub.taken[0].body), "it grows again"


def test_a_connection_that_fails_before_anything_was_sent_makes_no_smaller_packs(rig):
    r = rig()
    r.put(1000, 400)
    r.hub.script = [failure("unreachable")] * 8
    r.sender.start()
    r.sent()
    assert len(r.hub.taken[0].body) > 250_000


def test_the_message_that_the_hub_rejects_is_found_and_the_rest_arrives(rig):
    r = rig()
    r.put(300)

    def picky(message: Outgoing) -> None:
        if b'"t123"' in message.body:
            raise failure("rejected", sending=True)

    r.hub.usual = picky
    r.sender.start()
    r.sent()
    assert r.hub.topics == [f"t{k}" for k in range(300) if k != 123]
    letters = r.store._taking.execute("SELECT reason, entry FROM dead_letters").fetchall()
    assert len(letters) == 1 and letters[0][0] == "rejected" and b'"t123"' in letters[0][1]
    assert r.counted["rejected"] >= 2 and r.away == [], "it is not away"


def test_a_hub_that_rejects_everything_costs_three_messages_and_not_all(rig):
    r = rig()
    r.put(50)
    r.hub.usual = failure("rejected", sending=True)
    r.sender.start()
    deadline = time.monotonic() + 10
    while not r.away and time.monotonic() < deadline:
        time.sleep(0.01)
    assert r.away == [True] and r.store.messages == 47
    r.hub.usual = None
    r.sent()
    assert r.hub.topics == [f"t{k}" for k in range(3, 50)]


def test_an_error_of_its_own_does_not_end_the_thread(rig):
    r = rig()
    r.hub.script = [lambda _: 1 / 0]
    r.put(1)
    r.sender.start()
    r.sent()
    assert r.counted == {"internal": 1} and r.in_order()


def test_a_drain_sends_what_waits_without_lingering(rig):
    r = rig(linger_seconds=30.0)
    r.sender.start()
    r.put(5)
    time.sleep(0.1)
    assert not r.hub.taken
    began = time.monotonic()
    assert r.sender.close(10) and time.monotonic() - began < 5 and r.in_order() and r.store.messages == 0


def test_a_drain_does_not_wait_for_a_hub_that_is_away(rig):
    r = rig(retry_max_seconds=30.0, retry_min_seconds=30.0)
    r.hub.usual = failure("unreachable")
    r.put(5)
    r.sender.start()
    while not r.away:
        time.sleep(0.005)
    began = time.monotonic()
    assert r.sender.close(10) and time.monotonic() - began < 2 and r.store.messages == 5


def test_a_drain_leaves_a_hub_that_hangs_when_its_time_is_over(rig):
    r = rig()
    release = threading.Event()
    r.hub.script = [lambda _: release.wait(20)]
    r.put(5)
    r.sender.start()
    while not r.hub.tried:
        time.sleep(0.005)
    began = time.monotonic()
    assert not r.sender.close(0.2) and time.monotonic() - began < 5
    release.set()
    r.sender._thread.join(10)
