"""A flow that tells alerts to a webhook, run in a process of its own, with recovery: ``notify_flow.py URL FOLDER``.

Alerts of three devices, one after the other; each opens and closes.
"""

import sys
import time
from datetime import timedelta
from pathlib import Path

import bytewax.operators as op
from alert_rows import alerts, closed, opened
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig
from bytewax.testing import TestingSource, run_main

from voltmill.connectors.mqtt_settings import MqttSettings
from voltmill.connectors.notify import Place, notify
from voltmill.connectors.notify_places import WebhookSettings
from voltmill.connectors.notify_settings import NotifySettings

COUNT = 60


def build(url: str, seconds: float) -> Dataflow:
    settings = NotifySettings(
        name="duty",
        webhook=WebhookSettings(url=url),
        first_pause_seconds=0.02,
        longest_pause_seconds=0.05,
        timeout_seconds=5.0,
    )
    rows = [make(f"{k:03d}", f"m-{k % 3}") for k in range(COUNT) for make in (opened, closed)]
    flow = Dataflow("alerts")
    stream = op.input("alerts", flow, TestingSource([alerts([row]) for row in rows]))

    def slowly(batch):
        time.sleep(seconds)
        return batch

    keyed = op.key_on("shard", op.map("slowly", stream, slowly), lambda batch: batch.column("device_id")[0].as_py())
    notify("duty", keyed, place=Place(settings, MqttSettings()))
    return flow


if __name__ == "__main__":
    recovery = RecoveryConfig(str(Path(sys.argv[2])))
    run_main(build(sys.argv[1], 0.01), epoch_interval=timedelta(seconds=0.1), recovery_config=recovery)
