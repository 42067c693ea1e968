"""The way to IoT Hub over HTTPS: a request a message, over a connection that is kept.

The hub's batch format (``application/vnd.microsoft.iothub.json``) is not used: it may hold no more than one
message may, 256 KB, and carries bodies in base64, so a pack, which is one message, holds a third more.

API: learn.microsoft.com/rest/api/iothub/device/send-device-event; names of headers as in Microsoft's C client;
error codes: learn.microsoft.com/rest/api/iothub/common-error-codes.
"""

import time
from typing import Final
from urllib.parse import quote

from urllib3.exceptions import HTTPError

from voltmill import __version__
from voltmill.connectors import pack
from voltmill.connectors.gateway_hub import HubError, Outgoing
from voltmill.connectors.gateway_settings import GatewaySettings
from voltmill.connectors.http_pool import Answer, HttpPool, one_line, retry_after
from voltmill.connectors.iothub_sas import iothub_token
from voltmill.connectors.probe_network import explain

_API: Final = "api-version=2020-03-13"
#: How long before its end a token is renewed, s: clocks differ, and a request may take its time.
RENEW_SECONDS: Final = 180.0
_MOST_ANSWER_BYTES: Final = 65_536


class HttpsHub:
    """Sends over HTTPS; see `voltmill.connectors.gateway_hub.Hub`.

    Raises:
        ValueError: ``ca_file`` cannot be used.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings, self._identity = settings, settings.identity
        self._token, self._renew_at = "", 0.0
        device = quote(self._identity.device_id, safe="")
        self._device = f"https://{self._identity.server}/devices/{device}/messages"
        self._pool = self._connections(f"{self._device}/events?{_API}")

    def check(self, seconds: float) -> None:
        """Ask for a message to this device, of which the gateway reads none.

        The hub has no request that only checks the key. Where there is such a message the hub keeps it, and
        shows it again after a minute.
        """
        pool = self._connections(f"{self._device}/devicebound?{_API}")
        try:
            answer = self._request(pool, "GET", b"", {}, seconds)
        finally:
            pool.close()
        if answer.status in (401, 404, 429) or answer.status >= 500:
            raise self._failure(answer)

    def send(self, message: Outgoing) -> None:
        """POST one message."""
        headers = {
            "Content-Type": "application/octet-stream",
            "iothub-contenttype": pack.CONTENT_TYPE,
            "iothub-contentencoding": pack.CONTENT_ENCODING,
            "iothub-messageid": message.message_id,
        }
        headers |= {f"iothub-app-{name}": value for name, value in message.properties.items()}
        answer = self._request(self._pool, "POST", message.body, headers, self._settings.timeout_seconds)
        if not answer.good:
            raise self._failure(answer)

    def close(self) -> None:
        """Close the connection; a request that is under way goes on to its end."""
        self._pool.close()

    def _connections(self, url: str) -> HttpPool:
        try:
            return HttpPool(url, ca_file=self._settings.ca_file)
        except OSError as error:
            text = f"gateway.ca_file {self._settings.ca_file!r} cannot be used: {error}: name a PEM file"
            raise ValueError(text) from error

    def _request(self, pool: HttpPool, method: str, body: bytes, headers: dict[str, str], seconds: float) -> Answer:
        headers |= {"Authorization": self._fresh_token(), "User-Agent": f"voltmill/{__version__}"}
        until = time.monotonic() + seconds
        try:
            return pool.request(method, body, headers, most_bytes=_MOST_ANSWER_BYTES, until=until)
        except (HTTPError, OSError) as error:
            problem, mend = explain(error, seconds=seconds)
            if "certificate" in problem:
                raise HubError(problem, "refused", mend=mend) from error
            timeout = "no answer within" in problem
            raise HubError(problem, "timeout" if timeout else "unreachable", mend=mend, sending=bool(body)) from error

    def _fresh_token(self) -> str:
        now = time.time()
        if (
            not self._token or not 0 < self._renew_at - now <= self._settings.sas_ttl_seconds
        ):  # also if the clock jumped
            ttl = self._settings.sas_ttl_seconds
            self._token = iothub_token(self._identity.resource, self._identity.key, ttl, now=now)
            self._renew_at = now + ttl - RENEW_SECONDS
        return self._token

    def _failure(self, answer: Answer) -> HubError:
        """What an answer other than success means."""
        said = one_line(answer.body.decode(errors="replace"), self._identity.key, self._token)
        problem = f"it answers {answer.status}{': ' + said if said else ''}"
        wait = retry_after(answer.headers.get("Retry-After", ""))
        if answer.status == 401:
            self._token = ""  # should the clock have been set meanwhile, the next one holds
            return HubError(problem, "refused", mend="mend the SharedAccessKey, or the clock of this machine")
        if answer.status == 404:
            mend = "mend HostName and DeviceId, or enable the device at the hub"
            return HubError(problem, "refused", mend=mend)
        if answer.status == 429 or (answer.status == 403 and _is_quota(said)):
            mend = "it is sent later; more units of the hub carry more"
            return HubError(problem, "throttled", mend=mend, retry_after=wait)
        if answer.status in (400, 413):
            return HubError(problem, "rejected", sending=True)
        if answer.status >= 500 or answer.status == 408:
            return HubError(problem, "server", retry_after=wait, sending=True)
        mend = "check HostName: is that an IoT hub?" if answer.status < 400 else "enable the device at the hub"
        return HubError(problem, "refused", mend=mend)


def _is_quota(said: str) -> bool:
    """Whether a 403 says that the messages of the day are used up (403002), which passes at midnight UTC."""
    return "403002" in said or "quota" in said.lower()
