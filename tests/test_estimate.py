"""estimate with models of a few lines: who gets a value, who gets null and why, and what a failure costs."""

import math

import bytewax.operators as op
import msgspec
import numpy as np
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource
from telemetry import batch, sample

from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.kernels.schema import DEAD_LETTER, PREDICTION, Quality
from voltmill.operators.estimate import EstimateState, estimate
from voltmill.operators.features import offline
from voltmill.operators.model import Chosen, Contract, Feature, Fusion, Model

FLEET = Fleet(
    [
        FleetEntry(match="m*", cell_type="lg-hg2", capacity_ah=3.0),
        FleetEntry(match="lfp*", cell_type="lfp-100", capacity_ah=100.0),
        FleetEntry(match="bare*", cell_type="lg-hg2"),
    ]
)
CONTRACT = Contract(
    kind="features",
    name="line",
    version="1",
    target="soc",
    unit="percent",
    features=(
        Feature(name="cell_voltage_mean_volt", offset=0, scale=1, low=2.5, high=4.3),
        Feature(name="c_rate", offset=0, scale=1, low=-3, high=3),
    ),
    outputs=("value", "laplace_scale"),
    current_sign="positive_while_charging",
    dt_range_seconds=(0.5, 60.0),
    cell_type="lg-hg2",
    nominal_ah=3.0,
    training_data_sha256="00" * 32,
)
FUSION = Fusion(process_noise=1e-4, current_noise=0.02, correlation_seconds=300.0, interval_factor=1.645)


class Line:
    """SOC from the voltage alone: 3 V is empty, 4 V is full."""

    sha256 = "ab" * 32

    def __init__(self, **contract):
        self.contract = msgspec.structs.replace(CONTRACT, **contract)
        self.asked = 0

    def predict(self, features):
        self.asked += len(features)
        value = 100 * (features[:, 0] - 3)
        return np.column_stack([value, np.full_like(value, 2.0)]).astype(np.float32)


class Odd(Line):
    """Gives what it is told to; where that raises, it raises."""

    def __init__(self, answer, **contract):
        super().__init__(**contract)
        self.answer = answer

    def predict(self, features):
        return self.answer(super().predict(features))


def drive(n, *, device="m", start=0, amps=-3.0, volts=3.7, **change):
    return [
        sample(start + k, device_id=device, current_ampere=amps, cell_voltage_volt=[volts] * 3, **change)
        for k in range(n)
    ]


def rows(*samples, fleet=FLEET):
    return offline(batch(samples), fleet)


def choice(model, mode="live"):
    return lambda: [Chosen(model, mode)]


def split(made):
    """The predictions of one model, and its failure."""
    found = {each.kind: each.batch for each in made}
    assert len(found) == len(made)
    return found["predictions"], found.get("failures")


def run(model, *samples, state=None):
    state = state or EstimateState(choice(model), FLEET)
    predictions, failure = split(state.apply(rows(*samples)))
    assert predictions.schema.equals(PREDICTION) and len(predictions) == len(samples)
    predictions.validate(full=True)
    return predictions.to_pydict(), failure


def test_a_python_class_is_a_model():
    assert isinstance(Line(), Model)
    found, failure = run(Line(), *drive(3, volts=3.6))
    assert failure is None
    assert found["value"] == pytest.approx([60.0] * 3, abs=1e-3)
    half = 2.0 * math.log(10)
    assert found["lo90"] == pytest.approx([60 - half] * 3, abs=1e-3)
    assert found["hi90"] == pytest.approx([60 + half] * 3, abs=1e-3)
    assert found["mode"] == ["live"] * 3 and found["quality_bits"] == [0] * 3
    assert set(found["target"]) == {"soc"} and set(found["unit"]) == {"percent"}
    assert (found["model_name"][0], found["model_version"][0]) == ("line", "1")
    assert found["model_sha256"] == ["ab" * 32] * 3


def test_a_model_that_gives_its_own_interval():
    class Between(Line):
        def predict(self, features):
            value = super().predict(features)[:, :1]
            return np.hstack([value, value - 1, value + 3])

    found, _ = run(Between(outputs=("value", "lo90", "hi90")), *drive(1, volts=3.5))
    assert (found["lo90"], found["hi90"]) == ([pytest.approx(49, abs=1e-3)], [pytest.approx(53, abs=1e-3)])


def test_a_model_without_an_interval():
    class Alone(Line):
        def predict(self, features):
            return super().predict(features)[:, :1]

    found, _ = run(Alone(outputs=("value",)), *drive(1))
    assert found["value"] != [None] and found["lo90"] == found["hi90"] == [None]


class TestUnknown:
    def test_no_entry_another_cell_type_and_no_capacity(self):
        model = Line()
        found, failure = run(model, *drive(1, device="x"), *drive(1, device="lfp-1"), *drive(1, device="bare"))
        assert failure is None and model.asked == 0
        unknown, domain = Quality.UNKNOWN_CELL, Quality.OUT_OF_DOMAIN
        assert found["quality_bits"] == [unknown, unknown, domain]  # without a capacity there is no C-rate
        for name in ("value", "lo90", "hi90"):
            assert found[name] == [None] * 3

    def test_neighbours_get_theirs(self):
        found, _ = run(Line(), *drive(1, device="x"), *drive(1), *drive(1, device="lfp-1"))
        assert [v is None for v in found["value"]] == [True, False, True]

    def test_each_is_counted_once_and_again_after_a_restart(self):
        counted = []
        state = EstimateState(choice(Line()), FLEET, None, on_unknown=counted.append)
        for k in range(3):
            state.apply(rows(*drive(1, device="x", start=k), *drive(1, device="lfp-1", start=k), *drive(1, start=k)))
        assert counted == [2]
        state.apply(rows(*drive(1, device="y")))
        assert counted == [2, 1]
        again = []
        restored = EstimateState(choice(Line()), FLEET, state.snapshot(), on_unknown=again.append)
        restored.apply(rows(*drive(1, device="y", start=9)))
        assert again == [3]  # a counter of a process begins at 0

    def test_an_entry_that_is_added_later_ends_it(self):
        state = EstimateState(choice(Line()), Fleet())
        late = Fleet([FleetEntry(match="x", cell_type="lg-hg2", capacity_ah=3.0)])
        state.apply(rows(*drive(1, device="x"), fleet=late))
        counted = []
        restored = EstimateState(choice(Line()), late, state.snapshot(), on_unknown=counted.append)
        found, _ = split(restored.apply(rows(*drive(1, device="x"), fleet=late)))
        assert found.column("value").null_count == 0 and counted == []


class TestDomain:
    @pytest.mark.parametrize(
        "change",
        [
            {"cell_voltage_volt": [4.4]},
            {"current_ampere": -9.3},
            {"current_ampere": math.nan},
            {"cell_voltage_volt": []},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("fusion", [None, FUSION])
    def test_outside_or_missing(self, change, fusion):
        model = Line(fusion=fusion)
        found, failure = run(model, *drive(2), sample(2, **change), *drive(2, start=3))
        assert failure is None and model.asked == 4
        assert (
            [v is None for v in found["value"]]
            == [v is None for v in found["hi90"]]
            == [False] * 2 + [True, False, False]
        )
        assert [bool(b & Quality.OUT_OF_DOMAIN) for b in found["quality_bits"]] == [False] * 2 + [True, False, False]
        assert found["mode"] == ["live"] * 5

    def test_the_interval_between_samples(self):
        found, _ = run(Line(), *[sample(t, cell_voltage_volt=[3.7]) for t in (0, 0.4, 1, 61, 121.1, 1000)])
        outside = [bool(b & Quality.OUT_OF_DOMAIN) for b in found["quality_bits"]]
        assert outside == [False, True, False, False, True, False]  # the last one begins anew


class TestFailure:
    answers = {
        "raises": lambda out: 1 / 0,
        "too wide": lambda out: np.hstack([out, out]),
        "too short": lambda out: out[:-1],
        "flat": lambda out: out.ravel(),
        "nothing": lambda out: None,
        "text": lambda out: out.astype(str).astype(object) + "?",
        "NaN": lambda out: out * np.nan,
        "no scale": lambda out: out * np.float32([1, 0]),
    }

    @pytest.mark.parametrize("answer", answers.values(), ids=answers)
    def test_charge_is_counted_on_and_the_model_comes_back(self, answer):
        model = Odd(lambda out: out, fusion=FUSION)
        state = EstimateState(choice(model), FLEET)
        telemetry = rows(*drive(120))  # 3 A of 3 Ah: a percent every 36 s
        sound, failure = split(state.apply(telemetry.slice(0, 10)))
        assert failure is None
        model.answer = answer
        parts = [split(state.apply(telemetry.slice(k, 10))) for k in range(10, 110, 10)]
        for predictions, failure in parts:
            assert len(predictions) == 10
            assert failure.schema.equals(DEAD_LETTER) and len(failure) == 1
            failure.validate(full=True)
            assert "10 rows" in failure.column("detail")[0].as_py()
            assert failure.column("reason").to_pylist() == ["model_failed"]
            assert failure.column("stage").to_pylist() == ["estimate"]
            assert predictions.column("mode").to_pylist() == ["fallback"] * 10
            assert all(b & Quality.MODEL_FAILED for b in predictions.column("quality_bits").to_pylist())
            assert predictions.column("value").null_count == predictions.column("lo90").null_count == 0
        first, last = (p[0].to_pydict() for p in (parts[0], parts[-1]))
        assert last["value"][-1] == pytest.approx(sound.column("value")[-1].as_py() - 100 / 36, abs=1e-2)
        assert last["hi90"][-1] - last["lo90"][-1] > first["hi90"][0] - first["lo90"][0]
        model.answer = lambda out: out
        back, failure = split(state.apply(telemetry.slice(110)))
        assert failure is None
        assert back.column("mode").to_pylist() == ["live"] * 10 and not any(back.column("quality_bits").to_pylist())

    def test_without_a_first_value_there_is_nothing_to_count_from(self):
        found, failure = run(Odd(lambda out: 1 / 0, fusion=FUSION), *drive(2))
        assert failure is not None
        assert found["value"] == [None] * 2 and found["mode"] == ["fallback"] * 2

    def test_without_fusion_there_is_no_fallback_value(self):
        found, _ = run(Odd(lambda out: 1 / 0), *drive(2))
        assert found["value"] == [None] * 2 and found["quality_bits"] == [Quality.MODEL_FAILED] * 2

    @pytest.mark.parametrize("fusion", [None, FUSION])
    def test_one_row_without_a_number_takes_no_neighbour_along(self, fusion):
        def answer(out):
            out[out[:, 0] > 80] = np.nan
            return out

        model = Odd(answer, fusion=fusion)
        samples = [*drive(2), *drive(1, device="m2", volts=3.9), *drive(2, start=2)]
        found, failure = run(model, *samples)
        assert [bool(b & Quality.MODEL_FAILED) for b in found["quality_bits"]] == [False, False, True, False, False]
        assert found["mode"] == ["live", "live", "fallback", "live", "live"]
        assert "1 rows" in failure.column("detail")[0].as_py()

    def test_the_dead_letter_names_the_first_row_that_failed(self):
        def answer(out):
            return np.where(out > 80, np.nan, out)

        samples = [*drive(3, source_offset=1), *drive(1, device="m2", volts=3.9, source_offset=77)]
        _, failure = run(Odd(answer), *samples)
        assert failure.column("source_offset").to_pylist() == [77]

    def test_unknown_devices_do_not_fail(self):
        found, _ = run(Odd(lambda out: 1 / 0), *drive(1, device="x"), *drive(1))
        assert found["mode"] == ["live", "fallback"]
        assert found["quality_bits"] == [Quality.UNKNOWN_CELL, Quality.MODEL_FAILED]


def test_bits_of_the_sample_travel_on():
    found, _ = run(Line(), sample(0, quality_bits=int(Quality.UNIT_CONVERTED)), sample(100))
    assert found["quality_bits"] == [Quality.UNIT_CONVERTED, Quality.GAP_BEFORE | Quality.OUT_OF_DOMAIN]


def test_the_features_are_left_alone():
    before = rows(*drive(3), *drive(1, device="x"))
    copy = before.to_pydict()
    EstimateState(choice(Line(fusion=FUSION, warm_up_seconds=60.0)), FLEET).apply(before)
    assert str(before.to_pydict()) == str(copy)  # as text: NaN is not NaN


def test_warm_up():
    found, _ = run(Line(fusion=FUSION, warm_up_seconds=3.0), *drive(6))
    assert [bool(b & Quality.WARM_UP) for b in found["quality_bits"]] == [True] * 3 + [False] * 3


def test_no_rows():
    assert EstimateState(choice(Line(fusion=FUSION)), FLEET).apply(rows()) == []


def test_the_operator_gives_predictions_and_failures_and_drops_none(run_flow, tmp_path):
    flow, predictions, failures = Dataflow("test"), [], []
    model = Odd(lambda out: 1 / 0 if (out[:, 0] > 80).any() else out, fusion=FUSION)
    batches = [("00", rows(*drive(4))), ("01", rows(*drive(3, volts=3.9))), ("00", rows(*drive(2, device="x")))]
    out = estimate("soc", op.input("in", flow, TestingSource(batches)), models=choice(model, "shadow"), fleet=FLEET)
    op.output("predictions", out.predictions, TestingSink(predictions))
    op.output("failures", out.failures, TestingSink(failures))
    run_flow(flow, recovery=tmp_path / "recovery")
    assert sorted((k, len(b)) for k, b in predictions) == [("00", 2), ("00", 4), ("01", 3)]
    assert [(k, len(b)) for k, b in failures] == [("01", 1)]
    assert {m for _, b in predictions for m in b.column("mode").to_pylist()} == {"shadow", "fallback"}
