"""Recovery partitions: where Bytewax puts state, where it resumes, and what a crash leaves in them."""

import pickle
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, cluster_main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voltmill.flows import partitions
from voltmill.flows.partitions import NONE_YET, PartitionError

ABORT = TestingSource.ABORT
names = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00."), min_size=1, max_size=30)


def made(folder: Path, count: int) -> Path:
    folder.mkdir()
    init_db_dir(folder, count)
    return folder


def count_up(folder: Path, items: list[Any], *, step: str = "sum", workers: int = 1) -> list[tuple[str, int]]:
    """Run a flow that sums by key, an epoch for each item; give what it put out."""
    out: list[tuple[str, int]] = []
    flow = Dataflow("f")
    stream = op.input("in", flow, TestingSource(items, 1))
    op.output("out", op.stateful_map(step, stream, lambda at, n: ((at or 0) + n,) * 2), TestingSink(out))
    recovery = RecoveryConfig(str(folder))
    options: dict[str, Any] = {"epoch_interval": timedelta(0), "recovery_config": recovery}
    cluster_main(flow, [], 0, worker_count_per_proc=workers, **options)
    return out


def snapshots(folder: Path, part: int = 0) -> list[tuple[str, str, int, Any]]:
    with sqlite3.connect(folder / f"part-{part}.sqlite3") as db:
        rows = db.execute("select step_id, state_key, snap_epoch, ser_change from snaps order by 1, 2, 3").fetchall()
    db.close()
    return [(step, key, epoch, None if state is None else pickle.loads(state)) for step, key, epoch, state in rows]


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(2, 5), step=names, keys=st.lists(names, min_size=1, max_size=12, unique=True))
def test_state_is_where_we_say(tmp_path_factory: Any, count: int, step: str, keys: list[str]) -> None:
    folder = made(tmp_path_factory.mktemp("place") / "s", count)
    count_up(folder, [(key, 1) for key in keys], step=step)
    seen = 0
    for part in range(count):
        for step_id, key, *_ in snapshots(folder, part):
            assert partitions.place(step_id, key, count) == part
            seen += 1
    assert seen == len(keys) + 1  # and the source


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_it_resumes_where_we_say(tmp_path: Path, workers: int) -> None:
    folder = made(tmp_path / "s", 3)
    assert partitions.look(folder) == {"execution": NONE_YET, "epoch": 1, "removed": 0, "steps": {}}
    items: list[Any] = []
    for run in range(3):
        items += [(f"{k % 5}", 1) for k in range(7)] + ([ABORT()] if workers == 1 else [])  # with more it hangs
        expected = partitions.look(folder)["epoch"]
        count_up(folder, items, workers=workers)
        with partitions.opened(folder) as parts:
            assert partitions.progress(parts).execution == run
        began = dict(row for k in range(3) for row in _rows(folder, k, "select ex_num, resume_epoch from exs"))
        assert sorted(began) == list(range(run + 1)) and began[run] == expected


def _rows(folder: Path, part: int, query: str) -> list[Any]:
    with sqlite3.connect(folder / f"part-{part}.sqlite3") as db:
        rows = db.execute(query).fetchall()
    db.close()
    return rows


def plant(folder: Path, key: str, epoch: int, state: int) -> None:
    """A snapshot of an epoch that was never finished, as a crash leaves it."""
    with sqlite3.connect(folder / "part-0.sqlite3") as db:
        (step,) = {step for step, *_ in snapshots(folder) if step.startswith("f.sum")}
        db.execute("insert into snaps values ('', ?, ?, ?, ?)", (step, key, epoch, pickle.dumps(state)))
    db.close()


@pytest.mark.parametrize("settled", [False, True])
def test_a_snapshot_of_a_lost_epoch_never_wins(tmp_path: Path, settled: bool) -> None:
    """Without ``settle`` it does: the key is idle after the first crash, and there is a second one.

    Should the first case ever fail, Bytewax has mended it.
    """
    folder = made(tmp_path / "s", 1)
    items: list[Any] = [("a", 1), ("b", 1), ABORT()]
    assert count_up(folder, items) == [("a", 1), ("b", 1)]
    plant(folder, "a", partitions.look(folder)["epoch"], 1000)
    if settled:
        assert partitions.settle(folder)["removed"] >= 1
    items += [("b", 1), ("b", 1), ABORT()]
    assert count_up(folder, items) == [("b", 2), ("b", 3)]
    items += [("a", 1)]
    assert count_up(folder, items)[-1] == ("a", 2 if settled else 1001)


def test_settling_keeps_what_is_finished(tmp_path: Path) -> None:
    folder = made(tmp_path / "s", 2)
    count_up(folder, [("a", 1), ("b", 2), ("c", 3)])
    before = [snapshots(folder, k) for k in range(2)]
    for _ in range(2):
        assert partitions.settle(folder)["removed"] == 0
    assert [snapshots(folder, k) for k in range(2)] == before


def test_a_store_that_is_open_elsewhere_is_not_touched(tmp_path: Path) -> None:
    folder = made(tmp_path / "s", 2)
    with sqlite3.connect(folder / "part-1.sqlite3") as other:
        other.execute("select * from snaps").fetchall()
        with pytest.raises(PartitionError, match=r"part-1.sqlite3: a flow is running on it: stop that first"):
            partitions.settle(folder)
    other.close()
    assert partitions.settle(folder)["steps"] == {}


def test_a_damaged_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "s", 2)
    (folder / "part-1.sqlite3").write_bytes(b"nonsense" * 1000)
    assert partitions.main(["settle", str(folder)]) == 1
    assert capsys.readouterr().err == f"{folder}/part-1.sqlite3: file is not a database\n"


def test_steps_are_dropped(tmp_path: Path) -> None:
    folder = made(tmp_path / "s", 2)
    count_up(folder, [("a", 1), ("b", 1)])
    (step,) = partitions.look(folder)["steps"].keys() - {"f.in"}
    assert partitions.main(["drop", str(folder), step]) == 0
    assert partitions.look(folder)["steps"] == {"f.in": 1}


def test_more_than_nine_partitions_are_in_order(tmp_path: Path) -> None:
    folder = made(tmp_path / "s", 12)
    assert [file.name for file in partitions.files(folder)] == [f"part-{k}.sqlite3" for k in range(12)]
