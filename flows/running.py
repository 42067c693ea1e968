"""Running a flow: signals, logs, compiling the kernels, and the engine's entry point."""

import json
import logging
import math
import os
import re
import signal
import sys
import threading
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
from voltmill.flows.warm_up import compiled, load, warm_up

log = logging.getLogger("voltmill")

#: What SQLite says of the recovery store, within the words of the engine: a full disk, say.
_STORE_SAID: Final = re.compile(r'SqliteFailure\(.*?Some\("(.*?)"\)', re.DOTALL)

#: What it says where the store has a place in a partition that the source no longer has, such as a topic filter.
_GONE: Final = re.compile(r'Key StateKey\("(.*?)"\) is not in this worker')

#: How long a process of a cluster that is asked to drain waits for the others, s: within Kubernetes' grace of 30.
LEAVE_SECONDS: Final = 15.0

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
    """SIGTERM and SIGINT ask the sources to drain; a second signal ends the process at once, status 1.

    A thread of its own heeds them. Python runs handlers in the main thread alone, between two of its
    instructions, which would not come while a kernel is compiled or a database waited for in C. As PID 1
    the process heeds them too, where the default is to ignore SIGTERM.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _left_to_the_thread)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_heed, args=(reader, drain), name="signals", daemon=True).start()


def _left_to_the_thread(number: int, frame: FrameType | None) -> None:
    pass


def _heed(reader: int, drain: Drain) -> None:
    while number := os.read(reader, 1):
        if number[0] not in (signal.SIGTERM, signal.SIGINT):
            continue
        name = signal.Signals(number[0]).name
        if drain.requested:
            log.warning("stopping at once", extra={"signal": name})
            os._exit(1)  # what was not durable comes again
        log.info("draining", extra={"signal": name})
        drain.request()


def prepare(*, live: bool = False) -> None:
    """Have the kernels compiled, and say so where that must be done now, for it takes half a minute.

    Args:
        live: Load them too: the first message of a live flow should not wait for that. Else each is
            loaded when it is first called, and those that a command does not need never.
    """
    if not compiled():
        sys.stderr.write("voltmill: compiling the kernels, once on this machine (about half a minute) ...\n")
        sys.stderr.flush()
        warm_up()
    elif live:
        load()


def _leave(drain: Drain, ended: threading.Event) -> None:
    """End a process that has drained while the others of its cluster have not.

    It would go on serving them and never end, and nobody would read its topics. Without it they end too,
    with status 1 and within seconds; started again together, all resume where they were.
    """
    drain.wait()
    if not ended.wait(LEAVE_SECONDS):
        log.error("leaving: the other processes of the cluster do not drain", extra={"waited_seconds": LEAVE_SECONDS})
        os._exit(1)  # what was not durable comes again


def run(
    flow: Dataflow,
    settings: RunSettings,
    *,
    recovery: bool = True,
    workers: int = 1,
    process: int | None = None,
    addresses: Sequence[str] = (),
    drain: Drain | None = None,
) -> None:
    """Run a flow until its sources end; at once where they were asked to already.

    Args:
        flow: The dataflow.
        settings: Epoch length and the folder of the recovery store, which exists.
        recovery: Whether to take snapshots.
        workers: Worker threads of this process.
        process: Index of this process in the cluster; None: it is alone.
        addresses: host:port of every process of the cluster.
        drain: What asks the sources to end. In a cluster the process does not wait for ever for the others.

    Raises:
        RuntimeError: The engine failed: the recovery store cannot be written, or, in a cluster, another process ended.
        Exception: What a source, an operator or a sink raised, without the engine's wrapping.
    """
    if drain is not None and drain.requested:
        return
    failed: BaseException | None = None
    ended = threading.Event()
    if addresses and drain is not None:
        threading.Thread(target=_leave, args=(drain, ended), name="leave", daemon=True).start()
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
    except BaseException as e:
        failed = _engine_failure(e, settings, bool(addresses))
        if failed is None:
            raise
    finally:
        ended.set()
    if failed is not None:  # out here it keeps the causes of its own
        raise failed


def _engine_failure(error: BaseException, settings: RunSettings, cluster: bool) -> RuntimeError | None:
    """What ended the engine itself, in words of ours; None: it was something else."""
    if said := _STORE_SAID.search(str(error)):
        words = f"the recovery store cannot be used: {said[1]}; once that is mended, start again: nothing is lost"
        return RuntimeError(f"{settings.state}: {words}")
    if gone := _GONE.search(str(error)):
        words = f"holds the place in {gone[1]!r}, which the source does not have: read what it was made for"
        return RuntimeError(f"{settings.state}: {words}, or name another [run] state")
    if type(error).__name__ != "PanicException":  # it cannot be imported, and is no Exception
        return None
    if cluster:
        return RuntimeError("the connection to another process of the cluster is lost: start all of them again")
    return RuntimeError(f"the engine failed: {error}")
