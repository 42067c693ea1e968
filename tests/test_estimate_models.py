"""estimate with models that remember, with several side by side, with remote ones, and with new ones that take over."""

import pickle
import threading
from collections import defaultdict
from datetime import UTC, datetime

import bytewax.operators as op
import msgspec
import numpy as np
import pyarrow as pa
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource
from telemetry import cut
from test_estimate import CONTRACT, FLEET, FUSION, Line, Odd, drive, rows

from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.schema import Quality
from voltmill.operators import remote
from voltmill.operators.estimate import EstimateState, estimate, offline
from voltmill.operators.model import Chosen, Feature

VOLT = Feature(name="cell_voltage_mean_volt", offset=0, scale=1, low=2.5, high=4.3)


class Counter:
    """A step model: counts the rows of a device, and sums their voltages."""

    sha256 = "cd" * 32

    def __init__(self, **contract):
        self.contract = msgspec.structs.replace(
            CONTRACT, kind="step", state_size=2, features=(VOLT,), outputs=("value",), name="counter", **contract
        )
        self.calls = 0
        self.raise_at = -1

    def step(self, features, carried):
        self.calls += 1
        if self.calls == self.raise_at:
            raise RuntimeError("no more")
        on = carried + np.concatenate([np.ones_like(features), features], 1)
        return on[:, :1] / 10, on


class Mean:
    """A window model: the mean of the last three voltages."""

    sha256 = "ef" * 32

    def __init__(self, **contract):
        self.contract = msgspec.structs.replace(
            CONTRACT, kind="window", window_rows=3, features=(VOLT,), outputs=("value",), name="mean", **contract
        )

    def predict(self, features):
        assert features.shape[1:] == (3, 1)
        return features.mean(axis=1)


def state(*chosen, fleet=FLEET, snapshot=None, **keys):
    chosen = [c if isinstance(c, Chosen) else Chosen(c, "live") for c in chosen]
    return EstimateState(lambda: chosen, fleet, snapshot, **keys)


def predicted(made):
    """The predictions of all models, as rows."""
    return [row for each in made if each.kind == "predictions" for row in each.batch.to_pylist()]


def values(made, **want):
    return [r["value"] for r in predicted(made) if all(r[k] == v for k, v in want.items())]


def mixed(n=40):
    """Samples of three devices in a random order, one with gaps and readings that are out of range."""
    rng, clock, samples = np.random.default_rng(1), defaultdict(int), []
    for _ in range(n):
        name = ("m1", "m2", "m3")[rng.integers(3)]
        clock[name] += 400 if name == "m3" and rng.random() < 0.2 else 5
        volts = 4.4 if name == "m3" and rng.random() < 0.3 else float(rng.uniform(3, 4))
        samples += drive(1, device=name, start=clock[name], volts=volts)
    return rows(*samples)


class TestStep:
    def reference(self, table):
        """Row by row, in plain Python."""
        carried, pending, out = {}, set(), []
        for row in table.to_pylist():
            device, volts = row["device_id"], row["cell_voltage_mean_volt"]
            if row["sample_interval_seconds"] == 0:
                pending.add(device)
            if not 2.5 <= volts <= 4.3 or row["sample_interval_seconds"] > 60:
                out.append(None)
                continue
            if device in pending:
                carried[device] = 0
                pending.discard(device)
            carried[device] = carried.get(device, 0) + 1
            out.append(carried[device] / 10)
        return out

    def test_each_device_is_carried_on_and_begins_anew_after_a_gap(self):
        table = mixed(200)
        assert (np.diff([len(set(table.column("device_id").to_pylist()))]) == 0).all()
        expected = self.reference(table)
        assert None in expected and max(filter(None, expected)) > 2
        found = values(state(Counter()).apply(table))
        assert found == [None if v is None else pytest.approx(v, abs=1e-5) for v in expected]

    def test_any_cut_and_any_restart_give_the_same_bits(self):
        table = mixed(120)
        whole = [row for row in predicted(state(Counter()).apply(table))]
        for size in (1, 2, 7, 50):
            now, out = state(Counter()), []
            for part in cut(table, list(range(size, len(table), size))):
                out += predicted(now.apply(part))
                now = state(Counter(), snapshot=pickle.loads(pickle.dumps(now.snapshot())))
            assert out == whole, size

    def test_calls_are_as_few_as_the_rows_of_the_busiest_device(self):
        model = Counter()
        state(model).apply(rows(*[s for k in range(30) for s in drive(1, device=f"m{k}")], *drive(3, start=9)))
        assert model.calls == 3

    def test_a_failure_is_one_of_the_rows_not_yet_answered(self):
        model = Counter()
        now = state(model)
        model.raise_at = 2
        late = (*drive(1, start=5), *drive(1, device="m2", start=5))
        table = rows(*drive(3), *drive(1, device="m2"), *late)
        found = predicted(now.apply(table.slice(0, 4)))
        assert [r["value"] for r in found] == [pytest.approx(0.1), None, None, pytest.approx(0.1)]
        assert [r["mode"] for r in found] == ["live", "fallback", "fallback", "live"]
        after = values(now.apply(table.slice(4)))
        assert after == [pytest.approx(0.1), pytest.approx(0.2)], "a neighbour is carried on"

    def test_numbers_that_are_none_are_not_carried(self):
        class Sick(Counter):
            def step(self, features, carried):
                out, on = super().step(features, carried)
                return out, on * np.where(out > 0.15, np.nan, 1)

        found = values(state(Sick()).apply(rows(*drive(4))))
        assert found == [pytest.approx(v) for v in (0.1, 0.2, 0.1, 0.2)]


class TestWindow:
    def test_a_window_is_full_before_there_is_a_value(self):
        found = predicted(state(Mean()).apply(rows(*drive(2, volts=3.3), *drive(1, start=2, volts=3.6))))
        assert [r["value"] for r in found] == [None, None, pytest.approx(3.4)]
        warm = [bool(r["quality_bits"] & Quality.WARM_UP) for r in found]
        assert warm == [True, True, False] and {r["mode"] for r in found} == {"live"}

    def test_any_cut_and_any_restart_give_the_same_bits(self):
        table = mixed(120)
        whole = predicted(state(Mean()).apply(table))
        assert sum(r["value"] is not None for r in whole) > 30
        for size in (1, 3, 50):
            now, out = state(Mean()), []
            for part in cut(table, list(range(size, len(table), size))):
                out += predicted(now.apply(part))
                now = state(Mean(), snapshot=pickle.loads(pickle.dumps(now.snapshot())))
            assert out == whole, size

    def test_large_batches_are_asked_in_parts(self, monkeypatch):
        from voltmill.operators import memory

        table = mixed(120)
        whole = predicted(state(Mean()).apply(table))
        monkeypatch.setattr(memory, "_WINDOW_NUMBERS", 12)
        assert predicted(state(Mean()).apply(table)) == whole

    def test_windows_move_on_while_the_model_fails(self):
        class Moody(Mean):
            down = True

            def predict(self, features):
                if self.down:
                    raise RuntimeError
                return super().predict(features)

        model = Moody()
        now = state(model)
        table = rows(*drive(4, volts=3.3), *drive(1, start=4, volts=3.6))
        found = predicted(now.apply(table.slice(0, 4)))
        assert [r["mode"] for r in found] == ["live", "live", "fallback", "fallback"]
        model.down = False
        assert values(now.apply(table.slice(4))) == [pytest.approx(3.4)]


def other(model, name, sha256=None, **contract):
    model.contract = msgspec.structs.replace(model.contract, name=name, **contract)
    model.sha256 = sha256 or name.encode().hex().ljust(64, "0")
    return model


class TestSeveral:
    def test_live_and_shadow(self):
        made = state(other(Line(), "a"), Chosen(other(Line(), "b"), "shadow")).apply(rows(*drive(2)))
        assert [(r["model_name"], r["mode"]) for r in predicted(made)] == [("a", "live")] * 2 + [("b", "shadow")] * 2

    def test_each_cell_type_has_its_own_and_nobody_s_devices_get_one_null(self):
        lfp = other(Line(), "lfp", cell_type="lfp-100", nominal_ah=100.0)
        counted = []
        now = state(lfp, Line(), on_unknown=counted.append)
        made = now.apply(rows(*drive(1, device="x"), *drive(1), *drive(1, device="lfp-1")))
        found = [(r["model_name"], r["device_id"], r["value"] is None) for r in predicted(made)]
        assert sorted(found) == [("lfp", "lfp-1", False), ("lfp", "x", True), ("line", "m", False)]
        assert counted == [1]

    def test_an_entry_chooses_by_name(self):
        fleet = Fleet([FleetEntry(match="m", cell_type="lg-hg2", capacity_ah=3.0, models=("b",))])
        made = state(other(Line(), "a"), other(Line(), "b"), fleet=fleet).apply(rows(*drive(1)))
        assert [r["model_name"] for r in predicted(made)] == ["b"]

    def test_a_model_of_any_cell(self):
        anyone = other(Line(), "anyone", cell_type="*", nominal_ah=0.0)
        made = state(anyone).apply(rows(*drive(1, device="lfp-1"), *drive(1, device="x")))
        assert [r["value"] is None for r in predicted(made)] == [False, True], "a device of no entry stays unknown"

    def test_a_fallback_model_speaks_where_the_live_one_failed(self):
        broken = other(Odd(lambda out: np.where(out > 80, np.nan, out)), "broken")
        spare = other(Odd(lambda out: out - np.float32([7, 0])), "spare")
        answers = []
        made = state(
            broken, Chosen(spare, "fallback"), on_answer=lambda m, n, k, e: answers.append((m.contract.name, n, k))
        )
        found = predicted(made.apply(rows(*drive(1, volts=3.5), *drive(1, device="m2", volts=3.9))))
        assert [(r["model_name"], r["mode"], r["value"]) for r in found] == [
            ("broken", "live", pytest.approx(50, abs=1e-3)),
            ("spare", "fallback", pytest.approx(83, abs=1e-3)),
        ]
        assert found[1]["model_sha256"] == spare.sha256 and found[1]["lo90"] < 83 < found[1]["hi90"]
        assert found[1]["quality_bits"] & Quality.MODEL_FAILED
        assert answers == [("spare", 2, 0), ("broken", 2, 1)]

    def test_a_fallback_model_speaks_for_its_own_target_only(self):
        broken = other(Odd(lambda out: out * np.nan), "broken")
        health = other(Line(), "health", target="soh")
        (found,) = predicted(state(broken, Chosen(health, "fallback")).apply(rows(*drive(1))))
        assert (found["target"], found["value"], found["model_name"]) == ("soc", None, "broken")

    def test_a_fallback_model_that_fails_as_well_leaves_coulomb_counting(self):
        broken = Odd(lambda out: out, fusion=FUSION)
        now, table = state(broken, Chosen(other(Odd(lambda out: 1 / 0), "spare"), "fallback")), rows(*drive(4))
        now.apply(table.slice(0, 3))
        broken.answer = lambda out: 1 / 0
        (found,) = predicted(now.apply(table.slice(3)))
        assert found["mode"] == "fallback" and found["model_name"] == "line" and found["value"] is not None


class TestMissing:
    def test_what_is_not_known_is_given_as_the_contract_says(self):
        class Warm(Line):
            def predict(self, features):
                return super().predict(features) + features[:, 1:2] * np.float32([1, 0])

        probe = Feature(name="cell_temperature_mean_celsius", offset=0, scale=1, low=-20, high=60, missing=5)
        table = rows(*drive(1, cell_temperature_celsius=[]), *drive(1, device="m2", cell_temperature_celsius=[9.0]))
        model = Warm(features=(CONTRACT.features[0], probe))
        assert values(state(model).apply(table)) == [pytest.approx(75, abs=1e-3), pytest.approx(79, abs=1e-3)]


class Slow(Line):
    """A remote model that answers when it may."""

    remote = True

    def __init__(self, **contract):
        super().__init__(**contract)
        self.may = threading.Event()

    def predict(self, features):
        if not self.may.wait(30):
            raise TimeoutError("nobody let it answer")
        return super().predict(features)


class TestRemote:
    def test_the_stream_goes_on_and_answers_come_in_order(self):
        model = Slow(fusion=FUSION)
        now, table = state(model, Chosen(other(Line(), "here"), "shadow")), rows(*drive(6))
        made = [each for k in range(6) for each in now.apply(table.slice(k, 1))]
        assert {r["model_name"] for r in predicted(made)} == {"here"} and now.waiting
        model.may.set()
        late = predicted(now.collect(wait=True))
        assert not now.waiting
        assert late == predicted(state(Line(fusion=FUSION)).apply(table)), "as if it had been asked on the spot"

    def test_rows_on_their_way_are_in_the_snapshot(self):
        model, table = Slow(fusion=FUSION), rows(*drive(6))
        now = state(model)
        for k in range(4):
            assert now.apply(table.slice(k, 1)) == []
        stored = pickle.loads(pickle.dumps(now.snapshot()))
        model.may.set()
        restored = state(model, snapshot=stored)
        found = predicted([*restored.collect(wait=True), *restored.apply(table.slice(4)), *restored.collect(wait=True)])
        assert found == predicted(state(Line(fusion=FUSION)).apply(table))
        now.collect(wait=True)

    def test_no_more_rows_are_on_their_way_than_the_queue_holds(self, monkeypatch):
        monkeypatch.setattr(remote, "BATCHES", 2)
        model, table = Slow(), rows(*drive(6))
        now = state(model)
        assert now.apply(table.slice(0, 1)) == now.apply(table.slice(1, 1)) == []
        threading.Timer(0.2, model.may.set).start()
        assert len(predicted(now.apply(table.slice(2, 1)))) == 1, "the third question waited for the first answer"
        assert len(predicted(now.collect(wait=True))) == 2

    def test_a_time_out_falls_back(self):
        class Late(Slow):
            def predict(self, features):
                raise TimeoutError("no answer within 5 s")

        now = state(Late(), Chosen(other(Line(), "spare"), "fallback"))
        made = [*now.apply(rows(*drive(2))), *now.collect(wait=True)]
        assert [(r["mode"], r["model_name"]) for r in predicted(made)] == [("fallback", "spare")] * 2
        (letter,) = [each.batch for each in made if each.kind == "failures"]
        assert "TimeoutError: no answer within 5 s" in letter.column("detail")[0].as_py()

    def test_in_a_flow(self, run_flow, tmp_path):
        model, out = Slow(fusion=FUSION), []
        table = rows(*drive(50))
        threading.Timer(0.3, model.may.set).start()
        flow = Dataflow("remote")
        batches = [("00", part) for part in cut(table, range(1, 50))]
        up = op.input("in", flow, TestingSource(batches))
        op.output(
            "out", estimate("e", up, models=lambda: [Chosen(model, "live")], fleet=FLEET).predictions, TestingSink(out)
        )
        run_flow(flow, recovery=tmp_path / "recovery")
        found = [row for _, batch in out for row in batch.to_pylist()]
        assert found == predicted(state(Line(fusion=FUSION)).apply(table))


class TestTakeOver:
    def test_only_after_a_snapshot_and_the_filter_goes_on(self):
        old, new = other(Line(fusion=FUSION), "soc", "01" * 32), other(Line(fusion=FUSION), "soc", "02" * 32)
        force = [Chosen(old, "live")]
        now, table = EstimateState(lambda: force, FLEET), rows(*drive(9))
        found = predicted(now.apply(table.slice(0, 3)))
        force = [Chosen(new, "live")]
        found += predicted(now.apply(table.slice(3, 3)))
        now.snapshot()
        found += predicted(now.apply(table.slice(6)))
        assert [r["model_sha256"] for r in found] == [old.sha256] * 6 + [new.sha256] * 3
        same = predicted(state(old).apply(table))
        assert [r["value"] for r in found] == [r["value"] for r in same], "as wide as it had become"

    def test_memory_of_another_model_is_not_its_own(self):
        force = [Chosen(other(Counter(), "c", "01" * 32), "live")]
        now, table = EstimateState(lambda: force, FLEET), rows(*drive(4))
        now.apply(table.slice(0, 3))
        now.snapshot()
        force = [Chosen(other(Counter(), "c", "02" * 32), "live")]
        assert values(now.apply(table.slice(3))) == [pytest.approx(0.1)]

    def test_answers_that_are_on_their_way_come_first(self):
        old = other(Slow(), "soc", "01" * 32)
        force = [Chosen(old, "live")]
        now, table = EstimateState(lambda: force, FLEET), rows(*drive(4))
        assert now.apply(table.slice(0, 2)) == []
        now.snapshot()
        force = [Chosen(other(Line(), "soc", "02" * 32), "live")]
        old.may.set()
        found = predicted(now.apply(table.slice(2)))
        assert [r["model_sha256"] for r in found] == [old.sha256] * 2 + ["02" * 32] * 2

    def test_a_model_more_begins_empty_and_the_others_go_on(self):
        force = [Chosen(Counter(), "live")]
        now, table = EstimateState(lambda: force, FLEET), rows(*drive(4))
        now.apply(table.slice(0, 3))
        now.snapshot()
        force = [*force, Chosen(other(Counter(), "more"), "shadow")]
        made = now.apply(table.slice(3))
        assert values(made, model_name="counter") == [pytest.approx(0.4)]
        assert values(made, model_name="more") == [pytest.approx(0.1)]


def test_offline_gives_what_the_stream_gives():
    table = mixed()
    found, failure = offline(table, Line(), FLEET)
    assert failure is None and {*found.column("mode").to_pylist()} == {"replay"}
    assert found.column("value").to_pylist() == values(state(Line()).apply(table))


def sessions(*kinds, soh=(3.1, 2.9)):
    """Session rows with two columns that a model could take."""
    n, start = len(kinds), datetime(2026, 1, 1, tzinfo=UTC)
    base = rows(*drive(n)).select(
        ["device_id", "event_time", "ingest_time", "quality_bits", "source", "source_partition", "source_offset"]
    )
    return pa.RecordBatch.from_arrays(
        [
            *base.columns,
            pa.array([start] * n, pa.timestamp("us", tz="UTC")),
            pa.array(kinds).dictionary_encode(),
            pa.array(np.linspace(*soh, n), pa.float32()),
            pa.array(np.linspace(0.9, 0.1, n), pa.float32()),
        ],
        names=[*base.schema.names, "start_time", "session", "measured_capacity_ah", "charge_fraction"],
    )


class Health:
    """SOH from the measured capacity."""

    sha256 = "0a" * 32

    def __init__(self, **contract):
        capacity = Feature(name="measured_capacity_ah", offset=0, scale=1, low=1, high=4)
        whole = {
            "target": "soh",
            "table": "sessions",
            "session": "discharge",
            "features": (capacity,),
            "outputs": ("value",),
            "conditions": ({"name": "charge_fraction", "low": 0.5, "high": 1.5},),
            "name": "health",
        }
        self.contract = msgspec.convert(msgspec.to_builtins(CONTRACT) | whole | contract, type(CONTRACT), strict=False)

    def predict(self, features):
        return features / 3 * 100


class TestSessions:
    def test_other_sessions_are_not_asked_about_and_short_ones_get_null_and_a_bit(self):
        made = state(Health()).apply(sessions("discharge", "charge", "discharge", "rest", "discharge"))
        found = predicted(made)
        assert [r["value"] for r in found] == [pytest.approx(3.1 / 3 * 100, abs=1e-3), pytest.approx(100, abs=1), None]
        assert [r["quality_bits"] for r in found] == [0, 0, Quality.PARTIAL_SESSION]

    def test_values_go_on_with_their_rows(self):
        shadow = Chosen(other(Health(), "other"), "shadow")
        made = state(Health(), shadow).apply(sessions("discharge", "rest", "discharge"))
        (on,) = [each.batch for each in made if each.kind == "values"]
        assert on.column("value").to_pylist() == [pytest.approx(3.1 / 3 * 100, abs=1e-3), None]
        assert {"charge_fraction", "lo90", "hi90", "session"} <= set(on.schema.names)

    def test_of_two_that_count_the_first_is_gone_on_from(self):
        second = other(Health(), "second")
        made = state(Health(), second).apply(sessions("discharge"))
        assert len(predicted(made)) == 2
        assert [len(each.batch) for each in made if each.kind == "values"] == [1]

    def test_a_device_nobody_was_made_for_gets_no_row(self):
        assert state(other(Health(), "h", cell_type="lfp-100")).apply(sessions("discharge")) == []
