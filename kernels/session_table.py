"""Which columns a finished session has: the one table that kernels, models, checks and documentation share.

A column is float32, NaN where it is not known or has no meaning for that kind of session. Cell
quantities are means over the believable cells of the module (``Quality.RANGE``). Charge and energy are
net and positive in the direction of the session: what a discharge takes out, less what regeneration
brings back. A fraction is one of the nominal capacity of the fleet entry. Moments are weighted by time,
and so do not depend on how often a device sends; kurtosis is that in excess of 3.
"""

from typing import Final, NamedTuple

#: Kinds of sessions, in the order of their codes in the kernels.
KINDS: Final = ("rest", "charge", "discharge")

BINS: Final = 48  # of the cell voltage, over operating_volt
RELAXATIONS: Final = (60, 600, 1800)  # s since the first sample without current
BASELINE_SESSIONS: Final = 8
RECENT_WEIGHT: Final = 1 / 3
CC_WINDOW_VOLT: Final = 0.2  # below full
CC_END_VOLT: Final = 0.005  # below full: the constant voltage is held to a few millivolts


class Column(NamedTuple):
    """Name, unit, formula or meaning, source, and the kinds of session that have it."""

    name: str
    unit: str
    formula: str
    source: str = ""
    sessions: tuple[str, ...] = KINDS


_FLOW: Final = ("charge", "discharge")
_CHARGE: Final = ("charge",)
_DISCHARGE: Final = ("discharge",)
_REST: Final = ("rest",)
_CYCLE: Final = "IEC 62660-1 (cycle counted by charge throughput)"
_STEP: Final = "IEC 61960-3 (d.c. internal resistance by current step)"
_CAPACITY: Final = "IEC 61960-3 (capacity between full and end-of-discharge voltage)"
_SEGMENTS: Final = "Wang et al. 2024, Nature Communications 15:4332 (statistics of the end of charging)"
_SEVERSON: Final = "Severson et al. 2019, Nature Energy 4:383 (variance of the change of Q(V))"
_DUBARRY: Final = "Dubarry, Truchot & Liaw 2012 (incremental capacity)"

_SESSION: Final = (
    Column("session_number", "1", "1 for the device's first session of its kind"),
    Column(
        "duration_seconds",
        "s",
        "from the sample before the first of its kind to the last of its kind",
    ),
    Column("samples", "1", "accepted samples with a believable current and cell, those of interruptions too"),
    Column("missing_fraction", "1", "time in gaps longer than the fleet entry's gap_seconds, bridged / duration"),
    Column(
        "rest_before_seconds",
        "s",
        "since current was last seen to flow; NaN if not since a break",
        "",
        _FLOW,
    ),
    Column("charge_ah", "Ah", "net charge in the direction of the session; of a rest, net charge in"),
    Column(
        "charge_against_ah", "Ah", "charge against the direction, such as regeneration; counted positive", "", _FLOW
    ),
    Column("charge_fraction", "1", "charge / nominal capacity"),
    Column("energy_wh", "Wh", "net energy in the direction of the session; of a rest, net energy in"),
    Column("c_rate_mean", "1/h", "charge / nominal capacity / duration", "IEC 61434"),
    Column("c_rate_max", "1/h", "largest current in the direction of the session / nominal capacity", "IEC 61434"),
    Column("capacity_ah", "Ah", "nominal capacity of the module, from the fleet entry"),
    Column("equivalent_full_cycles", "1", "(charge in + charge out) / (2 capacity), since the first sample", _CYCLE),
    Column("cell_temperature_mean_celsius", "°C", "mean over probes and time"),
    Column("cell_temperature_min_celsius", "°C", "lowest mean over probes"),
    Column("cell_temperature_max_celsius", "°C", "highest mean over probes"),
    Column("cell_temperature_start_celsius", "°C", "mean over probes at the first sample, or the newest known by then"),
    Column("cell_temperature_end_celsius", "°C", "mean over probes at the last sample, or the newest known by then"),
    Column("cell_voltage_start_volt", "V", "cell mean at the first sample"),
    Column("cell_voltage_end_volt", "V", "cell mean at the last sample"),
    Column("cell_voltage_min_volt", "V", "lowest cell mean"),
    Column("cell_voltage_max_volt", "V", "highest cell mean"),
    Column("cell_voltage_spread_end_volt", "V", "highest - lowest cell at the last sample"),
    Column("rest_voltage_before_volt", "V", "cell mean at the end of the rest session directly before", "", _FLOW),
    Column(
        "resistance_start_ohm",
        "Ω",
        "of a cell: ΔU/ΔI from the sample before to the latest within 15 s",
        _STEP,
        _FLOW,
    ),
    Column(
        "resistance_end_ohm",
        "Ω",
        "of a cell: ΔU/ΔI from the last sample to the latest within 15 s",
        _STEP,
        _FLOW,
    ),
    Column(
        "relaxation_volt",
        "V",
        "cell mean at the last sample without a current between - at the first",
        "",
        _REST,
    ),
    *(
        Column(f"relaxation_{t}s_volt", "V", f"cell mean {t} s after the first sample - at it", "", _REST)
        for t in RELAXATIONS
    ),
    Column("began_full", "1", "1: began where a charge had ended full; 0: it did not", "", _FLOW),
    Column("ended_full", "1", "1: highest cell at full voltage and current low at the end; 0: not", "", _FLOW),
    Column("began_empty", "1", "1: began where a discharge had ended empty; 0: it did not", "", _FLOW),
    Column("ended_empty", "1", "1: lowest cell at empty voltage at the end; 0: not", "", _FLOW),
    Column("measured_capacity_ah", "Ah", "charge of a session from full to empty or empty to full", _CAPACITY, _FLOW),
)

_SEGMENT: Final = (
    Column(
        "cc_charge_fraction",
        "1",
        "CC: charge while the highest cell rises from 200 mV to 5 mV below full",
        _SEGMENTS,
        _CHARGE,
    ),
    Column("cc_seconds", "s", "CC: time in that range of voltage", _SEGMENTS, _CHARGE),
    Column("cc_voltage_mean_volt", "V", "CC: mean of the highest cell", _SEGMENTS, _CHARGE),
    Column("cc_voltage_std_volt", "V", "CC: standard deviation of the highest cell", _SEGMENTS, _CHARGE),
    Column("cc_voltage_skewness", "1", "CC: skewness of the highest cell", _SEGMENTS, _CHARGE),
    Column("cc_voltage_kurtosis", "1", "CC: excess kurtosis of the highest cell", _SEGMENTS, _CHARGE),
    Column("cc_voltage_slope_volt_per_second", "V/s", "CC: slope of the regression line over time", _SEGMENTS, _CHARGE),
    Column(
        "cv_charge_fraction",
        "1",
        "CV: charge while c_rate falls through the fleet entry's cv_c_rate at full",
        _SEGMENTS,
        _CHARGE,
    ),
    Column("cv_seconds", "s", "CV: time in that range of current", _SEGMENTS, _CHARGE),
    Column("cv_c_rate_mean", "1/h", "CV: mean of c_rate", _SEGMENTS, _CHARGE),
    Column("cv_c_rate_std", "1/h", "CV: standard deviation of c_rate", _SEGMENTS, _CHARGE),
    Column("cv_c_rate_skewness", "1", "CV: skewness of c_rate", _SEGMENTS, _CHARGE),
    Column("cv_c_rate_kurtosis", "1", "CV: excess kurtosis of c_rate", _SEGMENTS, _CHARGE),
    Column("cv_c_rate_slope_per_second", "1/h/s", "CV: slope of the regression line over time", _SEGMENTS, _CHARGE),
)

_DELTA: Final = "of ΔQ(V) = Q(V) - that of the baseline, at the 48 lower bin edges, from full to empty"

_HISTOGRAM: Final = tuple(
    Column(
        f"charge_bin_{k:02}_fraction",
        "1",
        f"charge moved with the cell mean in bin {k} of 48 from empty to full, in the direction of the session",
        _DUBARRY,
        _FLOW,
    )
    for k in range(BINS)
)

_DELTA_Q: Final = (
    Column("delta_q_log10_variance", "1", f"log10 of the variance {_DELTA}", _SEVERSON, _DISCHARGE),
    Column("delta_q_mean", "1", f"mean {_DELTA}", _SEVERSON, _DISCHARGE),
    Column("delta_q_min", "1", f"minimum {_DELTA}", _SEVERSON, _DISCHARGE),
    Column("delta_q_max", "1", f"maximum {_DELTA}", _SEVERSON, _DISCHARGE),
    Column("delta_q_iqr", "1", f"interquartile range {_DELTA}", _SEVERSON, _DISCHARGE),
    Column("delta_q_skewness", "1", f"skewness {_DELTA}", _SEVERSON, _DISCHARGE),
    Column("delta_q_kurtosis", "1", f"excess kurtosis {_DELTA}", _SEVERSON, _DISCHARGE),
)

_ANY_FLOW: Final = ("charge_fraction", "resistance_start_ohm", "resistance_end_ohm", "measured_capacity_ah")

#: What a device's baseline and recent average are kept of, by kind.
TRACKED_CHARGE: Final = (*_ANY_FLOW, *(c.name for c in _SEGMENT))
TRACKED_DISCHARGE: Final = _ANY_FLOW


def _tracked(prefix: str, what: str) -> list[Column]:
    by_name = {c.name: c for c in (*_SESSION, *_SEGMENT)}
    return [
        Column(f"{prefix}_{name}", by_name[name].unit, f"{what} of {name}", "", by_name[name].sessions)
        for name in TRACKED_CHARGE
    ]


def session_columns() -> list[Column]:
    """The columns in their order."""
    return [
        *_SESSION,
        *_SEGMENT,
        *_tracked(
            "baseline", f"mean over the device's first {BASELINE_SESSIONS} sessions of this kind that have a value"
        ),
        *_tracked(
            "recent", "exponential average (weight 1/3) over the device's sessions of this kind, this one included,"
        ),
        *_DELTA_Q,
        *_HISTOGRAM,
    ]


def index(name: str) -> int:
    """The place of a column among the float columns."""
    return [c.name for c in session_columns()].index(name)
