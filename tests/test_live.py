"""The live flow as its users run it: real processes, a real broker, signals and kill -9."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from live_flow import TOPICS, Live, assert_complete, fleet, publish

from voltmill.connectors.mqtt import MqttSettings, Publisher
from voltmill.flows.compare import compare, read


def test_sigterm_drains_and_a_restart_goes_on(live: Callable[..., Live]) -> None:
    flow = live()
    sent = fleet(20, 300.0)
    first = flow.start()
    flow.subscribed(1)
    publish(flow.port, sent[: len(sent) // 2])
    first.send_signal(signal.SIGTERM)
    publish(flow.port, sent[len(sent) // 2 :])  # the broker keeps them for us
    assert first.wait(20) == 0
    second = flow.start()
    flow.complete(sent)
    second.send_signal(signal.SIGTERM)
    assert second.wait(20) == 0
    assert_complete(flow, sent, repeats=False)


def test_kill_9_loses_nothing_and_doubles_nothing(live: Callable[..., Live], tmp_path: Path) -> None:
    flow = live()
    sent = fleet(20, 600.0)
    publisher = Publisher(MqttSettings(port=flow.port), "test-publisher")
    flow.start()
    flow.subscribed(1)
    pieces = 4
    for k in range(pieces):
        for topic, payload in sent[k * len(sent) // pieces : (k + 1) * len(sent) // pieces]:
            publisher.publish(topic, payload)
        before = flow.stored()
        flow.until(lambda before=before: flow.stored() > before, "nothing stored")  # type: ignore[misc]
        if k < pieces - 1:
            flow.processes[-1].kill()
            flow.processes[-1].wait()
            flow.start()
            flow.subscribed(k + 2)
    publisher.drain(30)
    publisher.close()
    flow.complete(sent)
    flow.processes[-1].send_signal(signal.SIGTERM)
    assert flow.processes[-1].wait(20) == 0
    assert_complete(flow, sent, repeats=True)
    config = str(flow.folder / "voltmill.toml")
    lake, out = str(flow.folder / "lake"), str(tmp_path / "out")
    subprocess.run(
        [sys.executable, "-m", "voltmill.flows.cli", "replay", "-c", config, "--lake", lake, "--out", out], check=True
    )
    assert compare(read(lake), read(out)).identical


def test_a_cluster_of_two_processes(live: Callable[..., Live]) -> None:
    flow = live(topics=TOPICS, partitions=2)
    sent = fleet(20, 300.0)
    flow.start_cluster()
    flow.subscribed(2)
    publish(flow.port, sent)
    flow.complete(sent)
    flow.drain()
    assert_complete(flow, sent, repeats=False)


def test_bytewax_runs_it_too(live: Callable[..., Live]) -> None:
    flow = live()
    sent = fleet(8, 60.0)
    state = flow.folder / "other-state"
    state.mkdir()
    subprocess.run([sys.executable, "-m", "bytewax.recovery", str(state), "1"], check=True)
    command = ["bytewax.run", "voltmill.flows.live", "-r", str(state), "-s", "1", "-b", "0"]
    process = flow.start(command, VOLTMILL_CONFIG=str(flow.folder / "voltmill.toml"))
    flow.subscribed(1)
    publish(flow.port, sent)
    flow.complete(sent)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert_complete(flow, sent, repeats=False)


def test_a_broker_that_is_not_there_is_waited_for(live: Callable[..., Live], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        flow = Live(tmp_path, taken.getsockname()[1], topics=["voltmill/#"])
        process = flow.start()
        try:
            flow.until(lambda: "mqtt broker not reached" in flow.log(), "no word of the broker")
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def test_a_wrong_configuration_is_status_2_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text('[sql]\ndrivr = "x"\n')
    command = [sys.executable, "-m", "voltmill.flows.cli", "run", "live", "-c", str(tmp_path / "wrong.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f'voltmill: {tmp_path}/wrong.toml: [sql] unknown key "drivr" (did you mean "driver"?)\n'
