"""rescale: any number of recovery partitions, from any stop, and the flow goes on as if it had not been stopped."""

import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_flow import TOPICS, Live, assert_complete, fleet
from test_partitions import count_up

from voltmill.connectors.mqtt import MqttSettings, Publisher
from voltmill.flows import partitions, recovery
from voltmill.flows.config import ConfigError, RunSettings
from voltmill.flows.recovery import close_store, open_store
from voltmill.flows.rescale import rescale


def store(folder: Path, count: int = 2) -> RunSettings:
    made = RunSettings(state=str(folder / "state"), recovery_partitions=count)
    open_store(made)
    close_store(folder / "state")
    return made


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("state.before-rescale-*"))


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stages=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(0, 12)), min_size=2, max_size=3),
)
def test_sums_go_on_over_any_partitions_and_workers(tmp_path_factory: Any, stages: list[tuple[int, int, int]]) -> None:
    """Keys that fall silent for whole stages keep what they had, and no key has two snapshots in the end."""
    folder = tmp_path_factory.mktemp("rescale")
    store(folder, 1)
    items: list[tuple[str, int]] = [(f"key-{k}", k) for k in range(6)]
    out = count_up(folder / "state", items)
    for stage, (count, workers, more) in enumerate(stages):
        rescale(folder / "state", count)
        for old in kept(folder):
            old.rename(folder / f"old-{stage}")
        items += [(f"key-{(stage * 5 + k) % 8}", 100 * stage + k) for k in range(more)]
        out += count_up(folder / "state", items, workers=workers)
    sums: dict[str, int] = {}
    expected = []
    for key, value in items:
        sums[key] = sums.get(key, 0) + value
        expected.append((key, sums[key]))
    assert sorted(out) == sorted(expected)
    with partitions.opened(folder / "state") as parts:
        rows = [row for part in parts for row in part.execute("select step_id, state_key from snaps")]
    assert len(rows) == len(set(rows)) == len(sums) + 1


def test_it_names_the_new_number_everywhere(tmp_path: Path) -> None:
    run = store(tmp_path, 2)
    count_up(tmp_path / "state", [("a", 1), ("b", 2)])
    done = rescale(tmp_path / "state", 3)
    assert (done.before, done.shards, sum(done.steps.values())) == (2, 4, 3)
    with pytest.raises(ConfigError, match="made for recovery_partitions = 3, the configuration says 2"):
        open_store(run)
    assert open_store(RunSettings(state=run.state, recovery_partitions=3)).recovery_partitions == 3
    close_store(tmp_path / "state")
    assert kept(tmp_path) == [done.kept]


def test_the_old_store_must_not_run_again(tmp_path: Path) -> None:
    """The flow acknowledges messages and writes files with the new one: the old one would remove those files."""
    store(tmp_path, 2)
    old = rescale(tmp_path / "state", 1).kept
    assert old is not None
    with pytest.raises(ConfigError, match="replaced by voltmill rescale at .*: the flow went on with the other store"):
        open_store(RunSettings(state=str(old), recovery_partitions=2))


def test_a_dry_run_and_the_same_number_change_nothing(tmp_path: Path) -> None:
    store(tmp_path, 2)
    before = (tmp_path / "state/store.json").read_bytes()
    assert rescale(tmp_path / "state", 3, dry_run=True).kept is None
    assert rescale(tmp_path / "state", 2).kept is None
    assert (tmp_path / "state/store.json").read_bytes() == before and not kept(tmp_path)


def test_a_flow_in_its_place_or_none_is_refused(tmp_path: Path) -> None:
    run = store(tmp_path, 2)
    open_store(run)
    with pytest.raises(RuntimeError, match="state: a flow is running on this recovery store: stop that first"):
        rescale(tmp_path / "state", 3)
    close_store(tmp_path / "state")
    with sqlite3.connect(tmp_path / "state/part-0.sqlite3") as engine:  # one that does not know our lock
        engine.execute("select * from snaps").fetchall()
        with pytest.raises(RuntimeError, match="part-0.sqlite3: a flow is running on it: stop that first"):
            rescale(tmp_path / "state", 3)
    engine.close()
    with pytest.raises(ConfigError, match=r"store.json: cannot be read: No such file"):
        rescale(tmp_path / "elsewhere", 3)
    assert not kept(tmp_path)


@pytest.mark.parametrize("at", ["make_partitions", "copy", "write", "first rename", "second rename"])
def test_a_crash_anywhere_leaves_the_old_store_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    run = store(tmp_path, 2)
    count_up(tmp_path / "state", [("a", 1), ("b", 2)])
    before = partitions.look(tmp_path / "state")

    class Crash(BaseException):
        pass

    def crash(*_: Any) -> None:
        raise Crash

    rename, renames = Path.rename, []

    def counted(self: Path, target: Path) -> Path:
        renames.append(target)
        if len(renames) == (1 if at == "first rename" else 2):
            raise Crash
        return rename(self, target)

    if at.endswith("rename"):
        monkeypatch.setattr(Path, "rename", counted)
    else:
        monkeypatch.setattr(partitions if at == "copy" else recovery, at, crash)
    with pytest.raises(Crash):
        rescale(tmp_path / "state", 3)
    monkeypatch.undo()
    if at == "second rename":
        with pytest.raises(ConfigError, match="is not there, but .*state.before-rescale-.* is: rescaling was"):
            open_store(run)
    done = rescale(tmp_path / "state", 3)
    assert done.steps == before["steps"] and partitions.look(tmp_path / "state")["epoch"] == before["epoch"]


def test_a_flow_that_waits_for_the_lock_takes_the_new_store(tmp_path: Path) -> None:
    """It was started while the store was rescaled: the lock it waited for is that of the old folder."""
    store(tmp_path, 2)
    lock = recovery.StoreLock(tmp_path / "state")
    assert lock.take(shared=False)
    code = (
        "from voltmill.flows.recovery import open_store; from voltmill.flows.config import RunSettings;"
        f"print(open_store(RunSettings(state={str(tmp_path / 'state')!r}, recovery_partitions=2)).name)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as waiting:
        time.sleep(1.0)
        assert waiting.poll() is None
        (tmp_path / "state").rename(tmp_path / "old")
        new = store(tmp_path, 2)
        lock.close()
        found = waiting.communicate(timeout=30)[0].strip()
    assert found == open_store(new).name
    close_store(tmp_path / "state")


def test_state_that_is_elsewhere_than_bytewax_puts_it_is_refused(tmp_path: Path) -> None:
    store(tmp_path, 2)
    count_up(tmp_path / "state", [("a", 1)])
    files = partitions.files(tmp_path / "state")
    with partitions.opened(tmp_path / "state") as parts:
        (row,) = [row for part in parts for row in part.execute("select * from snaps where state_key = 'a'")]
        there = partitions.place(row[1], "a", 2)
        parts[there].execute("delete from snaps where state_key = 'a'")
        parts[1 - there].execute("insert into snaps values (?, ?, ?, ?, ?)", row)
    with pytest.raises(RuntimeError, match="state of f.sum.* a is in partition .: of another Bytewax"):
        rescale(tmp_path / "state", 3)
    assert partitions.files(tmp_path / "state") == files and not kept(tmp_path)


def run_rescale(flow: Live, count: int) -> str:
    command = [sys.executable, "-m", "voltmill.flows.cli", "rescale", "-c", str(flow.config)]
    done = subprocess.run([*command, "--recovery-partitions", str(count)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    flow.configure(count)
    return done.stdout


@pytest.mark.slow
def test_a_live_flow_that_is_killed_and_rescaled_loses_nothing(live: Callable[..., Live]) -> None:
    """Two processes, three threads, two processes again, killed at once each time while messages come in."""
    flow = live(topics=TOPICS, partitions=2)
    sent = fleet(20, 300.0)
    publisher = Publisher(MqttSettings(port=flow.port), "test-publisher")
    stages: list[tuple[int, Callable[[], object]]] = [
        (2, flow.start_cluster),
        (3, lambda: flow.start(["voltmill.flows.cli", "run", "live", "-c", str(flow.config), "-w", "3"])),
        (4, flow.start_cluster),
    ]
    for k, (count, start) in enumerate(stages):
        if k:
            said = run_rescale(flow, count)
            assert f"now set [run] recovery_partitions = {count}" in said
            assert f"start at most {min(count, 3)} processes, and 3 workers" in said
            time.sleep(1.1)  # the names of kept stores have seconds
        start()
        flow.subscribed(2 * k + 2)
        before = flow.stored()
        for topic, payload in sent[k * len(sent) // 3 : (k + 1) * len(sent) // 3]:
            publisher.publish(topic, payload)
        flow.until(lambda before=before: flow.stored() > before, "nothing stored")  # type: ignore[misc]
        if k < 2:
            for process in [p for p in flow.processes if p.poll() is None]:
                process.kill()
                process.wait()
    publisher.drain(30)
    publisher.close()
    flow.complete(sent)
    flow.drain()
    assert_complete(flow, sent, repeats=True)
    rows = [row for k in range(4) for row in snaps(flow.folder / f"state/part-{k}.sqlite3")]
    assert max(rows.count(row) for row in set(rows)) <= 2  # old snapshots are cleared away


def snaps(file: Path) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(file)) as db:
        return db.execute("select step_id, state_key from snaps").fetchall()
