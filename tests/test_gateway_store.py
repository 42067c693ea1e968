"""The gateway's store: first in first out, each message once, bounded, never damaged by a kill."""

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import gateway_full_disk
import pytest
from gateway_hubs import ScriptedHub
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import with_mounts

from voltmill.connectors.gateway_sender import Sender
from voltmill.connectors.gateway_settings import GatewaySettings
from voltmill.connectors.gateway_store import ROW_BYTES, GatewayStore, GatewayStoreError, Message, StoreFull, in_use
from voltmill.connectors.pack import entry

Make = Callable[..., GatewayStore]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A store, the same file each time; what is open is closed first."""
    opened: list[GatewayStore] = []
    lost: Counter[str] = Counter()

    def build(**limits: int) -> GatewayStore:
        while opened:
            opened.pop().close()
        limits = {"max_bytes": 1 << 20, "max_entry_bytes": 1000, **limits}
        store = GatewayStore(
            tmp_path / "gateway.db",
            on_dead_letter=lambda reason, count: lost.update({reason: count}),
            on_removed=lambda count: lost.update({"removed": count}),
            **limits,
        )
        store.lost = lost  # type: ignore[attr-defined]
        opened.append(store)
        return store

    yield build
    for store in opened:
        store.close()


def message(number: int, entry: bytes = b"x", part: str = "a/#", hash: int | None = None) -> Message:
    return Message(part, number, number if hash is None else hash, 1000.0 + number, entry)


def entries(store: GatewayStore, most: int = 1 << 20) -> list[bytes]:
    return [one.entry for one in store.oldest(most)]


def test_first_in_first_out_up_to_a_size(make):
    store = make()
    assert store.put([message(k, b"%03d" % k) for k in range(10)]) == 10
    assert entries(store, 12) == [b"000", b"001", b"002"]  # three bytes and a comma each
    assert entries(store, 11) == [b"000", b"001"] and entries(store, 1) == [b"000"]
    store.remove(store.oldest(12)[-1].id)
    assert store.messages == 7 and entries(store, 4) == [b"003"] and store.oldest_at == 1003.0


def test_a_message_that_comes_again_is_stored_once_also_after_a_restart_and_after_it_was_sent(make):
    store = make()
    store.put([message(k) for k in range(5)])
    store.remove(store.oldest(6)[-1].id)  # three are sent
    store = make()
    assert store.put([message(k) for k in range(3, 8)]) == 3
    assert store.put([message(k) for k in range(8)]) == 0 and store.messages == 5


def test_another_message_under_a_known_number_is_stored(make):
    """After a crash numbers are given anew, and a message of QoS 0 does not come again: what follows moves up."""
    store = make()
    store.put([message(1, b"first")])
    assert store.put([message(1, b"second", hash=99), message(1, b"third", part="b/#")]) == 2
    assert entries(store) == [b"first", b"second", b"third"]


def test_keys_go_once_their_epoch_is_durable_and_no_sooner(make):
    store = make()
    for epoch in range(6):
        store.put([message(10 * epoch + k) for k in range(10)])
        store.end_epoch()
        assert store.put([message(10 * epoch + k) for k in range(10)]) == 0, "the running epoch may be repeated"
    assert keys(store) == 30
    for _ in range(10):
        store.end_epoch()
    assert keys(store) == 0
    assert store.messages == 60


def test_keys_of_the_run_before_stay_while_nothing_came(make):
    """The broker may be away for hours after a crash; what it then sends again must still be known."""
    make().put([message(k) for k in range(10)])
    store = make()
    for _ in range(20):
        store.end_epoch()
    assert store.put([message(k) for k in range(12)]) == 2


def keys(store: GatewayStore) -> int:
    return int(store._putting.execute("SELECT count(*) FROM taken").fetchone()[0])


def test_a_full_store_takes_nothing_and_goes_on_when_there_is_room(make):
    store = make(max_bytes=10 * (1 + ROW_BYTES))
    store.put([message(k) for k in range(9)])
    with pytest.raises(StoreFull, match="holds 441 of 490 bytes"):
        store.put([message(9), message(10)])
    assert store.messages == 9 and keys(store) == 9, "all of a batch or nothing"
    store.remove(store.oldest(1)[0].id)
    assert store.put([message(9), message(10)]) == 2


def test_an_empty_store_takes_a_batch_larger_than_its_bound(make):
    assert make(max_bytes=100).put([message(k) for k in range(100)]) == 100


def test_a_message_too_large_is_kept_aside_and_the_rest_goes_on(make):
    store = make()
    assert store.put([message(0), message(1, b"y" * 1001), message(2, b"z" * 1000)]) == 3
    assert [len(e) for e in entries(store)] == [1, 1000] and store.messages == 2
    assert letters(store) == [("too_large", 1001)] and store.lost == {"too_large": 1}
    assert make().put([message(1, b"y" * 1001)]) == 0, "once only, as any message"


def test_dead_letters_are_bounded_and_their_loss_is_counted(make):
    store = make(max_dead_letter_bytes=5000)
    store.put([message(k, b"y" * 2000) for k in range(5)])
    assert letters(store) == [("too_large", 2000)] * 2 and store.lost == {"too_large": 5, "removed": 3}
    store.put([message(9, b"y" * 9000)])
    assert letters(store) == [("too_large", 9000)], "the newest stays, whatever its size"


def test_a_message_that_the_hub_rejects_leaves_the_queue(make):
    store = make()
    store.put([message(k, b"%d" % k) for k in range(3)])
    store.bury(store.oldest(1)[0], "rejected")
    assert entries(store) == [b"1", b"2"] and store.messages == 2 and letters(store) == [("rejected", 1)]


def letters(store: GatewayStore) -> list[tuple[str, int]]:
    return store._putting.execute("SELECT reason, bytes FROM dead_letters ORDER BY id").fetchall()


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.lists(st.integers(0, 30), min_size=1, max_size=8).map(lambda numbers: ("put", sorted(set(numbers)))),
            st.integers(1, 60).map(lambda size: ("send", size)),
            st.just(("open", 0)),
        ),
        max_size=25,
    )
)
def test_it_is_a_queue_without_doubles_however_often_it_is_opened(steps):
    """Against a list; the numbers may come again and in any order, as after crashes."""
    with tempfile.TemporaryDirectory() as folder:
        limits = {"max_bytes": 1 << 30, "max_entry_bytes": 1000}
        store = GatewayStore(Path(folder) / "g.db", **limits)
        queue, seen, sent = list[bytes](), set[int](), list[bytes]()
        for what, value in steps:
            if what == "put":
                store.put([message(k, b"%d" % k * (k % 4 + 1)) for k in value])
                queue += [b"%d" % k * (k % 4 + 1) for k in value if k not in seen]
                seen |= set(value)
            elif what == "send" and (found := store.oldest(value)):
                assert len(found) == 1 or sum(len(w.entry) + 1 for w in found) <= value
                sent += [w.entry for w in found]
                store.remove(found[-1].id)
                queue = queue[len(found) :]
            elif what == "open":
                store.close()
                store = GatewayStore(Path(folder) / "g.db", **limits)
            assert entries(store) == queue and store.messages == len(queue)
            assert store.size == sum(map(len, queue)) + ROW_BYTES * len(queue)
            assert store.entry_bytes == sum(len(e) + 1 for e in queue)
        assert len(sent) + len(queue) == len(seen)
        store.close()


def test_one_gateway_at_a_time(make, tmp_path, monkeypatch):
    monkeypatch.setattr("voltmill.connectors.gateway_store._PATIENCE_SECONDS", 0.2)
    path = tmp_path / "gateway.db"
    assert not in_use(path)
    make()
    assert in_use(path)
    with pytest.raises(GatewayStoreError, match="gateway.db: another gateway uses this store: stop that first"):
        GatewayStore(path, max_bytes=1 << 20, max_entry_bytes=10)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda path: path.write_bytes(b"no database, but long enough to be looked at " * 99),
            "file is not a database",
        ),
        (lambda path: path.mkdir(), "unable to open database file"),
        (lambda path: sqlite3.connect(path).execute("PRAGMA user_version = 7").connection.close(), "of format 7"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, spoil, says):
    path = tmp_path / "gateway.db"
    spoil(path)
    with pytest.raises(GatewayStoreError, match=f"^{path}: .*{says}.*name another file") as raised:
        GatewayStore(path, max_bytes=1 << 20, max_entry_bytes=10)
    assert "\n" not in str(raised.value) and not in_use(path)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GatewayStoreError, match="cannot be used as .gateway. store: File exists"):
        GatewayStore(tmp_path / "file/gateway.db", max_bytes=1 << 20, max_entry_bytes=10)


def test_a_full_disk_is_one_line_and_the_store_can_still_be_emptied(tmp_path):
    """SQLite needs disk also to remove something: without a reserve it would be stuck for ever."""
    found = with_mounts(tmp_path, gateway_full_disk.__file__)
    assert found["said"] == f"{tmp_path}/g.db: database or disk is full"
    assert found["stored"] > 1000 and found["in_order"] and found["again"] == 100


def test_what_the_hub_has_is_not_sent_again_while_it_cannot_be_removed(make, monkeypatch):
    store = make()
    store.put([message(k) for k in range(3)])
    tries = iter([StoreFull("disk is full"), StoreFull("disk is full")])
    real = store.remove

    def remove(upto: int) -> None:
        if error := next(tries, None):
            raise error
        real(upto)

    monkeypatch.setattr(store, "remove", remove)
    hub = ScriptedHub()
    login = "HostName=h;DeviceId=d;SharedAccessKey=eA=="
    quick = GatewaySettings(connection_string=login, linger_seconds=0, retry_min_seconds=0.01, retry_max_seconds=0.02)
    store.put([message(k, entry("a", b"1")) for k in range(3, 5)])
    while store.messages > 2:
        real(store.oldest(1)[0].id)
    sender = Sender(quick, store, hub)
    sender.start()
    deadline = time.monotonic() + 10
    while store.messages:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert sender.close(1) and len(hub.taken) == 1


FILLER = """
import sys, pathlib
from voltmill.connectors.gateway_sender import Sender
from voltmill.connectors.gateway_settings import GatewaySettings
from voltmill.connectors.gateway_store import GatewayStore, Message
store = GatewayStore(pathlib.Path(sys.argv[1]), max_bytes=1 << 30, max_entry_bytes=1000)
for k in range(10**6):
    store.put([Message("a/#", 5 * k + j, 5 * k + j, 0.0, b"%d" % (5 * k + j)) for j in range(5)])
    print(5 * k + 5, flush=True)
    if k % 3 == 0:
        store.remove(store.oldest(1)[0].id)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_what_was_put_is_there_after_kill_9(tmp_path):
    path = tmp_path / "gateway.db"
    process = subprocess.Popen([sys.executable, "-c", FILLER, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 300:
        pass
    process.kill()
    told = [int(line) for line in process.stdout.read().split(b"\n")[:-1]] or [300]
    process.stdout.close()
    process.wait()
    began = time.monotonic()
    store = GatewayStore(path, max_bytes=1 << 30, max_entry_bytes=1000)
    found = [int(one.entry) for one in store.oldest(1 << 20)]
    store.close()
    assert found[-1] + 1 >= told[-1], "it was told that these are stored"
    assert found == list(range(found[0], found[-1] + 1)) and time.monotonic() - began < 10
