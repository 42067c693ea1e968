"""``voltmill check`` tries the connections that a file names: real servers, and each way to be refused by them."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from endpoint_server import EndpointServer, Handler
from gateway_hubs import DEVICE, HttpsHubServer
from gateway_hubs import KEY as DEVICE_KEY
from gateway_hubs import connection_string as device_string
from hub_server import KEY, NAME, HubProcess
from mssql_tables import serving
from servers import Azurite, Certificates, Mosquitto, PostgreSQL, find_psqlodbc, make_certificates
from tds_server import find_driver

from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.probe import Finding
from voltmill.flows import cli
from voltmill.flows.broker import free_port
from voltmill.flows.checking_connections import tried
from voltmill.operators.model import SHIPPED, OnnxModel

FLEET = '[[fleet]]\nmatch = "*"\ncell_type = "lg-hg2"\ncapacity_ah = 3.0\n'
PASSWORD = "s3cr3t-w0rd"


class Checked(NamedTuple):
    status: int
    works: list[str]
    fails: list[str]


Check = Callable[..., Checked]


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs ``voltmill check`` on a file of these tables; what it says of connections alone."""

    def run(text: str, *options: str, **environ: str) -> Checked:
        file = tmp_path / "c.toml"
        file.write_text(f"{text}\n{FLEET}")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            for name, value in environ.items():
                patch.setenv(name, value)
            cli.main(["check", str(file), *options])
        found = capsys.readouterr()
        works = [line for line in found.out.splitlines() if not line.startswith((f"{file}: good", "not in the file"))]
        return Checked(ended.value.code or 0, works, found.err.splitlines())  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="module")
def broker(mosquitto: Callable[..., Mosquitto]) -> Mosquitto:
    return mosquitto(users={"flow": PASSWORD})


@pytest.fixture(scope="module")
def tls(mosquitto: Callable[..., Mosquitto], certificates: Certificates) -> Mosquitto:
    return mosquitto(tls=certificates)


class TestMqtt:
    def test_works(self, check: Check, broker: Mosquitto) -> None:
        topics = 'topics = ["a/#", "b/#"]\nusername = "flow"\npassword = "${WORD}"'
        for protocol in ("5", "3.1.1"):
            text = f'[mqtt]\nport = {broker.port}\nprotocol = "{protocol}"\n{topics}'
            place = f"MQTT broker 127.0.0.1:{broker.port}"
            assert check(text, WORD=PASSWORD) == (0, [f"{place}: works, 2 topic filters granted"], [])

    def test_a_running_flow_keeps_its_session(self, check: Check, broker: Mosquitto) -> None:
        check(f'[mqtt]\nport = {broker.port}\nclient_id = "plant"\nusername = "flow"\npassword = "{PASSWORD}"')
        names = {line.split(" as ")[1].split(" ")[0] for line in broker.log.splitlines() if " as plant" in line}
        assert names == {f"plant-check-{os.getpid()}"}

    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    def test_a_wrong_password(self, check: Check, broker: Mosquitto, protocol: str) -> None:
        text = f'[mqtt]\nport = {broker.port}\nprotocol = "{protocol}"\nusername = "flow"\npassword = "wr0ng-word"'
        found = check(text)
        said = "the login is refused; mend username and password, or the rights of the client at the broker"
        assert found == (1, [], [f"MQTT broker 127.0.0.1:{broker.port}: {said}"])

    def test_a_closed_port_and_a_name_without_a_host(self, check: Check) -> None:
        found = check(f"[mqtt]\nport = {free_port()}")
        assert found.status == 1 and "refused: nothing listens on that port" in found.fails[0]
        found = check('[mqtt]\nhost = "broker.invalid"')
        assert found.status == 1 and "there is no host of that name; mend host" in found.fails[0]

    def test_a_broker_that_says_nothing(self, check: Check) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            began = time.monotonic()
            found = check(f"[mqtt]\nport = {silent.getsockname()[1]}\ntimeout_seconds = 0.3")
        assert "no answer within 0.3 s" in found.fails[0] and time.monotonic() - began < 10

    def test_tls(self, check: Check, tls: Mosquitto, certificates: Certificates, tmp_path: Path) -> None:
        def found(host: str = "localhost", port: int = tls.port, **files: str) -> Checked:
            keys = "\n".join(f'{name} = "{path}"' for name, path in files.items())
            return check(f'[mqtt]\nhost = "{host}"\nport = {port}\n' + (f"[mqtt.tls]\n{keys}" if files else ""))

        ca, client = certificates.ca_file, {"cert_file": certificates.client_cert, "key_file": certificates.client_key}
        assert found(ca_file=ca, **client).works == [
            f"MQTT broker localhost:{tls.port}: works, TLS, 1 topic filter granted"
        ]
        (tmp_path / "other").mkdir()
        strange = make_certificates(tmp_path / "other").ca_file
        for said, fails in {
            "an authority that is not trusted; name the authority in ca_file": found(ca_file=strange, **client).fails,
            "does not name this address; set host to a name": found("127.0.0.1", ca_file=ca, **client).fails,
            "certificate required; name a certificate that it accepts in cert_file": found(ca_file=ca).fails,
            "it closed the connection; check port and TLS": found().fails,
        }.items():
            assert len(fails) == 1 and said in fails[0]

    def test_tls_spoken_to_a_plain_port(self, check: Check, broker: Mosquitto, certificates: Certificates) -> None:
        found = check(f'[mqtt]\nport = {broker.port}\n[mqtt.tls]\nca_file = "{certificates.ca_file}"')
        assert found.status == 1 and "TLS" in found.fails[0]

    def test_a_topic_filter_that_is_denied(self, check: Check, granting: Callable[[int], int]) -> None:
        """Mosquitto grants every filter and withholds the messages; brokers of clouds answer so."""
        text = f'[mqtt]\nport = {granting(0x87)}\ntopics = ["a/#"]'
        said = "the login is good, but topic filter a/# is denied; give this user the right to read it at the broker"
        assert said in check(text).fails[0]
        assert check(text.replace(text.split()[3], str(granting(1)))).status == 0


@pytest.fixture
def granting() -> Iterator[Callable[[int], int]]:
    """Starts a broker that lets one client in and answers its subscription with a code; gives its port."""
    sockets = []

    def start(code: int) -> int:
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)
        threading.Thread(target=serve, args=(listening, code), daemon=True).start()
        return int(listening.getsockname()[1])

    def serve(listening: socket.socket, code: int) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(bytes([0x20, 3, 0, 0, 0]))  # CONNACK of MQTT 5: no session, success, no properties
            packet = connection.recv(4096)
            connection.sendall(bytes([0x90, 4, packet[2], packet[3], 0, code]))
            connection.recv(4096)

    yield start
    for each in sockets:
        each.close()


class TestEndpoint:
    @pytest.fixture
    def server(self) -> Iterator[EndpointServer]:
        server = EndpointServer()
        yield server
        server.stop()
        server.shutdown()
        server.server_close()

    @pytest.fixture
    def text(self, tmp_path: Path, server: EndpointServer) -> str:
        return endpoint_table(tmp_path, server.url)

    def test_works(self, check: Check, server: EndpointServer, text: str) -> None:
        server.usual = lambda handler: handler.send(200, {"outputs": []})
        found = check(text, KEY="wr0ng-key")
        place = f"endpoint {server.url}"
        assert found == (0, [f"{place}: works, the key goes without TLS: use https"], [])
        headers, body = server.requests[0]
        assert headers["Authorization"] == "Bearer wr0ng-key" and body["data"] == []

    @pytest.mark.parametrize(
        ("status", "said"),
        [
            (401, "answers 401: set key to a key or token of the endpoint"),
            (403, "answers 403: set key to one that may score"),
            (404, "answers 404: check url and deployment"),
            (503, "answers 503"),
        ],
    )
    def test_refused(self, check: Check, server: EndpointServer, text: str, status: int, said: str) -> None:
        def refuse(handler: Handler) -> None:
            handler.send(status, handler.headers["Authorization"].encode() if status == 503 else b"")

        server.usual = refuse
        found = check(text, KEY="wr0ng-key")
        assert found.status == 1 and said in found.fails[0] and "wr0ng-key" not in str(found)
        assert len(server.requests) == 1

    def test_a_scoring_script_that_fails_without_rows(self, check: Check, server: EndpointServer, text: str) -> None:
        server.usual = lambda handler: handler.send(424, b"cannot reshape")
        assert "let in, though it answers 424 to a request without rows" in check(text, KEY="k").works[0]

    def test_nobody_there(self, check: Check, tmp_path: Path) -> None:
        found = check(endpoint_table(tmp_path, f"http://127.0.0.1:{free_port()}/score"), KEY="k")
        assert found.status == 1 and "nothing listens on that port" in found.fails[0]

    def test_an_unknown_certificate(self, check: Check, tmp_path: Path, certificates: Certificates) -> None:
        server = EndpointServer(certificates)
        server.usual = lambda handler: handler.send(200, {"outputs": []})
        try:
            assert "name the authority in ca_file" in check(endpoint_table(tmp_path, server.url), KEY="k").fails[0]
            ca = f'ca_file = "{certificates.ca_file}"'
            wrong_name = endpoint_table(tmp_path, server.url.replace("localhost", "127.0.0.1"))
            assert "does not name this address" in check(f"{wrong_name}{ca}", KEY="k").fails[0]
            assert check(f"{endpoint_table(tmp_path, server.url)}{ca}", KEY="k").status == 0
        finally:
            server.stop()
            server.shutdown()
            server.server_close()


def endpoint_table(folder: Path, url: str) -> str:
    contract = folder / "soc.json"
    contract.write_bytes(msgspec.json.encode(OnnxModel(SHIPPED / "lg_hg2_soc.onnx").contract))
    return f'[[model]]\nname = "soc"\n[model.endpoint]\nurl = "{url}"\nkey = "${{KEY}}"\ncontract = "{contract}"\n'


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    with HubProcess(3) as started:
        yield started


class TestIotHub:
    def test_the_built_in_endpoint(self, check: Check, hub: HubProcess) -> None:
        def found(connection: str, more: str = "") -> Checked:
            return check(f'[run]\nsource = "iothub"\n[iothub]\nconnection_string = "${{HUB}}"\n{more}', HUB=connection)

        good = hub.connection_string
        works = f"IoT Hub {NAME} at 127.0.0.1:{hub.port}: works, 3 partitions, consumer group $Default"
        assert found(good) == (0, [works], [])
        key = "d3Jvbmcta2V5LXdyb25nLWtleQ=="
        wrong = found(good.replace(KEY, key))
        assert wrong.status == 1 and "key" in wrong.fails[0] and key not in str(wrong) and KEY not in str(wrong)
        group = found(good, 'consumer_group = "nobody-made-this"')
        assert group.status == 1 and "consumer-group create" in group.fails[0]
        away = found(good.replace(str(hub.port), str(free_port())))
        assert away.status == 1 and "nothing listens on that port" in away.fails[0]

    def test_a_flow_that_should_read_a_hub_which_is_not_named(self, check: Check) -> None:
        assert check('[run]\nsource = "iothub"').status in (1, 2)

    def test_the_hub_of_a_gateway(self, check: Check, certificates: Certificates, tmp_path: Path) -> None:
        def found(key: str, device: str = DEVICE, ca: str = certificates.ca_file) -> Checked:
            store = f'store = "{tmp_path}/g.db"\ntransport = "https"\nca_file = "{ca}"'
            text = f'[gateway]\nconnection_string = "${{HUB}}"\n{store}'
            return check(text, HUB=device_string(hub.name, device=device, key=key))

        hub = HttpsHubServer(certificates)
        try:
            store = f"gateway store {tmp_path}/g.db: works, made at the first start"
            works = f"IoT Hub {hub.name}, device {DEVICE}: works, logged in over https"
            assert found(DEVICE_KEY) == (0, [store, works], [])
            wrong = found("d3Jvbmcta2V5LXdyb25nLWtleQ==")
            assert (
                wrong.status == 1 and "mend the SharedAccessKey" in wrong.fails[0] and "d3Jvbmcta2V5" not in str(wrong)
            )
            assert found(DEVICE_KEY, "gw-2").status == 1
            (tmp_path / "other").mkdir()
            strange = make_certificates(tmp_path / "other").ca_file
            assert "authority" in found(DEVICE_KEY, ca=strange).fails[0]
        finally:
            hub.stop()


class TestLake:
    def test_azurite(self, check: Check, azurite: Azurite) -> None:
        def found(connection: str, container: str = "checked") -> Checked:
            options = 'storage_options = { connection_string = "${LAKE}" }'
            return check(f'[lake]\nurl = "abfs://{container}/lake"\n{options}', LAKE=connection)

        good = azurite.connection_string
        missing = found(good, "nobody-made-this")
        assert missing.status == 1 and "there is no container nobody-made-this; az storage" in missing.fails[0]
        LakeSettings(url="abfs://checked/lake", storage_options=azurite.options).open().make()
        assert found(good) == (0, ["lake abfs://checked/lake: works, may list, read, write, remove"], [])
        key = "d3Jvbmcta2V5LXdyb25nLWtleQ=="
        wrong = found(good.replace(azurite.key, key))
        assert wrong.status == 1 and "is wrong or has expired" in wrong.fails[0] and key not in str(wrong)
        away = found(good.replace(str(azurite.port), str(free_port())))
        assert away.status == 1 and "nothing listens on that port" in away.fails[0]

    def test_a_folder(self, check: Check, tmp_path: Path) -> None:
        url = tmp_path / "lake"
        assert check(f'[lake]\nurl = "{url}"').works == [f"lake {url}: works, made at the first start"]
        assert not url.exists()

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("https://bms.blob.core.windows.net/fleet/lake", "a container is named abfs://CONTAINER/FOLDER"),
            ("abfs://fleet/lake", "no account is named: set account_name in storage_options"),
        ],
    )
    def test_an_account_that_is_not_named_as_it_should(self, check: Check, url: str, said: str) -> None:
        found = check(f'[lake]\nurl = "{url}"')
        assert found.status == 1 and said in found.fails[0]

    def test_a_missing_package_is_one_line(self, check: Check) -> None:
        found = check('[lake]\nurl = "s3://bucket/lake"')
        assert found.status == 1 and "s3fs" in found.fails[0]


class TestDatabase:
    def test_postgresql(self, check: Check, postgresql: PostgreSQL) -> None:
        def found(url: str, driver: object) -> Checked:
            return check(f'[sql]\nurl = "{url}"\ndriver = "{driver}"', WORD=postgresql.password)

        place = f"postgresql://127.0.0.1:{postgresql.port}/postgres"
        url, driver = f"postgresql://postgres:${{WORD}}@127.0.0.1:{postgresql.port}/postgres", find_psqlodbc()
        good = found(url, driver)
        assert good.status == 0 and good.works[0].startswith(f"database {place}: works, ")
        wrong = found(url.replace("${WORD}", "wr0ng-word"), driver)
        assert wrong.status == 1 and "mend user and password" in wrong.fails[0] and "wr0ng-word" not in str(wrong)
        missing = found(url, "/no/such.so")
        assert missing.status == 1 and missing.fails[0].endswith("apt-get install odbc-postgresql, or set [sql] driver")
        assert found(f"postgresql://u@127.0.0.1:{free_port()}/d", driver).status == 1

    def test_azure_sql(self, check: Check) -> None:
        with serving() as server:
            url = f"mssql://mill:s3cret-w0rd@127.0.0.1:{server.port}/fleet?Encrypt=no"
            text = f'[sql]\nurl = "{url}"\ndriver = "{find_driver()}"'
            server.fail(pattern="login", number=40615, message="Cannot open server 'x' requested by the login.")
            closed = check(text)
            server.fail(pattern="login", number=18456, message="Login failed for user 'mill'.")
            wrong = check(text)
        assert closed.status == 1 and "az sql server firewall-rule create" in closed.fails[0]
        assert wrong.status == 1 and "mend user and password" in wrong.fails[0] and "s3cret" not in str(wrong)


class TestNotify:
    def test_each_place_is_tried(self, check: Check, broker: Mosquitto) -> None:
        def place(name: str, kind: str, keys: str) -> str:
            return f'[[notify]]\nname = "{name}"\n[notify.{kind}]\n{keys}\n'

        key = "c2VjcmV0LXdoaWNoLWlzLW5vdC1zaG93bg=="
        hub = f"Endpoint=sb://127.0.0.1:{free_port()}/;SharedAccessKeyName=Send;SharedAccessKey={key}"
        text = place("hook", "webhook", f'url = "http://127.0.0.1:{free_port()}/x?sig=s3cret"')
        text += place("phones", "notification_hubs", f'connection_string = "{hub}"\nhub = "fleet"')
        text += place(
            "topic", "mqtt", f'broker = {{ port = {broker.port}, username = "flow", password = "{PASSWORD}" }}'
        )
        found = check(text)
        assert found.status == 1 and len(found.fails) == 2 and len(found.works) == 1
        assert all("nothing listens on that port" in line for line in found.fails)
        assert found.works[0].startswith("notify topic (mqtt broker 127.0.0.1")
        assert not any(word in str(found) for word in ("s3cret", key, PASSWORD))


class TestTogether:
    def test_only_what_the_file_names_is_tried(self, check: Check) -> None:
        assert check("") == (0, [], [])

    def test_a_gateway_needs_no_fleet(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "gateway.toml"
        file.write_text(f"[mqtt]\n[gateway]\nconnection_string = '{device_string()}'\n")
        with pytest.raises(SystemExit):
            cli.main(["check", "--offline", str(file)])
        assert capsys.readouterr().out == f"{file}: good\n"

    def test_offline_tries_nothing(self, check: Check) -> None:
        text = f"[mqtt]\nport = {free_port()}"
        assert check(text, "--offline") == (0, [], [])
        assert check(text).status == 1

    def test_a_wrong_file_is_status_2_whatever_the_connections(self, check: Check) -> None:
        found = check(f"[mqtt]\nport = {free_port()}\nhots = 1")
        assert found.status == 2 and len(found.fails) == 1

    def test_the_recovery_store(self, check: Check, tmp_path: Path) -> None:
        found = check(f'[run]\nstate = "{tmp_path}/a/b"')
        assert found == (0, [f"recovery store {tmp_path}/a/b: works, made at the first start"], [])
        (tmp_path / "file").touch()
        found = check(f'[run]\nstate = "{tmp_path}/file"')
        assert found.fails == [f"recovery store {tmp_path}/file: {tmp_path}/file is a file; name another [run] state"]

    def test_the_store_of_a_gateway(self, check: Check, tmp_path: Path) -> None:
        def found(store: Path) -> str:
            checked = check(f'[gateway]\nstore = "{store}"')  # no hub is named, and that is told beside it
            return next(line for line in (*checked.works, *checked.fails) if line.startswith("gateway store"))

        store = tmp_path / "a" / "gateway.db"
        assert found(store) == f"gateway store {store}: works, made at the first start"
        assert not store.parent.exists()
        file = tmp_path / "file"
        file.touch()
        assert found(file) == f"gateway store {file}: works"
        said = found(file / "gateway.db")
        assert said.endswith(f"{file} is a file; name another [gateway] store")
        assert found(tmp_path).endswith("is a folder; name a file in [gateway] store")

    def test_a_hub_that_is_named_and_not_read(self, check: Check) -> None:
        assert check('[iothub]\nconsumer_group = "g"', "--offline").works == [
            '[iothub] is not read from: set [run] source = "iothub"'
        ]

    def test_probes_run_side_by_side_and_one_that_hangs_is_left(self) -> None:
        def slow() -> Finding:
            time.sleep(0.2)
            return Finding("slow")

        def breaks() -> Finding:
            raise KeyError("with a secret in it")

        began = time.monotonic()
        slow_ones: dict[str, Any] = {f"s{k}": slow for k in range(8)}
        found = list(tried({**slow_ones, "b": breaks, "h": lambda: time.sleep(3)}, seconds=1.0))  # type: ignore[dict-item, func-returns-value]
        assert time.monotonic() - began < 1.6
        assert [f.works for f in found] == [True] * 8 + [False] * 2
        assert str(found[8]) == "b: could not be tried: KeyError (unforeseen)"
        assert "no answer within 1 s" in found[9].problem
