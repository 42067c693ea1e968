"""No command shows a secret when it is refused: not in what it prints, not in a traceback, a metric, a file it writes.

Each is run with ``--debug`` and log level debug, with a good or a wrong secret in each place, against servers that
refuse it; those that can send back what they were sent. The gateway over MQTT is looked at by its own tests.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.dataset as ds
import pytest
import urllib3
from alert_receiver import Receiver
from endpoint_server import EndpointServer
from gateway_hubs import DEVICE, HttpsHubServer
from hidden import WORDS, shown
from hub_server import KEY, HubProcess
from mssql_tables import serving
from servers import Azurite, Certificates, Mosquitto, PostgreSQL, find_psqlodbc
from tds_server import find_driver

from voltmill.connectors.mqtt import MqttSettings, Publisher
from voltmill.connectors.sql import SqlError
from voltmill.flows import cli
from voltmill.flows.broker import free_port
from voltmill.operators.model import SHIPPED, OnnxModel

MESSAGE = (
    b'{"device_id": "m", "event_time": %d, "current_ampere": -1, "cell_voltage_volt": [3.6],'
    b' "cell_temperature_celsius": [25]}'
)
RUN = '[run]\nstate = "{folder}/state"\nepoch_seconds = 0.2\nlog_level = "debug"\n'
LOGIN = '[mqtt]\nport = {broker}\nclient_id = "{name}"\nusername = "flow"\npassword = "${{MQTT_WORD}}"\n'
HERE = '[lake]\nurl = "{folder}/lake"\nmax_file_age_seconds = 0.3\n[sql]\nurl = "sqlite:///{folder}/voltmill.db"\n'
FLEET = '[[fleet]]\nmatch = "*"\ncell_type = "lg-hg2"\ncapacity_ah = 3.0\n'
MODEL = (
    '[[model]]\nname = "soc"\nendpoint = {{ url = "{model}", key = "${{ENDPOINT_KEY}}", contract = "{contract}" }}\n'
)
HUB = '[iothub]\nconnection_string = "${{HUB_STRING}}"\n'
GATEWAY = (
    '[gateway]\nconnection_string = "${{GATEWAY_STRING}}"\ntransport = "https"\nca_file = "{ca}"\n'
    'store = "{folder}/gateway.db"\nlinger_seconds = 0.1\n'
)
LAKE = '[lake]\nurl = "abfs://fleet/lake"\nstorage_options = {{ connection_string = "${{LAKE_STRING}}" }}\n'
SAS = LAKE.replace("LAKE_STRING", "SAS_STRING")
SQL = '[sql]\nurl = "postgresql://mill:${{SQL_WORD}}@127.0.0.1:{postgresql}/postgres"\ndriver = "{driver}"\n'
NOTIFY = """
[[notify]]
name = "hook"
webhook = {{ url = "{hook}", headers = {{ Authorization = "Bearer ${{HOOK_TOKEN}}" }} }}
[[notify]]
name = "signed"
webhook = {{ url = "{hook}", signing_secret = "whsec_${{HOOK_SIGNING}}" }}
[[notify]]
name = "phones"
notification_hubs = {{ connection_string = "${{PUSH_STRING}}", hub = "fleet" }}
[[notify]]
name = "topic"
timeout_seconds = 0.5
mqtt = {{ broker = {{ port = {broker}, username = "flow", password = "${{PUSH_WORD}}" }} }}
"""

Text = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory,
    mosquitto: Callable[..., Mosquitto],
    certificates: Certificates,
    azurite: Azurite,
    postgresql: PostgreSQL,
) -> Iterator[dict[str, Any]]:
    """Servers that refuse, as the templates name them."""
    model, hub, receiver = EndpointServer(), HttpsHubServer(certificates), Receiver()
    model.usual = lambda handler: handler.send(401, str(handler.headers).encode())
    hub.usual = lambda handler: handler.send(401, str(handler.headers).encode())
    receiver.usual = lambda handler: handler.send(403, f"{handler.path}\n{handler.headers}".encode())
    contract = tmp_path_factory.mktemp("contract") / "soc.json"
    contract.write_bytes(msgspec.json.encode(OnnxModel(SHIPPED / "lg_hg2_soc.onnx").contract))
    with HubProcess(1) as events:
        yield {
            "broker": mosquitto(users={"flow": WORDS["MQTT_WORD"]}).port,
            "strange": mosquitto(users={"flow": "another-word"}).port,
            "model": model.url,
            "contract": contract,
            "ca": certificates.ca_file,
            "postgresql": postgresql.port,
            "driver": find_psqlodbc(),
            "hook": f"{receiver.url}/{WORDS['HOOK_PATH']}?t={WORDS['HOOK_QUERY']}",
            "hub": hub,
            "environment": {
                "HUB_STRING": events.connection_string.replace(KEY, WORDS["HUB_KEY"]),
                "GATEWAY_STRING": f"HostName={hub.name};DeviceId={DEVICE};SharedAccessKey={WORDS['GATEWAY_KEY']}",
                "LAKE_STRING": azurite.connection_string.replace(azurite.key, WORDS["LAKE_KEY"]),
                "SAS_STRING": f"BlobEndpoint=http://127.0.0.1:{azurite.port}/{azurite.account};"
                f"SharedAccessSignature={WORDS['LAKE_SAS']}",
                "PUSH_STRING": f"Endpoint=sb://localhost:{free_port()}/;SharedAccessKeyName=Send;"
                f"SharedAccessKey={WORDS['PUSH_KEY']}",
                **WORDS,
            },
        }
    for server in (model, hub, receiver):
        server.stop()


class Running:
    """A command in a process of its own, and all that it leaves behind."""

    def __init__(self, folder: Path, command: str, text: str, places: dict[str, Any]) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True)
        file = folder.with_suffix(".toml")
        metrics = f"metrics_port = {self.port}\n"
        file.write_text((RUN + metrics + text).format(folder=folder, name=folder.name, **places))
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "voltmill.flows.cli", "--debug", *command.split(), "-c", str(file)],
                **{"stdout": log, "stderr": log, "cwd": folder},
                env=os.environ | places["environment"],
            )

    def said(self, words: str) -> None:
        """Wait until the log has these words; the metrics are read then."""
        deadline = time.monotonic() + 60
        while words not in (log := (self.folder / "log").read_text()):
            assert time.monotonic() < deadline, log[-3000:]
            time.sleep(0.05)
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            found = urllib3.request("GET", f"http://127.0.0.1:{self.port}/metrics", retries=False, timeout=5.0)
            (self.folder / "metrics").write_bytes(found.data)

    def end(self) -> str:
        """All that it left: output, metrics, state, databases, files of the lake."""
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
        texts = [f"{file}\n{file.read_bytes().decode('latin-1')}" for file in self.folder.rglob("*") if file.is_file()]
        for table in (self.folder / "lake").glob("*"):
            texts.append(str(ds.dataset(str(table), format="parquet").to_table().to_pylist()))
        return "\n".join(texts)


def test_flows(tmp_path: Path, places: dict[str, Any]) -> None:
    """Of the model, the gateway's hub and the broker while they run; of the others at the start, with a traceback."""
    places["hub"].usual = lambda handler: (
        handler.send(204) if handler.command == "GET" else handler.send(401, str(handler.headers).encode())
    )

    def start(name: str, text: str, command: str = "run live") -> Running:
        return Running(tmp_path / name, command, text, places)

    elsewhere = LOGIN.replace("{broker}", "{strange}")
    model = start("model", LOGIN + HERE + MODEL + FLEET)
    gateway = start("gateway", LOGIN + GATEWAY, "run gateway")
    refused = start("login", elsewhere + HERE)
    hub = start("hub", 'source = "iothub"\n' + HUB + HERE)
    lake = start("lake", LOGIN + LAKE)
    database = start("database", LOGIN + HERE.partition("[sql]")[0] + SQL)
    replay = start("replay", LOGIN + LAKE, f"replay --out {tmp_path}/out --lake abfs://fleet/lake")
    running = {"model": model, "gateway": gateway, "login": refused, "hub": hub, "lake": lake, "database": database}
    running["replay"] = replay
    try:
        for each in (model, gateway):
            each.said("mqtt subscribed")
        broker = MqttSettings(port=int(str(places["broker"])), username="flow", password=WORDS["MQTT_WORD"])
        with Publisher(broker, "test") as publisher:
            for k in range(40):
                publisher.publish(f"voltmill/{k}", (MESSAGE % (1_795_341_605 + k)) if k % 4 else b"{no json")
        model.said("answers 401")
        gateway.said("401")
        refused.said("login refused")
        for each in (hub, lake, database, replay):
            each.process.wait(60)
    finally:
        for each in running.values():
            each.process.send_signal(signal.SIGTERM)  # to one that has ended, nothing
        left = {name: each.end() for name, each in running.items()}
    for name, words in {
        "model": "answers 401",
        "gateway": "401",
        "login": "login refused",
        "hub": "the key is refused",
        "lake": "AuthorizationFailure",
        "replay": "AuthorizationFailure",
        "database": "password authentication failed",
    }.items():
        assert words in left[name], left[name][-3000:]
    assert all("Traceback" in left[name] for name in ("hub", "lake", "database", "replay"))
    assert "voltmill_" in left["model"] and "not_utf8" not in left["model"] and "malformed_json" in left["model"]
    for name, text in left.items():
        assert shown(text) == [], name


@pytest.mark.parametrize(
    ("command", "tables", "said"),
    [
        (
            "check FILE",
            HUB + GATEWAY + SAS + SQL + MODEL + NOTIFY,
            ("login is refused", "answers 401", "403", "password"),
        ),
        ("notify test", NOTIFY, ("403", "refused")),
        ("db status", SQL, ("password",)),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) and "\n" not in value else "",
)
def test_commands_that_end(
    tmp_path: Path,
    places: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
    command: str,
    tables: str,
    said: tuple[str, ...],
) -> None:
    everything = LOGIN.replace("{broker}", "{strange}") + tables + FLEET
    file = tmp_path / "c.toml"
    file.write_text((RUN + everything).format(folder=tmp_path, name="x", **places))
    words = command.replace("FILE", str(file)).split()
    arguments = ["--debug", *words, *([] if "FILE" in command else ["-c", str(file)])]
    trace = ""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in places["environment"].items():
            patch.setenv(name, value)
        try:
            cli.main(arguments)
        except SystemExit as ended:
            assert ended.code == 1
        except Exception as error:
            trace = "".join(traceback.format_exception(error))
    found = capfd.readouterr()
    whole = found.out + found.err + trace
    assert all(word in whole for word in said), whole
    assert shown(whole) == []


def test_azure_sql(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As the portal writes it, with a password that its own rules quote; the driver puts it into no message."""
    word = WORDS["SQL_STRING_WORD"]
    quoted = word.replace("}", "}}")
    with serving() as server:
        server.fail(pattern="login", number=18456, message="Login failed for user 'mill'.", times=9)
        text = f"Server=tcp:127.0.0.1,{server.port};Database=fleet;Uid=mill;Pwd={{{quoted}}};Encrypt=no"
        (tmp_path / "c.toml").write_text(f"[sql]\nurl = '{text}'\ndriver = '{find_driver()}'\ntimeout_seconds = 1\n")
        with pytest.raises(SqlError) as refused:
            cli.main(["--debug", "db", "status", "-c", str(tmp_path / "c.toml")])
    found = capfd.readouterr()
    whole = found.out + found.err + "".join(traceback.format_exception(refused.value))
    assert "mend user and password" in whole and shown(whole) == []
