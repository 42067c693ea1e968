"""Running a flow: logs that parse, signals, errors that come out of the engine as they went in."""

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource

from voltmill.connectors.drain import Drain
from voltmill.connectors.mqtt import MqttSettings
from voltmill.flows import panics, running
from voltmill.flows.config import Config, RunSettings


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Reads what was logged."""
    return lambda: capsys.readouterr().err


class TestLogs:
    def test_lines_are_json_with_what_was_passed(self, logged: Callable[[], str]) -> None:
        running.log_to_stderr("info")
        log = logging.getLogger("voltmill.connectors.x")
        when = datetime(2026, 1, 1, tzinfo=UTC)
        log.info("read %d\nlines", 3, extra={"topics": ("a", "b"), "when": when, "path": Path("/x"), "n": None})
        log.debug("not shown")
        (line,) = logged().splitlines()
        found = json.loads(line)
        assert abs(datetime.fromisoformat(found.pop("time")).timestamp() - datetime.now(UTC).timestamp()) < 60
        assert found == {
            "level": "info",
            "logger": "voltmill.connectors.x",
            "message": "read 3\nlines",
            "topics": ["a", "b"],
            "when": str(when),
            "path": "/x",
            "n": None,
        }

    def test_an_exception_is_one_line_too(self, logged: Callable[[], str]) -> None:
        running.log_to_stderr("error")
        try:
            raise ValueError('odd "one"')
        except ValueError:
            running.log.exception("failed")
        (line,) = logged().splitlines()
        assert 'ValueError: odd "one"' in json.loads(line)["error"]

    def test_nothing_odd_breaks_a_line(self, logged: Callable[[], str]) -> None:
        running.log_to_stderr("info")
        running.log.info("x", extra={"payload": b"\xff", "text": "a\u2028\ud800\x00", "value": float("nan")})
        (line,) = logged().splitlines()
        assert json.loads(line, parse_constant=pytest.fail)["payload"]  # NaN is no JSON

    def test_what_is_passed_takes_no_name_of_the_line(self, logged: Callable[[], str]) -> None:
        running.log_to_stderr("info")
        running.log.info("x", extra={"level": 3, "time": 4, "logger": 5})
        found = json.loads(logged())
        assert found["level"] == "info" and found["logger"] == "voltmill" and found["time"].endswith("Z")

    def test_settings_in_a_log_show_no_secret(self, logged: Callable[[], str]) -> None:
        running.log_to_stderr("info")
        mqtt = MqttSettings(username="u", password="hunter2")
        running.log.info("%s", Config(mqtt=mqtt), extra={"mqtt": mqtt})
        line = logged()
        assert "username" in line and "hunter2" not in line

    def test_called_again_it_does_not_double_the_lines(self, logged: Callable[[], str]) -> None:
        running.log_to_stderr("info")
        running.log_to_stderr("warning")
        running.log.warning("once")
        assert len(logged().splitlines()) == 1


SIGNALLED = """
import signal, sys, time
from voltmill.connectors.drain import Drain
from voltmill.flows import running
running.log_to_stderr("info")
drain = Drain()
running.drain_on_signals(drain)
print("ready", flush=True)
while not (drain.requested and sys.argv[1] == "heeds"):
    time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("heeds", [True, False])
def test_the_first_signal_drains_the_second_ends_it(number: signal.Signals, heeds: bool) -> None:
    """Where the flow does not heed the drain, a second signal must end the process at once."""
    command = [sys.executable, "-c", SIGNALLED, "heeds" if heeds else "hangs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert json.loads(process.stderr.readline()) == expect("draining", number)
        if not heeds:
            process.send_signal(number)
            assert json.loads(process.stderr.readline()) == expect("stopping at once", number)
        assert process.wait(10) == (0 if heeds else 1)


def expect(message: str, number: signal.Signals) -> Any:
    class Line(dict[str, Any]):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, dict) and self.items() <= other.items()

    return Line(message=message, signal=number.name)


FAILING = """
import sys
import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSource
from voltmill.connectors.store import LakeError
from voltmill.flows import running
from voltmill.flows.config import RunSettings

running.log_to_stderr("info")
def fail(item):
    running.log.info("before")
    raise LakeError("the disk is full") from OSError("deep")
flow = Dataflow("f")
op.inspect("out", op.map("fail", op.input("in", flow, TestingSource([1])), fail))
try:
    running.run(flow, RunSettings(), recovery=False)
except LakeError as e:
    assert isinstance(e.__cause__, OSError)
    running.log.info("after")
    print(e)
"""


@pytest.mark.parametrize("backtrace", ["0", "1", "full"])
def test_an_error_in_a_flow_comes_out_as_it_was_and_alone(backtrace: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILING],
        capture_output=True,
        text=True,
        env={"RUST_BACKTRACE": backtrace, "PATH": ""},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "the disk is full\n")
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["before", "after"]


FULL = """
import os, resource, signal, sys
import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource
from voltmill.flows import running
from voltmill.flows.config import RunSettings
from voltmill.flows.recovery import open_store

settings = RunSettings(state=sys.argv[1], epoch_seconds=0.01)
open_store(settings)
flow = Dataflow("f")
numbers = op.input("in", flow, TestingSource(range(1000)))
rows = op.map("key", numbers, lambda k: (str(k), os.urandom(9000)))
op.output("out", op.stateful_map("state", rows, lambda old, new: (new, None)), TestingSink([]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # the nearest to a full disk without root
try:
    running.run(flow, settings)
except RuntimeError as e:
    print(e)
"""


def test_a_recovery_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    done = subprocess.run([sys.executable, "-c", FULL, state], capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"{state}: the recovery store cannot be used: "), done.stderr
    assert "disk" in done.stdout and done.stdout.endswith("nothing is lost\n") and done.stdout.count("\n") == 1


def test_a_flow_runs_to_its_end_with_recovery(tmp_path: Path) -> None:
    from voltmill.flows.recovery import open_store

    settings, out = RunSettings(state=str(tmp_path / "state"), epoch_seconds=0.01), list[int]()
    open_store(settings)
    for _ in range(2):  # the second time all was read already
        flow = Dataflow("f")
        op.output("out", op.input("in", flow, TestingSource([1, 2, 3])), TestingSink(out))
        running.run(flow, settings)
    assert out == [1, 2, 3]


def test_real_panics_and_other_lines_pass() -> None:
    panic = b"thread 'worker' panicked at src/worker.rs:1:2:\n"
    trace = [b"stack backtrace:\n", b"   0: begin_panic\n", b"             at /x.c:1:2\n", b"note: some\n", b"\n"]
    real = [panic, b"index out of bounds\n", *trace]
    carried = [panic, b"Box<dyn Any>\n", *trace]
    lines = [b"one\n", *carried, b"two\n", *real, *carried, *carried, b"  3: three\n"[2:], panic]
    assert list(panics.without_panics(iter(lines))) == [b"one\n", b"two\n", *real, b"3: three\n", panic]


def test_drain_is_what_is_requested() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        drain = Drain()
        running.drain_on_signals(drain)
        assert not drain.requested
        signal.raise_signal(signal.SIGTERM)
        assert drain.wait(10)
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
