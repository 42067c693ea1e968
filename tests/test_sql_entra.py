"""A login at Azure SQL with a token, and TLS: Microsoft's real driver, a stand-in with our own certificate."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from mssql_tables import at, fresh, serving
from servers import Certificates
from sql_tables import table, writer
from stored_flow import predictions
from tds_server import TdsServer

from voltmill.connectors import sql_entra
from voltmill.connectors.sql import SqlError, SqlSettings, read_rows
from voltmill.connectors.sql_dialect import Failure
from voltmill.connectors.sql_entra import AwayError, Token
from voltmill.connectors.sql_mssql import MssqlDatabase
from voltmill.kernels.schema import PREDICTION, PREDICTION_KEY

SCOPE = "https://database.windows.net/.default"
#: The stand-in's certificate is of an authority that this machine does not know.
TRUSTING = "TrustServerCertificate=yes"


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[TdsServer]:
    with serving(certificates.server_cert, certificates.server_key) as made:
        yield made


@dataclass
class Given:
    token: str
    expires_on: int


class Credential:
    """Gives tokens that are good for an hour, or an error."""

    def __init__(self) -> None:
        self.now, self.given, self.error = 1e9, 0, ""

    def get_token(self, *scopes: str) -> Given:
        assert scopes == (SCOPE,)
        if self.error:
            raise RuntimeError(self.error)
        self.given += 1
        return Given(f"token-{self.given}-é", int(self.now) + 3600)


def of(credential: Credential) -> Token:
    return Token("here", "", credential=lambda client_id: credential, clock=lambda: credential.now)


def test_a_token_is_used_until_shortly_before_its_end() -> None:
    credential = Credential()
    token = of(credential)
    first = token.attribute()
    length, text = int.from_bytes(first[:4], "little"), first[4:]
    assert (length, text.decode("utf-16-le")) == (2 * len("token-1-é"), "token-1-é")
    credential.now += 3200
    assert token.attribute() == first
    credential.now += 200
    assert token.attribute()[4:].decode("utf-16-le") == "token-2-é"


def test_no_token_is_told_at_first_and_waited_for_later() -> None:
    credential = Credential()
    token = of(credential)
    credential.error = "DefaultAzureCredential failed to retrieve a token\nAttempted credentials:\n\tEnvironment"
    with pytest.raises(SqlError, match=r"^here: no Entra ID token: DefaultAzureCredential failed[^\n]*AZURE_CLIENT_ID"):
        token.attribute()
    credential.error = ""
    token.attribute()
    credential.error, credential.now = "the network is down", credential.now + 7200
    with pytest.raises(AwayError, match="no Entra ID token: the network is down") as raised:
        token.attribute()
    database = MssqlDatabase(SqlSettings(url="mssql://h/d"), "predictions", PREDICTION, PREDICTION_KEY)
    assert database.classify(raised.value) is Failure.TRANSIENT


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(SqlError, match=r"here: a login with Entra ID needs azure\S*: pip install 'voltmill\[azure\]'"):
        Token("here").attribute()


def test_tokens_come_from_the_environment_or_the_identity_that_is_named() -> None:
    pytest.importorskip("azure.identity")
    for client_id in ("", "0b5a0f8e-0000-0000-0000-000000000000"):
        assert type(sql_entra._default(client_id)).__name__ == "DefaultAzureCredential"


@pytest.mark.parametrize(
    "form",
    [
        "mssql://127.0.0.1:{port}/fleet?authentication=entra&" + TRUSTING,
        "mssql://some-identity@127.0.0.1:{port}/fleet?Authentication=ActiveDirectoryMsi&" + TRUSTING,
        'Server=tcp:127.0.0.1,{port};Initial Catalog=fleet;Authentication="Active Directory Default";' + TRUSTING,
    ],
)
def test_the_token_arrives_in_place_of_a_password(
    server: TdsServer, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    driver = fresh(server).driver
    credential, asked = Credential(), []

    def make(client_id: str) -> Any:
        asked.append(client_id)
        return credential

    monkeypatch.setattr(sql_entra, "_default", make)
    where = SqlSettings(url=form.format(port=server.port), driver=driver)
    out = writer(where)
    assert out.write([predictions(0, 5)]) == [] and read_rows(where).num_rows == 5
    found = server.logins()
    assert len(found) == 3 and {who["user"] + who["password"] for who in found} == {""}
    assert {who["token"] for who in found} == {"token-1-é", "token-2-é", "token-3-é"}
    assert {who["encrypted"] for who in found} == {"yes"}
    assert set(asked) == {"some-identity" if "some-identity" in form else ""}


def test_each_new_connection_has_a_token_that_is_still_good(server: TdsServer) -> None:
    driver = fresh(server).driver
    credential = Credential()
    where = SqlSettings(url=f"mssql://127.0.0.1:{server.port}/fleet?authentication=entra&{TRUSTING}", driver=driver)
    table(at(server, database=f"fleet?{TRUSTING}")).prepare()
    server.logins()
    database = MssqlDatabase(where, "predictions", PREDICTION, PREDICTION_KEY, token=of(credential))
    for first, later in ((0, 0), (5, 600), (10, 3600)):
        credential.now += later
        database.close()  # as after an outage
        database.upsert([predictions(first, 5)])
    assert [who["token"] for who in server.logins()] == ["token-1-é", "token-1-é", "token-2-é"]
    assert "token-" not in repr(vars(database))
    assert database.read().num_rows == 15


def test_without_a_word_the_connection_is_encrypted_and_the_certificate_checked(
    server: TdsServer, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = fresh(server).driver
    for host, said in (("localhost", "certificate verify failed"), ("127.0.0.1", "certificate")):
        where = SqlSettings(url=f"mssql://mill:s3cret@{host}:{server.port}/fleet", driver=driver)
        with pytest.raises(SqlError, match=rf"{said}.*; trust the server's certificate on this machine"):
            table(where, seconds=60.0).prepare()
    assert server.logins() == []
    where = at(server, database=f"fleet?{TRUSTING}")
    table(where).prepare()
    assert {who["encrypted"] for who in server.logins()} == {"yes"}
