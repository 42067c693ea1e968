"""The Kalman filter that fuses a SOC model with coulomb counting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltmill.kernels.fusion import COASTED, FUSION_STATE, MEASURED, WITHHELD, fuse
from voltmill.kernels.schema import Quality

TUNED = dict(process_noise=1e-4, current_noise=0.02, correlation_seconds=300.0, interval_factor=1.645)


class Filter:
    """`fuse` with its state and its outputs allocated."""

    def __init__(self, slots=1, warm_up_seconds=0.0, **tuned):
        self.state = np.zeros(slots, FUSION_STATE)
        self.settings = (*(TUNED | tuned).values(), warm_up_seconds)

    def __call__(self, mean, *, slots=0, use=MEASURED, charge=0.0, dt=5.0, usable=3.0, scale=2.0):
        n = len(mean)
        column = lambda x, t: np.ascontiguousarray(np.broadcast_to(np.asarray(x, t), n))  # noqa: E731
        value, lo, hi = (np.zeros(n, np.float32) for _ in range(3))
        bits = np.zeros(n, np.uint32)
        fuse(
            self.state,
            column(slots, np.int64),
            column(use, np.uint8),
            column(charge, np.float64),
            column(dt, np.float64),
            column(usable, np.float64),
            column(mean, np.float32),
            column(scale, np.float32),
            *self.settings,
            value,
            lo,
            hi,
            bits,
        )
        return value, lo, hi, bits


def test_first_value_is_the_models_own_with_its_own_interval():
    value, lo, hi, _ = Filter()([60.0], dt=0.0)
    half = 1.645 * np.sqrt(2 * 2.0**2)
    assert value[0] == 60 and lo[0] == pytest.approx(60 - half) and hi[0] == pytest.approx(60 + half)


def test_noise_of_the_model_is_averaged_while_the_charge_is_followed():
    rng = np.random.default_rng(1)
    n, dt, usable = 1440, 5.0, 3.0
    charge = np.full(n, -1.0 * dt / 3600)
    truth = 90 + 100 * np.cumsum(charge) / usable
    value, lo, hi, _ = Filter()(truth + rng.laplace(0, 2, n), charge=charge, dt=dt, usable=usable)
    late = slice(n // 4, None)
    assert np.abs(value - truth)[late].mean() < 0.5  # the model alone: 2.0
    assert ((lo <= truth) & (truth <= hi))[late].mean() > 0.9
    assert (hi - lo)[-1] < (hi - lo)[0] / 2


def test_wrong_current_offset_is_held_by_the_model():
    n, dt = 4000, 5.0
    value, *_ = Filter(process_noise=1e-3)(np.full(n, 50.0), charge=0.05 * dt / 3600, dt=dt)
    assert abs(value[-1] - 50) < 1  # counting alone would be 9 points off


def test_samples_count_by_the_time_between_them():
    """Errors are correlated: the same hour sampled ten times as often is no ten times the knowledge."""
    often, seldom = Filter(), Filter()
    often(np.full(3600, 50.0), dt=1.0)
    seldom(np.full(360, 50.0), dt=10.0)
    assert often.state["variance"][0] == pytest.approx(seldom.state["variance"][0], rel=0.1)


def test_out_of_domain_gives_none_but_counts_the_charge():
    run = Filter()
    run([80.0], dt=0.0)
    value, lo, hi, _ = run([np.nan] * 720, use=WITHHELD, charge=-1.5 * 5 / 3600)
    assert np.isnan([value, lo, hi]).all()
    assert run.state["soc"][0] == pytest.approx(80 - 50)


def test_fallback_counts_on_with_a_growing_interval():
    run = Filter()
    run([80.0], dt=0.0)
    value, lo, hi, _ = run([np.nan] * 720, use=COASTED, charge=-1.5 * 5 / 3600)
    assert value[-1] == pytest.approx(30, abs=1e-3)
    assert (np.diff(hi - lo) > 0).all()


def test_fallback_without_any_estimate_gives_none():
    value, *_ = Filter()([50.0, 50.0], use=COASTED, dt=[0.0, 5.0])
    assert np.isnan(value).all()


@pytest.mark.parametrize(("mean", "scale"), [(np.nan, 2.0), (np.inf, 2.0), (50.0, np.nan), (50.0, 0.0), (50.0, np.inf)])
def test_a_model_value_that_is_none_is_withheld(mean, scale):
    run = Filter()
    run([80.0], dt=0.0)
    value, *_ = run([mean], scale=scale)
    assert np.isnan(value[0])
    assert run.state["soc"][0] == 80


@pytest.mark.parametrize(("charge", "usable"), [(np.nan, 3.0), (0.1, 0.0), (0.1, np.nan)])
def test_unknown_charge_widens_the_interval_more_than_a_known_one(charge, usable):
    known, unknown = Filter(), Filter()
    for run in (known, unknown):
        run([80.0], dt=0.0)
    known([np.nan], use=COASTED, dt=60.0)
    value, *_ = unknown([np.nan], use=COASTED, dt=60.0, charge=charge, usable=usable)
    assert value[0] == 80
    assert unknown.state["variance"][0] > known.state["variance"][0]


def test_after_a_long_gap_the_model_is_trusted_again():
    run = Filter(current_noise=0.3, warm_up_seconds=300.0)
    run(np.full(720, 80.0))
    value, *_ = run([20.0], dt=8 * 3600.0)
    assert value[0] == pytest.approx(20, abs=2)


def test_interval_zero_starts_anew():
    """The features start anew after a gap that is too long to bridge; so does the filter."""
    run = Filter(warm_up_seconds=300.0)
    run(np.full(720, 80.0))
    value, lo, hi, bits = run([20.0], dt=0.0)
    assert value[0] == 20 and hi[0] - lo[0] > 8
    assert bits[0] == Quality.WARM_UP


def test_a_row_without_features_leaves_the_filter_as_it_is():
    run = Filter()
    run(np.full(720, 80.0))
    before = run.state.copy()
    value, *_ = run([20.0, 20.0], dt=np.nan, charge=np.nan, use=[MEASURED, COASTED])
    assert np.isnan(value[0]) and value[1] == pytest.approx(80)
    assert run.state == before


def test_warm_up_bit_ends_with_the_warm_up():
    *_, bits = Filter(warm_up_seconds=60.0)([50.0] * 20, dt=np.r_[0.0, np.full(19, 5.0)])
    assert bits.tolist() == [Quality.WARM_UP] * 12 + [0] * 8


@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from([MEASURED, WITHHELD, COASTED]),
            st.floats(-50, 150) | st.just(np.nan),
            st.floats(1e-3, 50),
            st.floats(-0.1, 0.1) | st.just(np.nan),
            st.floats(0, 1e5) | st.just(np.nan),
        ),
        min_size=1,
        max_size=60,
    ),
    cut=st.integers(0, 60),
)
@settings(deadline=None, max_examples=60)
def test_any_rows(rows, cut):
    """Bounds hold; cutting the batch changes no bit; a device sees nothing of the others."""
    slots, use, mean, scale, charge, dt = map(np.array, zip(*rows, strict=True))
    keys = dict(slots=slots, use=use, scale=scale, charge=charge, dt=dt)
    whole = Filter(4, warm_up_seconds=600.0)
    out = np.array(whole(mean, **keys))
    value, lo, hi, _ = out
    there = ~np.isnan(value)
    assert (np.isnan(lo) == ~there).all() and (np.isnan(hi) == ~there).all()
    assert ((0 <= lo) & (lo <= value) & (value <= hi) & (hi <= 100))[there].all()

    parts = Filter(4, warm_up_seconds=600.0)
    pieces = [parts(mean[p], **{k: v[p] for k, v in keys.items()}) for p in (slice(0, cut), slice(cut, None))]
    assert np.concatenate(pieces, axis=1).tobytes() == out.tobytes()
    assert parts.state.tobytes() == whole.state.tobytes()

    mine = slots == slots[0]
    alone = np.array(Filter(4, warm_up_seconds=600.0)(mean[mine], **{k: v[mine] for k, v in keys.items()}))
    assert alone.tobytes() == out[:, mine].tobytes()
