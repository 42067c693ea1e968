"""Which columns the history of a device's SOH has: the one table that kernels, models and documentation share.

A health row is the row of the session that gave an SOH value (``kernels/session_table.py``) with these columns
after it: float32, NaN where not known. A model of the table ``health`` may take columns of both. Cycles are
equivalent full cycles; SOH is in percent of the nominal capacity, and filtered: the median of the last values.
"""

from typing import Final

from voltmill.kernels.session_table import Column

END_OF_LIFE: Final = 80.0  # % SOH at which a traction battery is taken for spent (USABC Test Procedures Manual, 1996)
FILTER: Final = 7  # values whose median is the SOH; three wrong ones in a row do no harm
START: Final = 8  # values that make the SOH at the start, as many as the sessions that make a baseline
MEMORIES: Final = (10, 30, 100, 300)  # cycles; forgetting times of the regression lines
LAPS: Final = (0.5, 1.0, 2.0, 4.0, 8.0)  # % of SOH
LONGEST: Final = 100_000.0  # cycles; more than any cell lives: what takes longer, or never comes

_LINE: Final = "least squares with exponential forgetting (Ljung 1999, System Identification, 11.2)"

_HISTORY: Final = (
    Column("soh_values", "1", "values so far, this one included"),
    Column("soh_percent", "%", f"median of the last {FILTER} values"),
    Column("soh_margin_percent", "%", f"soh_percent - {END_OF_LIFE:g}"),
    Column("soh_start_percent", "%", f"mean of the first {START} values"),
    Column("soh_peak_percent", "%", "highest soh_percent so far"),
    Column("soh_loss_percent", "%", "soh_peak_percent - soh_percent"),
    Column("soh_spread_percent", "%", "root of the average square (weight 0.05) of value - soh_percent"),
    Column("history_days", "d", "since the first value"),
    Column("history_cycles", "1", "cycles since the first value"),
    Column("peak_cycles", "1", "cycles since the SOH was highest"),
    Column("soh_mean_rate_percent_per_100_cycles", "%", "(soh_start_percent - soh_percent) / history_cycles · 100"),
    Column(
        "soh_first_half_share",
        "1",
        "share of the cycles since the peak in which the first half of the loss came; "
        "under 0.5: ageing slows down, above: it speeds up (a knee)",
        "Attia et al. 2022 (knees in battery ageing)",
    ),
)


def _line(cycles: int) -> list[Column]:
    return [
        Column(f"soh_slope_{cycles}_percent_per_100_cycles", "%", f"slope of the line, τ = {cycles} cycles", _LINE),
        Column(f"soh_line_{cycles}_percent", "%", f"the line at this value, τ = {cycles} cycles", _LINE),
        Column(f"linear_{cycles}_cycles", "1", f"cycles until the SOH is {END_OF_LIFE:g} % at that slope"),
    ]


def health_columns() -> list[Column]:
    """The columns in their order: the history, the regression lines, the laps."""
    laps = [
        Column(
            f"lap_{lap:g}_percent_cycles".replace(".", "p"),
            "1",
            f"cycles that the last {lap:g} % of loss took; where less was lost so far, its cycles scaled up",
        )
        for lap in LAPS
    ]
    return [*_HISTORY, *(column for cycles in MEMORIES for column in _line(cycles)), *laps]


def index(name: str) -> int:
    """The place of a column among these."""
    return [c.name for c in health_columns()].index(name)
