"""A lake that is away, full or not to be written: waited for, with nothing half and nothing lost."""

import errno
import os
import threading
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import full_disk
import pytest
from servers import with_mounts
from stored_flow import telemetry
from test_lake import STORE, files, offsets, sink

from voltmill.connectors import outage
from voltmill.connectors.drain import Drain
from voltmill.connectors.outage import Patience
from voltmill.connectors.store import LakeAwayError, LakeError


def test_an_error_that_passes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush, failures = os.fsync, [OSError(errno.ENOSPC, "full"), OSError(errno.EROFS, "read only")]

    def flaky(descriptor: int) -> None:
        if failures:
            raise failures.pop()
        flush(descriptor)

    waits: list[bool] = []
    part = sink(str(tmp_path), patience=Patience("the lake", on_waiting=waits.append)).build_part("out", "00", None)
    part.write_batch([telemetry(0, 4)])
    monkeypatch.setattr("os.fsync", flaky)
    part.close()
    assert not failures and waits == [True, False]
    assert offsets(str(tmp_path)) == [0, 1, 2, 3]


def test_an_error_that_stays_is_raised_and_no_half_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = sink(str(tmp_path), patience=Patience("the lake", seconds=0.2)).build_part("out", "00", None)
    part.write_batch([telemetry(0, 4)])

    def broken(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "disk\nfull")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(
        LakeAwayError, match=rf"cannot write telemetry/date=.*{STORE}-0000000000.parquet: OSError: .*k full"
    ):
        part.close()
    assert files(str(tmp_path)) == []


@pytest.mark.parametrize("error", [TypeError("a bug"), OSError(errno.ENAMETOOLONG, "too long")])
def test_what_does_not_pass_is_raised_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    part = sink(str(tmp_path), patience=Patience("the lake")).build_part("out", "00", None)
    part.write_batch([telemetry(0, 4)])
    monkeypatch.setattr("os.replace", Mock(side_effect=error))
    with pytest.raises(LakeError, match="cannot write"):
        part.close()


def test_a_drain_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drain, calls = Drain(), count()
    part = sink(str(tmp_path), patience=Patience("the lake", drain=drain)).build_part("out", "00", None)
    part.write_batch([telemetry(0, 4)])

    def full(*_: Any) -> None:
        if next(calls) == 2:
            drain.request()
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("os.replace", full)
    monkeypatch.setattr(outage, "DRAIN_SECONDS", 0.2)
    with pytest.raises(LakeAwayError, match="full"):
        part.close()


def test_a_lake_that_was_taken_away_is_waited_for_and_not_begun_anew(tmp_path: Path) -> None:
    lake, away = tmp_path / "lake", tmp_path / "away"
    part = sink(str(lake)).build_part("out", "00", None)
    part.write_batch([telemetry(0, 4)])
    state = part.snapshot()
    part.close()
    lake.rename(away)
    with pytest.raises(LakeAwayError, match="cannot list telemetry: FileNotFoundError"):
        sink(str(lake), patience=Patience("the lake", seconds=0.2), existing=True).build_part("out", "00", state)
    back = threading.Timer(0.3, away.rename, [lake])
    back.start()
    part = sink(str(lake), patience=Patience("the lake", seconds=20), existing=True).build_part("out", "00", state)
    part.write_batch([telemetry(4, 4)])
    lake.rename(away)
    back = threading.Timer(0.3, away.rename, [lake])
    back.start()
    part.close()
    back.join()
    assert offsets(str(lake)) == list(range(8))


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    found = with_mounts(tmp_path, full_disk.__file__)
    assert found["rows"] == list(range(full_disk.ROWS))
    assert found["looks"] >= 20 and not found["unreadable"] and found["temporary"] < found["looks"] / 2
    assert found["grown_bytes"] < 20e6
    assert found["seconds_to_go_on"] < 5
