"""The recovery store: made once, whoever comes first, and refused when it does not fit."""

import json
import multiprocessing
import re
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from voltmill import __version__
from voltmill.flows.config import ConfigError, RunSettings
from voltmill.flows.recovery import StoreInfo, open_store, store_name


def settings(folder: Path, **change: Any) -> RunSettings:
    return RunSettings(state=str(folder / "state"), **change)


def describe(folder: Path, **change: Any) -> None:
    file = folder / "state" / "store.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def test_made_once_and_found_again(tmp_path: Path) -> None:
    made = open_store(settings(tmp_path / "deep", shards=3, recovery_partitions=2))
    own = {"made_by": __version__, "run_by": __version__}
    assert made == StoreInfo(format=2, name=made.name, shards=3, recovery_partitions=2, **own)
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{4}", made.name)
    files = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "deep/state").iterdir()}
    assert set(files) == {"store.json", "lock", "part-0.sqlite3", "part-1.sqlite3"}
    assert open_store(settings(tmp_path / "deep", shards=3, recovery_partitions=2, epoch_seconds=1.0)) == made
    assert files == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "deep/state").iterdir()}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["state"]  # no scratch is left


def test_an_empty_folder_becomes_the_store(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    assert open_store(settings(tmp_path)) == open_store(settings(tmp_path))


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("shards", 5, "set it back, or name another [run] state and replay the archive"),
        ("recovery_partitions", 2, "set it back, or run voltmill rescale"),
    ],
)
def test_made_for_other_settings_is_refused(tmp_path: Path, name: str, value: int, mend: str) -> None:
    open_store(settings(tmp_path))
    made = getattr(settings(tmp_path), name)
    with pytest.raises(ConfigError) as error:
        open_store(settings(tmp_path, **{name: value}))
    assert str(error.value) == (
        f"{tmp_path}/state/store.json: made for {name} = {made}, the configuration says {value}; {mend}"
    )


def test_a_newer_format_is_refused_by_its_number(tmp_path: Path) -> None:
    open_store(settings(tmp_path))
    describe(tmp_path, format=3, something="new", run_by="7.1.0")
    with pytest.raises(
        ConfigError, match=r"store.json: format 3, made by a newer voltmill \(7.1.0\), this is .* reads 2"
    ):
        open_store(settings(tmp_path))


def test_an_older_format_is_migrated_in_its_place(tmp_path: Path) -> None:
    """Format 1 lacked the versions; what the snapshots hold bears versions of its own."""
    made = open_store(settings(tmp_path))
    old = {"format": 1, "name": made.name, "shards": 4, "recovery_partitions": 1}
    (tmp_path / "state/store.json").write_text(json.dumps(old))
    assert open_store(settings(tmp_path)) == StoreInfo(**old | {"format": 2, "run_by": __version__})
    assert json.loads((tmp_path / "state/store.json").read_text())["run_by"] == __version__


def test_it_says_which_version_ran_on_it_last(tmp_path: Path) -> None:
    open_store(settings(tmp_path))
    describe(tmp_path, made_by="0.0.1", run_by="0.0.2")
    assert (now := open_store(settings(tmp_path))).made_by == "0.0.1" and now.run_by == __version__


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"format": 1}', b'{"format": "x"}'])
def test_an_unreadable_description_is_one_line(tmp_path: Path, content: bytes) -> None:
    open_store(settings(tmp_path))
    (tmp_path / "state/store.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^[^\n]*store.json: is not the description of a store: [^\n]*$"):
        open_store(settings(tmp_path))
    assert (tmp_path / "state/store.json").read_bytes() == content


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/photo.jpg").write_text("mine")
    with pytest.raises(ConfigError, match=r"state/store.json: cannot be read: No such file or directory; name another"):
        open_store(settings(tmp_path))
    assert [p.name for p in tmp_path.rglob("*")] == ["state", "photo.jpg"]


def test_a_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("mine")
    with pytest.raises(ConfigError, match=r"state/store.json: cannot be read: Not a directory"):
        open_store(settings(tmp_path))
    assert (tmp_path / "state").read_text() == "mine"


def test_no_place_for_it_is_an_os_error() -> None:
    with pytest.raises(OSError, match="/proc"):
        open_store(RunSettings(state="/proc/nowhere/state"))


def race(folder: str, barrier: Any, found: Any) -> None:
    barrier.wait(30)
    found.put(open_store(RunSettings(state=folder)).name)


def test_processes_that_make_it_at_once_find_the_same(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, found = context.Barrier(3), context.Queue()
    processes = [context.Process(target=race, args=(str(tmp_path / "state"), barrier, found)) for _ in range(3)]
    for process in processes:
        process.start()
    names = {found.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(30)
    assert len(names) == 1 and open_store(settings(tmp_path)).name in names
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    with sqlite3.connect(tmp_path / "state/part-0.sqlite3") as db:
        assert db.execute("select count(*) from parts").fetchone() == (1,)


def test_names_sort_by_the_time_they_were_made_in_any_zone() -> None:
    start = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)
    zone = timezone(timedelta(hours=5))
    names = [store_name((start + timedelta(seconds=k)).astimezone(zone if k % 2 else UTC)) for k in range(4)]
    assert names == sorted(names) and names[0].startswith("20261231T235959Z-")
