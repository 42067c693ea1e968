"""``voltmill simulate``: a fleet with known truth, published over MQTT.

Three ways to run the same fleet, and under the same settings they give the same samples:
``simulate`` publishes in step with the clock and writes the truth, ``messages`` gives topic and payload
without a broker, ``telemetry`` gives Arrow batches without JSON.

A message is canonical JSON of about 370 bytes; its topic is ``voltmill/`` and the device id.
"""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Final

import msgspec

from voltmill.connectors.mqtt import MqttSettings, Publisher
from voltmill.flows.simulate_settings import FaultSettings, SimulateSettings
from voltmill.flows.simulated_faults import FAULTS, Marked
from voltmill.flows.simulated_messages import Run, copies, messages, telemetry
from voltmill.flows.simulated_truth import Truth

__all__ = ["FaultSettings", "Progress", "SimulateSettings", "messages", "simulate", "start_time", "telemetry"]

PROGRESS_SECONDS: Final = 1.0
SLACK_SECONDS: Final = 0.01  # messages due within it go out together
RETRY_SECONDS: Final = 0.5  # how soon a stop is noticed while the broker takes nothing
DRAIN_SECONDS: Final = 30.0


class Progress(msgspec.Struct, frozen=True):
    """How far a simulation is."""

    published: int
    """Messages handed to MQTT."""
    event_time: datetime
    """Of the last of them, by a true clock."""
    behind_seconds: float
    """How late it was, wall s."""


def simulate(
    settings: SimulateSettings,
    mqtt: MqttSettings,
    truth_dir: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Publish the fleet in step with the clock until its time is over, ``stop`` is set, or a signal comes.

    Each gateway has an MQTT client of its own (``simulate-`` and its name), QoS 1. In the main thread
    SIGTERM and SIGINT stop it. At the end it waits for the acknowledgements and writes the truth.

    Args:
        settings: the fleet.
        mqtt: the broker.
        truth_dir: folder of the truth files; None: none are written.
        on_progress: called about once a second.
        stop: ends it when set.

    Returns:
        ``measured``, ``published`` and a count by delivery; ``faults``: lasting ones by kind;
        ``unacknowledged``: messages the broker did not confirm; ``worst_behind_seconds``: how late a
        message was at worst; more than a second or two means that this machine cannot keep the pace.
    """
    stop = stop or threading.Event()
    run = Run(settings, start_time(settings, datetime.now(UTC)))
    truth = Truth(truth_dir, run.fleet.device_ids, run.start_us)
    restore = _stop_on_signals(stop)
    gateways = sorted({_gateway(topic) for topic in run.topics})
    publishers = {g: Publisher(mqtt, "simulate-" + g.replace("/", "-")) for g in gateways}
    pace = _Pace(run, [publishers[_gateway(topic)] for topic in run.topics], on_progress, stop)
    try:
        for marked in run.ticks():
            truth.add(marked, pace.publish(marked))
            if stop.is_set():
                break
        pace.report()
        unacknowledged = _drain(list(publishers.values()))
    finally:
        for publisher in publishers.values():
            publisher.close()
        truth.finish(run.faults.episodes)
        restore()
    faults = dict(Counter(FAULTS[episode.fault] for episode in run.faults.episodes))
    return {**truth.counts(), "faults": faults, "unacknowledged": unacknowledged, "worst_behind_seconds": pace.worst}


def start_time(settings: SimulateSettings, now: datetime) -> datetime:
    """Where event time begins.

    Raises:
        ValueError: an endless run that is faster than the clock would run into the future.

    Example:
        >>> noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
        >>> start_time(SimulateSettings(speed=60, duration_seconds=3600), noon).isoformat()
        '2026-01-01T11:00:00+00:00'
    """
    if settings.start_time is not None:
        return settings.start_time
    if settings.speed <= 1:
        return now
    if not settings.duration_seconds:
        raise ValueError("simulate.speed is above 1: set duration_seconds or start_time, or time runs into the future")
    return now - timedelta(seconds=settings.duration_seconds)


class _Pace:
    """Publishes ticks message by message, each when its time has come by the wall clock."""

    def __init__(
        self, run: Run, publishers: list[Publisher], on_progress: Callable[[Progress], None], stop: threading.Event
    ) -> None:
        self._run, self._publishers = run, publishers
        self._on_progress, self._stop = on_progress, stop
        self._began = time.monotonic()
        self._reported = self._began
        self._published = self._event_us = 0
        self._behind = 0.0
        self.worst = 0.0

    def publish(self, marked: Marked) -> int:
        """Publish a tick; how many of its messages were dealt with before a stop."""
        payloads, times = self._run.payloads(marked), copies(marked).tolist()
        elapsed = marked.samples.elapsed_us.tolist()
        for row, payload in enumerate(payloads):
            if not self._wait(elapsed[row] / 1e6 / self._run.settings.speed):
                return row
            for _ in range(times[row]):
                if not self._send(row, payload):
                    return row
            self._published, self._event_us = self._published + times[row], elapsed[row]
        return len(payloads)

    def report(self) -> None:
        """Tell how far it is."""
        event_time = self._run.start + timedelta(microseconds=self._event_us)
        self._on_progress(Progress(self._published, event_time, round(self._behind, 3)))
        self._reported = time.monotonic()

    def _wait(self, due: float) -> bool:
        """Wait until ``due`` s after the beginning; False: stopped."""
        now = time.monotonic()
        if now - self._reported >= PROGRESS_SECONDS:
            self.report()
        self._behind = now - self._began - due
        self.worst = max(self.worst, self._behind)
        if self._behind < -SLACK_SECONDS:
            self._stop.wait(-self._behind)
        return not self._stop.is_set()

    def _send(self, row: int, payload: bytes) -> bool:
        """Hand over one message, waiting while the broker takes none; False: stopped."""
        while not self._stop.is_set():
            try:
                self._publishers[row].publish(self._run.topics[row], payload, RETRY_SECONDS)
            except TimeoutError:
                continue
            return True
        return False


def _gateway(topic: str) -> str:
    return "/".join(topic.split("/")[1:3])


def _drain(publishers: list[Publisher]) -> int:
    """Wait for what is on its way; how many messages were not acknowledged."""
    deadline = time.monotonic() + DRAIN_SECONDS
    left = 0
    for publisher in publishers:
        try:
            publisher.drain(max(deadline - time.monotonic(), 0.0))
        except TimeoutError:
            left += publisher.in_flight
    return left


def _stop_on_signals(stop: threading.Event) -> Callable[[], None]:
    """Set ``stop`` on SIGTERM and SIGINT; the result puts the handlers of before back."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore
