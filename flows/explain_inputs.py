"""What a model was asked: its inputs and conditions at a row, in physical units, beside their valid ranges."""

import math
from typing import Any

import pyarrow as pa

from voltmill.flows.config import Config
from voltmill.flows.explain_result import Input
from voltmill.kernels.feature_table import features
from voltmill.kernels.health_table import health_columns
from voltmill.kernels.session_table import session_columns
from voltmill.operators.contract import Contract


def inputs_of(contract: Contract, row: pa.RecordBatch, config: Config) -> list[Input]:
    """The inputs in the contract's order, then what else must hold.

    The time between samples has a line of its own even where it is an input too: the contract bounds it twice, and
    either bound may be the one that acted.

    Args:
        contract: Of the model.
        row: One row of the contract's table.
        config: Names the windows of the features.
    """
    units = {f.name: f.unit for f in features(config.features.windows_seconds)}
    units |= {c.name: c.unit for c in [*session_columns(), *health_columns()]}
    found = [_input(f.name, row, units, f.low, f.high, given=f.missing) for f in contract.features]
    found += [_input(r.name, row, units, r.low, r.high, condition=True) for r in contract.conditions]
    if contract.table == "features":
        interval = "sample_interval_seconds"
        first = row.column(interval)[0].as_py() == 0.0  # there was no sample before, so nothing is too far
        low, high = contract.dt_range_seconds
        found.append(_input(interval, row, units, 0.0 if first else low, high, condition=True))
    return found


def _input(
    name: str,
    row: pa.RecordBatch,
    units: dict[str, str],
    low: float,
    high: float,
    *,
    given: float | None = None,
    condition: bool = False,
) -> Input:
    value: Any = row.column(name)[0].as_py()
    known = value is not None and not math.isnan(value)
    asked = value if known else given
    return Input(
        name=name,
        value=value if known else None,
        unit=units[name],
        low=low,
        high=high,
        inside=asked is not None and _single(low) <= asked <= _single(high),
        given=None if known else given,
        condition=condition,
    )


def _single(x: float) -> float:
    """A limit as the stream compares it."""
    return float(pa.scalar(x, pa.float32()).as_py())
