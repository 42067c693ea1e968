"""The contract of a model: what it takes, what it gives, where it holds, how wrong it was measured to be.

It is stored as JSON in the metadata of an ONNX file, so a model and its contract cannot part.
"""

from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt


class Feature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One input of a model: network input = (x - offset) / scale."""

    name: str
    """Column of the feature table."""
    offset: float
    """Subtracted, in the feature's unit."""
    scale: float
    """Divided by, in the feature's unit; above 0."""
    low: float
    """Lowest value the model was made for, in the feature's unit."""
    high: float
    """Highest value the model was made for, in the feature's unit."""


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


class Contract(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a model takes, gives and promises; stored as JSON in the metadata of an ONNX file."""

    kind: Literal["features", "step", "window"]
    """features: one row in, one row out, no state. The other two are named but not yet supported."""
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
    outputs: tuple[str, ...]
    """The outputs, in order; the first is ``value``. ``laplace_scale``: its mean absolute error, as foreseen."""
    current_sign: Literal["positive_while_charging"]
    """Sign of current and C-rate in the features."""
    dt_range_seconds: tuple[float, float]
    """Shortest and longest time between two samples that the model was made for, s."""
    cell_type: str
    """The cell it was made for; it is used for no other."""
    nominal_ah: float
    """Nominal capacity of one cell, Ah."""
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
        names = self.feature_names
        if not names or len(set(names)) != len(names):
            raise ValueError("features: name at least one, each once")
        for f in self.features:
            if not (f.scale > 0 and np.isfinite(f.offset) and f.low < f.high):
                raise ValueError(f"features: {f.name}: scale is above 0, offset is finite, low is below high")
        if not self.outputs or self.outputs[0] != "value":
            raise ValueError('outputs: the first output is "value"')
        if (self.unit == "cycles") != (self.target == "rul"):
            raise ValueError("unit: percent for soc and soh, cycles for rul")
        if not 0 <= self.dt_range_seconds[0] < self.dt_range_seconds[1]:
            raise ValueError("dt_range_seconds: the shorter time comes first, from 0 s")
        if not (self.nominal_ah > 0 and self.capacity_fraction > 0 and self.warm_up_seconds >= 0):
            raise ValueError("nominal_ah and capacity_fraction are above 0, warm_up_seconds at least 0")
        if self.fusion is not None and (self.target != "soc" or "laplace_scale" not in self.outputs):
            raise ValueError("fusion: needs target soc and the output laplace_scale")
        if self.fusion is not None and min(msgspec.structs.astuple(self.fusion)) <= 0:
            raise ValueError("fusion: all values are above 0")

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(f.name for f in self.features)

    def in_domain(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Which rows the model was made for: every feature there, finite and within its valid range.

        Args:
            features: (rows, n features), physical units, in the contract's order.

        Returns:
            One bool per row. A NaN is in no range.
        """
        low = np.array([f.low for f in self.features], np.float32)
        high = np.array([f.high for f in self.features], np.float32)
        inside = (features >= low) & (features <= high)
        return np.asarray(inside.all(axis=1))
