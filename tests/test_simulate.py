"""The simulated fleet: the same under one seed, physical, paced, and its faults are where the truth says."""

import json
import os
import signal
import threading
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import paho.mqtt.client as paho
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voltmill.connectors.mqtt import MqttSettings
from voltmill.flows import simulate as module
from voltmill.flows.broker import start_broker
from voltmill.flows.simulate import FaultSettings, SimulateSettings, messages, simulate, start_time, telemetry
from voltmill.flows.simulated_faults import DELIVERIES, MALFORMED, break_payload
from voltmill.flows.simulated_fleet import CHARGE, DRIVE, REST, SimulatedFleet
from voltmill.kernels.schema import TELEMETRY

QUIET = FaultSettings(enabled=False)
SMALL = {"gateways": 2, "packs_per_gateway": 2, "modules_per_pack": 4}


def settings(**changes):
    return SimulateSettings(**{**SMALL, "duration_seconds": 60, "faults": QUIET, **changes})


def lasting(**changes):
    """Faults with nothing but what is given."""
    none = dict.fromkeys(
        ("drop_rate", "double_rate", "malformed_rate", "clock_jump_share", "stuck_share", "weak_share", "hot_share"),
        0.0,
    )
    return FaultSettings(**{**none, **changes})


class Recorder:
    """Stands in for the MQTT publisher: takes down what it is given."""

    made: list["Recorder"] = []

    def __init__(self, mqtt, client_id):
        self.client_id, self.got, self.closed, self.in_flight = client_id, [], False, 0
        Recorder.made.append(self)

    def publish(self, topic, payload, timeout=None):
        self.got.append((topic, payload))

    def drain(self, timeout):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def recorder(monkeypatch):
    Recorder.made = []
    monkeypatch.setattr(module, "Publisher", Recorder)
    return Recorder


def test_a_seed_makes_a_fleet():
    faulty = settings(faults=FaultSettings(), duration_seconds=120)
    assert list(messages(faulty)) == list(messages(faulty))
    assert list(messages(faulty)) != list(messages(msgspec.structs.replace(faulty, seed=2)))


def test_messages_are_canonical_in_order_and_of_the_agreed_size():
    got = list(messages(settings()))
    assert len(got) == 16 * 12
    decoded = [json.loads(payload) for _, payload in got]
    assert all(340 < len(payload) < 520 for _, payload in got)
    assert all(topic == "voltmill/" + d["device_id"] for (topic, _), d in zip(got, decoded, strict=True))
    assert set(decoded[0]) <= set(TELEMETRY.names)
    times = [d["event_time"] for d in decoded]
    assert times == sorted(times)
    assert all(t.endswith("Z") and len(t) == len("2026-01-01T00:00:00.000Z") for t in times)
    assert len(set(times[:16])) == 16  # modules take turns
    seqs = defaultdict(list)
    for d in decoded:
        seqs[d["device_id"]].append(d["seq"])
    assert all(s == list(range(1, 13)) for s in seqs.values())
    assert all(len(d["cell_voltage_volt"]) == 16 and len(d["cell_temperature_celsius"]) == 4 for d in decoded)


def test_arrow_and_json_say_the_same():
    faulty = settings(faults=FaultSettings(malformed_rate=0.05, drop_rate=0.05, double_rate=0.05), duration_seconds=90)
    table = pa.Table.from_batches(telemetry(faulty))
    table.validate(full=True)
    assert table.schema.equals(TELEMETRY)
    decoded = []
    for _, payload in messages(faulty):
        try:
            message = json.loads(payload)
        except ValueError:
            continue
        if isinstance(message.get("current_ampere"), float) and np.isfinite(message["current_ampere"]):
            decoded.append(message)
    assert len(decoded) == len(table)
    for name in ("device_id", "seq"):
        assert table[name].to_pylist() == [d[name] for d in decoded]
    assert table["event_time"].to_pylist() == [datetime.fromisoformat(d["event_time"]) for d in decoded]
    for name in ("current_ampere", "voltage_volt", "ambient_temperature_celsius", "bms_soc_percent"):
        assert (table[name].to_numpy() == np.array([d[name] for d in decoded], np.float32)).all()
    for name in ("cell_voltage_volt", "cell_temperature_celsius"):
        flat = table[name].combine_chunks().flatten().to_numpy()
        assert (flat == np.array([d[name] for d in decoded], np.float32).ravel()).all()


@pytest.fixture(scope="module")
def half_a_day():
    fleet = SimulatedFleet(settings(modules_per_pack=16))
    return fleet, [fleet.tick() for _ in range(12 * 720)]


def test_modules_live_within_the_limits_of_the_cell(half_a_day):
    _, samples = half_a_day
    cells = np.stack([s.cell_voltage for s in samples])
    assert cells.min() > 2.8 - 0.02
    assert cells.max() < 4.2 + 0.02
    current = np.stack([s.current for s in samples])
    assert current.min() > -18.5
    assert current.max() < 6.5
    soc = np.stack([s.soc for s in samples])
    assert 0 < soc.min() < 15
    assert 98 < soc.max() < 101.5
    phase = np.stack([s.phase for s in samples])
    assert (np.bincount(phase.ravel(), minlength=3) / phase.size > 0.1).all()
    driving = current[phase == DRIVE]
    assert -2.0 < driving.mean() < -0.7  # the LG drive cycles: about -1.3 A and 2.5 A
    assert 1.8 < driving.std() < 3.2
    assert np.abs(current[phase == REST]).mean() < 0.2
    assert current[phase == CHARGE].max() < 1.7


def test_counting_the_reported_current_gives_the_true_change_of_soc(half_a_day):
    """Zero-order hold of instantaneous samples: honest on average, within a percent or two over an hour."""
    fleet, samples = half_a_day
    current = np.stack([s.current for s in samples[:720]])
    counted = 100 * current[:-1].sum(0) * 5 / 3600 / fleet.state.capacity.mean(1)
    error = counted - (samples[719].soc - samples[0].soc)
    assert abs(error.mean()) < 0.2
    assert np.abs(error).max() < 3.0


def test_deliveries_are_as_frequent_as_asked_and_all_are_counted(recorder, tmp_path):
    faults = lasting(drop_rate=0.1, double_rate=0.05, malformed_rate=0.1)
    fast = settings(faults=faults, duration_seconds=600, speed=1e6, start_time=datetime(2026, 3, 1, tzinfo=UTC))
    summary = simulate(fast, MqttSettings(), tmp_path)
    got = [item for r in recorder.made for item in r.got]
    assert [r.client_id for r in recorder.made] == ["simulate-site-1-gw-1", "simulate-site-1-gw-2"]
    assert all(r.closed for r in recorder.made)
    assert summary["measured"] == 16 * 120
    assert summary["published"] == len(got)
    assert summary["dropped"] == pytest.approx(192, rel=0.3)
    assert summary["doubled"] == pytest.approx(96, rel=0.4)
    assert min(summary[f"malformed:{kind}"] for kind in MALFORMED) >= 20
    truth = pq.read_table(tmp_path / "messages-00000.parquet")
    assert Counter(truth["delivery"].to_pylist()) == {k: v for k, v in summary.items() if k in DELIVERIES and v}
    assert json.loads((tmp_path / "counts.json").read_text())["published"] == len(got)
    keys = Counter()
    for _, payload in got:
        try:
            message = json.loads(payload)
        except ValueError:
            continue
        keys[message["device_id"], message["seq"]] += 1
    for row in truth.to_pylist():
        expected = {"sent": (1,), "dropped": (0,), "doubled": (2,)}.get(row["delivery"], (0, 1))
        assert keys[row["device_id"], row["seq"]] in expected


@pytest.mark.parametrize("kind", MALFORMED)
def test_each_way_to_break_a_payload_breaks_it(kind):
    payload = next(messages(settings()))[1]
    broken = break_payload(payload, DELIVERIES.index(f"malformed:{kind}"))
    with pytest.raises((ValueError, KeyError, TypeError)):
        value = msgspec.json.decode(broken)["current_ampere"]
        raise TypeError if not isinstance(value, float) else AssertionError(value)


def columns(batches):
    table = pa.Table.from_batches(batches)
    return {d: table.filter(pa.compute.equal(table["device_id"], d)) for d in set(table["device_id"].to_pylist())}


def faults_of(tmp_path, faults, **changes):
    """Truth of a run with the given faults, and its telemetry by device."""
    s = settings(faults=faults, start_time=datetime(2026, 3, 1, tzinfo=UTC), speed=1e6, **changes)
    simulate(s, MqttSettings(), tmp_path)
    return pq.read_table(tmp_path / "faults.parquet").to_pylist(), columns(telemetry(s)), tmp_path


def test_a_clock_jumps_and_comes_back(recorder, tmp_path):
    faults, devices, folder = faults_of(tmp_path, lasting(clock_jump_share=0.2), duration_seconds=600)
    assert len(faults) == 4
    shifts = set()
    truth = pq.read_table(folder / "messages-00000.parquet").to_pylist()
    for fault in faults:
        assert fault["to"] - fault["from"] == timedelta(seconds=60)
        rows = [r for r in truth if r["device_id"] == fault["device_id"]]
        marked = [r for r in rows if r["fault"] == "clock_jump"]
        assert len(marked) == fault["messages"] == 12
        shifts |= {r["reported_time"] - r["event_time"] for r in marked}
        assert all(r["reported_time"] == r["event_time"] for r in rows if not r["fault"])
        assert devices[fault["device_id"]]["event_time"].to_pylist() == [r["reported_time"] for r in rows]
    assert shifts == {timedelta(hours=1), timedelta(hours=-1)}


def test_a_reading_freezes_while_its_module_drives(recorder, tmp_path):
    faults, devices, _ = faults_of(tmp_path, lasting(stuck_share=0.2), duration_seconds=900)
    assert len(faults) == 4
    for fault in faults:
        table = devices[fault["device_id"]]
        times = np.array(table["event_time"].to_pylist())
        inside = (times >= fault["from"]) & (times < fault["to"])
        assert fault["to"] - fault["from"] >= timedelta(minutes=2)
        cells = np.array(table["cell_voltage_volt"].to_pylist())[inside]
        assert np.ptp(cells[:, fault["cell"]]) == 0
        others = np.delete(cells, fault["cell"], axis=1)
        assert others.std(0).min() > 0.005
        assert np.std(table["current_ampere"].to_numpy()[inside]) > 0.3


def test_a_weak_cell_sags_more_than_its_siblings(recorder, tmp_path):
    faults, devices, _ = faults_of(tmp_path, lasting(weak_share=0.2), duration_seconds=3600)
    assert len(faults) == 4
    for fault in faults:
        assert fault["to"] is None
        cells = np.array(devices[fault["device_id"]]["cell_voltage_volt"].to_pylist())
        swings = cells.std(0)
        assert swings.argmax() == fault["cell"]


def test_a_cell_gets_hot_under_its_probe(recorder, tmp_path):
    faults, devices, _ = faults_of(tmp_path, lasting(hot_share=0.2), duration_seconds=1200)
    assert len(faults) == 4
    for fault in faults:
        probes = np.array(devices[fault["device_id"]]["cell_temperature_celsius"].to_pylist())
        assert 60 < probes[:, fault["cell"] // 4].max() < 75
        assert np.delete(probes, fault["cell"] // 4, axis=1).max() < 50
    quiet = set(devices) - {fault["device_id"] for fault in faults}
    assert max(np.array(devices[d]["cell_temperature_celsius"].to_pylist()).max() for d in quiet) < 50


def test_episodes_come_again_in_an_endless_run():
    faults = lasting(clock_jump_share=0.05, period_seconds=300, clock_jump_length_seconds=30)
    endless = settings(faults=faults, duration_seconds=0)
    skew = []
    for k, batch in enumerate(telemetry(endless)):
        wrong = [
            abs(e - i) > timedelta(minutes=1)
            for e, i in zip(*(batch[c].to_pylist() for c in ("event_time", "ingest_time")), strict=True)
        ]
        skew.append(any(wrong))
        if k > 180:
            break
    assert np.count_nonzero(np.diff(np.array(skew, int)) == 1) == 3


def test_a_stop_ends_the_run_and_the_truth_has_what_was_published(recorder, tmp_path):
    stop = threading.Event()
    seen = []

    def on_progress(progress):
        seen.append(progress)
        stop.set()

    endless = settings(duration_seconds=0, start_time=datetime(2026, 3, 1, tzinfo=UTC), speed=60.0)
    summary = simulate(endless, MqttSettings(), tmp_path, on_progress, stop)
    assert seen[-1].published == summary["published"] == sum(len(r.got) for r in recorder.made)
    assert len(pq.read_table(tmp_path / "messages-00000.parquet")) == summary["measured"]
    assert seen[0].event_time - endless.start_time == pytest.approx(timedelta(seconds=60), abs=timedelta(seconds=20))
    assert 0 <= summary["worst_behind_seconds"] < 5


def test_a_real_broker_gets_every_message_in_order(tmp_path):
    """One subscriber of the embedded broker sees what the summary says was published, device by device."""
    got = []
    with start_broker() as broker:
        client = paho.Client(protocol=paho.MQTTv5)
        subscribed = threading.Event()
        client.on_subscribe = lambda *args: subscribed.set()
        client.on_message = lambda client, userdata, message: got.append((message.topic, message.payload))
        client.connect(broker.host, broker.port)
        client.loop_start()
        client.subscribe("voltmill/#", qos=1)
        assert subscribed.wait(10)
        fast = settings(speed=1e6, start_time=datetime(2026, 3, 1, tzinfo=UTC), faults=lasting(double_rate=0.1))
        summary = simulate(fast, MqttSettings(host=broker.host, port=broker.port), tmp_path)
        deadline = time.monotonic() + 10
        while len(got) < summary["published"] and time.monotonic() < deadline:
            subscribed.wait(0.01)
        client.disconnect()
        client.loop_stop()
    assert summary["unacknowledged"] == 0
    assert summary["doubled"] > 0
    expected = list(messages(fast))
    assert len(got) == summary["published"] == len(expected)
    assert sorted(got) == sorted(expected)
    for topic in {topic for topic, _ in expected}:
        assert [p for t, p in got if t == topic] == [p for t, p in expected if t == topic]


def test_sigterm_ends_the_run_and_the_handler_is_put_back(recorder, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    summary = simulate(
        settings(duration_seconds=0), MqttSettings(), tmp_path, lambda p: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert 0 < summary["published"] < 16 * 12
    assert signal.getsignal(signal.SIGTERM) is before


def test_time_never_runs_ahead_of_the_clock():
    now = datetime(2026, 5, 1, tzinfo=UTC)
    assert start_time(settings(speed=10.0, duration_seconds=600), now) == now - timedelta(minutes=10)
    assert start_time(settings(), now) == now
    with pytest.raises(ValueError, match="set duration_seconds or start_time"):
        start_time(settings(speed=2.0, duration_seconds=0), now)


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ({"gateways": 0}, "simulate.gateways: at least 1"),
        ({"interval_seconds": 0.5}, "simulate.interval_seconds: whole seconds"),
        ({"speed": 0}, "speed is above 0"),
        ({"start_time": "2026-01-01T00:00:00"}, "with a time zone"),
        ({"ambient_celsius": [40, 10]}, "simulate.ambient_celsius"),
        ({"start_soc": [0.5, 2]}, "simulate.start_soc"),
        ({"site": "a/b"}, "simulate.site"),
        ({"faults": {"drop_rate": 2}}, "faults.drop_rate: a share"),
        ({"faults": {"drop_rate": 0.6, "double_rate": 0.6}}, "add up to more than 1"),
        ({"faults": {"stuck_share": 0.6, "weak_share": 0.6}}, "one lasting fault"),
        ({"faults": {"hot_length_seconds": 0}}, "above 0"),
        ({"modules": 3}, "unknown field `modules`"),
    ],
)
def test_nonsense_is_refused_with_a_clear_line(toml, says):
    with pytest.raises((msgspec.ValidationError, ValueError), match=says):
        msgspec.convert(toml, SimulateSettings)
