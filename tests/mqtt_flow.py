"""A flow to be killed: from MQTT into a text file, one line a message, exactly once per delivery.

    python tests/mqtt_flow.py PORT RECOVERY_FOLDER OUT_FILE EPOCH_SECONDS

The file is cut back to the last durable epoch at a restart. SIGTERM drains.
"""

import signal
import sys
from datetime import timedelta
from pathlib import Path

import bytewax.operators as op
import pyarrow as pa
from bytewax.connectors.files import FileSink
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig
from bytewax.testing import run_main

from voltmill.connectors.drain import Drain
from voltmill.connectors.mqtt import MqttSettings, MqttSource


def lines(batch: pa.RecordBatch) -> list[tuple[str, str]]:
    return [("all", payload.decode()) for payload in batch["payload"].to_pylist()]


port, recovery, out, epoch_seconds = sys.argv[1:]
drain = Drain()
signal.signal(signal.SIGTERM, lambda *_: drain.request())
flow = Dataflow("mqtt_flow")
settings = MqttSettings(port=int(port), topics=("kill/#",), client_id="kill", max_batch_rows=50, linger_ms=5)
batches = op.input("in", flow, MqttSource(settings, drain=drain))
op.output("out", op.flat_map("lines", batches, lines), FileSink(Path(out)))
run_main(flow, epoch_interval=timedelta(seconds=float(epoch_seconds)), recovery_config=RecoveryConfig(recovery))
