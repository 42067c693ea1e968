"""Running a flow: signals, logs, compiling the kernels, and the engine's entry point."""

import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Final

from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.recovery import RecoveryConfig
from bytewax.run import cli_main

from voltmill.connectors.drain import Drain
from voltmill.flows import panics
from voltmill.flows.config import RunSettings
from voltmill.flows.warm_up import compiled, warm_up

log = logging.getLogger("voltmill")

_KNOWN: Final = set(logging.makeLogRecord({}).__dict__) | {"message", "taskName"}


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what was passed as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        passed = {k: _finite(v) for k, v in record.__dict__.items() if k not in _KNOWN}
        return json.dumps(line | {k: v for k, v in passed.items() if k not in line}, default=str)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def log_to_stderr(level: str) -> None:
    """Send the project's log lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    log.handlers[:] = [handler]
    log.setLevel(level.upper())
    log.propagate = False


def drain_on_signals(drain: Drain) -> None:
    """SIGTERM and SIGINT ask the sources to drain; a second signal ends the process at once.

    With a handler of its own the process heeds SIGTERM as PID 1 too, where the default is to ignore it.
    """

    def handle(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if drain.requested:
            log.warning("stopping at once", extra={"signal": name})
            os._exit(1)  # what was not durable comes again
        log.info("draining", extra={"signal": name})
        drain.request()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def prepare() -> None:
    """Load the kernels, and say so where they must be compiled first, for that takes half a minute."""
    if not compiled():
        sys.stderr.write("voltmill: compiling the kernels, once on this machine (about half a minute) ...\n")
        sys.stderr.flush()
    warm_up()


def run(
    flow: Dataflow,
    settings: RunSettings,
    *,
    recovery: bool = True,
    workers: int = 1,
    process: int | None = None,
    addresses: Sequence[str] = (),
) -> None:
    """Run a flow until its sources end.

    Args:
        flow: The dataflow.
        settings: Epoch length and the folder of the recovery store, which exists.
        recovery: Whether to take snapshots.
        workers: Worker threads of this process.
        process: Index of this process in the cluster; None: it is alone.
        addresses: host:port of every process of the cluster.

    Raises:
        Exception: What a source, an operator or a sink raised, without the engine's wrapping.
    """
    failed: BaseException | None = None
    try:
        with panics.hidden(log):
            cli_main(  # type: ignore[no-untyped-call]
                flow,
                workers_per_process=workers,
                process_id=process,
                addresses=list(addresses) or None,
                epoch_interval=timedelta(seconds=settings.epoch_seconds),
                recovery_config=RecoveryConfig(Path(settings.state)) if recovery else None,  # type: ignore[no-untyped-call]
            )
    except BytewaxRuntimeError as e:
        failed = e
        while isinstance(failed, BytewaxRuntimeError) and failed.__cause__ is not None:
            failed = failed.__cause__
    if failed is not None:  # out here it keeps the causes of its own
        raise failed
