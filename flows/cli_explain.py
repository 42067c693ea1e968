"""The command that recomputes a stored prediction."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from voltmill.flows.cli_common import ConfigFile, Ticker, parse_time, show_line
from voltmill.flows.config import ConfigError, load


class Target(enum.Enum):
    """What is estimated."""

    soc = "soc"
    soh = "soh"
    rul = "rul"


def explain(
    device: Annotated[str, typer.Argument(help="The device's id.")],
    time: Annotated[str, typer.Argument(help="Event time, ISO 8601; else the nearest prediction before it.")],
    config: ConfigFile = None,
    lake: Annotated[
        str, typer.Option(help="Folder or URL that holds predictions/; default: that of the configuration.")
    ] = "",
    telemetry: Annotated[
        str, typer.Option(help="Folder or URL of what they were made from; default: what a replay read, else --lake.")
    ] = "",
    target: Annotated[Target | None, typer.Option(help="Only predictions of this target.")] = None,
    model: Annotated[
        str, typer.Option(help="Only predictions by a model of this name, or whose SHA-256 begins so.")
    ] = "",
    model_file: Annotated[
        list[Path] | None, typer.Option(help="ONNX file of a model no longer in force; may be repeated.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recompute a stored prediction from the archive: do the bits agree? Exit status 1 if they do not."""
    from voltmill.flows import running
    from voltmill.flows.explain import explain as explain_
    from voltmill.flows.explain_text import lines, to_json

    settings, when = load(config), parse_time(time, "TIME")
    if when is None:
        raise ConfigError("TIME is empty: give an ISO 8601 time, such as 2026-11-22T10:00:00Z")
    running.prepare()
    ticker = Ticker()

    def progress(rows: int) -> None:
        if ticker.due():
            ticker.say(f"explaining: {rows} rows recomputed")

    found = explain_(
        settings,
        lake or settings.lake.url,
        device,
        when,
        telemetry=telemetry,
        target=target.value if target else "",
        model=model,
        files=model_file or (),
        on_progress=progress,
    )
    show_line("")
    if json:
        typer.echo(to_json(found).decode())
    else:
        for line in lines(found):
            typer.echo(line)
    if not found.identical:
        raise typer.Exit(1)
