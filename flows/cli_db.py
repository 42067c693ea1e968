"""The commands that look after the schema of the database."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final

import typer

from voltmill.flows.cli_common import ConfigFile, FinishedStores
from voltmill.flows.config import Config, ConfigError, load

if TYPE_CHECKING:
    from voltmill.connectors.sql_schema import Schema

app = typer.Typer(help="Tables, indexes and reporting views of the database.", no_args_is_help=True)

#: How long a database that is away is waited for, s.
_PATIENCE_SECONDS: Final = 30.0


@app.command("apply")
def apply(
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the SQL that would be run.")] = False,
) -> None:
    """Make the schema of the database, or bring it up to date."""

    def work(schema: "Schema", place: str) -> list[str]:
        if not dry_run:
            said: list[str] = []
            schema.apply(said.append)
            return [place, *(said or [f"up to date at version {schema.status().version}"])]
        pending = schema.status().pending
        return [f"-- {place}", *([f"-- {one.name}\n\n{one.text}" for one in pending] or ["-- nothing to apply"])]

    _on(load(config), work)


@app.command("status")
def status(config: ConfigFile = None) -> None:
    """Which parts of the schema the database has; changes nothing."""

    def work(schema: "Schema", place: str) -> list[str]:
        found = schema.status()
        lines = [place]
        lines += [f"{one.name}  applied {one.applied_at}" for one in found.applied]
        lines += [f"{one.name}  not applied" for one in found.pending]
        end = f"version {found.version}"
        return [*lines, f"{end}: run voltmill db apply" if found.pending else f"{end}, up to date"]

    _on(load(config), work)


@app.command("copy")
def copy(
    config: ConfigFile = None,
    finished: FinishedStores = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the statements for all files.")] = False,
) -> None:
    """Load the lake's predictions into a dedicated pool of Synapse, each file once."""
    from voltmill.connectors import synapse

    settings = load(config)
    if settings.sql.dialect != "mssql" and not dry_run:
        raise ConfigError("[sql] url names no pool of Synapse: mssql://USER:PASSWORD@NAME.sql.azuresynapse.net/POOL")
    store = settings.lake.open()
    try:
        base = synapse.address(settings.lake.url, settings.lake.storage_options)
    except ValueError as e:
        raise ConfigError(str(e)) from None
    gone = frozenset(finished or [])
    if dry_run:
        todo = synapse.to_load(store, [], gone)
        for _, text in synapse.calls(todo, base):
            typer.echo(f"{text};")
        typer.echo(f"-- {len(todo.files)} files to load; {todo.unsettled} files are not settled yet")
        return

    def work(schema: "Schema", place: str) -> list[str]:
        todo = synapse.to_load(store, schema.database.rows(synapse.LOADED), gone)
        rows = 0
        for _, text in synapse.calls(todo, base):
            rows += int(schema.database.rows(text)[0][0])
        return [f"{len(todo.files)} files with {rows} rows loaded; {todo.unsettled} files are not settled yet"]

    _on(settings, work)


def _on(config: Config, work: "Callable[[Schema, str], list[str]]") -> None:
    """Do it on the schema of the configured database, named so, and print the lines that it gives."""
    from voltmill.connectors.outage import Patience
    from voltmill.connectors.sql import SqlTable

    settings = config.sql
    table = SqlTable(settings, patience=Patience(f"the database {settings.place}", seconds=_PATIENCE_SECONDS))
    place = f"database {settings.place}"  # who forgot --config sees that it is another one
    for line in table.with_schema(lambda schema: work(schema, place)):
        typer.echo(line)
