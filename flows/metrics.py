"""Prometheus metrics of a flow, and the taps that count.

Operators know nothing of metrics: the graph hands them plain callables and looks at the batches that
pass between them.
"""

import logging
import time
from collections.abc import Callable, Iterable
from threading import Lock
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from voltmill.connectors.iothub_watch import Watch
from voltmill.flows.metrics_server import Served
from voltmill.kernels.schema import Quality
from voltmill.operators import columns
from voltmill.operators.model import Model

log = logging.getLogger("voltmill.models")

_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: Time without a failure after which a model counts as sound again, s.
_OVER_SECONDS = 60.0
_ROWS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)


class Latency(Collector):
    """A histogram that takes a whole batch at once; one call a row would cost more than the row."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._edges = np.array([*_LATENCY, np.inf])
        self._counts = np.zeros(len(self._edges), np.int64)
        self._sum = 0.0
        self._lock = Lock()
        registry.register(self)

    def observe(self, seconds: NDArray[np.float64]) -> None:
        """Count a latency a row, s."""
        counts = np.bincount(np.searchsorted(self._edges, seconds), minlength=len(self._edges))
        with self._lock:
            self._counts += counts
            self._sum += float(seconds.sum())

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """The histogram as Prometheus reads it."""
        with self._lock:
            cumulated, total = np.cumsum(self._counts), self._sum
        names = [*map(str, _LATENCY), "+Inf"]
        yield HistogramMetricFamily(
            "voltmill_event_to_prediction_seconds",
            "from the measurement to the prediction in the database, by the device's clock",
            buckets=list(zip(names, map(float, cumulated), strict=True)),
            sum_value=total,
        )


class Endpoint(TypedDict):
    """What is counted of a model behind HTTP: see `voltmill.connectors.endpoint.EndpointModel`."""

    observe: Callable[[str, float], None]
    on_retry: Callable[[str], None]
    on_open: Callable[[bool], None]


class Notify(TypedDict):
    """What is counted of a place that alerts go to: see `voltmill.connectors.notify.Place`."""

    observe: Callable[[str, int], None]
    on_attempt: Callable[[str, float], None]
    on_waiting: Callable[[int], None]
    on_open: Callable[[bool], None]


class Metrics(Served):
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        super().__init__()
        r = self.registry
        self.messages = Counter("voltmill_messages", "messages read from sources", registry=r)
        self.redelivered = Counter(
            "voltmill_redelivered_messages", "messages that the source sent again, held back", registry=r
        )
        self.telemetry = Counter("voltmill_telemetry_rows", "samples decoded", registry=r)
        self.dead_letters = Counter("voltmill_dead_letters", "dead letters", ["stage", "reason"], registry=r)
        self.quality = Counter("voltmill_quality_bits", "samples with a quality bit", ["bit"], registry=r)
        self.predictions = Counter("voltmill_predictions", "predictions made", ["target", "mode"], registry=r)
        self.nulls = Counter(
            "voltmill_predictions_null", "predictions without a value", ["target", "model"], registry=r
        )
        self.unknown = Counter("voltmill_unknown_devices", "devices no model was made for", registry=r)
        self.asked = Counter("voltmill_model_rows", "rows a model was asked about", ["model", "sha256"], registry=r)
        self.failed = Counter(
            "voltmill_model_failed_rows", "rows a model failed on: they fell back", ["model", "sha256"], registry=r
        )
        self.failing = Gauge(
            "voltmill_model_failing", "1 from a failure of a model to a minute without one", ["model"], registry=r
        )
        self.requests = Histogram(
            "voltmill_endpoint_seconds",
            "seconds a request to a model behind HTTP",
            ["model", "outcome"],
            buckets=_SECONDS,
            registry=r,
        )
        self.retries = Counter(
            "voltmill_endpoint_retries", "requests sent again to a model behind HTTP", ["model", "outcome"], registry=r
        )
        self.resting = Gauge(
            "voltmill_endpoint_open", "1 while a model behind HTTP is left alone after failures", ["model"], registry=r
        )
        self.notified = Counter(
            "voltmill_notifications",
            "notifications of alerts, by what became of them",
            ["place", "outcome"],
            registry=r,
        )
        self.attempts = Histogram(
            "voltmill_notification_seconds",
            "seconds an attempt to send a notification",
            ["place", "outcome"],
            buckets=_SECONDS,
            registry=r,
        )
        self.unsent = Gauge(
            "voltmill_notifications_waiting", "notifications that are not sent yet", ["place"], registry=r
        )
        self.closed = Gauge(
            "voltmill_notify_open",
            "1 while a place that alerts go to is left alone after failures",
            ["place"],
            registry=r,
        )
        self.rows = Histogram("voltmill_batch_rows", "rows a batch", ["stream"], buckets=_ROWS, registry=r)
        self.stage = Histogram("voltmill_stage_seconds", "seconds a batch", ["stage"], buckets=_SECONDS, registry=r)
        self.latency = Latency(r)
        self.lag = Gauge("voltmill_watermark_lag_seconds", "now less the newest event time", registry=r)
        self.lag.set_function(lambda: time.time() - self._newest)  # it grows while nothing comes
        self.stored = Gauge("voltmill_last_stored_timestamp_seconds", "when a prediction was last stored", registry=r)
        self.hub_events = Counter("voltmill_iothub_events", "events of IoT Hub handed out", registry=r)
        self.hub_bytes = Counter("voltmill_iothub_bytes", "bytes of their bodies", registry=r)
        self.hub_lag = Gauge(
            "voltmill_iothub_lag_events",
            "events that the partition held when the last one was handed out, and were not",
            ["partition"],
            registry=r,
        )
        self.hub_reconnects = Counter(
            "voltmill_iothub_reconnects", "connections to IoT Hub lost, or not made", ["partition"], registry=r
        )
        self.hub_expired = Counter(
            "voltmill_iothub_expired_events", "events IoT Hub let go before they were read", ["partition"], registry=r
        )
        self.hub_broken = Counter("voltmill_iothub_broken_packs", "packs that could not be taken apart", registry=r)
        self.waits = Gauge(
            "voltmill_waiting",
            "1 while this system is away and waited for; nothing is read then",
            ["system"],
            registry=r,
        )
        self._newest = np.nan
        self._failing: dict[str, float] = {}

    def observe(self, stage: str) -> Callable[[float], None]:
        """What an operator calls with the seconds of each batch."""
        observe: Callable[[float], None] = self.stage.labels(stage).observe
        return observe

    def hub(self) -> Watch:
        """What the IoT Hub source calls, from any thread."""

        def on_events(events: int, size: int) -> None:
            self.hub_events.inc(events)
            self.hub_bytes.inc(size)

        return Watch(
            on_events=on_events,
            on_lag=lambda partition, events: self.hub_lag.labels(partition).set(events),
            on_reconnect=lambda partition: self.hub_reconnects.labels(partition).inc(),
            on_redelivered=self.redelivered.inc,
            on_expired=lambda partition, events: self.hub_expired.labels(partition).inc(events),
            on_broken_pack=self.hub_broken.inc,
        )

    def endpoint(self, model: str) -> Endpoint:
        """What a model behind HTTP calls, from any thread."""
        return Endpoint(
            observe=lambda outcome, seconds: self.requests.labels(model, outcome).observe(seconds),
            on_retry=lambda outcome: self.retries.labels(model, outcome).inc(),
            on_open=lambda is_open: self.resting.labels(model).set(float(is_open)),
        )

    def notify(self, place: str) -> Notify:
        """What a place that alerts go to calls, from any thread."""
        return Notify(
            observe=lambda outcome, count: self.notified.labels(place, outcome).inc(count),
            on_attempt=lambda outcome, seconds: self.attempts.labels(place, outcome).observe(seconds),
            on_waiting=self.unsent.labels(place).inc,
            on_open=lambda is_open: self.closed.labels(place).set(float(is_open)),
        )

    def on_raw(self, batch: pa.RecordBatch) -> None:
        """Count what came from a source."""
        self.messages.inc(len(batch))
        self.rows.labels("raw").observe(len(batch))

    def on_telemetry(self, batch: pa.RecordBatch) -> None:
        """Count samples and their quality bits."""
        self.telemetry.inc(len(batch))
        self.rows.labels("telemetry").observe(len(batch))
        bits = batch.column("quality_bits").to_numpy()
        union = int(np.bitwise_or.reduce(bits, initial=0))
        for quality in Quality:
            if union & quality:
                self.quality.labels(str(quality.name).lower()).inc(int(np.count_nonzero(bits & np.uint32(quality))))
        sound = columns.times(batch.column("event_time"))[bits & np.uint32(Quality.CLOCK_SKEW) == 0]
        if len(sound):  # a clock ahead of its time says nothing of how far the flow is
            self._newest = float(np.fmax(self._newest, sound.max() * 1e-6))

    def on_dead_letters(self, batch: pa.RecordBatch) -> None:
        """Count dead letters by stage and reason."""
        table = pa.Table.from_batches([batch]).group_by(["stage", "reason"]).aggregate([([], "count_all")])
        for row in table.to_pylist():
            self.dead_letters.labels(row["stage"], row["reason"]).inc(row["count_all"])

    def on_predictions(self, batch: pa.RecordBatch) -> None:
        """Count predictions by target and mode; a batch has one target."""
        if not len(batch):
            return
        target = batch.column("target")[0].as_py()
        if batch.column("value").null_count:
            makers = batch.column("model_name").filter(pc.is_null(batch.column("value")))
            for entry in pc.value_counts(makers).to_pylist():
                self.nulls.labels(target, entry["values"]).inc(entry["counts"])
        for entry in pc.value_counts(batch.column("mode")).to_pylist():
            self.predictions.labels(target, entry["values"]).inc(entry["counts"])

    def on_answer(self, model: Model, asked: int, failed: int, error: Exception | None) -> None:
        """Count what a model was asked and failed on; say so when it begins to fail, and when that is over.

        It is over when a minute has passed without a failure: a model that fails on single rows would fill the log.
        """
        name, sha256 = model.contract.name, model.sha256
        self.asked.labels(name, sha256).inc(asked)
        if failed:
            self.failed.labels(name, sha256).inc(failed)
            if name not in self._failing:
                self.failing.labels(name).set(1.0)
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                facts = {"model": name, "sha256": sha256, "rows": failed, "reason": reason}
                log.error("model fails, its rows fall back", extra=facts)
            self._failing[name] = time.monotonic()
        elif name in self._failing and time.monotonic() - self._failing[name] >= _OVER_SECONDS:
            self.failing.labels(name).set(0.0)
            del self._failing[name]
            log.info("model answers again", extra={"model": name, "sha256": sha256})

    def on_stored(self, batch: pa.RecordBatch) -> None:
        """Note that predictions are in the database."""
        now = time.time()
        self.stored.set(now)
        self.latency.observe(np.float64(now) - columns.times(batch.column("event_time")) * 1e-6)
