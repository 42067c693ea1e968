"""What the lake does with the answers by which Azure Storage asks for patience, or refuses; requests go to Azurite."""

import json
import os
import threading
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import pyarrow as pa
import pytest
from blob_proxy import BlobProxy, Refusal
from servers import Azurite

from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.lake_probe import probe
from voltmill.connectors.outage import Patience
from voltmill.connectors.remote_errors import line_of
from voltmill.connectors.store import LakeAwayError, LakeError, Store

DATA = pa.py_buffer(b"rows")
_numbers = count()


@pytest.fixture
def proxy(azurite: Azurite) -> Iterator[BlobProxy]:
    made = BlobProxy(azurite.port)
    yield made
    made.close()


@pytest.fixture
def settings(azurite: Azurite, proxy: BlobProxy) -> LakeSettings:
    """A lake in a container that is there."""
    through = azurite.connection_string.replace(f":{azurite.port}/", f":{proxy.port}/")
    made = LakeSettings(url=f"abfs://answers-{next(_numbers)}/lake", storage_options={"connection_string": through})
    made.open().make()
    proxy.seen.clear()
    return made


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (409, "ContainerBeingDeleted"),
        (412, "LeaseIdMissing"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "ServerBusy"),
    ],
)
def test_what_passes_is_tried_again(settings: LakeSettings, proxy: BlobProxy, status: int, code: str) -> None:
    waits: list[bool] = []
    store = settings.open(Patience("the lake", seconds=20, on_waiting=waits.append))
    for write in (store.write, store.create):
        proxy.planned.extend([Refusal(status, code)] * 2)
        assert write("a/b", DATA) is not False or write is store.create
        assert not proxy.planned and store.read("a/b") == b"rows"
        store.remove("a/b")
    assert waits == [True, False] * 2
    store.create("a/b", DATA)
    assert store.create("a/b", pa.py_buffer(b"other")) is False and store.read("a/b") == b"rows"


def test_the_lake_is_left_alone_as_long_as_it_asks(settings: LakeSettings, proxy: BlobProxy) -> None:
    proxy.planned.append(Refusal(503, "ServerBusy", {"Retry-After": "2"}))
    began = time.monotonic()
    settings.open().write("a", DATA)
    assert 2 <= time.monotonic() - began < 4
    assert [method for method, _ in proxy.seen] == ["PUT", "PUT"]
    proxy.planned.extend([Refusal(429, "TooManyRequests", {"Retry-After": "3600"})] * 2)
    with pytest.raises(LakeAwayError, match=r"No\. \(TooManyRequests\)") as refused:
        settings.open(Patience("the lake", seconds=0.5)).write("a", DATA)
    assert refused.value.retry_after == 3600


def test_what_does_not_pass_ends_at_once(settings: LakeSettings, proxy: BlobProxy) -> None:
    proxy.planned.append(Refusal(400, "InvalidInput"))
    with pytest.raises(
        LakeError, match=r"cannot write a: HttpResponseError: No\. \(InvalidInput\)|InvalidInput"
    ) as end:
        settings.open(Patience("the lake")).write("a", DATA)
    assert not isinstance(end.value, LakeAwayError) and len(proxy.seen) == 1


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # aiohttp's, of what Azure's client does
def test_a_large_file_goes_up_whole_and_in_few_parts_at_a_time(settings: LakeSettings, proxy: BlobProxy) -> None:
    store, data = settings.open(), os.urandom(80 << 20)
    store.write("small", DATA)
    assert proxy.seen == [("PUT", proxy.seen[0][1])] and "comp=" not in proxy.seen[0][1]  # one request is all
    listed: list[list[str]] = []
    writer = threading.Thread(target=lambda: store.write("large", pa.py_buffer(data)))
    writer.start()
    while writer.is_alive():
        listed.append(settings.open().find(""))
    writer.join()
    assert listed[0] == ["small"] and proxy.most_under_way <= 4 + 1  # and the listing
    assert sum("comp=blocklist" in path for _, path in proxy.seen) == 1
    assert store.read("large") == data


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (403, "AuthorizationPermissionMismatch", "Storage Blob Data Contributor"),
        (403, "AuthorizationFailure", "firewall"),
        (403, "KeyBasedAuthenticationNotPermitted", "credential = "),
        (403, "AuthenticationFailed", "wrong or has expired"),
        (503, "ServerBusy", "ServerBusy"),
    ],
)
def test_the_probe_says_what_is_refused(
    settings: LakeSettings, proxy: BlobProxy, status: int, code: str, told: str
) -> None:
    assert str(probe(settings)) == f"lake {settings.url}: works, may list, read, write, remove"
    for method, verb in (("GET", "list"), ("PUT", "write"), ("DELETE", "remove")):
        passed = {"GET": 0, "PUT": 3, "DELETE": 4}[method]
        proxy.planned.clear()
        seen = len(proxy.seen)
        proxy.planned.append(Refusal(status, code, method=method))
        found = probe(settings)
        assert found.problem.startswith(f"cannot {verb}: ") and told in str(found), found
        assert len(proxy.seen) - seen <= passed + 2


def test_the_probe_changes_nothing_and_ends_in_time(settings: LakeSettings, azurite: Azurite) -> None:
    assert probe(settings).works and settings.open().find("") == []
    away = LakeSettings(url="abfs://not-there/x", storage_options=settings.storage_options)
    assert "there is no container not-there; az storage container create" in str(probe(away))
    for look in (Store.names, Store.find):
        with pytest.raises(LakeAwayError, match="cannot list telemetry: FileNotFoundError: .*'not-there"):
            look(away.open(Patience("the lake", seconds=0.01)), "telemetry")
    azurite.pause()
    try:
        began = time.monotonic()
        assert "no answer within 1 s" in str(probe(settings, seconds=1)) and time.monotonic() - began < 3
    finally:
        azurite.resume()


def test_a_folder_and_other_file_systems_are_probed(tmp_path: Any) -> None:
    assert str(probe(LakeSettings(url=f"{tmp_path}/lake"))) == f"lake {tmp_path}/lake: works, made at the first start"
    (tmp_path / "file").touch()
    assert "is a file" in str(probe(LakeSettings(url=f"{tmp_path}/file/lake")))
    assert probe(LakeSettings(url="memory://probe/x")).works
    assert "Protocol not known" in str(probe(LakeSettings(url="no-such://x/y")))


SECRETS = [
    "AccountKey=c2VjcmV0LWtleQ==;",
    "SharedAccessSignature=sv=2024&sig=c2VjcmV0LWtleQ%3D%3D&se=x",
    "https://x.blob.core.windows.net/a?sv=2024&sig=c2VjcmV0&se=2026",
    "Authorization: Bearer eyJ0eXAi.eyJhdWQi.c2VjcmV0",
    '{"access_token": "eyJ0eXAi.eyJhdWQi.c2VjcmV0"}',
    "client_secret=c2VjcmV0&client_assertion=c2VjcmV0",
    "the key c2VjcmV0LWtleQ== is wrong",
]


@pytest.mark.parametrize("text", SECRETS)
def test_no_text_of_a_library_tells_a_secret(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"connection_string": "AccountName=fleet;AccountKey=c2VjcmV0LWtleQ==;", "account_name": "fleet"}
    line = line_of(ValueError(f"no\nroute to fleet: {text}"), options)
    assert line.startswith("ValueError: no route to fleet: ")
    assert "c2VjcmV0" not in line and "eyJ0" not in line
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", options["connection_string"])
    assert "c2VjcmV0" not in line_of(ValueError(text), {})


def test_no_answer_of_the_service_tells_a_secret(settings: LakeSettings, proxy: BlobProxy, azurite: Azurite) -> None:
    told = []
    for text in (*SECRETS[:-1], json.dumps(settings.storage_options), azurite.key):
        proxy.planned.extend([Refusal(403, "AuthorizationFailure", text=text.replace("&", "&amp;"))] * 2)
        with pytest.raises(LakeError) as refused:
            Store(settings.url, settings.storage_options, patience=Patience("the lake", seconds=0.01)).write("a", DATA)
        proxy.planned.append(Refusal(403, "AuthorizationFailure", text=text.replace("&", "&amp;"), method="GET"))
        told += [str(refused.value), str(probe(settings))]
    assert all("AuthorizationFailure" in line for line in told)
    for line in told:
        assert azurite.key not in line and "c2VjcmV0LWtleQ" not in line and "sig=c2Vj" not in line, line
