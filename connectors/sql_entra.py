"""Tokens of Entra ID for Azure SQL, in the form that Microsoft's ODBC driver takes."""

import struct
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from voltmill.connectors.extras import MissingExtra, need
from voltmill.connectors.sql_dialect import SqlError

#: SQL_COPT_SS_ACCESS_TOKEN of the driver's msodbcsql.h.
ATTRIBUTE: Final = 1256
_SCOPE: Final = "https://database.windows.net/.default"
#: A token is not used any more when it has less left than this, s: a login takes time, and clocks differ.
_MARGIN_SECONDS: Final = 300.0


class Credential(Protocol):
    """What gives tokens: of ``azure.identity``."""

    def get_token(self, *scopes: str) -> Any:
        """An object with ``token`` and ``expires_on``, s since 1970."""


class AwayError(Exception):
    """No token was given now, but there was one before: it passes."""


class Token:
    """The token that a connection logs in with, a new one in good time before it expires.

    Args:
        place: whose it is, as errors name it.
        client_id: of a managed identity that was made by the user; empty: what the environment offers.
        credential: makes what gives tokens; for tests.
        clock: s since 1970; for tests.
    """

    def __init__(
        self,
        place: str,
        client_id: str = "",
        *,
        credential: Callable[[str], Credential] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._place, self._client_id, self._clock = place, client_id, clock
        self._make = credential or _default
        self._credential: Credential | None = None
        self._token, self._expires = "", 0.0

    def attribute(self) -> bytes:
        """The value of ``ATTRIBUTE``: the token as UTF-16, its length in bytes before it.

        Raises:
            SqlError: there is none, and never was.
            AwayError: there is none now.
        """
        if self._expires - self._clock() < _MARGIN_SECONDS:
            self._renew()
        text = self._token.encode("utf-16-le")
        return struct.pack("<I", len(text)) + text

    def _renew(self) -> None:
        try:
            self._credential = self._credential or self._make(self._client_id)
            found = self._credential.get_token(_SCOPE)
        except MissingExtra as error:
            raise SqlError(f"{self._place}: {error}") from error
        except Exception as error:
            # Of azure.identity; its text tells each way that was tried on lines of its own, and holds no token.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            said = f"no Entra ID token: {lines[0] if lines else type(error).__name__}"
            if self._token:
                raise AwayError(said) from error
            mend = "give the pod a workload identity, or set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET"
            raise SqlError(f"{self._place}: {said}; {mend}") from error
        self._token, self._expires = found.token, float(found.expires_on)


def _default(client_id: str) -> Credential:
    identity = need("azure.identity", "a login with Entra ID")
    given = {"managed_identity_client_id": client_id} if client_id else {}
    credential: Credential = identity.DefaultAzureCredential(**given)
    return credential
