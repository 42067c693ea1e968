"""The metrics: what they count is what passed, and Prometheus can read it."""

import logging
import math
import urllib.request
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from telemetry import batch, sample

from voltmill.flows import metrics as module
from voltmill.flows import metrics_server
from voltmill.flows.metrics import Metrics
from voltmill.kernels.schema import DEAD_LETTER, PREDICTION, RAW, Quality
from voltmill.operators.model import load


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """What is served, parsed from its text: name and labels, by the name of the label, to value."""
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {
        (s.name, *(v for _, v in sorted(s.labels.items()))): s.value
        for f in families
        for s in f.samples
        if "_created" not in s.name
    }


def predictions(times: list[int], **change: Any) -> pa.RecordBatch:
    sound = dict.fromkeys(PREDICTION.names, "x") | {"value": 50.0, "lo90": 40.0, "hi90": 60.0, "target": "soc"}
    sound |= {"mode": "live", "quality_bits": 0, "source_offset": 0}
    return pa.RecordBatch.from_pylist([sound | {"event_time": t} | change for t in times], schema=PREDICTION)


def letters(*found: tuple[str, str]) -> pa.RecordBatch:
    row = dict.fromkeys(DEAD_LETTER.names) | {"detail": "", "source": "m", "source_partition": "p", "source_offset": 0}
    return pa.RecordBatch.from_pylist([row | {"stage": s, "reason": r} for s, r in found], schema=DEAD_LETTER)


def test_telemetry_is_counted_by_quality_bit() -> None:
    metrics, rng = Metrics(), np.random.default_rng(1)
    bits = rng.integers(0, 1 << 13, 500)
    rows = batch(sample(k, quality_bits=int(b)) for k, b in enumerate(bits))
    for part in (rows.slice(0, 0), rows.slice(0, 1), rows.slice(1, 399), rows.slice(400)):
        metrics.on_telemetry(part)
    found = samples(metrics)
    assert found["voltmill_telemetry_rows_total",] == 500
    for quality in Quality:
        expected = int(np.count_nonzero(bits & int(quality)))
        assert found.get(("voltmill_quality_bits_total", str(quality.name).lower()), 0) == expected
    assert found["voltmill_batch_rows_count", "telemetry"] == 4
    assert found["voltmill_batch_rows_sum", "telemetry"] == 500


def test_dead_letters_are_counted_by_stage_and_reason() -> None:
    metrics = Metrics()
    metrics.on_dead_letters(letters(("decode", "empty"), ("decode", "bad_time"), ("decode", "empty")))
    metrics.on_dead_letters(letters(("estimate", "model_failed"), ("decode", "empty")))
    metrics.on_dead_letters(letters())
    found = {k[1:]: v for k, v in samples(metrics).items() if k[0] == "voltmill_dead_letters_total"}
    assert found == {("empty", "decode"): 3, ("bad_time", "decode"): 1, ("model_failed", "estimate"): 1}


def test_predictions_are_counted_by_mode_and_nulls() -> None:
    metrics = Metrics()
    metrics.on_predictions(predictions([]))
    metrics.on_predictions(predictions([1, 2, 3]))
    metrics.on_predictions(predictions([1, 2], value=None, mode="fallback"))
    found = samples(metrics)
    assert found["voltmill_predictions_total", "live", "soc"] == 3
    assert found["voltmill_predictions_total", "fallback", "soc"] == 2
    assert found["voltmill_predictions_null_total", "x", "soc"] == 2


def test_raw_batches_are_counted() -> None:
    metrics = Metrics()
    metrics.on_raw(pa.RecordBatch.from_pylist([{"payload": b"", "source_offset": 0}] * 7, schema=RAW))
    assert samples(metrics)["voltmill_messages_total",] == 7


def test_stage_seconds_by_stage() -> None:
    metrics = Metrics()
    for seconds in (0.0002, 0.02):
        metrics.observe("decode")(seconds)
    found = samples(metrics)
    assert found["voltmill_stage_seconds_count", "decode"] == 2
    assert found["voltmill_stage_seconds_bucket", "0.001", "decode"] == 1
    assert found["voltmill_stage_seconds_sum", "decode"] == pytest.approx(0.0202)


def test_latency_is_a_cumulative_histogram() -> None:
    metrics, rng = Metrics(), np.random.default_rng(2)
    seconds = np.concatenate([rng.exponential(3.0, 1000), [0.01, 300.0, 1e9, -5.0, 0.0]])
    for part in np.split(seconds, [0, 1, 10, 700]):
        metrics.latency.observe(part)
    found = samples(metrics)
    name = "voltmill_event_to_prediction_seconds"
    buckets = {float(k[1]): v for k, v in found.items() if k[0] == f"{name}_bucket"}
    assert list(buckets) == sorted(buckets) and math.inf in buckets
    for edge, count in buckets.items():
        assert count == np.count_nonzero(seconds <= edge)  # an edge is within its bucket
    assert found[f"{name}_count",] == len(seconds)
    assert found[f"{name}_sum",] == pytest.approx(seconds.sum())


def test_latency_of_what_was_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, now = Metrics(), 1_795_000_000.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    metrics.on_stored(predictions([int((now - s) * 1e6) for s in (0.05, 3.0)]))
    found = samples(metrics)
    assert found["voltmill_event_to_prediction_seconds_sum",] == pytest.approx(3.05)
    assert found["voltmill_last_stored_timestamp_seconds",] == now


def test_the_watermark_lag_grows_while_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, t0 = Metrics(), 1_795_348_800.0  # the start of the samples
    lag = ("voltmill_watermark_lag_seconds",)
    assert math.isnan(samples(metrics)[lag])  # nothing is known yet
    monkeypatch.setattr(module.time, "time", lambda: t0 + 100)
    metrics.on_telemetry(batch([sample(60), sample(70), sample(50)]))
    assert samples(metrics)[lag] == pytest.approx(30)
    metrics.on_telemetry(batch([sample(65), sample(7200, quality_bits=int(Quality.CLOCK_SKEW))]))
    assert samples(metrics)[lag] == pytest.approx(30)  # a clock ahead of its time does not count
    monkeypatch.setattr(module.time, "time", lambda: t0 + 1000)
    assert samples(metrics)[lag] == pytest.approx(930)


def test_served_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    start = metrics_server.start_http_server
    monkeypatch.setattr(metrics_server, "start_http_server", lambda *a, **k: started.append(start(*a, **k)))
    metrics = Metrics()
    metrics.on_telemetry(batch([sample(0)]))
    metrics.serve("127.0.0.1", 0)
    ((server, thread),) = started
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        assert "voltmill_telemetry_rows_total 1.0" in text
        with pytest.raises(OSError, match=rf"^\[run\] metrics: 127.0.0.1:{server.server_port} cannot be served: "):
            Metrics().serve("127.0.0.1", server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_two_sets_of_metrics_do_not_meet() -> None:
    one, two = Metrics(), Metrics()
    one.on_telemetry(batch([sample(0)]))
    assert samples(one)["voltmill_telemetry_rows_total",] == 1
    assert samples(two)["voltmill_telemetry_rows_total",] == 0


def test_a_model_that_fails_now_and_then_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metrics, model, now = Metrics(), load("lg_hg2_soc"), [0.0]
    monkeypatch.setattr("voltmill.flows.metrics.time.monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO, "voltmill.models"):
        for now[0], failed in [(0, 1), (1, 0), (2, 3), (30, 0), (61, 0), (63, 0), (64, 0), (70, 2)]:
            metrics.on_answer(model, 10, failed, ValueError("no\nnumber") if failed else None)
    said = [(r.message, getattr(r, "reason", "")) for r in caplog.records]
    fails = ("model fails, its rows fall back", "ValueError: no number")
    assert said == [fails, ("model answers again", ""), fails]
    assert metrics.failed.labels("lg_hg2_soc", model.sha256)._value.get() == 6
    assert metrics.asked.labels("lg_hg2_soc", model.sha256)._value.get() == 80
