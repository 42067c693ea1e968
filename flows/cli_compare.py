"""The command that compares two sets of predictions, and what ``replay --compare`` shares with it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from voltmill.flows.cli_common import ConfigFile, Ticker, parse_range, show_line
from voltmill.flows.config import load

Tolerance = Annotated[
    float | None, typer.Option(min=0, help="How far numbers may be apart, in their unit; without it, not a bit.")
]
Worst = Annotated[int, typer.Option(min=0, help="Devices to show, those that differ most first.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="File for all that was found, as JSON.")]
Devices = Annotated[
    list[str] | None, typer.Option("--device", help="Only devices that match, as in 'site-1/*'; may be repeated.")
]


def compare(
    left: Annotated[str, typer.Argument(help="Folder or URL that holds predictions/.")],
    right: Annotated[str, typer.Argument(help="Another one.")],
    config: ConfigFile = None,
    start: Annotated[str, typer.Option("--from", help="First event time, ISO 8601.")] = "",
    stop: Annotated[str, typer.Option("--to", help="Event time to stop before, ISO 8601.")] = "",
    device: Devices = None,
    target: Annotated[list[str] | None, typer.Option(help="Only this target, as in soc; may be repeated.")] = None,
    tolerance: Tolerance = None,
    worst: Worst = 10,
    json: JsonFile = None,
) -> None:
    """How two sets of predictions differ, by device and target. Exit status 1 if they do."""
    from voltmill.flows.compare import Selection

    first, last = parse_range(start, stop)
    chosen = Selection(start=first, stop=last, devices=tuple(device or ()), targets=tuple(target or ()))
    show(load(config).lake, left, right, chosen, tolerance=tolerance, worst=worst, json=json)


def show(
    lake: Any, left: str, right: str, selection: Any, *, tolerance: float | None, worst: int, json: Path | None
) -> None:
    """Compare two lakes and say how they differ.

    Args:
        lake: Settings of the lake, for its credentials.
        left: Folder or URL of one.
        right: Of the other.
        selection: Which predictions.
        tolerance: How far numbers may be apart; None: not a bit.
        worst: How many devices to show.
        json: File for all that was found.

    Raises:
        typer.Exit: With status 1, if they differ.
    """
    import msgspec

    from voltmill.flows.compare import compare_lakes
    from voltmill.flows.compare_text import lines, write_json

    ticker = Ticker()

    def progress(rows: int) -> None:
        if ticker.due():
            ticker.say(f"comparing: {rows} predictions read")

    ours, theirs = (msgspec.structs.replace(lake, url=url) for url in (left, right))
    found = compare_lakes(ours, theirs, selection, tolerance=tolerance, on_progress=progress)
    show_line("")
    for line in lines(found, left, right, worst=worst):
        typer.echo(line)
    if json:
        write_json(json, found, left, right)
    if not found.good:
        raise typer.Exit(1)
