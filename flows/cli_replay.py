"""The command that replays the archive."""

import enum
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated

import typer

from voltmill.connectors.drain import Drain
from voltmill.flows.cli_common import ConfigFile, Progress, parse_range
from voltmill.flows.cli_compare import Devices, JsonFile, Tolerance, Worst, show
from voltmill.flows.config import Config, ConfigError, ModelEntry, load


class Source(enum.Enum):
    """What is replayed."""

    telemetry = "telemetry"
    sessions = "sessions"


def replay(
    lake: Annotated[str, typer.Option(help="Folder or URL that holds the table.")],
    out: Annotated[str, typer.Option(help="Folder or URL for the outputs; must hold none yet.")],
    config: ConfigFile = None,
    table: Annotated[
        Source, typer.Option(help="What to replay; sessions: for models of SOH and RUL alone, in seconds.")
    ] = Source.telemetry,
    start: Annotated[str, typer.Option("--from", help="First event time, ISO 8601.")] = "",
    stop: Annotated[str, typer.Option("--to", help="Event time to stop before, ISO 8601.")] = "",
    warm_up: Annotated[
        float, typer.Option(min=0, max=87_600, help="Hours read before --from to warm the state up.")
    ] = 1.0,
    device: Devices = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Model to run instead of [[model]]: name or ONNX file; may be repeated.")
    ] = None,
    telemetry: Annotated[bool, typer.Option(help="Write telemetry/ with the new quality bits too.")] = False,
    state: Annotated[
        str, typer.Option(help="Local folder for what it needs to go on after a stop; default: in --out.")
    ] = "",
    epoch: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between points it can go on from.")] = 10.0,
    compare: Annotated[str, typer.Option(help="Folder or URL of predictions/ to compare the new ones with.")] = "",
    tolerance: Tolerance = None,
    worst: Worst = 10,
    json: JsonFile = None,
) -> None:
    """The archive through the same graph, at full speed; stopped in any way, the same command goes on."""
    from voltmill.flows import running
    from voltmill.flows.compare import Selection
    from voltmill.flows.replay import replay as replay_

    if not compare and (json or tolerance is not None):
        raise ConfigError("--json and --tolerance are for --compare: name what to compare with")
    settings = _with_models(load(config), model or [])
    first, last = parse_range(start, stop)
    running.log_to_stderr(settings.run.log_level)
    running.prepare()
    with _drain_on_signals() as drain:
        done = replay_(
            settings,
            lake,
            out,
            start=first,
            stop=last,
            warm_up=timedelta(hours=warm_up),
            devices=device or (),
            table=table.value,
            telemetry=telemetry,
            state=state,
            epoch_seconds=epoch,
            drain=drain,
            on_progress=Progress("file"),
        )
    before = f" ({done.rows_before} of them before the last start)" if done.rows_before else ""
    typer.echo(
        f"{done.rows} rows replayed{before} in {done.seconds:.1f} s "
        f"({(done.rows - done.rows_before) / done.seconds:.0f}/s), {done.predictions} predictions in {out}/predictions"
    )
    if first:
        typer.echo(f"state warmed up on the {warm_up:g} h before {first.isoformat()}; before that it knew nothing")
    if compare:
        chosen = Selection(start=first, stop=last, devices=tuple(device or ()), targets=done.targets)
        show(settings.lake, compare, out, chosen, tolerance=tolerance, worst=worst, json=json)


def _with_models(config: Config, names: list[str]) -> Config:
    """The configuration with other models, if any are named."""
    from msgspec.structs import replace

    return replace(config, model=tuple(ModelEntry(name=name) for name in names)) if names else config


@contextmanager
def _drain_on_signals() -> Iterator[Drain]:
    """Heed signals while the engine runs; afterwards, in the comparison too, they end the process as always."""
    from voltmill.flows import running

    numbers = (signal.SIGTERM, signal.SIGINT)
    before, drain = [signal.getsignal(number) for number in numbers], Drain()
    running.drain_on_signals(drain)
    try:
        yield drain
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
