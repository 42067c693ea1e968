"""The commands for models: list those found, write a contract down to be edited, store an edited one in its file."""

import enum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from voltmill.flows.cli_common import ConfigFile
from voltmill.flows.config import ConfigError, load

app = typer.Typer(
    help="The models found, their contracts and measured errors.",
    invoke_without_command=True,
)

ModelFile = Annotated[Path, typer.Argument(help="An ONNX file.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where it is written.")]


class TableName(enum.Enum):
    """The tables whose rows a model can be asked about."""

    features = "features"
    sessions = "sessions"
    health = "health"


@app.callback()
def list_(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line, for machines.")] = False,
) -> None:
    """The models found, their contracts and measured errors."""
    if context.invoked_subcommand:
        return
    from voltmill.flows.model_list import list_models
    from voltmill.flows.model_text import as_object, described

    settings = load(config)
    found, problems = list_models(settings)
    place = str(config) if config else "the default configuration"
    for each in found:
        if as_json:
            typer.echo(msgspec.json.encode(as_object(*each)))
            continue
        origin = ", ".join(filter(None, (each.origin, each.file)))
        used = f"{each.mode}, by {place}" if each.mode else f"not by {place}"
        for line in described(each.name, each.model, origin=origin, used=used):
            typer.echo(line)
    for line in problems:
        typer.echo(line, err=True)
    if problems:
        raise typer.Exit(1)


@app.command()
def describe(
    file: ModelFile,
    config: ConfigFile = None,
    to_file: Out = None,
    table: Annotated[
        TableName, typer.Option(help="Of a template: whose columns the model takes.")
    ] = TableName.features,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Write a model's contract, or a template for one, to a TOML file to be edited; .json: for an endpoint."""
    from voltmill.flows.contract_file import describe_model

    path = to_file or file.with_suffix(".contract.toml")
    if path.exists() and not force:
        raise ConfigError(f"{path}: is there already: --force overwrites it, -o names another file")
    text, notes, ready = describe_model(file, path, load(config), table.value)
    path.write_text(text, "utf-8")
    what = "the contract of" if ready else "a template for"
    typer.echo(f"{path}: {what} {file}; when it is edited: voltmill models attach {file} {path}")
    _warn(notes)


@app.command()
def attach(
    file: ModelFile,
    contract: Annotated[Path, typer.Argument(help="Its contract: a TOML file, as describe writes it, or JSON.")],
    config: ConfigFile = None,
    to_file: Out = None,
) -> None:
    """Check a contract with its model, run the two, and store it in the model file if all is well."""
    from voltmill.flows.contract_file import attach_contract
    from voltmill.flows.model_text import described

    path = to_file or file
    checked = attach_contract(file, contract, path, load(config))
    for line in checked.problems:
        typer.echo(line, err=True)
    if checked.model is None or checked.problems:
        typer.echo(f"{path}: nothing was written", err=True)
        raise typer.Exit(2)
    typer.echo(f"{path}: contract stored")
    for line in [*described(path.stem, checked.model), *(f"  {line}" for line in checked.facts)]:
        typer.echo(line)
    _warn(checked.warnings)


def _warn(lines: Any) -> None:
    for line in lines:
        typer.echo(f"warning: {line}")
