"""demo: the whole pipeline on this machine, from simulated modules to a scored table.

A broker, a fleet with known truth, the live flow in a process of its own, then a replay of what it
archived. Nothing is taken for granted: every message is looked for, every fault compared with the
quality bits, every prediction with the truth, and the replay with the live run.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from prometheus_client.parser import text_string_to_metric_families

from voltmill.connectors.drain import Drain
from voltmill.flows import live, running
from voltmill.flows.broker import Broker, Kind, free_port, start_broker
from voltmill.flows.compare import compare, read
from voltmill.flows.config import Config, ConfigError, load
from voltmill.flows.demo_report import Outcome, report
from voltmill.flows.metrics import Metrics
from voltmill.flows.replay import replay
from voltmill.flows.simulate import Progress, SimulateSettings, simulate
from voltmill.operators import columns

_GATEWAYS: Final = 4
_PACKS: Final = 4


_TOML: Final = """\
# What the demo ran with. The broker is gone: name another one under [mqtt] to go on.
[run]
state = {state}
metrics_port = {metrics_port}

[mqtt]
port = {port}
protocol = "{protocol}"

[lake]
url = {lake}

[sql]
url = {database}

[[fleet]]
match = "site-1/*"
cell_type = "lg-hg2"
capacity_ah = 3.0
series = 16
limits = {{ cell_voltage_volt = [2.0, 4.35], cell_temperature_celsius = [-30.0, 60.0] }}

[simulate]
gateways = {gateways}
packs_per_gateway = {packs}
modules_per_pack = {modules}
speed = {speed}
duration_seconds = {duration}
start_time = {start}
"""


def demo(
    folder: Path | None,
    *,
    seconds: float,
    modules: int,
    speed: float,
    prefer: Kind | None = None,
) -> bool:
    """Run it all; True if every message is accounted for and the replay is identical.

    Args:
        folder: Where the results stay; made if it is not there, and must be empty.
        seconds: How long the fleet runs, wall s.
        modules: How many modules, rounded to full packs.
        speed: Event seconds per wall second.
        prefer: ``mosquitto`` or ``amqtt``; None: what is there.
    """
    folder = _fresh(folder)
    running.prepare()
    with start_broker(prefer=prefer) as broker:
        config = _config(folder, broker, seconds, modules, speed)
        fleet = f"{config.simulate.modules} modules on {_GATEWAYS} gateways"
        _say(f"{fleet}, {broker.kind} on port {broker.port}, results in {folder}")
        child = _start_live(folder)
        try:
            summary, started = _simulate(config, folder, child)
            _drain(config, folder, child, summary["published"])
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    _say("replaying the archive ...")
    lake, out = str(folder / "lake"), str(folder / "replay")
    replayed = replay(config, lake, out)
    outcome = Outcome(
        folder=folder,
        summary=summary,
        replayed=replayed,
        comparison=compare(read(lake), read(out)),
        latency_seconds=_latency(folder, config.simulate, started),
        seconds=seconds,
    )
    return report(outcome)


def _fresh(folder: Path | None) -> Path:
    folder = folder or Path(f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder}: is not empty; name another folder")
    return folder


def _config(folder: Path, broker: Broker, seconds: float, modules: int, speed: float) -> Config:
    """The configuration, written into the folder for further commands."""
    text = _TOML.format(
        # A JSON string is a TOML string too, whatever stands in the folder's name.
        state=json.dumps(f"{folder}/state"),
        lake=json.dumps(f"{folder}/lake"),
        database=json.dumps(f"sqlite:///{(folder / 'voltmill.db').absolute()}"),
        metrics_port=free_port(),
        port=broker.port,
        protocol=broker.protocol,
        gateways=_GATEWAYS,
        packs=_PACKS,
        modules=max(1, round(modules / (_GATEWAYS * _PACKS))),
        speed=speed,
        duration=seconds * speed,
        start=(datetime.now(UTC) - timedelta(seconds=seconds * speed)).isoformat(timespec="seconds"),
    )
    (folder / "voltmill.toml").write_text(text)
    return load(folder / "voltmill.toml")


def _start_live(folder: Path) -> "subprocess.Popen[bytes]":
    with open(folder / "live.log", "wb") as log:
        return subprocess.Popen([sys.executable, "-m", __name__, str(folder)], stderr=log)


def _simulate(config: Config, folder: Path, child: "subprocess.Popen[bytes]") -> tuple[dict[str, Any], float]:
    """Publish the fleet; returns its summary and the wall time at which its event time began."""
    _wait(lambda: "mqtt subscribed" in (folder / "live.log").read_text(), child, folder, "subscribe")
    stop, began, start = threading.Event(), [0.0], config.simulate.start_time
    assert start is not None

    def show(progress: Progress) -> None:
        elapsed = (progress.event_time - start).total_seconds() / config.simulate.speed
        began[0] = began[0] or time.time() - progress.behind_seconds - elapsed
        stored = _counter(config, "voltmill_predictions_total") or 0.0
        _say(f"{elapsed:4.0f} s: {progress.published} messages published, {stored:.0f} predictions", over=True)
        if child.poll() is not None:
            stop.set()

    summary = simulate(config.simulate, config.mqtt, folder / "truth", show, stop)
    _say("")
    return summary, began[0]


def _drain(config: Config, folder: Path, child: "subprocess.Popen[bytes]", published: int) -> None:
    """Let the flow read what the broker still holds, then end it as an operator would."""
    _wait(
        lambda: (_counter(config, "voltmill_messages_total") or 0.0) >= published, child, folder, "read every message"
    )
    child.send_signal(signal.SIGTERM)
    _wait(lambda: child.poll() == 0, child, folder, "drain")


def _wait(ready: Any, child: "subprocess.Popen[bytes]", folder: Path, what: str) -> None:
    deadline, log = time.monotonic() + 60, f"{folder}/live.log"
    while not ready():
        if child.poll() is not None and not ready():  # asked again: it may have become so just now
            raise RuntimeError(f"the live flow ended with status {child.returncode}: see {log}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the live flow did not {what} within 60 s: see {log}")
        time.sleep(0.05)


def _counter(config: Config, name: str) -> float | None:
    """The sum of a counter that the live flow serves; None while it serves nothing."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{config.run.metrics_port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return sum(s.value for s in samples if s.name == name)


def _latency(folder: Path, settings: SimulateSettings, began: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds from publishing to the prediction in the database, a row each.

    The fleet publishes in step with the clock, so its event times say when a message was sent.
    """
    event_us, stored_us = np.load(folder / "stored.npy")
    assert settings.start_time is not None
    start_us = settings.start_time.timestamp() * 1e6
    on_time = (event_us >= start_us) & (event_us <= start_us + settings.duration_seconds * 1e6)
    published = began + (event_us[on_time] - start_us) / 1e6 / settings.speed
    seconds: np.ndarray[Any, np.dtype[np.float64]] = stored_us[on_time] / 1e6 - published
    return seconds


def _live(folder: Path) -> None:
    """The live flow of the demo, which also notes when each prediction was stored."""
    config = load(folder / "voltmill.toml")
    running.log_to_stderr("info")
    drain, metrics = Drain(), Metrics()
    running.drain_on_signals(drain)
    running.prepare(live=True)
    stored: list[Any] = []

    def note(batch: pa.RecordBatch) -> None:
        metrics.on_stored(batch)
        times = columns.times(batch.column("event_time"))
        stored.append(np.stack([times, np.full(len(times), time.time_ns() // 1000)]))

    flow = live.build(config, drain, metrics, note)
    metrics.serve(config.run.metrics_host, config.run.metrics_port)
    running.run(flow, config.run)
    np.save(folder / "stored.npy", np.concatenate(stored, axis=1) if stored else np.empty((2, 0)))


def _say(text: str, *, over: bool = False) -> None:
    """Progress on standard error; in place on a terminal."""
    if over and sys.stderr.isatty():
        text = text[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write(f"\r\x1b[K{text}")
    else:
        sys.stderr.write(f"{text}{os.linesep}")
    sys.stderr.flush()


if __name__ == "__main__":
    _live(Path(sys.argv[1]))
