"""Without the packages of an extra: one line that says how to install it, from every command; the rest runs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

#: Makes packages missing, runs commands one after the other in one process, and prints what each ended with.
DRIVER = """
import contextlib, io, json, sys

for name in json.loads(sys.argv[1]):
    sys.modules[name] = None  # as if it were not installed
from voltmill.flows.cli import main

for command in json.loads(sys.argv[2]):
    err, status = io.StringIO(), 0
    with contextlib.redirect_stderr(err):
        try:
            main(command)
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, err.getvalue()]))
"""

#: Everything in one process, with nothing of Azure's and no ODBC.
IMPORTS = """
import importlib, pkgutil, sys

for name in ("adlfs", "aiohttp", "azure", "msal", "pyodbc"):
    sys.modules[name] = None
import voltmill
for module in pkgutil.walk_packages(voltmill.__path__, "voltmill."):
    importlib.import_module(module.name)

import pyarrow as pa
from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.outage import Patience
from voltmill.connectors.remote_errors import denied, may_pass
from voltmill.connectors.store import LakeError
store = LakeSettings(url="memory://lake/x").open(Patience("the lake", seconds=0.1))
store.make()
store.write("a/b", pa.py_buffer(b"rows"))
assert store.read("a/b") == b"rows" and not store.create("a/b", pa.py_buffer(b"")) and store.find("a") == ["b"]
try:
    store.move("no/such", "a/c")
    store.read("no/such")
except FileNotFoundError:
    pass
assert may_pass(ConnectionError()) and not may_pass(ValueError()) and not denied(ValueError())
print("fine")
"""

Run = Callable[[list[str], list[list[str]]], list[tuple[int, str]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs commands without some packages: status and standard error of each."""

    def run(without: list[str], commands: list[list[str]]) -> list[tuple[int, str]]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AZURE_")}
        arguments = [json.dumps(without), json.dumps(commands)]
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, *arguments], cwd=tmp_path, env=clean, capture_output=True, text=True
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        lines = (line for line in done.stdout.splitlines() if line.startswith("["))
        return [(status, err) for status, err in map(json.loads, lines)]

    return run


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    """Writes a configuration."""

    def write(text: str) -> str:
        file = tmp_path / "c.toml"
        file.write_text(f'[run]\nlog_level = "error"\n{text}')
        return str(file)

    return write


def _is_one_line(found: tuple[int, str], *words: str) -> None:
    status, err = found
    assert status in (1, 2), found
    assert err.startswith("voltmill: ") and err.count("\n") == 1 and "unforeseen" not in err, err
    assert all(word in err for word in (*words, "pip install 'voltmill[azure]'")), err


LAKE = '[lake]\nurl = "abfs://fleet/lake"\nstorage_options = { account_name = "fleet", account_key = "c2VjcmV0" }\n'


def test_a_lake_in_azure_without_adlfs_is_one_line_from_every_command(run: Run, config: Callable[[str], str]) -> None:
    file = config(LAKE)
    lake = "abfs://fleet/lake"
    commands = [
        ["run", "live"],
        ["replay", "--lake", lake, "--out", "out"],
        ["replay", "--lake", "here", "--out", lake],
        ["compact"],
        ["compare", lake, "out"],
        ["dataset", "--table", "features", "--out", "t.parquet"],
        ["explain", "device", "2026-11-22T10:00:00Z"],
        ["dead-letters", "list"],
        ["dead-letters", "show", "0" * 20],
        ["dead-letters", "redrive", "--dry-run"],
    ]
    found = run(["adlfs"], [[*command, "-c", file] for command in commands])
    assert len(found) == len(commands)
    for end in found:
        _is_one_line(end, "a lake at abfs://fleet/", "needs adlfs")
    status, err = run(["adlfs"], [["check", file]])[0]
    assert status == 1 and "needs adlfs; pip install 'voltmill[azure]'" in err and "c2VjcmV0" not in err


def test_entra_id_without_azure_identity_is_one_line(run: Run, tmp_path: Path) -> None:
    tables = {
        "lake": LAKE.replace('account_key = "c2VjcmV0"', 'credential = "default"'),
        "hub": '[iothub]\nnamespace = "127.0.0.1"\nhub = "bms"\n',
    }
    commands = []
    for name, text in tables.items():
        source = 'source = "iothub"' if name == "hub" else ""
        run_table = f'[run]\nlog_level = "error"\nstate = "{tmp_path}/state-{name}"\n{source}\n'
        (tmp_path / f"{name}.toml").write_text(run_table + text)
        commands.append(["run", "live", "-c", str(tmp_path / f"{name}.toml")])
    found = run(["azure.identity", "azure.identity.aio"], commands)
    assert len(found) == len(tables)
    for end in found:
        _is_one_line(end, "needs azure.identity")


def test_iot_hub_without_azure_eventhub_is_one_line(run: Run, config: Callable[[str], str]) -> None:
    key = "Endpoint=sb://127.0.0.1:1;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0;EntityPath=bms"
    file = config(f'source = "iothub"\n[iothub]\nconnection_string = "{key}"\n')
    _is_one_line(run(["azure.eventhub"], [["run", "live", "-c", file]])[0], "needs azure.eventhub")


def test_a_gateway_without_azure_iot_device_is_one_line(run: Run, config: Callable[[str], str]) -> None:
    key = "HostName=hub.example;DeviceId=gateway;SharedAccessKey=c2VjcmV0"
    file = config(f'[gateway]\nconnection_string = "{key}"\n')
    _is_one_line(run(["azure.iot.device"], [["run", "gateway", "-c", file]])[0], "needs azure.iot.device")


def test_a_database_without_odbc_is_one_line(run: Run, config: Callable[[str], str]) -> None:
    file = config('[sql]\nurl = "postgresql://user:c2VjcmV0@127.0.0.1:1/fleet"\n')
    [(status, err)] = run(["pyodbc"], [["run", "live", "-c", file]])
    assert status in (1, 2) and err.count("\n") == 1 and "needs unixODBC: apt-get install unixodbc" in err, err


def test_everything_else_needs_none_of_them() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr
