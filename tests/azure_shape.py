"""The pipeline in the shape it has on Azure, whole, on this machine: ``make azure``.

    modules -> Mosquitto -> two gateways -> hub (HTTPS in, AMQP out) -> two workers of the live flow
                  |                                                       |-> Azurite (lake) -> replay
                  +-> a local flow: folder and SQLite                     +-> PostgreSQL

In the middle of it both workers and one gateway are killed with kill -9 while messages come in. The local
flow reads the same messages from the broker, undisturbed: what it predicts is what must come out at the
other ends. The hub is the only stand-in (``hub_server``); the clients that speak to it are unmodified.
"""

import base64
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import typer
from hub_server import HubProcess
from live_flow import Live, accepted, fleet, publish
from servers import (
    Azurite,
    Mosquitto,
    PostgreSQL,
    find_azurite,
    find_postgresql,
    find_psqlodbc,
    has_mosquitto,
    make_certificates,
    missing,
)

from voltmill.connectors.sql import SqlSettings, read_rows
from voltmill.flows.running import prepare
from voltmill.flows.warm_up import raw_batch
from voltmill.kernels.schema import PREDICTION_KEY
from voltmill.operators.decode import Decoder
from voltmill.operators.sample import DecodeSettings

_CONTAINER: Final = "voltmill"
#: Two whose messages the hub keeps in different partitions, so that both workers have some.
GATEWAYS: Final = ("gw-1", "gw-2")
_VALUES: Final = (*PREDICTION_KEY, "value", "lo90", "hi90", "unit", "model_name", "model_version", "quality_bits")

_FLEET: Final = """
[[fleet]]
match = "*"
cell_type = "lg-hg2"
capacity_ah = 3.0
"""

_GATEWAY: Final = """\
[run]
state = "{folder}/state"
epoch_seconds = 0.3
[mqtt]
port = {broker}
topics = ["voltmill/site-1/{name}/#"]
client_id = "{name}"
[gateway]
connection_string = "${{GATEWAY_CONNECTION}}"
transport = "https"
ca_file = "{ca_file}"
store = "{folder}/gateway.db"
linger_seconds = 0.2
max_message_bytes = 16384
"""

_CLOUD: Final = """\
[run]
source = "iothub"
state = "{folder}/state"
epoch_seconds = 0.5
shards = 4
recovery_partitions = 2
[iothub]
connection_string = "${{HUB_CONNECTION}}"
[lake]
url = "abfs://{container}/lake"
storage_options = {{ connection_string = "${{LAKE_CONNECTION}}" }}
max_file_age_seconds = 1.0
[sql]
url = "${{DATABASE_URL}}"
driver = "{driver}"
"""


class Flow(Live):
    """A flow with a configuration of its own, in the processes that ``live_flow.Live`` starts and ends."""

    def __init__(self, folder: Path, port: int, text: str, environ: dict[str, str], name: str = "live") -> None:
        folder.mkdir()
        self.text, self.environ, self.name = text, environ, name
        super().__init__(folder, port)

    def configure(self, partitions: int) -> None:
        """Write the configuration."""
        self.config.write_text(self.text)

    def start(self, command: list[str] | None = None, **environ: str) -> Any:
        """Start a process with the secrets in its environment."""
        command = command or ["voltmill.flows.cli", "run", self.name, "-c", str(self.config)]
        return super().start(command, **self.environ, **environ)

    def kill(self) -> None:
        """kill -9 all that run."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class Counts:
    """What was found at each place once everything had come to rest; counts of messages, rows and predictions."""

    published: int
    broken: int
    hub_events: int
    archived: int
    duplicates: int
    samples: int
    dead_letters: int
    in_sql: int
    local: int
    same_as_local: int
    replayed: int
    same_in_replay: int

    @property
    def agree(self) -> bool:
        """Whether nothing was lost, doubled or changed."""
        # A message that is no telemetry has no name by which the second copy of a pack could be told.
        whole = self.archived - self.duplicates + self.broken == self.published and self.dead_letters >= self.broken
        once = self.samples == self.in_sql == self.local == self.replayed
        return whole and once and self.same_as_local == self.same_in_replay == self.in_sql


class Shape:
    """All servers and flows, in one folder; nothing runs yet but the servers."""

    def __init__(self, folder: Path, broker: Mosquitto, azurite: Azurite, database: PostgreSQL, hub: HubProcess,
                 ca_file: str) -> None:  # fmt: skip
        self.folder, self.broker, self.azurite, self.database, self.hub = folder, broker, azurite, database, hub
        fsspec.filesystem("abfs", **azurite.options).mkdir(_CONTAINER)
        self.local = Live(_made(folder / "local"), broker.port, partitions=1)
        self.gateways = [self._gateway(name, ca_file) for name in GATEWAYS]
        secrets = {
            "HUB_CONNECTION": hub.connection_string,
            "LAKE_CONNECTION": azurite.connection_string,
            "DATABASE_URL": database.url(),
        }
        text = _CLOUD.format(folder=folder / "cloud", container=_CONTAINER, driver=find_psqlodbc()) + _FLEET
        self.cloud = Flow(folder / "cloud", broker.port, text, secrets)

    @property
    def flows(self) -> list[Live]:
        """Every flow."""
        return [self.local, self.cloud, *self.gateways]

    def in_sql(self) -> list[tuple[Any, ...]]:
        """The predictions in PostgreSQL."""
        return _rows(read_rows(SqlSettings(url=self.database.url(), driver=str(find_psqlodbc()))))

    def stored(self) -> int:
        """How many predictions are in PostgreSQL."""
        if not self.database.query("SELECT 1 FROM pg_tables WHERE tablename = 'predictions'"):
            return 0
        return int(self.database.query("SELECT count(*) FROM predictions")[0][0])

    def lake(self, table: str, root: str = f"{_CONTAINER}/lake") -> list[dict[str, Any]]:
        """A table of the lake, as a reader without voltmill sees it."""
        fs = fsspec.filesystem("abfs", **self.azurite.options, use_listings_cache=False)
        files = sorted(fs.find(f"{root}/{table}"))
        rows: list[dict[str, Any]] = ds.dataset(files, filesystem=fs, format="parquet").to_table().to_pylist()
        return rows

    def replay(self) -> list[tuple[Any, ...]]:
        """Replay the archive from Azurite, in a process of its own; its predictions."""
        out = self.folder / "replayed"
        command = ["voltmill.flows.cli", "replay", "-c", str(self.cloud.config), "--out", str(out)]
        process = self.cloud.start([*command, "--lake", f"abfs://{_CONTAINER}/lake"])
        assert process.wait(120) == 0, self.cloud.log()[-3000:]
        return _predictions(out / "predictions")

    def _gateway(self, name: str, ca_file: str) -> Flow:
        key = base64.b64encode(b"key of " + name.encode()).decode()
        login = f"HostName=localhost:{self.hub.http_port};DeviceId={name};SharedAccessKey={key}"
        folder = self.folder / name
        text = _GATEWAY.format(folder=folder, broker=self.broker.port, name=name, ca_file=ca_file)
        return Flow(folder, self.broker.port, text, {"GATEWAY_CONNECTION": login}, "gateway")


def _not_here() -> list[str]:
    """Servers that are needed and not installed."""
    needed = {
        "Mosquitto": has_mosquitto(),
        "Azurite": find_azurite(),
        "PostgreSQL": find_postgresql(),
        "the ODBC driver of PostgreSQL": find_psqlodbc(),
    }
    return [name for name, found in needed.items() if not found]


@contextmanager
def shape(folder: Path) -> Iterator[Shape]:
    """The servers, started on free ports of the loopback; what still runs at the end is ended."""
    for name in _not_here():
        missing(name)
    certificates = make_certificates(_made(folder / "certificates"))
    with ExitStack() as stack:
        broker = Mosquitto(_made(folder / "mosquitto"), persistence=True)
        stack.callback(broker.stop)
        azurite = Azurite(_made(folder / "azurite"))
        stack.callback(azurite.stop)
        database = PostgreSQL()
        stack.callback(database.remove)
        pair = (certificates.server_cert, certificates.server_key)
        hub = stack.enter_context(HubProcess(4, certificate=pair, ca_file=certificates.ca_file))
        made = Shape(folder, broker, azurite, database, hub, certificates.ca_file)
        for flow in made.flows:
            stack.callback(flow.end)
        yield made


def run(world: Shape, *, modules: int, seconds: float, say: Callable[[str], None] = lambda line: None) -> Counts:
    """Send a fleet through, kill half of the processes in the middle, and count what came out.

    Args:
        world: where.
        modules: how many there are.
        seconds: of event time, a sample of each every 5 s.
        say: told each step.
    """
    sent = fleet(modules, seconds)
    thirds = [sent[k * len(sent) // 3 : (k + 1) * len(sent) // 3] for k in range(3)]
    prepare()  # else four processes compile the same kernels at once
    say("starting a local flow, two gateways and two workers of the live flow")
    world.local.start()
    for gateway in world.gateways:
        gateway.start()
    world.cloud.start_cluster()
    for flow in (world.local, *world.gateways):
        flow.subscribed(1)
    publish(world.broker.port, thirds[0])
    world.cloud.until(lambda: world.stored() > 0, "nothing stored")
    publish(world.broker.port, thirds[1])
    say(f"{2 * len(thirds[0])} messages sent; kill -9 of both workers and of {GATEWAYS[0]} with messages on their way")
    world.gateways[0].kill()
    world.cloud.kill()
    world.cloud.start_cluster()
    world.gateways[0].start()
    world.gateways[0].subscribed(2)
    publish(world.broker.port, thirds[2])
    world.local.settled(len(sent))
    wanted = world.local.stored()
    world.cloud.until(lambda: world.stored() >= wanted, f"not all of {wanted} predictions came")
    say(f"{world.stored()} predictions stored; all flows drain")
    for flow in (*world.gateways, world.cloud, world.local):
        flow.drain()
    say("replaying the archive from Azurite")
    return _counted(world, sent)


def _counted(world: Shape, sent: list[tuple[str, bytes]]) -> Counts:
    rows = world.lake("telemetry")
    duplicates = len(rows) - len({(row["device_id"], row["seq"]) for row in rows})
    stored, local = world.in_sql(), _predictions(world.local.folder / "lake" / "predictions")
    replayed = world.replay()
    return Counts(
        published=len(sent),
        broken=sum(Decoder(DecodeSettings())(raw_batch([payload]))[1] is not None for _, payload in sent),
        hub_events=sum(end for _, end in world.hub.stats()["partitions"]),
        archived=len(rows),
        duplicates=duplicates,
        samples=sum(map(accepted, rows)),
        dead_letters=len(world.lake("dead_letters")),
        in_sql=len(stored),
        local=len(local),
        same_as_local=len(set(stored) & set(local)),
        replayed=len(replayed),
        same_in_replay=len(set(stored) & set(replayed)),
    )


def _predictions(folder: Path) -> list[tuple[Any, ...]]:
    return _rows(ds.dataset(str(folder), format="parquet").to_table())


def _rows(table: pa.Table) -> list[tuple[Any, ...]]:
    """What must be the same everywhere, floats to the last bit; the database makes null of NaN."""
    rows = table.select(list(_VALUES)).to_pylist()
    return [tuple(None if value != value else value for value in row.values()) for row in rows]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def main(
    modules: int = typer.Option(64, min=4, help="Modules that send, a sample every 5 s."),
    seconds: float = typer.Option(1800.0, min=60, help="Event time that they send, s."),
) -> None:
    """The whole Azure shape on this machine, with kill -9 in the middle; ends with a table."""
    os.environ["CI"] = "true"  # a missing server is an error here, not a test to skip
    if absent := _not_here():
        sys.exit(f"not installed: {', '.join(absent)}; make azure unpacks what is missing, and then runs this")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="voltmill-azure-") as folder, shape(Path(folder)) as world:
        counts = run(world, modules=modules, seconds=seconds, say=lambda line: typer.echo(f"  {line}"))
    for line in _table(counts):
        typer.echo(line)
    typer.echo(f"\n{'everything agrees' if counts.agree else 'COUNTS DIFFER'}, {time.monotonic() - began:.0f} s")
    sys.exit(0 if counts.agree else 1)


def _table(counts: Counts) -> Iterator[str]:
    lines = {
        "messages published by the modules": counts.published,
        "  of them no telemetry": counts.broken,
        "hub messages (packs) that the gateways sent": counts.hub_events,
        "rows in the lake on Azurite": counts.archived,
        "  of them sent twice after a kill, flagged": counts.duplicates,
        "  of them samples for the models": counts.samples,
        "dead letters in the lake, second copies too": counts.dead_letters,
        "predictions in PostgreSQL": counts.in_sql,
        "  equal to those of the local flow": counts.same_as_local,
        "  equal to those of the replay from Azurite": counts.same_in_replay,
    }
    yield ""
    for name, count in lines.items():
        yield f"{name:<46}{count:>9,}"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
