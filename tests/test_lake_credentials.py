"""Who the lake is opened as, in Azure: keys, SAS, and Entra ID, whose tokens Azurite checks over TLS."""

import datetime
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas, generate_container_sas
from entra import Entra
from servers import Azurite, Certificates, find_azurite, missing

from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.lake_probe import probe
from voltmill.connectors.store import LakeError

_numbers = count()
#: Writes, reads and lists as a flow and its workers do: from two threads.
USE = """
import sys, threading
import pyarrow as pa
from voltmill.connectors.lake_probe import probe
from voltmill.flows.config import load

settings = load(sys.argv[1]).lake
def use(name):
    store = settings.open()
    store.make()
    store.write(f"a/{name}", pa.py_buffer(b"rows"))
    assert store.read(f"a/{name}") == b"rows"
threads = [threading.Thread(target=use, args=(name,)) for name in "xy"]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(settings.open().find("a"))
print(probe(settings))
"""

PROBE = """
import sys
from voltmill.connectors.lake_probe import probe
from voltmill.flows.config import load

print(probe(load(sys.argv[1]).lake))
"""


@pytest.fixture
def entra(certificates: Certificates) -> Iterator[Entra]:
    made = Entra(certificates)
    yield made
    made.close()


@pytest.fixture(scope="module")
def account(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Azurite over TLS, which takes tokens of Entra ID."""
    if find_azurite() is None:
        missing("Azurite")
    server = Azurite(tmp_path_factory.mktemp("azurite-tls"), tls=certificates)
    yield server
    server.stop()


class Machine:
    """Runs Python with a configuration whose lake is opened by Entra ID."""

    def __init__(self, folder: Path, account: Azurite, entra: Entra) -> None:
        self._entra, self._folder, self.config = entra, folder, folder / "c.toml"
        host = f"localhost:{account.port}/{account.account}"
        self.config.write_text(
            f'[run]\nlog_level = "error"\nstate = "{folder}/state"\n[lake]\nurl = "abfs://entra-{next(_numbers)}/lake"\n'
            f'storage_options = {{ account_name = "{account.account}", account_host = "{host}", '
            'credential = "default" }\n'
        )

    def run(self, *command: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AZURE_")}
        environment = clean | self._entra.environment(self._folder) | environ
        return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120)

    def voltmill(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return self.run("-m", "voltmill.flows.cli", *command, "-c", str(self.config))


@pytest.fixture
def machine(tmp_path: Path, account: Azurite, entra: Entra) -> Machine:
    return Machine(tmp_path, account, entra)


def test_a_workload_identity_opens_the_lake(machine: Machine, entra: Entra) -> None:
    done = machine.run("-c", USE, str(machine.config))
    assert done.stdout.splitlines()[0] == "['x', 'y']", done.stderr
    assert done.stdout.splitlines()[1].endswith("works, may list, read, write, remove")
    assert "Unclosed" not in done.stderr and "Traceback" not in done.stderr
    path, form = entra.asked[0]
    assert path == "/tenant/oauth2/v2.0/token" and form["client_id"] == ["client"]
    assert form["client_assertion"] == ["assertion-of-the-cluster"]
    assert form["scope"] == ["https://storage.azure.com/.default"]
    assert len(entra.asked) <= 2  # one credential for all: at most both threads at the same time


def test_a_token_that_is_not_taken_or_not_given_is_one_line(machine: Machine, entra: Entra) -> None:
    entra.audience = "https://graph.microsoft.com"
    done = machine.voltmill("run", "live")  # a refusal ends the first start at once
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "AuthenticationFailed: Invalid token audience" in done.stderr and "eyJ" not in done.stderr
    entra.refuse = "AADSTS700213: No matching federated identity record found for presented assertion"
    done = machine.run("-c", PROBE, str(machine.config))
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "AADSTS700213: No matching federated identity record" in done.stdout
    assert "assertion-of-the-cluster" not in done.stdout + done.stderr


def _sas(azurite: Azurite, permissions: str, hours: float = 1) -> dict[str, Any]:
    sas = generate_account_sas(
        azurite.account,
        azurite.key,
        ResourceTypes(container=True, object=True),
        AccountSasPermissions.from_string(permissions),
        datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours),
    )
    return _with_sas(azurite, sas)


def _with_sas(azurite: Azurite, sas: str) -> dict[str, Any]:
    endpoint = f"BlobEndpoint=http://127.0.0.1:{azurite.port}/{azurite.account}"
    return {"connection_string": f"{endpoint};SharedAccessSignature={sas};"}


@pytest.fixture
def lake(azurite: Azurite) -> LakeSettings:
    """A lake with a file, opened by the key of its account."""
    settings = LakeSettings(url=f"abfs://keys-{next(_numbers)}/lake", storage_options=azurite.options)
    store = settings.open()
    store.make()
    store.write("a/b", pa.py_buffer(b"rows"))
    return settings


@pytest.mark.parametrize(
    ("permissions", "found"),
    [
        ("rwdl", "works, may list, read, write, remove"),
        ("rwl", "cannot remove: the role or the SAS does not allow it (403 AuthorizationPermissionMismatch)"),
        ("rl", "cannot write: the role or the SAS does not allow it (403 AuthorizationPermissionMismatch)"),
        ("l", "cannot list: the role or the SAS does not allow it (403 AuthorizationPermissionMismatch)"),
        ("", "wrong or has expired (403 AuthenticationFailed"),
    ],
)
def test_a_sas_opens_what_it_is_for(azurite: Azurite, lake: LakeSettings, permissions: str, found: str) -> None:
    options = _sas(azurite, permissions) if permissions else _sas(azurite, "rwdl", hours=-1)
    settings = msgspec.structs.replace(lake, storage_options=options)
    told = str(probe(settings))
    assert found in told and "sig=" not in told
    if permissions == "rl":  # enough to read, as a replay does
        assert settings.open().find("a") == ["b"] and settings.open().read("a/b") == b"rows"


def test_a_sas_of_the_container_alone_will_do(azurite: Azurite, lake: LakeSettings) -> None:
    container = lake.url.removeprefix("abfs://").partition("/")[0]
    expiry = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    sas = generate_container_sas(azurite.account, container, account_key=azurite.key, permission="rwdl", expiry=expiry)
    settings = msgspec.structs.replace(lake, storage_options=_with_sas(azurite, sas))
    settings.open().make()
    settings.open().write("a/c", pa.py_buffer(b"more"))
    assert settings.open().find("a") == ["b", "c"] and probe(settings).works


def test_a_wrong_key_is_named(azurite: Azurite, lake: LakeSettings) -> None:
    wrong = azurite.connection_string.replace(azurite.key, "c2VjcmV0LWtleS1vZi1vdXJz")
    told = str(probe(msgspec.structs.replace(lake, storage_options={"connection_string": wrong})))
    assert "cannot list: the key, the SAS or the token is wrong or has expired" in told and "c2Vj" not in told


def test_a_name_and_a_key_go_to_the_public_host(lake: LakeSettings) -> None:
    options = {"account_name": "no-such-account-of-ours", "account_key": "c2VjcmV0"}
    store = LakeSettings(url="abfs://x/y", storage_options=options).open()
    assert store.fs.service_client.url == "https://no-such-account-of-ours.blob.core.windows.net/"
    assert store.fs.credential is None


@pytest.mark.parametrize("scheme", ["abfs", "abfss", "az"])
def test_a_url_may_name_the_account(scheme: str) -> None:
    """As the portal and Spark write it; requests go to the Blob API, by Entra ID where nothing else is given."""
    store = LakeSettings(url=f"{scheme}://fleet@acct.dfs.core.windows.net/lake").open()
    assert store.root == "fleet/lake" and store.fs.service_client.url == "https://acct.blob.core.windows.net/"
    assert type(store.fs.credential).__name__ == "DefaultAzureCredential"


def test_a_credential_is_default_or_none_and_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match='credential must be "default"') as refused:
        LakeSettings(url="abfs://x/y", storage_options={"account_name": "fleet", "credential": "c2VjcmV0"})
    assert "c2VjcmV0" not in str(refused.value)
    both = {"account_name": "fleet", "credential": "default", "account_key": "c2VjcmV0"}
    with pytest.raises(LakeError, match="credential stands beside account_key, which would be used instead"):
        LakeSettings(url="abfs://x/y", storage_options=both).open()
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "x")
    with pytest.raises(LakeError, match="beside the environment's AZURE_STORAGE_CONNECTION_STRING"):
        LakeSettings(url="abfs://x/y", storage_options={"account_name": "f", "credential": "default"}).open()
