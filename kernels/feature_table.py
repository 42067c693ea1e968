"""Which features there are: the one table that kernels, models, checks and documentation share.

A feature is a float32 column of the features batch, NaN where it is not known. Cell quantities are
taken over the believable cells of the module (``Quality.RANGE``); current is that of the module,
positive while charging; ``c_rate`` is the current over the nominal capacity of the fleet entry.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

TAUS: Final = (20, 90, 400, 1800)  # s; the averages that the SOC model was found to need
WINDOWS: Final = (60, 600)  # s; the default sliding windows


class Feature(NamedTuple):
    """Name, unit, formula or meaning, and source of one feature."""

    name: str
    unit: str
    formula: str
    source: str = ""


_EMA = "Kingma & Ba 2015 (bias-corrected exponential average), zero-order hold between samples"
_CHAN = "Chan, Golub & LeVeque 1979 (merging of panes)"

_INSTANT: Final = (
    Feature("cell_voltage_mean_volt", "V", "mean over cells"),
    Feature("c_rate", "1/h", "current / nominal capacity", "IEC 61434"),
    Feature("cell_temperature_mean_celsius", "°C", "mean over probes"),
    Feature("current_ampere", "A", "module current"),
    Feature("voltage_volt", "V", "module voltage, or the sum of its cells where it is not measured"),
    Feature("cell_voltage_min_volt", "V", "lowest cell"),
    Feature("cell_voltage_max_volt", "V", "highest cell"),
    Feature("cell_voltage_spread_volt", "V", "highest - lowest cell"),
    Feature(
        "weakest_cell_z",
        "1",
        "(lowest - median) / (1.4826 MAD), MAD at least 0.5 mV; from 3 cells",
        "Iglewicz & Hoaglin 1993 (robust z-score)",
    ),
    Feature("cell_temperature_min_celsius", "°C", "coldest probe"),
    Feature("cell_temperature_max_celsius", "°C", "warmest probe"),
    Feature("sample_interval_seconds", "s", "time since the sample before; 0 on the first and after a restart"),
    Feature("history_seconds", "s", "time since the first sample, or since a gap longer than restart_seconds"),
    Feature("charge_step_ah", "Ah", "signed charge since the sample before: its current times the interval"),
    Feature("capacity_ah", "Ah", "nominal capacity of the module, from the fleet entry"),
    Feature("charge_throughput_ah", "Ah", "charge moved in since the first sample"),
    Feature("discharge_throughput_ah", "Ah", "charge moved out since the first sample"),
    Feature("energy_charged_wh", "Wh", "energy moved in since the first sample"),
    Feature("energy_discharged_wh", "Wh", "energy moved out since the first sample"),
    Feature(
        "equivalent_full_cycles",
        "1",
        "(charge in + charge out) / (2 capacity), since the first sample",
        "IEC 62660-1 (cycle counted by charge throughput)",
    ),
    Feature(
        "cell_resistance_ohm",
        "Ω",
        "change of cell mean / change of current at a current step, running mean of steps (weight 0.1)",
        "IEC 61960-3 (d.c. internal resistance by current step)",
    ),
    Feature("cells_believed", "1", "cells inside their limits"),
)

INSTANT: Final = len(_INSTANT)


def _averages() -> list[Feature]:
    volts = [Feature(f"cell_voltage_ema_{t}s_volt", "V", f"average of the cell mean, τ = {t} s", _EMA) for t in TAUS]
    rates = [Feature(f"c_rate_ema_{t}s", "1/h", f"average of c_rate, τ = {t} s", _EMA) for t in TAUS]
    return [*volts, *rates, *(Feature(f"ema_weight_{t}s", "1", "1 - exp(-history / τ)", _EMA) for t in TAUS)]


def _window(seconds: int) -> list[Feature]:
    w = f"{seconds}s"
    regression = "slope of the regression line of the probes' mean over time"
    return [
        Feature(f"voltage_mean_{w}_volt", "V", "mean of the module voltage", _CHAN),
        Feature(f"voltage_std_{w}_volt", "V", "standard deviation (population) of the module voltage", _CHAN),
        Feature(f"voltage_min_{w}_volt", "V", "minimum of the module voltage"),
        Feature(f"voltage_max_{w}_volt", "V", "maximum of the module voltage"),
        Feature(f"current_mean_{w}_ampere", "A", "mean of the current", _CHAN),
        Feature(f"current_std_{w}_ampere", "A", "standard deviation (population) of the current", _CHAN),
        Feature(f"current_min_{w}_ampere", "A", "minimum of the current"),
        Feature(f"current_max_{w}_ampere", "A", "maximum of the current"),
        Feature(f"cell_voltage_spread_max_{w}_volt", "V", "largest spread of the cells"),
        Feature(f"temperature_rate_{w}_celsius_per_second", "°C/s", f"dT/dt: {regression}", _CHAN),
        Feature(f"charge_{w}_ah", "Ah", "charge moved in"),
        Feature(f"discharge_{w}_ah", "Ah", "charge moved out"),
        Feature(f"energy_charged_{w}_wh", "Wh", "energy moved in"),
        Feature(f"energy_discharged_{w}_wh", "Wh", "energy moved out"),
    ]


PER_WINDOW: Final = len(_window(60))


def features(windows: Sequence[int] = WINDOWS) -> list[Feature]:
    """The features in column order: instant values, averages, then each window."""
    return [*_INSTANT, *_averages(), *(f for w in windows for f in _window(w))]


def index(name: str) -> int:
    """The column of a feature that does not depend on the windows."""
    return [f.name for f in features(())].index(name)


def describe(windows: Sequence[int] = WINDOWS) -> str:
    """The table as Markdown."""
    lines = ["| feature | unit | formula | source |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| `{f.name}` | {f.unit} | {f.formula} | {f.source} |" for f in features(windows)])
