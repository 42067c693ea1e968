import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_compact import STORE, files, fill, spans

from voltmill.flows.cli import main
from voltmill.flows.config import RunSettings
from voltmill.flows.recovery import close_store, open_store


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], list[str]]:
    """Status, and the lines of both streams."""
    status = 0
    try:
        main(["compact", *arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    return status, out.splitlines(), err.splitlines()


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    fill(str(tmp_path / "lake"), [5, 4, 3])
    return str(tmp_path / "lake")


def test_it_says_what_it_did_and_what_it_left(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "--lake", lake, "--before", "2026-11-03")
    assert (status, err) == (0, [])
    assert re.fullmatch(r"telemetry: 9 files of 0\.\d MB became 2 of 0\.\d MB, 90 rows", out[0])
    assert out[1:] == ["telemetry: 3 files left: of 2026-11-03 or later"]
    assert spans(Path(lake))[:2] == [(0, 4), (5, 8)]
    status, out, err = call(capsys, "--lake", lake, "--before", "2026-11-04", "--table", "telemetry")
    assert (status, err, out[0]) == (0, [], "telemetry: nothing to merge")
    assert out[1:] == [
        "telemetry: 2 files left: at the end of a day that may go on",
        f"telemetry: 1 file left: a restart of the flow of {STORE} may take them back; "
        f"if it never runs again: --finished {STORE}",
    ]
    status, out, err = call(capsys, "--lake", lake, "--before", "2026-11-04", "--finished", STORE)
    assert (status, err) == (0, []) and len(out) == 1 and spans(Path(lake)) == [(0, 4), (5, 8), (9, 11)]


def test_a_dry_run_changes_nothing(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    there = files(Path(lake))
    status, out, _ = call(capsys, "--lake", lake, "--before", "2027-01-01", "--dry-run")
    assert status == 0 and re.fullmatch(r"telemetry: 9 files of 0\.\d MB would become 2", out[0])
    assert files(Path(lake)) == there


def test_today_is_left_alone(capsys: pytest.CaptureFixture[str], lake: str) -> None:
    today = datetime.now(UTC).date()
    for day, new in (("2026-11-01", "2020-01-01"), ("2026-11-02", "2020-01-02"), ("2026-11-03", str(today))):
        (Path(lake) / f"telemetry/date={day}").rename(Path(lake) / f"telemetry/date={new}")
    _, out, _ = call(capsys, "--lake", lake)
    assert out[1:] == [f"telemetry: 3 files left: of {today} or later"]
    assert spans(Path(lake)) == [(0, 4), (5, 8), (9, 9), (10, 10), (11, 11)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--before", "yesterday"], "--before yesterday: not a day, such as 2026-11-22"),
        (["--max-file-mb", "100"], "--max-file-mb 100: must be a power of two from 1 to 1024"),
        (["--table", "telemtry"], "--table telemtry: not in this lake; there are: telemetry"),
        (["--finished", "x"], f"--finished x: not in this lake; there are: {STORE}"),
    ],
)
def test_calls_that_cannot_be_meant(
    lake: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert call(capsys, "--lake", lake, *arguments) == (2, [], [f"voltmill: {message}"])


def test_a_flow_that_can_go_on_is_not_finished(lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"
    name = open_store(RunSettings(state=str(state))).name
    close_store(state)
    (tmp_path / "live.toml").write_text(f'[run]\nstate = "{state}"\n')
    status, _, err = call(capsys, "--lake", lake, "-c", str(tmp_path / "live.toml"), "--finished", name)
    assert status == 2 and err == [
        f"voltmill: --finished: the flow of {state} can be started again, and could not go on when its last files "
        "were merged; remove that recovery store first"
    ]


def test_a_broken_file_is_told_and_the_status_is_1(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(lake) / f"telemetry/date=2026-11-01/shard=00/{STORE}-0000000001.parquet").write_bytes(b"no Parquet")
    status, out, err = call(capsys, "--lake", lake, "--before", "2027-01-01")
    assert status == 1 and out[0].startswith("telemetry: 4 files")
    assert len(err) == 1 and err[0].startswith("voltmill: telemetry/date=2026-11-01/shard=00: ")


def test_an_empty_lake_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--lake", str(tmp_path)) == (0, ["nothing to merge: there is no table yet"], [])
