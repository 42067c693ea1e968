"""Baselines for the state of charge: coulomb counting and an extended Kalman filter, as models of the kind step.

They need no training of a network and no runtime, only the cell's circuit (`voltmill.kernels.circuit`): the yardstick
for every other SOC model, run in shadow, and the fallback where one fails. Their valid ranges are wide on purpose: a
row that is withheld from them is charge that they never count. Within the ranges a voltage or a temperature that
cannot be is taken for unknown, and the interval says what that costs. Errors were measured from -20 to 40 °C; beyond,
the circuit stays that of the nearest temperature.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from voltmill.kernels import coulomb, ekf
from voltmill.kernels.circuit import LG_HG2, Circuit, circuit, load
from voltmill.operators.contract import Contract, Feature, Matrix
from voltmill.operators.model import Model

#: Figures of the contracts, written by ``training/baselines.py``: model name -> case -> figure.
ERRORS: Final = Path(__file__).parent / "models" / "baselines.json"
#: Raise it with every change of a result that the parameter file does not show: it is part of the models' digests.
VERSION: Final = "1.0.0"
#: Given for a temperature that is not known: no cell has it, so the filter keeps the last one.
UNKNOWN_CELSIUS: Final = -100.0

_FEATURES: Final = (
    Feature(name="cell_voltage_mean_volt", offset=0.0, scale=1.0, low=0.0, high=10.0),
    Feature(name="c_rate", offset=0.0, scale=1.0, low=-ekf.MOST_C_RATE, high=ekf.MOST_C_RATE),
    Feature(
        name="cell_temperature_mean_celsius", offset=0.0, scale=1.0, low=-100.0, high=200.0, missing=UNKNOWN_CELSIUS
    ),
    Feature(name="sample_interval_seconds", offset=0.0, scale=1.0, low=0.0, high=ekf.LONGEST_SECONDS),
)

_Kernel = Callable[[Circuit, NDArray[np.float64], Matrix, Matrix, Matrix], None]


class _Baseline:
    """What both share: the contract, the digest and the call of a kernel."""

    def __init__(self, name: str, state_size: int, kernel: _Kernel) -> None:
        parameters, data = load(), LG_HG2.read_bytes()
        self.sha256: str = hashlib.sha256(f"{name} {VERSION}\n".encode() + data).hexdigest()
        self.contract: Contract = Contract(
            kind="step",
            name=name,
            version=VERSION,
            target="soc",
            unit="percent",
            features=_FEATURES,
            outputs=("value", "lo90", "hi90"),
            current_sign="positive_while_charging",
            dt_range_seconds=(0.0, ekf.LONGEST_SECONDS),
            cell_type=parameters.name,
            nominal_ah=parameters.nominal_ah,
            capacity_fraction=parameters.capacity_ah / parameters.nominal_ah,
            state_size=state_size,
            training_data_sha256=parameters.data_sha256,
            errors=_errors(name),
        )
        self._cell = circuit(parameters)
        self._noise = np.array(msgspec.structs.astuple(parameters.noise), np.float64)
        self._kernel = kernel

    def step(self, features: Matrix, carried: Matrix) -> tuple[Matrix, Matrix]:
        """Outputs for one row of each of several devices, and what is carried: see `StepModel.step`.

        Whatever the features are, what is carried is finite and a value lies in 0..100 % within its interval; a row
        without a voltage that can be, of a device that never had one, gives NaN and leaves zeros.
        """
        on = np.array(carried, np.float32, order="C")
        out = np.empty((len(features), 3), np.float32)
        self._kernel(self._cell, self._noise, np.ascontiguousarray(features, np.float32), on, out)
        return out, on


class CoulombCounting(_Baseline):
    """Counts charge from the open-circuit voltage of a device's first sample on; the interval grows with time.

    Example:
        >>> model = CoulombCounting()
        >>> carried = np.zeros((1, model.contract.state_size), np.float32)
        >>> out, carried = model.step(np.array([[4.17, 0, 25, 0]], np.float32), carried)
        >>> out, carried = model.step(np.array([[3.9, -1, 25, 5]], np.float32), carried)
        >>> full = out[0, 0]
        >>> out, carried = model.step(np.array([[3.9, -1, 25, 278]], np.float32), carried)
        >>> round(float(full - out[0, 0]), 3)  # 278 s at 3 A of 2.78 Ah
        8.333
    """

    def __init__(self) -> None:
        super().__init__("lg_hg2_coulomb", coulomb.STATE_SIZE, coulomb.count_step)


class ExtendedKalmanFilter(_Baseline):
    """Corrects the count by the voltage of an equivalent circuit: `voltmill.kernels.ekf`.

    Example:
        >>> model = ExtendedKalmanFilter()
        >>> model.contract.kind, model.contract.target, model.contract.cell_type
        ('step', 'soc', 'lg-hg2')
    """

    def __init__(self) -> None:
        super().__init__("lg_hg2_ekf", ekf.STATE_SIZE, ekf.filter_step)


def baselines() -> dict[str, Model]:
    """Both, by name."""
    return {model.contract.name: model for model in (CoulombCounting(), ExtendedKalmanFilter())}


def _errors(name: str) -> dict[str, dict[str, float]]:
    """The figures of a model; none while they are being measured for the first time."""
    if not ERRORS.exists():
        return {}
    measured: dict[str, Any] = msgspec.json.decode(ERRORS.read_bytes())
    found: dict[str, dict[str, float]] = measured[name]
    return found
