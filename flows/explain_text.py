"""An explanation as text for people, and as JSON."""

import textwrap
from collections.abc import Iterator
from datetime import datetime

import msgspec

from voltmill.flows.explain_result import COMPARED, Explained, Explanation, Input
from voltmill.flows.explain_stored import Prediction

_WIDTH = 110


def lines(found: Explanation) -> Iterator[str]:
    """All that was found, and the verdict at the end."""
    if found.time is None:
        yield f"{found.device_id}: no prediction at {_iso(found.asked)} or before"
        return
    if found.time != found.asked:
        yield f"no prediction at {_iso(found.asked)}; the nearest before it is at {_iso(found.time)}"
        yield ""
    for each in found.predictions:
        yield from _explained(each)
        yield ""
    good = sum(each.identical for each in found.predictions)
    yield f"{good} of {len(found.predictions)} predictions of {found.device_id} at {_iso(found.time)} are identical"


def to_json(found: Explanation) -> bytes:
    """All that was found."""
    named = {"identical": found.identical} | msgspec.to_builtins(found)
    for each, made in zip(found.predictions, named["predictions"], strict=True):
        made["identical"] = each.identical
    return msgspec.json.format(msgspec.json.encode(named))


def _explained(each: Explained) -> Iterator[str]:
    p, made = each.stored.prediction, each.recomputed
    yield f"{p.target} of {p.device_id} at {_iso(p.event_time)} by {p.model_name} {p.model_version} ({p.unit})"
    yield f"  model       sha256 {p.model_sha256}"
    yield f"  stored      {each.stored.file}, row {each.stored.row}"
    yield f"  lineage     {p.source} {p.source_partition}, offset {p.source_offset}"
    yield f"  archive     {f'{each.file}, row {each.row}' if each.file else 'no such row'}"
    yield f"  recomputed  from {each.rows} rows of the device, in order of arrival"
    yield ""
    yield from _table([("", "stored", "recomputed", ""), *(_compared(name, p, made, each) for name in COMPARED)])
    for bit in each.bits:
        yield f"  {bit.name}: {bit.meaning}"
    if each.inputs:
        yield ""
        yield from _table([("input", "value", "unit", "valid range", ""), *map(_input, each.inputs)])
    if each.notes:
        yield ""
    for note in each.notes:
        yield from textwrap.wrap(note, _WIDTH, initial_indent="  ! ", subsequent_indent="    ", break_on_hyphens=False)
    yield ""
    yield f"  {_verdict(each)}"


def _verdict(each: Explained) -> str:
    if each.identical:
        return "identical, bit for bit"
    if not each.agree:
        return "not recomputed"
    return f"DIFFERENT: {', '.join(name for name, same in each.agree.items() if not same)}"


def _compared(name: str, p: Prediction, made: Prediction | None, each: Explained) -> tuple[str, ...]:
    if made is None:
        return name, _shown(getattr(p, name)), "-", "-"
    return name, _shown(getattr(p, name)), _shown(getattr(made, name)), "same" if each.agree[name] else "DIFFERENT"


def _input(i: Input) -> tuple[str, ...]:
    value = _shown(i.value) if i.given is None else f"unknown, given {i.given:g}"
    says = [] if i.inside else ["OUT OF RANGE" if i.value is not None else "UNKNOWN"]
    says += ["condition"] if i.condition else []
    return i.name, value, i.unit, f"{i.low:g} to {i.high:g}", ", ".join(says)


def _shown(value: object) -> str:
    """Nine digits tell any two float32 apart."""
    return f"{value:.9g}" if isinstance(value, float) else "null" if value is None else str(value)


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()


def _iso(time: datetime) -> str:
    text = time.isoformat(timespec="microseconds" if time.microsecond % 1000 else "milliseconds")
    return text.replace("+00:00", "Z")
