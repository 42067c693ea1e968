"""``voltmill run gateway``."""

import logging
import os

from voltmill.flows.cli_common import ConfigFile
from voltmill.flows.config import load


def gateway(config: ConfigFile = None) -> None:
    """The site's MQTT broker in, Azure IoT Hub out, with a store on disk for when the hub is away."""
    from voltmill.connectors.drain import Drain
    from voltmill.flows import gateway as flow
    from voltmill.flows import running
    from voltmill.flows.gateway_metrics import GatewayMetrics
    from voltmill.flows.warm_up import receive_one

    settings = load(config)
    running.log_to_stderr(settings.run.log_level)
    drain, metrics = Drain(), GatewayMetrics()
    running.drain_on_signals(drain)
    receive_one()  # the kernels of the source: a gateway, which may be a small machine, needs no others
    if settings.run.metrics_port:
        metrics.serve(settings.run.metrics_host, settings.run.metrics_port)
    ended = flow.run(settings, drain, metrics)
    running.log.info("drained")
    if not ended:
        running.log.warning("leaving a client of the hub that hangs")
        logging.shutdown()
        os._exit(0)  # its threads would keep the process; all that was taken is on disk
