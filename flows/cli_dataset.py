"""The command that makes a training table of the archive."""

import enum
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voltmill.flows.cli_common import ConfigFile, Progress, parse_range
from voltmill.flows.cli_compare import Devices
from voltmill.flows.config import ConfigError, load

if TYPE_CHECKING:
    from voltmill.flows.dataset import Made


class Kind(enum.Enum):
    """What a row is."""

    features = "features"
    sessions = "sessions"
    telemetry = "telemetry"


def dataset(
    to_file: Annotated[Path, typer.Option("--out", help="Parquet file to write; must not be there yet.")],
    table: Annotated[Kind, typer.Option(help="A row: a sample with its features, a finished session, a sample.")],
    config: ConfigFile = None,
    lake: Annotated[
        str, typer.Option(help="Folder or URL that holds telemetry/; default: that of the configuration.")
    ] = "",
    start: Annotated[str, typer.Option("--from", help="First event time, ISO 8601.")] = "",
    stop: Annotated[str, typer.Option("--to", help="Event time to stop before, ISO 8601.")] = "",
    warm_up: Annotated[
        float, typer.Option(min=0, max=87_600, help="Hours read before --from to warm the state up.")
    ] = 1.0,
    device: Devices = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="Columns or patterns, with commas between; default: all of the table.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="NAME=COLUMN, or NAME=COLUMN/COLUMN in percent; rows without one are left out."),
    ] = None,
    every: Annotated[
        float, typer.Option(min=0, max=1e9, help="Seconds: one row of a device in each such period. 0: all.")
    ] = 0.0,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave out rows with one of these quality bits, with commas between.")
    ] = None,
    split: Annotated[str, typer.Option(help="Shares of devices for train,validation,test.")] = "70,15,15",
    seed: Annotated[str, typer.Option(help="Any text: another one splits otherwise.")] = "",
) -> None:
    """The archive as a training table: features or sessions as the stream computes them, split by device."""
    from voltmill.flows import running
    from voltmill.flows.dataset import Recipe
    from voltmill.flows.dataset import dataset as dataset_
    from voltmill.flows.dataset_columns import Label

    settings = load(config)
    first, last = parse_range(start, stop)
    recipe = Recipe(
        table=table.value,
        start=first,
        stop=last,
        warm_up_seconds=warm_up * 3600 if first else 0.0,
        devices=tuple(device or ()),
        columns=_words(columns),
        labels=tuple(Label.parse(text) for text in label or ()),
        every_seconds=every,
        without=_words(without),
        shares=_shares(split),
        seed=seed,
    )
    running.prepare()
    began = time.perf_counter()
    made = dataset_(settings, lake or settings.lake.url, to_file, recipe, on_progress=Progress("file"))
    for line in _lines(made, to_file, time.perf_counter() - began):
        typer.echo(line)


def _words(texts: list[str] | None) -> tuple[str, ...]:
    return tuple(word.strip() for text in texts or () for word in text.split(",") if word.strip())


def _shares(text: str) -> tuple[float, float, float]:
    try:
        train, validation, test = (float(share) for share in text.split(","))
    except ValueError:
        raise ConfigError(f"--split {text}: write three shares, such as 70,15,15") from None
    return train, validation, test


def _lines(made: "Made", out: Path, seconds: float) -> Iterator[str]:
    """What was made, in words."""
    devices = ", ".join(f"{count} {name}" for name, count in made.devices.items())
    yield f"{made.rows:,} rows of {sum(made.devices.values()):,} devices ({devices}) in {out}"
    left = [(made.flagged, "with a quality bit of --without"), (made.unlabelled, "without a label")]
    said = "".join(f", {count:,} left out {why}" for count, why in left if count)
    yield f"{made.read:,} rows of telemetry read in {seconds:.1f} s{said}"
    for (name, count), share in zip(made.devices.items(), made.recipe.shares, strict=True):
        if share and made.rows and not count:
            yield f"no device fell to {name}: there are few; another --seed or --split may help"
    yield f"training_data_sha256 = {made.sha256}"
