"""The live flow without its engine: each step in hand, so that it can be stopped and killed between any two.

What Bytewax promises is kept, and no more: a source hands out nothing between a snapshot and the moment
it is durable; a step is asked for its snapshot only if it was awoken in the epoch; a sink's partition
with a state is built at the start, one without at its first item.
"""

import functools
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mqtt_model import Session, Wire

from voltmill.connectors import mqtt
from voltmill.connectors.drain import Drain
from voltmill.connectors.lake import LakeSettings, LakeSink
from voltmill.connectors.lake_partition import LakePartition
from voltmill.connectors.mqtt import MqttPartition, MqttSettings, MqttSource
from voltmill.connectors.outage import Patience
from voltmill.connectors.sql import SqlSettings, SqlTable
from voltmill.kernels.fleet import Fleet
from voltmill.kernels.schema import DEAD_LETTER, PREDICTION, REFUSED, TELEMETRY, label
from voltmill.operators.decode import Decoder
from voltmill.operators.quality import QualitySettings, QualityState
from voltmill.operators.sample import DecodeSettings
from voltmill.operators.shard import shard_names, split

SCHEMAS = {"telemetry": TELEMETRY, "dead_letters": DEAD_LETTER}


class Killed(Exception):
    """The process is gone, in the middle of a batch."""


class World:
    """What outlives a process: brokers' sessions, files, the database, the recovery store."""

    def __init__(
        self, folder: Path, *, topics: Sequence[str], shards: int, protocol: str, ids: int, lake: dict[str, int]
    ) -> None:
        self.folder, self.shards = folder, shards
        self.mqtt = MqttSettings(
            topics=tuple(topics), protocol=protocol, linger_ms=1, max_batch_rows=7, max_batch_bytes=1 << 16
        )
        self.sessions = {topic: Session(topic, ids, protocol == "5") for topic in topics}
        (folder / "lake").mkdir()
        self.lake = LakeSettings(url=str(folder / "lake"), **lake)
        self.sql = SqlTable(SqlSettings(url=f"sqlite:///{folder}/v.db"), patience=Patience("a database", seconds=0.001))
        self.sql.prepare()
        self.durable = pickle.dumps({})
        self.again = 0

    def count(self, messages: int) -> None:
        self.again += messages

    def numbers(self, table: str, shard: str) -> list[int]:
        """The sequence numbers of a shard's files."""
        return sorted(int(path.stem[-10:]) for path in (self.folder / "lake" / table).glob(f"*/shard={shard}/*"))

    def rows(self, table: str) -> list[dict[str, Any]]:
        """What a reader finds in the lake."""
        files = [path for path in (self.folder / "lake" / table).rglob("*") if path.is_file()]
        assert all(path.suffix == ".parquet" and not path.name.startswith(".") for path in files)
        return [row for path in sorted(files) for row in pq.ParquetFile(path).read(use_threads=False).to_pylist()]


class Life:
    """A process, from its start to whatever ends it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.states: dict[tuple[str, str], Any] = pickle.loads(world.durable)
        self.awoken: dict[tuple[str, str], Any] = {}
        self.drain = Drain()
        self.parts: dict[str, MqttPartition] = {}
        source = MqttSource(world.mqtt, drain=self.drain, on_redelivered=world.count)
        for topic, session in world.sessions.items():
            with patch.object(mqtt, "Receiver", functools.partial(Wire, session)):
                self.parts[topic] = source.build_part("source", topic, self.states.get(("source", topic)))
        self._decoder = Decoder(DecodeSettings())
        self._names = shard_names(world.shards)
        self._sinks = {
            name: LakeSink(
                world.lake,
                table=name,
                schema=schema,
                shards=self._names,
                store="20261122T103000Z-3fa2",
                existing=True,
            )
            for name, schema in SCHEMAS.items()
        }
        self._steps: dict[tuple[str, str], Any] = {}
        for step in self.states:
            if step[0] != "source":
                self._step(*step)
        self._sql = world.sql.writer()

    def wire(self, topic: str) -> Wire:
        client: Any = self.parts[topic]._client
        return client

    def batch(self, topic: str, dies_at: str | None = None) -> None:
        """Ask a source partition for a batch, and lead it through the graph."""
        part = self.parts[topic]
        self.awoken["source", topic] = part
        for raw in part.next_batch():
            self._die("source", dies_at)
            telemetry, letters = self._decoder(raw)
            if letters is not None:
                self._awake("dead_letters", self._names[0]).write_batch([letters])
            self._die("dead_letters", dies_at)
            for k, rows in split(telemetry, self.world.shards) if telemetry is not None else []:
                judged = self._awake("quality", self._names[k]).apply(rows)
                self._sql.write([predict(judged)])
                self._die("sql", dies_at)
                self._awake("telemetry", self._names[k]).write_batch([judged])
            self._die("telemetry", dies_at)

    def snapshot(self) -> bytes:
        """The end of an epoch; what it gives is durable once it is ``world.durable``."""
        for step, state in self.awoken.items():
            self.states[step] = state.snapshot()
        self.awoken.clear()
        self._sql.durable()
        return pickle.dumps(self.states)

    def epoch(self) -> None:
        self.world.durable = self.snapshot()

    def close(self) -> None:
        """The stream is over."""
        for part in self.parts.values():
            part.close()
        for step, state in self._steps.items():
            if step[0] in SCHEMAS:
                state.close()
        self._sql.durable()
        self._sql.close()

    def die(self, arrives: bool = False) -> None:
        """``arrives``: what was sent reaches the broker before."""
        for topic in self.parts:
            self.wire(topic).die(arrives)
        self._sql.close()

    def _step(self, name: str, shard: str) -> Any:
        if (name, shard) not in self._steps:
            self._steps[name, shard] = self._build(name, shard)
        return self._steps[name, shard]

    def _build(self, name: str, shard: str) -> "QualityState | LakePartition":
        state = self.states.get((name, shard))
        if name == "quality":
            return QualityState(QualitySettings(), Fleet([]), state)
        return self._sinks[name].build_part(name, shard, state)

    def _awake(self, name: str, shard: str) -> Any:
        self.awoken[name, shard] = step = self._step(name, shard)
        return step

    @staticmethod
    def _die(place: str, dies_at: str | None) -> None:
        if place == dies_at:
            raise Killed


def predict(telemetry: pa.RecordBatch) -> pa.RecordBatch:
    """One prediction for each row that takes part in state: the number of the message."""
    sound = telemetry["quality_bits"].to_numpy() & np.uint32(REFUSED) == 0
    rows = telemetry.filter(pa.array(sound))
    size = rows.num_rows
    labels = {"target": "soc", "model_sha256": "ab" * 32, "unit": "percent", "model_name": "line"}
    labels |= {"model_version": "1", "mode": "live"}
    columns = {name: label(value, size) for name, value in labels.items()}
    for name in PREDICTION.names:
        if name in TELEMETRY.names:
            columns[name] = rows[name]
    columns["value"] = rows["seq"].cast(pa.float32())
    columns["lo90"] = columns["hi90"] = pa.nulls(size, pa.float32())
    return pa.RecordBatch.from_arrays([columns[name] for name in PREDICTION.names], schema=PREDICTION)


def message(device: str, seq: int) -> bytes:
    """A sound message; those of a device are 5 s apart."""
    body = {"device_id": device, "event_time": 1_700_000_000 + 5 * seq, "seq": seq, "current_ampere": -1.5}
    return json.dumps(body | {"cell_voltage_volt": [3.6, 3.61], "cell_temperature_celsius": [25.0]}).encode()
