"""The commands that replay the archive."""

from datetime import timedelta
from typing import Annotated

import typer

from voltmill.flows.cli_common import ConfigFile, Progress, parse_time
from voltmill.flows.config import ConfigError, load


def replay(
    lake: Annotated[str, typer.Option(help="Folder or URL that holds telemetry/.")],
    out: Annotated[str, typer.Option(help="Folder or URL for the outputs; must hold none yet.")],
    config: ConfigFile = None,
    start: Annotated[str, typer.Option("--from", help="First event time, ISO 8601.")] = "",
    stop: Annotated[str, typer.Option("--to", help="Event time to stop before, ISO 8601.")] = "",
    warm_up: Annotated[
        float, typer.Option(min=0, max=87_600, help="Hours read before --from to warm the state up.")
    ] = 1.0,
    telemetry: Annotated[bool, typer.Option(help="Write telemetry/ with the new quality bits too.")] = False,
) -> None:
    """The archive through the same graph, at full speed."""
    from voltmill.flows import running
    from voltmill.flows.replay import replay as replay_

    settings = load(config)
    first, last = parse_time(start, "--from"), parse_time(stop, "--to")
    if first and last and last <= first:
        raise ConfigError(f"--to {stop}: is not after --from {start}")
    running.prepare()
    done = replay_(
        settings,
        lake,
        out,
        start=first,
        stop=last,
        warm_up=timedelta(hours=warm_up),
        telemetry=telemetry,
        on_progress=Progress("file"),
    )
    typer.echo(
        f"{done.rows} rows replayed in {done.seconds:.1f} s ({done.rows / done.seconds:.0f}/s), "
        f"{done.predictions} predictions in {out}/predictions"
    )
    if first:
        typer.echo(f"state warmed up on the {warm_up:g} h before {first.isoformat()}; before that it knew nothing")
