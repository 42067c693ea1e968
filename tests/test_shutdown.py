"""How a live flow ends: by one signal, by two, as PID 1, in a cluster, during an outage; and how it goes on."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from live_flow import TOPICS, Live, assert_complete, fleet, publish

from voltmill.connectors.mqtt import MqttSettings, Publisher

LEAVING_SOON = {"PYTHONPATH": str(Path(__file__).parent)}


def seconds_to_end(process: "subprocess.Popen[bytes]", within: float = 30.0) -> float:
    began = time.monotonic()
    process.wait(within)
    return time.monotonic() - began


@contextmanager
def load(port: int, sent: list[tuple[str, bytes]], rate: float) -> Iterator[list[int]]:
    """Publish at a rate in the background; what was published is counted and all of it by the end."""
    count, stop = [0], threading.Event()

    def run() -> None:
        with Publisher(MqttSettings(port=port), "load") as publisher:
            began = time.monotonic()
            for topic, payload in sent:
                late = (time.monotonic() - began) - count[0] / rate
                if late < 0 and not stop.is_set():
                    time.sleep(-late)
                publisher.publish(topic, payload)
                count[0] += 1
            publisher.drain(30)

    thread = threading.Thread(target=run)
    thread.start()
    yield count
    stop.set()
    thread.join(60)


@pytest.mark.slow
def test_a_drain_under_load_takes_seconds_and_loses_nothing(live: Callable[..., Live]) -> None:
    """Measured 1.3 s at 2,000 messages a second with epochs of 0.3 s, on a machine with other work to do."""
    flow = live()
    sent = fleet(100, 550.0)
    first = flow.start()
    flow.subscribed(1)
    with load(flow.port, sent, 2000.0) as count:
        flow.until(lambda: count[0] >= 6000 and flow.stored() >= 1000, "no load")
        first.send_signal(signal.SIGTERM)
        took = seconds_to_end(first)
        print(f"drained in {took:.2f} s after {count[0]} messages")
        assert first.returncode == 0 and took < 10
    flow.start()
    flow.subscribed(2)
    flow.complete(sent)
    flow.drain()
    assert_complete(flow, sent, repeats=False)


def as_pid_1() -> list[str]:
    """What runs a command as PID 1 of a namespace of its own; skips where that is not allowed."""
    for options in (["-p", "-f"], ["-r", "-p", "-f"]):
        command = [shutil.which("unshare") or "unshare", *options, "--mount-proc", "--kill-child"]
        if shutil.which("unshare") and not subprocess.run([*command, "true"], capture_output=True).returncode:
            return command
    pytest.skip("no process namespaces here: unshare -p -f --mount-proc fails")


def inner_pid(unshare: int) -> int:
    """The process that is PID 1 inside, by its number out here."""
    return int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()[0])


@pytest.mark.parametrize("signals", [1, 2])
def test_as_pid_1(live: Callable[..., Live], signals: int) -> None:
    """The kernel drops signals for PID 1 that it has no handler for: containers hang for their grace period."""
    namespace = as_pid_1()
    flow = live()
    command = [*namespace, sys.executable, "-m", "voltmill.flows.cli", "run", "live", "-c", str(flow.config)]
    with (flow.folder / "log").open("ab") as log:
        outer = subprocess.Popen(command, stderr=log, cwd=flow.folder)
    flow.processes.append(outer)
    flow.subscribed(1)
    publish(flow.port, fleet(4, 20.0))
    flow.until(lambda: flow.stored() > 0, "nothing stored")
    with blocked(flow) if signals == 2 else nothing():
        for _ in range(signals):
            os.kill(inner_pid(outer.pid), signal.SIGTERM)
            time.sleep(0.3 if signals == 2 else 0)
        assert seconds_to_end(outer) < 10
    assert outer.returncode == signals - 1, flow.log()


@contextmanager
def nothing() -> Iterator[None]:
    yield


@contextmanager
def blocked(flow: Live) -> Iterator[None]:
    """Lock the database until the flow waits for it, and longer."""
    with sqlite3.connect(flow.folder / "voltmill.db", isolation_level=None) as other:
        other.execute("begin exclusive")
        words = flow.log().count("waiting for")
        publish(flow.port, fleet(4, 60.0)[30:])
        flow.until(lambda: flow.log().count("waiting for") > words, "it does not wait")
        yield
        other.execute("rollback")
    other.close()


@pytest.mark.slow
def test_a_stop_during_an_outage_waits_five_seconds_and_says_why(live: Callable[..., Live]) -> None:
    flow = live()
    sent = fleet(20, 300.0)
    first = flow.start()
    flow.subscribed(1)
    publish(flow.port, sent[:300])
    flow.until(lambda: flow.stored() > 0, "nothing stored")
    with sqlite3.connect(flow.folder / "voltmill.db", isolation_level=None) as other:
        other.execute("begin exclusive")
        publish(flow.port, sent[300:])
        flow.until(lambda: "waiting for" in flow.log(), "it does not wait")
        first.send_signal(signal.SIGTERM)
        assert 4.0 < seconds_to_end(first) < 15.0
        assert first.returncode == 1
        (line,) = [line for line in flow.log().splitlines() if not line.startswith("{")]
        assert line.startswith("voltmill: ") and "lock" in line
        other.execute("rollback")
    other.close()
    flow.start()
    flow.subscribed(2)
    flow.complete(sent)
    flow.drain()
    assert_complete(flow, sent, repeats=True)


def test_a_second_signal_while_it_waits_ends_it_at_once(live: Callable[..., Live]) -> None:
    flow = live()
    process = flow.start()
    flow.subscribed(1)
    publish(flow.port, fleet(4, 20.0))
    flow.until(lambda: flow.stored() > 0, "nothing stored")
    with blocked(flow):
        process.send_signal(signal.SIGTERM)
        flow.until(lambda: '"draining"' in flow.log(), "not heeded")
        process.send_signal(signal.SIGINT)
        assert seconds_to_end(process) < 3.0
        assert process.returncode == 1


@pytest.mark.parametrize("signals", [1, 2])
def test_signals_while_the_kernels_compile(live: Callable[..., Live], tmp_path: Path, signals: int) -> None:
    """One is heeded once that is done, where nothing runs yet; a second one ends it at once."""
    flow = live()
    process = flow.start(NUMBA_CACHE_DIR=str(tmp_path / "cold")) if signals == 2 else flow.start()
    ready = "compiling the kernels" if signals == 2 else "recovery store"
    flow.until(lambda: ready in flow.log() or "running" in flow.log(), "not started")
    process.send_signal(signal.SIGTERM)
    flow.until(lambda: '"draining"' in flow.log(), "not heeded")
    if signals == 2:
        process.send_signal(signal.SIGTERM)
    assert seconds_to_end(process, 100.0) < (3.0 if signals == 2 else 100.0)  # one compilation is waited for
    assert process.returncode == signals - 1


@pytest.mark.slow
def test_a_signal_to_one_process_of_a_cluster_ends_all(live: Callable[..., Live]) -> None:
    """The one drains, waits for the other, and leaves; that one then ends by itself. Nobody stands still unseen.

    With SIGINT: the other tests drain with SIGTERM.
    """
    flow = live(topics=TOPICS, partitions=2)
    sent = fleet(20, 200.0)
    one, other = flow.start_cluster(module="leaving_soon", **LEAVING_SOON)
    flow.subscribed(2)
    publish(flow.port, sent[: len(sent) // 2])
    flow.until(lambda: flow.stored() > 0, "nothing stored")
    one.send_signal(signal.SIGINT)
    assert one.wait(20) == 1
    assert seconds_to_end(other) < 10 and other.returncode == 1
    assert "leaving: the other processes of the cluster do not drain" in flow.log()
    assert "voltmill: the connection to another process of the cluster is lost: start all of them again" in flow.log()
    assert "Traceback" not in flow.log()
    publish(flow.port, sent[len(sent) // 2 :])
    flow.start_cluster()
    flow.subscribed(4)
    flow.complete(sent)
    flow.drain()
    assert_complete(flow, sent, repeats=True)


@pytest.mark.slow
def test_kill_9_of_one_process_ends_the_other_and_both_resume(live: Callable[..., Live]) -> None:
    flow = live(topics=TOPICS, partitions=2)
    sent = fleet(20, 300.0)
    for k, victim in enumerate((0, 1)):
        both = flow.start_cluster()
        flow.subscribed(2 * k + 2)
        before = flow.stored()
        publish(flow.port, sent[k * len(sent) // 2 : (k + 1) * len(sent) // 2])
        flow.until(lambda before=before: flow.stored() > before, "nothing stored")  # type: ignore[misc]
        both[victim].kill()
        assert seconds_to_end(both[1 - victim]) < 10 and both[1 - victim].returncode == 1
    assert "Traceback" not in flow.log()
    flow.start_cluster()
    flow.subscribed(6)
    flow.complete(sent)
    flow.drain()
    assert_complete(flow, sent, repeats=True)


def test_a_second_flow_on_the_same_store_is_refused(live: Callable[..., Live]) -> None:
    flow = live()
    flow.start()
    flow.subscribed(1)
    command = [sys.executable, "-m", "voltmill.flows.cli", "rescale", "-c", str(flow.config)]
    done = subprocess.run([*command, "--recovery-partitions", "2"], capture_output=True, text=True, check=False)
    state = flow.folder / "state"
    assert done.returncode == 1
    assert done.stderr == f"voltmill: {state}: a flow is running on this recovery store: stop that first\n"
    flow.drain()
