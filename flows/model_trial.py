"""A model on trial: run on random rows within its ranges, before it meets those of a fleet.

A contract can be right in every word and the model still give no numbers, percent as fractions of 1, or
another value for the same row in other company: what `replay` relies on is found out here, in seconds.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from voltmill.operators.contract import Contract, Matrix
from voltmill.operators.model import Model, PredictModel, StepModel
from voltmill.operators.onnx_file import Facts

#: Values that can be, by target.
PLAUSIBLE: Final = {"soc": (0.0, 100.0), "soh": (0.0, 150.0), "rul": (0.0, np.inf)}
ROWS: Final = 500
SIZES: Final = (1, 2, 3, 7, 16, 64, 100, 333)
STEPS: Final = 1000
DEVICES: Final = 32
COST_ROWS: Final = (1, 100, 1000)
#: µs a row of 1,000 at which one core is taken up by 20,000 samples a second.
SLOW: Final = 50.0
_WIDEST: Final = 1e30  # so that the width of a range is a float32
_LAST_BITS: Final = 1e-4  # of the spread of the outputs: another order of sums explains no more


class Trial(NamedTuple):
    """What was found, a line each."""

    problems: list[str]
    warnings: list[str]
    facts: list[str]


def try_model(model: Model, facts: Facts | None = None, *, rows: int = ROWS, steps: int = STEPS) -> Trial:
    """Run a model on random rows within its valid ranges.

    Args:
        model: of any kind; not a remote one.
        facts: what its file says of itself, to explain what is found.
        rows: how many.
        steps: for the kind step: how long it goes on from its own state.
    """
    trial = Trial([], [], [])
    rng = np.random.default_rng(0)
    try:
        given = _given(model.contract, rows, rng)
        out = _run(model, given)
        trial.problems.extend(_not_finite(out))
        if trial.problems:
            return trial
        _judge_values(model.contract, out[0], trial)
        trial.problems.extend(_dependence(model, given, out, rng, facts))
        if model.contract.kind == "step":
            trial.problems.extend(_going_on(model, steps, rng))
        _time(model, rng, trial)
    except Exception as e:  # any model may fail in any way
        reason = (str(e).strip() or type(e).__name__).splitlines()[0][:160]
        trial.problems.append(f"raises on rows within its ranges: {reason}")
    return trial


def _given(contract: Contract, rows: int, rng: np.random.Generator) -> list[Matrix]:
    """Random rows within the ranges, and for the kind step a state that is not all zeros."""
    low, high = (np.array([getattr(f, end) for f in contract.features]) for end in ("low", "high"))
    low, high = low.clip(-_WIDEST, _WIDEST), high.clip(-_WIDEST, _WIDEST)
    shape = (contract.window_rows,) if contract.kind == "window" else ()
    x = rng.uniform(low, high, (rows, *shape, len(low))).astype(np.float32)
    x = x.clip(low.astype(np.float32), high.astype(np.float32))
    state = rng.uniform(-0.5, 0.5, (rows, contract.state_size)).astype(np.float32)
    return [x, state] if contract.kind == "step" else [x]


def _run(model: Model, given: Sequence[Matrix]) -> list[Matrix]:
    if isinstance(model, StepModel) and model.contract.kind == "step":
        return list(model.step(given[0], given[1]))
    assert isinstance(model, PredictModel)
    return [model.predict(given[0])]


def _not_finite(out: Sequence[Matrix]) -> Iterator[str]:
    for what, values in zip(("outputs", "state"), out, strict=False):
        wrong = np.asarray(~np.isfinite(values).all(axis=1))
        if wrong.any():
            yield (
                f"{what}: {wrong.sum()} of {len(wrong)} random rows within the ranges give NaN or infinity: narrow low "
                "and high to what it was trained on, and look for a logarithm, a root or a division in it"
            )


def _judge_values(contract: Contract, out: Matrix, trial: Trial) -> None:
    value = out[:, 0]
    low, high = PLAUSIBLE[contract.target]
    share = float(np.mean((value < low) | (value > high)))
    found = f"{share:.0%} of random rows within the ranges give {contract.target} outside {low:g} to {high:g}"
    span = f"lowest {value.min():.4g}, highest {value.max():.4g}"
    if contract.unit == "percent" and np.abs(value).max() <= 1.5:
        trial.problems.append(
            f"outputs: value: {span}: these look like fractions of 1, {contract.unit} is wanted: multiply by 100 in "
            "the model"
        )
    elif not low <= np.median(value) <= high:
        trial.problems.append(
            f"outputs: value: {found} ({span}): look for another unit, a target that was scaled for training, or "
            "offset and scale that the model applies as well"
        )
    elif share:
        ending = "" if contract.fusion else ": a value is stored as it is given"
        trial.warnings.append(f"outputs: value: {found} ({span}){ending}")
    if np.ptp(value) < 1e-6 * max(1.0, float(np.abs(value).max())):
        trial.warnings.append(
            f"outputs: value: it is {value[0]:.6g} whatever the input: look for offset and scale that the model "
            "applies as well, or for weights that were never trained"
        )
    names = contract.outputs
    if "laplace_scale" in names and (out[:, 1] <= 0).any():
        trial.problems.append("outputs: laplace_scale: some are 0 or below: end it in softplus or exp")
    if "lo90" in names and (crossed := float(np.mean((out[:, 1] > value) | (value > out[:, 2])))):
        line = f"outputs: lo90, hi90: the value is outside its interval in {crossed:.0%} of random rows"
        (trial.problems if crossed > 0.5 else trial.warnings).append(f"{line}: such a row counts as failed")


def _dependence(
    model: Model, given: list[Matrix], out: list[Matrix], rng: np.random.Generator, facts: Facts | None
) -> Iterator[str]:
    """Whether a row gives the same bits again, in other batches and in other company; the first that differs."""
    rows = len(given[0])
    if worst := _difference(out, _run(model, given)):
        yield f"two runs on the same rows differ by up to {worst:.2g}: {_why(worst, out, facts)}"
        return
    for size in SIZES:
        parts = [_run(model, [each[at : at + size] for each in given]) for at in range(0, rows, size)]
        if worst := _difference(out, [np.concatenate(side) for side in zip(*parts, strict=True)]):
            yield f"a row differs by up to {worst:.2g} in batches of {size}: {_why(worst, out, facts)}"
            return
    order = rng.permutation(rows)
    order[order < rows // 2] = order[0]  # half of them beside the same row over and over
    if worst := _difference([side[order] for side in out], _run(model, [each[order] for each in given])):
        yield f"a row differs by up to {worst:.2g} in other company: {_why(worst, out, facts)}"


def _difference(left: Sequence[Matrix], right: Sequence[Matrix]) -> float:
    """The largest difference; 0 where the bits are the same."""
    if all(a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True)):
        return 0.0
    worst = max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))
    return worst or float(np.finfo(np.float32).tiny)


def _why(worst: float, out: Sequence[Matrix], facts: Facts | None) -> str:
    """What makes rows depend on others, and how to mend it."""
    operators = facts.operators if facts else frozenset()
    if facts and facts.training:
        return f"{', '.join(sorted(facts.training))} is in training mode: call model.eval() before the export"
    if quantised := sorted(name for name in operators if name.startswith("DynamicQuantize")):
        return f"{quantised[0]} takes its scale from the whole batch: quantise with fixed scales, or leave it float32"
    if drawn := sorted(name for name in operators if name.startswith("Random") or name in ("Bernoulli", "Multinomial")):
        return f"{drawn[0]} draws random numbers: export the model for inference"
    if worst <= _LAST_BITS * max(float(np.ptp(side)) for side in out):
        return "sums are taken in another order: export it with MatMul or Gemm for its products, or in smaller layers"
    return "something is computed across rows: look for a mean, a maximum or a normalisation over the first dimension"


def _going_on(model: Model, steps: int, rng: np.random.Generator) -> Iterator[str]:
    """Whether the state stays within bounds over many steps from zeros."""
    state = np.zeros((DEVICES, model.contract.state_size), np.float32)
    early = 0.0
    for step in range(1, steps + 1):
        out, state = _run(model, [_given(model.contract, DEVICES, rng)[0], state])
        if not (np.isfinite(out).all() and np.isfinite(state).all()):
            yield f"state: no number any more after {step} steps from zeros: it grows; bound it (tanh, or clip it)"
            return
        if step == steps // 2:
            early = float(np.abs(state).max())
    if (late := float(np.abs(state).max())) > max(1e6, 1.5 * early):
        yield f"state: {early:.2g} after {steps // 2} steps, {late:.2g} after {steps}: it grows; bound it"


def _time(model: Model, rng: np.random.Generator, trial: Trial) -> None:
    """The cost of a row, µs."""
    costs = {rows: _cost(model, _given(model.contract, rows, rng)) for rows in COST_ROWS}
    trial.facts.append("cost of a row: " + ", ".join(f"{costs[rows]:.3g} µs in {rows}" for rows in COST_ROWS))
    at_best = costs[COST_ROWS[-1]]
    if at_best > SLOW and model.contract.table == "features":
        trial.warnings.append(f"{at_best:.0f} µs a row: one core then takes {1e6 / at_best:,.0f} samples a second")


def _cost(model: Model, given: list[Matrix], seconds: float = 0.05) -> float:
    best, until = np.inf, time.perf_counter() + seconds
    while True:
        began = time.perf_counter()
        _run(model, given)
        now = time.perf_counter()
        best = min(best, now - began)
        if now >= until:
            return 1e6 * float(best) / len(given[0])
