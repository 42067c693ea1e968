"""The contract of a model: what it takes, what it gives, where it holds, how wrong it was measured to be.

It is stored as JSON in the metadata of an ONNX file, so a model and its contract cannot part; a model
behind HTTP has it in a file of its own.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]

#: The outputs that a model may have.
OUTPUTS: Final = (("value",), ("value", "laplace_scale"), ("value", "lo90", "hi90"))
#: Numbers that a model may keep of one device: 16 KB, written with every snapshot.
CARRIED_MAX: Final = 4096


class Feature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One input of a model: network input = (x - offset) / scale."""

    name: str
    """Column of the table."""
    offset: float
    """Subtracted, in the feature's unit."""
    scale: float
    """Divided by, in the feature's unit; above 0."""
    low: float
    """Lowest value the model was made for, in the feature's unit."""
    high: float
    """Highest value the model was made for, in the feature's unit."""
    missing: float | None = None
    """What the model is given where the value is not known; not given: then it is not asked."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not (self.scale > 0 and np.isfinite(self.scale)):
            raise ValueError("scale is above 0: 1 if the model takes the column as it is")
        if not np.isfinite(self.offset):
            raise ValueError("offset is finite: 0 if the model takes the column as it is")
        if not self.low < self.high:
            raise ValueError("low is below high")
        if self.missing is not None and not self.low <= self.missing <= self.high:
            raise ValueError("missing lies from low to high")


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A column that is no input, but says whether the model may be asked about a row."""

    name: str
    """Column of the table."""
    low: float
    """Lowest value that is good enough, in the column's unit."""
    high: float
    """Highest value that is good enough, in the column's unit."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not self.low <= self.high:
            raise ValueError("low is at most high")


class Fusion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the model is fused with coulomb counting (`voltmill.kernels.fusion`); tuned on training records."""

    process_noise: float
    """Variance that coulomb counting gains, percent² per second."""
    current_noise: float
    """Standard deviation of the C-rate that is held between two samples, 1/h."""
    correlation_seconds: float
    """Time over which the errors of the model are correlated, s."""
    interval_factor: float
    """Half width of the 90 % interval in standard deviations of the filter."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if min(msgspec.structs.astuple(self)) <= 0:
            raise ValueError("all values are above 0")


class Contract(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a model takes, gives and promises; stored as JSON in the metadata of an ONNX file."""

    kind: Literal["features", "step", "window"]
    """features: (rows, features) in, (rows, outputs) out, no memory. step: takes (rows, state_size) besides and gives
    it back anew, carried for each device; zeros to begin with. window: takes (rows, window_rows, features), the
    device's last rows, oldest first."""
    table: Literal["features", "sessions", "health"] = "features"
    """What a row is: a sample with its features, a finished session, or a SOH value with the device's history of it."""
    session: Literal["charge", "discharge", "rest", "any"] = "any"
    """The sessions that the model is asked about; only for the table sessions."""
    name: str
    """Name of the model, as predictions bear it."""
    version: str
    """Version of the model, as predictions bear it."""
    target: Literal["soc", "soh", "rul"]
    """What is estimated."""
    unit: Literal["percent", "cycles"]
    """Unit of the outputs: percent for soc and soh, cycles for rul."""
    features: tuple[Feature, ...]
    """The inputs, in order."""
    conditions: tuple[Range, ...] = ()
    """What else must hold of a row, or the prediction is null: a session that is long enough, for example."""
    outputs: tuple[str, ...]
    """The outputs, in order: ``value`` first, then none, ``laplace_scale`` (its mean absolute error, as foreseen), or
    ``lo90`` and ``hi90`` (the ends of its 90 % interval)."""
    current_sign: Literal["positive_while_charging"]
    """Sign of current and C-rate in the features."""
    dt_range_seconds: tuple[float, float]
    """Shortest and longest time between two samples that the model was made for, s."""
    cell_type: str
    """The cell it was made for; it is used for no other. ``*``: for any."""
    nominal_ah: float
    """Nominal capacity of one cell, Ah; 0 for a model of any cell."""
    state_size: int = 0
    """Numbers carried for each device from row to row; only for the kind step."""
    window_rows: int = 0
    """Rows in a window; only for the kind window."""
    capacity_fraction: float = 1.0
    """Capacity that 100 % SOC stands for, as a fraction of the nominal one."""
    warm_up_seconds: float = 0.0
    """Time of a device's first samples in which predictions bear the warm-up bit, s."""
    training_data_sha256: str
    """SHA-256 of the training data, hexadecimal."""
    errors: dict[str, dict[str, float]] = {}
    """Errors measured on data never trained on: case -> {mae, rmse, worst, coverage90}, in unit and percent."""
    fusion: Fusion | None = None
    """Set for SOC models that are fused with coulomb counting."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter; ValueError says what is wrong in one line."""
        for holds, words in RULES:
            if not holds(self):
                raise ValueError(words)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(f.name for f in self.features)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column it reads: the inputs, then those of the conditions."""
        return self.feature_names + tuple(r.name for r in self.conditions)

    def filled(self, features: Matrix) -> Matrix:
        """The features with what stands for those that are not known: a copy if there are any."""
        for k, f in enumerate(self.features):
            if f.missing is not None and (unknown := np.isnan(features[:, k])).any():
                features = features.copy()
                features[unknown, k] = f.missing
        return features

    def in_domain(self, features: Matrix) -> npt.NDArray[np.bool_]:
        """Which rows the model was made for: every feature there, finite and within its valid range.

        Args:
            features: (rows, n features), physical units, in the contract's order.

        Returns:
            One bool per row. A NaN is in no range.
        """
        return _inside(features, self.features)

    def in_conditions(self, columns: Matrix) -> npt.NDArray[np.bool_]:
        """Which rows meet every condition; ``columns``: (rows, n conditions), in the contract's order."""
        return _inside(columns, self.conditions)


#: What must hold between the fields of a contract, and what is said where it does not.
RULES: Final[tuple[tuple[Callable[[Contract], bool], str], ...]] = (
    (lambda c: bool(c.name and c.version), "name, version: not empty, for predictions bear them"),
    (lambda c: bool(c.features), "features: name at least one"),
    (lambda c: len({f.name for f in c.features}) == len(c.features), "features: name each column once"),
    (lambda c: c.outputs in OUTPUTS, f"outputs: one of {'; '.join(', '.join(names) for names in OUTPUTS)}"),
    (lambda c: (c.kind == "step") == (c.state_size > 0), "state_size: above 0 for the kind step, 0 for any other"),
    (
        lambda c: (c.kind == "window") == (c.window_rows > 0),
        "window_rows: above 0 for the kind window, 0 for any other",
    ),
    (
        lambda c: max(c.state_size, c.window_rows * len(c.features)) <= CARRIED_MAX,
        f"state_size, window_rows: {CARRIED_MAX} numbers a device at most",
    ),
    (lambda c: c.session == "any" or c.table == "sessions", "session: only for the table sessions"),
    (lambda c: (c.unit == "cycles") == (c.target == "rul"), "unit: percent for soc and soh, cycles for rul"),
    (
        lambda c: 0 <= c.dt_range_seconds[0] < c.dt_range_seconds[1],
        "dt_range_seconds: the shorter time comes first, from 0 s",
    ),
    (lambda c: bool(c.cell_type), 'cell_type: name the cell, or "*" for any'),
    (
        lambda c: c.nominal_ah >= 0 and (c.nominal_ah == 0) == (c.cell_type == "*"),
        'nominal_ah: above 0, or 0 for a model of cell_type "*"',
    ),
    (
        lambda c: c.capacity_fraction > 0 and c.warm_up_seconds >= 0,
        "capacity_fraction is above 0, warm_up_seconds at least 0",
    ),
    (
        lambda c: c.fusion is None or (c.target, c.table) == ("soc", "features"),
        "fusion: needs target soc and table features",
    ),
    (lambda c: c.fusion is None or "laplace_scale" in c.outputs, "fusion: needs the output laplace_scale"),
)


def _inside(values: Matrix, ranges: Sequence[Feature | Range]) -> npt.NDArray[np.bool_]:
    low = np.array([r.low for r in ranges], np.float32)
    high = np.array([r.high for r in ranges], np.float32)
    return np.asarray(((values >= low) & (values <= high)).all(axis=1))
