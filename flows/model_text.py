"""Models as lines for people, and as objects for machines."""

from typing import Any

import msgspec

from voltmill.operators.contract import Contract
from voltmill.operators.model import Model


def headline(contract: Contract) -> tuple[dict[str, dict[str, float]], str]:
    """The errors of whole cases, and the case that is worst of all, with those of their parts (``case/part``)."""
    whole = {case: figures for case, figures in contract.errors.items() if "/" not in case}
    worst = max(contract.errors, key=lambda case: contract.errors[case].get("worst", -1.0), default="")
    return whole or contract.errors, worst if "worst" in contract.errors.get(worst, {}) else ""


def described(name: str, model: Model, *, origin: str = "", used: str = "") -> list[str]:
    """What there is to say of a model: what it estimates, from what, for which cell, how wrong it is."""
    c = model.contract
    cell = "any cell" if c.cell_type == "*" else f"{c.cell_type} ({c.nominal_ah:g} Ah a cell)"
    size = {"step": f", {c.state_size} numbers of state", "window": f", {c.window_rows} rows", "features": ""}[c.kind]
    called = "" if c.name == name else f', called "{c.name}" in predictions'
    session = "" if c.session == "any" else f" ({c.session})"
    lines = [
        f"{name}: {c.target} in {c.unit}, for {cell}, version {c.version}{called}",
        f"  kind {c.kind}{size}; {len(c.features)} features of the table {c.table}{session}; gives "
        f"{', '.join(c.outputs)}" + ("; fused with coulomb counting" if c.fusion else ""),
        f"  sha256 {model.sha256}",
    ]
    lines += [f"  {what}: {text}" for what, text in (("from", origin), ("used", used)) if text]
    cases, worst = headline(c)
    lines += [f"  {case}: {_figures(figures)}" for case, figures in cases.items()]
    if worst and worst not in cases:
        lines.append(f"  worst of all, {worst}: {_figures(c.errors[worst])}")
    return [*lines, "  errors: none are given"] if used and not c.errors else lines


def as_object(name: str, model: Model, origin: str, file: str, mode: str) -> dict[str, Any]:
    """The same for machines, with the whole contract."""
    return {
        "name": name,
        "origin": origin,
        "file": file or None,
        "mode": mode or None,
        "sha256": model.sha256,
        "worst_case": headline(model.contract)[1] or None,
        "contract": msgspec.to_builtins(model.contract),
    }


def _figures(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
