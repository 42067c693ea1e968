"""The command line.

Exit status 0 when it did what was asked, 2 for a wrong configuration or call, 1 otherwise. Errors are
one line on standard error; ``--debug`` gives the traceback.
"""

import enum
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from voltmill import __version__
from voltmill.flows import cli_db, cli_dead_letters, cli_models, cli_notify
from voltmill.flows.cli_common import ConfigFile, show_line
from voltmill.flows.cli_compare import compare
from voltmill.flows.cli_dataset import dataset
from voltmill.flows.cli_explain import explain
from voltmill.flows.cli_gateway import gateway
from voltmill.flows.cli_lake import compact
from voltmill.flows.cli_replay import replay
from voltmill.flows.cli_rescale import rescale
from voltmill.flows.config import ConfigError, load

app = typer.Typer(
    name="voltmill",
    help="Battery telemetry to state of charge, health and alerts, as a stream.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_run = typer.Typer(help="Run a flow until SIGTERM.", no_args_is_help=True)
app.add_typer(_run, name="run")
app.add_typer(cli_db.app, name="db")
app.add_typer(cli_dead_letters.app, name="dead-letters")
app.add_typer(cli_models.app, name="models")
app.add_typer(cli_notify.app, name="notify")
_run.command()(gateway)
app.command()(compact)
app.command()(replay)
app.command()(compare)
app.command()(explain)
app.command()(dataset)
app.command()(rescale)


class BrokerKind(enum.Enum):
    """The brokers that the demo can start."""

    mosquitto = "mosquitto"
    amqtt = "amqtt"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"voltmill {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    pass  # --debug is read in main, which sees the errors


@_run.command("live")
def live(
    config: ConfigFile = None,
    workers: Annotated[int, typer.Option("-w", "--workers", min=1, help="Worker threads of this process.")] = 1,
    process: Annotated[int | None, typer.Option("-i", "--process-id", min=0, help="Index in the cluster.")] = None,
    addresses: Annotated[str, typer.Option("-a", "--addresses", help="host:port;host:port of the cluster.")] = "",
) -> None:
    """MQTT or IoT Hub in; telemetry, predictions and dead letters out, to lake and database."""
    cluster = [a for a in addresses.split(";") if a]
    if bool(cluster) != (process is not None) or (process is not None and not process < len(cluster)):
        raise ConfigError("-i and -a go together: -i is the index, from 0, of this process in -a")
    from voltmill.connectors.drain import Drain
    from voltmill.flows import live as flow
    from voltmill.flows import running
    from voltmill.flows.metrics import Metrics

    settings = load(config)
    running.log_to_stderr(settings.run.log_level)
    drain, metrics = Drain(), Metrics()
    running.drain_on_signals(drain)
    running.prepare(live=True)
    if settings.run.metrics_port:
        metrics.serve(settings.run.metrics_host, settings.run.metrics_port)
    dataflow = flow.build(settings, drain, metrics)
    running.log.info("running", extra={"topics": settings.mqtt.topics, "lake": settings.lake.place})
    running.run(
        dataflow,
        settings.run,
        workers=workers,
        process=process,
        addresses=cluster,
        drain=drain,
    )
    running.log.info("drained")


@app.command()
def simulate(
    config: ConfigFile = None,
    truth: Annotated[Path | None, typer.Option(help="Folder for the truth, for scoring.")] = None,
) -> None:
    """A fleet with known truth, published over MQTT."""
    import msgspec

    from voltmill.flows import running
    from voltmill.flows.simulate import Progress
    from voltmill.flows.simulate import simulate as simulate_

    settings = load(config)
    running.log_to_stderr(settings.run.log_level)
    running.prepare()

    def show(progress: Progress) -> None:
        late = f", {progress.behind_seconds:.1f} s behind" if progress.behind_seconds > 1 else ""
        show_line(f"{progress.published} messages, event time {progress.event_time:%Y-%m-%d %H:%M:%S}{late}")

    summary = simulate_(settings.simulate, settings.mqtt, truth, show)
    show_line("")
    typer.echo(msgspec.json.encode(summary).decode())
    if summary["unacknowledged"]:
        raise RuntimeError(f"the broker did not confirm {summary['unacknowledged']} messages: they may be lost")


@app.command()
def publish(
    file: Annotated[Path, typer.Argument(help="Any Parquet file.")],
    topic: Annotated[str, typer.Option("--topic", "-t", help="MQTT topic.")],
    config: ConfigFile = None,
    device: Annotated[str | None, typer.Option(help="device_id put into each message.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows at most.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Messages per second at most.")] = None,
) -> None:
    """The rows of a Parquet file as JSON messages: recorded telemetry made live."""
    from voltmill.flows.publish import publish_parquet
    from voltmill.flows.running import log_to_stderr

    settings = load(config)
    log_to_stderr(settings.run.log_level)
    sent = publish_parquet(file, settings.mqtt, topic=topic, device_id=device, limit=limit, rate=rate)
    typer.echo(f"{sent} messages published to {topic}")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A configuration (.toml), a message (.json) or a model (.onnx).")],
    config: ConfigFile = None,
    offline: Annotated[bool, typer.Option("--offline", help="Try none of the connections of a configuration.")] = False,
) -> None:
    """What is wrong with a configuration, its connections, a sample message or a model, and how to mend it.

    Exit status 2 if the file is wrong, 1 if only a connection that it names fails.
    """
    from voltmill.flows.checking import check_file

    logging.getLogger().addHandler(logging.NullHandler())  # what clients log of a failure is said once, by us
    checked = check_file(file, load(config), offline=offline)
    for line in checked.report:
        typer.echo(line)
    for line in checked.problems:
        typer.echo(line, err=True)
    failed = False
    for finding in checked.connections:
        typer.echo(str(finding), err=not finding.works)
        failed |= not finding.works
    if checked.problems or failed:
        raise typer.Exit(2 if checked.problems else 1)


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Option(help="Where the results stay; default: a new folder here.")] = None,
    seconds: Annotated[float, typer.Option(min=5, help="How long the fleet runs.")] = 60.0,
    modules: Annotated[int, typer.Option(min=4, help="How many modules there are, rounded to a multiple of 16.")] = 256,
    speed: Annotated[float, typer.Option(min=1, help="Event seconds per second.")] = 30.0,
    broker: Annotated[BrokerKind | None, typer.Option(help="Default: Mosquitto if it is installed.")] = None,
) -> None:
    """The whole pipeline on this machine, about a minute; ends with a table."""
    from voltmill.flows.demo import demo as demo_

    if not demo_(folder, seconds=seconds, modules=modules, speed=speed, prefer=broker.value if broker else None):
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        # It is an option of voltmill, but is asked for when a command has failed, and then stands at its end.
        app([a for a in arguments if a != "--debug"], prog_name="voltmill")
    except Exception as e:
        if debug:
            raise
        typer.echo(f"voltmill: {_one_line(e)}", err=True)
        sys.exit(_status(e))


def _status(error: Exception) -> int:
    from voltmill.operators.model import ModelError

    return 2 if isinstance(error, ConfigError | ModelError) else 1


def _one_line(error: Exception) -> str:
    from voltmill.connectors.sql import SqlError
    from voltmill.connectors.store import LakeError

    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    if text and isinstance(error, LakeError | SqlError | OSError | ValueError | RuntimeError):
        return text
    return " ".join(f"{type(error).__name__}: {text} (unforeseen; --debug shows where)".split())


if __name__ == "__main__":
    main()
