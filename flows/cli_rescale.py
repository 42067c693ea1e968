"""The command that changes the number of recovery partitions."""

from pathlib import Path
from typing import Annotated

import typer

from voltmill.flows.cli_common import ConfigFile, show_line
from voltmill.flows.config import load


def rescale(
    count: Annotated[int, typer.Option("--recovery-partitions", min=1, max=1000, help="How many there shall be.")],
    config: ConfigFile = None,
    state: Annotated[Path | None, typer.Option(help="Folder of the store; default: [run] state.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Another number of recovery partitions for a flow that is stopped, with its state."""
    from voltmill.flows.rescale import rescale as rescale_

    folder = state or Path(load(config).run.state)
    done = rescale_(
        folder, count, dry_run=dry_run, on_progress=lambda n, total: show_line(f"state {n} of {total}", end=n == total)
    )
    states = f"{sum(done.steps.values())} states of {len(done.steps)} steps, up to epoch {done.epoch}"
    if done.before == count:
        typer.echo(f"{folder}: has {count} recovery partitions already, with {states}")
    elif done.kept is None:
        typer.echo(f"{folder}: {done.before} recovery partitions, with {states}, would become {count}")
    else:
        typer.echo(f"{folder}: {done.before} recovery partitions became {count}, with {states}")
        typer.echo(
            f"now set [run] recovery_partitions = {count}; the old store is {done.kept}: remove it when all is well"
        )
    typer.echo(f"start at most {min(count, done.shards)} processes, and {done.shards} workers (shards) in all")
