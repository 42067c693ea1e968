"""What holds for every model that is found: a new model gets every check for free."""

import numpy as np
import pytest

from voltmill.kernels.feature_table import features
from voltmill.kernels.schema import PREDICTION
from voltmill.operators.model import SHIPPED, discover

FOUND = discover(known_features={f.name for f in features()})


def test_every_model_that_is_found_loads():
    assert FOUND.problems == []
    assert {p.stem for p in SHIPPED.glob("*.onnx")} <= set(FOUND.models)


def inside(model, rows: int, seed: int = 0) -> np.ndarray:
    """Random features within the valid ranges."""
    low, high = (np.array([getattr(f, end) for f in model.contract.features], np.float32) for end in ("low", "high"))
    return np.random.default_rng(seed).uniform(low, high, (rows, len(low))).astype(np.float32)


@pytest.fixture(params=sorted(FOUND.models))
def model(request):
    return FOUND.models[request.param]


@pytest.mark.parametrize("rows", [0, 1, 2, 5000])
def test_shape_and_type(model, rows):
    out = model.predict(inside(model, rows))
    assert out.shape == (rows, len(model.contract.outputs)) and out.dtype == np.float32


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 100, 1000, 4096])
def test_a_row_is_the_same_to_the_bit_at_every_batch_size(model, size):
    x = inside(model, 5001)
    whole = model.predict(x).tobytes()
    assert b"".join(model.predict(x[i : i + size]).tobytes() for i in range(0, len(x), size)) == whole


def test_a_row_is_the_same_to_the_bit_in_random_cuts_and_company(model):
    rng = np.random.default_rng(1)
    x = inside(model, 5001)
    whole = model.predict(x)
    cuts = [0, *np.sort(rng.integers(0, len(x), 200)).tolist(), len(x)]
    parts = [model.predict(x[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    order = rng.permutation(len(x))
    assert model.predict(x[order]).tobytes() == whole[order].tobytes()
    assert model.predict(np.asfortranarray(x)).tobytes() == whole.tobytes()


def test_the_input_is_left_alone(model):
    x = inside(model, 100)
    before = x.copy()
    model.predict(x)
    assert x.tobytes() == before.tobytes()


def test_within_its_domain_the_outputs_are_numbers(model):
    x = inside(model, 20_000)
    out = model.predict(x)
    assert model.contract.in_domain(x).all()
    assert np.isfinite(out).all()
    if "laplace_scale" in model.contract.outputs:
        assert (out[:, model.contract.outputs.index("laplace_scale")] > 0).all()


def test_rows_outside_every_domain_raise_nothing_and_harm_no_neighbour(model):
    x = inside(model, 64)
    bad = x.copy()
    bad[::2] = np.array([np.nan, np.inf, -np.inf, 1e30], np.float32)[np.arange(32) % 4][:, None]
    assert not model.contract.in_domain(bad)[::2].any()
    assert model.predict(bad)[1::2].tobytes() == model.predict(x)[1::2].tobytes()


def test_it_says_how_wrong_it_is(model):
    """Errors are measured and the worst is named: a model without them cannot be trusted by anyone."""
    assert model.contract.errors
    for case, figures in model.contract.errors.items():
        assert {"mae", "rmse", "worst"} <= set(figures), case
        assert 0 < figures["mae"] <= figures["rmse"] <= figures["worst"], case
    assert len(bytes.fromhex(model.contract.training_data_sha256)) == 32


def test_its_names_fit_a_prediction(model):
    c = model.contract
    assert {"target", "unit", "model_name", "model_version", "model_sha256"} <= set(PREDICTION.names)
    assert c.name and c.version and len(bytes.fromhex(model.sha256)) == 32


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.onnx")), ids=lambda p: p.stem)
def test_a_shipped_model_has_a_card_with_the_figures_of_its_contract(path):
    card = path.with_suffix(".md").read_text()
    contract = FOUND.models[path.stem].contract
    assert contract.training_data_sha256 in card
    for case, figures in contract.errors.items():
        if "/" not in case:
            assert f"{figures['mae']:.2f} | {figures['rmse']:.2f} | {figures['worst']:.1f}" in card, case
    for heading in ("Data", "Errors", "Must not be used for", "How to retrain"):
        assert f"## {heading}" in card
