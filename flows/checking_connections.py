"""Which connections a configuration file names, and what comes of trying each of them.

A connection is tried if its table stands in the file: whoever writes ``[sql]`` wants that database. What the
defaults would use beside it is only mentioned, for an empty file is good on a machine without a broker.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from voltmill.connectors import (
    endpoint_probe,
    gateway_probe,
    iothub_probe,
    lake_probe,
    mqtt_probe,
    notify_probe,
    sql_probe,
)
from voltmill.connectors.endpoint import EndpointSettings
from voltmill.connectors.probe import Finding
from voltmill.flows.config import Config
from voltmill.flows.endpoint import open_endpoint

Probe = Callable[[], Finding]

#: A probe gives up within ten seconds; one that does not is given up here.
LONGEST_SECONDS: Final = 15.0


def named(tables: Mapping[str, Any], config: Config) -> dict[str, Probe]:
    """The connections whose tables stand in the file that ``config`` was read from: place in the file -> its probe."""
    probes: dict[str, Probe] = {}
    if "state" in tables.get("run", {}):
        probes["[run] state"] = partial(_state, Path(config.run.state))
    if "gateway" in tables:
        probes["[gateway] store"] = partial(_store, Path(config.gateway.store))
    if "mqtt" in tables:
        probes["[mqtt]"] = partial(mqtt_probe.probe, config.mqtt)
    if "iothub" in tables or config.run.source == "iothub":
        probes["[iothub]"] = partial(iothub_probe.probe, config.iothub)
    if "gateway" in tables:
        probes["[gateway]"] = partial(gateway_probe.probe, config.gateway)
    if "lake" in tables:
        probes["[lake]"] = partial(lake_probe.probe, config.lake)
    if "sql" in tables:
        probes["[sql]"] = partial(sql_probe.probe, config.sql)
    for entry in config.model:
        if entry.endpoint is not None:
            probes[f"[[model]] {entry.name}"] = _endpoint(entry.endpoint)
    for place in config.notify:
        probes[f"[[notify]] {place.name}"] = partial(notify_probe.probe, place, config.mqtt)
    return probes


def by_default(tables: Mapping[str, Any], config: Config) -> str:
    """What a flow would use though the file does not name it, on one line; empty: nothing."""
    used = {"mqtt": f"{config.mqtt.host}:{config.mqtt.port}"} if config.run.source == "mqtt" else {}
    if "gateway" not in tables or {"lake", "sql"} & tables.keys():  # a gateway has neither
        used |= {"lake": config.lake.place, "sql": config.sql.place}
    missing = [f"[{table}] {what}" for table, what in used.items() if table not in tables]
    return f"not in the file, so the defaults hold, untried: {', '.join(missing)}" if missing else ""


def tried(probes: dict[str, Probe], *, seconds: float = LONGEST_SECONDS) -> Iterator[Finding]:
    """What came of each, in their order; they are tried side by side, all within ``seconds``."""
    found: dict[str, Finding] = {}

    def run(name: str, probe: Probe) -> None:
        try:
            found[name] = probe()
        except Exception as error:  # a driver may raise anything; its text might hold what is secret
            found[name] = Finding(name, f"could not be tried: {type(error).__name__} (unforeseen)")

    # Daemons: a driver that hangs in a call of its own must not keep the process.
    threads = {name: threading.Thread(target=run, args=(name, p), daemon=True) for name, p in probes.items()}
    for thread in threads.values():
        thread.start()
    until = time.monotonic() + seconds
    for name, thread in threads.items():
        thread.join(max(0.0, until - time.monotonic()))
        yield found.get(name) or Finding(name, f"no answer within {seconds:g} s", "is a firewall in the way?")


def _endpoint(settings: EndpointSettings) -> Probe:
    def probe() -> Finding:
        with contextlib.closing(open_endpoint(settings)) as model:
            return endpoint_probe.probe(settings, model.contract.feature_names)

    return probe


def _state(folder: Path) -> Finding:
    """Whether this user may write the recovery store, or make its folder."""
    return _folder(f"recovery store {folder}", folder, "[run] state")


def _store(file: Path) -> Finding:
    """Whether this user may write the gateway's store, or make it."""
    place = f"gateway store {file}"
    if file.is_dir():
        return Finding(place, f"{file} is a folder", "name a file in [gateway] store")
    if file.exists() and not os.access(file, os.R_OK | os.W_OK):
        return Finding(place, f"this user may not write {file}", "give it the right, or name another [gateway] store")
    found = _folder(place, file.parent, "[gateway] store")
    return found if not found.works or file.exists() else Finding(place, facts="made at the first start")


def _folder(place: str, folder: Path, key: str) -> Finding:
    """Whether this user may write a folder, or make it."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return Finding(place, f"{there} is a file", f"name another {key}")
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(place, f"this user may not write {there}", f"give it the right, or name another {key}")
    return Finding(place, facts="" if there == folder.absolute() else "made at the first start")
