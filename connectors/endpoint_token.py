"""Tokens of Entra ID for an endpoint of Azure ML, renewed before they expire."""

import threading
import time
from typing import Final

from voltmill.connectors.endpoint_errors import ANY_NUMBER, EndpointError
from voltmill.connectors.endpoint_settings import EndpointSettings
from voltmill.connectors.extras import MissingExtra, need
from voltmill.connectors.http_pool import one_line

#: Of the data plane: https://learn.microsoft.com/azure/machine-learning/how-to-authenticate-online-endpoint
SCOPE: Final = "https://ml.azure.com/.default"
#: A token is not used any more when it has less left than this, s: a request takes time, and clocks differ.
MARGIN_SECONDS: Final = 300.0


class EndpointToken:
    """The token that requests bear; safe to use from several threads.

    Args:
        settings: of the endpoint.

    Raises:
        EndpointError: azure-identity is not installed.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings, self._lock = settings, threading.Lock()
        self._token, self._expires = "", 0.0
        try:
            self._credential = need("azure.identity", 'credential = "default"').DefaultAzureCredential()
        except MissingExtra as error:
            raise EndpointError(settings, str(error), outcome="token") from error

    def text(self) -> str:
        """The token, a new one where the last is about to expire.

        Raises:
            EndpointError: there is none; it may pass.
        """
        with self._lock:
            left = self._expires - time.time()
            if left < MARGIN_SECONDS:
                try:
                    found = self._credential.get_token(SCOPE)
                except Exception as error:  # of azure.identity: a line for each way that it tried
                    if left > 0:
                        return self._token
                    lines = (str(error).strip() or type(error).__name__).splitlines()
                    text = f"no Entra ID token: {one_line(lines[0])}: give the pod a workload identity, or log in"
                    raise EndpointError(self._settings, text, outcome="token", sends=ANY_NUMBER) from None
                self._token, self._expires = str(found.token), float(found.expires_on)
            return self._token
