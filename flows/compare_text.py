"""A comparison of predictions as text for people, and as JSON."""

from pathlib import Path

import msgspec

from voltmill.flows.compare_result import Comparison, ModelPair, Report

_COLUMNS = ("same", "close", "changed", "only left", "only right", "worst", "at", "mean")


def lines(found: Report, left: str, right: str, *, worst: int) -> list[str]:
    """The summary, and the devices that differ most.

    Args:
        found: What was found.
        left: What the first set is called.
        right: What the second one is called.
        worst: How many devices to show at most.
    """
    out = [f"left   {left}: {found.total.left:,} predictions", f"right  {right}: {found.total.right:,} predictions"]
    out += [f"model  {_pair(pair)}" for pair in found.models]
    out += ["", *_table(("target",), [((name,), target) for name, target in found.targets.items()])]
    if shown := found.differing[:worst]:
        out += ["", f"{len(found.differing):,} of {len(found.differing) + found.same:,} devices differ; the worst:"]
        out += _table(("device", "target"), [((device.device_id, device.target), device.found) for device in shown])
    return [*out, "", verdict(found)]


def verdict(found: Report) -> str:
    """The answer in a line."""
    total = found.total
    if not total.left and not total.right:
        return "nothing to compare: neither side has such predictions"
    if total.identical:
        return f"identical: {total.left:,} predictions, bit for bit"
    if found.tolerance is not None and total.within:
        return f"within {found.tolerance:g}: {total.same:,} predictions identical, {total.close:,} close"
    parts = {
        "changed": total.changed,
        "only left": total.only_left,
        "only right": total.only_right,
        "equal but of another model" if found.tolerance is None else "close": total.close,
    }
    return "different: " + ", ".join(f"{count:,} {name}" for name, count in parts.items() if count)


def to_json(found: Report, left: str, right: str) -> bytes:
    """All that was found, every device that differs included; an infinite difference is null."""
    named = {"left": left, "right": right, "good": found.good} | msgspec.to_builtins(found)
    return msgspec.json.format(msgspec.json.encode(named))


def write_json(file: Path, found: Report, left: str, right: str) -> None:
    """Write ``to_json`` into a file."""
    file.write_bytes(to_json(found, left, right) + b"\n")


def _pair(pair: ModelPair) -> str:
    ours = f"{pair.left_name} {pair.left[:8]}" if pair.left else "none"
    theirs = f"{pair.right_name} {pair.right[:8]}" if pair.right else "none"
    if pair.left == pair.right:
        return f"{pair.target}: {ours} on both sides"
    return f"{pair.target}: left {ours}, right {theirs}"


def _table(names: tuple[str, ...], rows: list[tuple[tuple[str, ...], Comparison]]) -> list[str]:
    """Columns that line up; numbers to the right."""
    cells = [[*names, *_COLUMNS], *([*key, *_cells(found)] for key, found in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    at = len(names)
    return [
        "  ".join(
            c.ljust(w) if k < at else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _cells(found: Comparison) -> list[str]:
    counts = (found.same, found.close, found.changed, found.only_left, found.only_right)
    when = found.worst_at.isoformat(timespec="milliseconds").replace("+00:00", "Z") if found.worst_at else "-"
    return [*(f"{count:,}" for count in counts), f"{found.worst:.6g}", when, f"{found.mean:.6g}"]
