"""The tables of the cards of SOC models: what was measured, case by case, and by ambient temperature."""

from typing import Final

from soc_cases import Errors

AMBIENTS: Final = (-20, -10, 0, 10, 25, 40)
WORDS: Final = {
    "right_start": "from full, every 5 s",
    "unknown_start": "begun at 25, 50 or 75 % of the cycle",
    "lost_30_percent": "30 % of the samples lost",
    "every_10_seconds": "every 10 s",
    "every_second": "every second",
    "current_plus_50_milliampere": "current sensor +50 mA off",
    "current_minus_50_milliampere": "current sensor -50 mA off",
    "voltage_plus_10_millivolt": "voltage sensor +10 mV off",
    "capacity_plus_10_percent": "`capacity_ah` of the fleet 10 % too high",
    "capacity_minus_10_percent": "`capacity_ah` of the fleet 10 % too low",
    "start_10_percent_wrong": "the first SOC 10 points too low",
}


def by_case(errors: Errors) -> str:
    """MAE, RMSE, worst and coverage of every case that was measured."""
    head = ["| telemetry | MAE | RMSE | worst | coverage, % |", "|---|---|---|---|---|"]
    return "\n".join(head + [f"| {WORDS[case]} | {_figures(errors[case])} |" for case in _cases(errors)])


def by_ambient(errors: Errors) -> str:
    """MAE / worst / coverage of every case at each ambient temperature."""
    head = [" | ".join(["| telemetry", *(f"{a} °C" for a in AMBIENTS)]) + " |", "|---" * (1 + len(AMBIENTS)) + "|"]
    rows = [
        " | ".join([f"| {WORDS[case]}", *(_short(errors[f"{case}/{a}"]) for a in AMBIENTS)]) + " |"
        for case in _cases(errors)
    ]
    return "\n".join(head + rows)


def _cases(errors: Errors) -> list[str]:
    return [key for key in errors if "/" not in key]


def _figures(e: dict[str, float]) -> str:
    return f"{e['mae']:.2f} | {e['rmse']:.2f} | {e['worst']:.1f} | {e['coverage90']:.0f}"


def _short(e: dict[str, float]) -> str:
    return f"{e['mae']:.2f} / {e['worst']:.1f} / {e['coverage90']:.0f}"
