"""The places behind HTTP: a webhook that takes CloudEvents, and a hub of Azure Notification Hubs."""

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping
from functools import partial
from typing import Final

from urllib3.exceptions import HTTPError

from voltmill.connectors.http_pool import Answer, HttpPool
from voltmill.connectors.iothub_sas import service_bus_token
from voltmill.connectors.notify_errors import refused, unanswered
from voltmill.connectors.notify_notice import Notice
from voltmill.connectors.notify_places import HubSettings, WebhookSettings

#: Of the body of an answer, which says nothing that is needed.
_MOST_BYTES: Final = 65_536
_TOKEN_SECONDS: Final = 3600.0
#: A connection that was not used for so long is made anew, s. Alerts are rare, and what lies between forgets an idle
#: one without a word (Azure's load balancer after four minutes): the next would go nowhere until its time is over.
IDLE_SECONDS: Final = 30.0
_REDIRECTS: Final = dict.fromkeys((301, 302, 303, 307, 308), "it redirects: name the final address")


class Webhook:
    """Posts each notification as a CloudEvent, over a connection that is kept.

    Args:
        settings: where.
        source: ``source`` of the events.
        timeout: of an attempt, s.

    Raises:
        ValueError: ``ca_file`` cannot be used.
    """

    MENDS: Final[dict[int, str]] = {
        **_REDIRECTS,
        401: "set headers to what the receiver asks for",
        403: "set headers to what the receiver asks for",
        404: "check url",
        405: "check url: it takes no POST",
        410: "the receiver wants no more of them: remove the table, or mend url",
        413: "one alert alone is too large for it",
        415: "it does not take application/cloudevents+json",
    }

    def __init__(self, settings: WebhookSettings, source: str, timeout: float) -> None:
        self._settings, self._source = settings, source
        self._key = settings.signing_key() if settings.signing_secret else b""
        self._http = _Http(settings.url, settings.ca_file, timeout, settings.secrets, self.MENDS)

    def send(self, notice: Notice) -> None:
        """Send it; NotifyError if it was not taken."""
        body = notice.cloud_event(self._source)
        headers = {"Content-Type": "application/cloudevents+json", **self._common()}
        if self._key:
            headers |= signature(self._key, notice.id, int(time.time()), body)
        self._http.request("POST", body, headers)

    def probe(self) -> str:
        """Ask what the receiver takes, without sending an event; returns what is worth knowing.

        Raises:
            NotifyError: it is not there, or does not take our credentials.
        """
        answer = self._http.ask("OPTIONS", b"", self._common())
        if answer.status in (401, 403, 404, 410, *_REDIRECTS):
            raise refused(answer, self.MENDS, *self._http.secrets)
        allowed = answer.headers.get("webhook-allowed-origin", "")
        if self._settings.origin and allowed not in ("*", self._settings.origin):
            return f"answers {answer.status} to OPTIONS, does not say that it allows {self._settings.origin}"
        return f"answers {answer.status} to OPTIONS"

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _common(self) -> dict[str, str]:
        origin = self._settings.origin
        return {**self._settings.headers, **({"WebHook-Request-Origin": origin} if origin else {})}


class Hub:
    """Sends each notification to the templates that apps have registered at a hub.

    Args:
        settings: where.
        timeout: of an attempt, s.

    Raises:
        ValueError: ``ca_file`` cannot be used.
    """

    MENDS: Final[dict[int, str]] = {
        **_REDIRECTS,
        400: "check tags and api_version",
        401: "take the connection string of an access policy of this very hub, whole",
        403: "the access policy must have the right to Send",
        404: "check hub and Endpoint: there is no such hub",
        413: "one alert alone is too large for it",
    }

    def __init__(self, settings: HubSettings, timeout: float) -> None:
        self._settings = settings
        self._resource = f"https://{settings.endpoint}/{settings.hub}"
        url = f"{self._resource}/messages/?api-version={settings.api_version}"
        secrets = (settings.connection_string, settings.key)
        self._http = _Http(url, settings.ca_file, timeout, secrets, self.MENDS)

    def send(self, notice: Notice) -> None:
        """Send it; NotifyError if it was not taken."""
        self._post(notice, self._settings.tags)

    def probe(self) -> str:
        """Send to a tag that no device bears: that takes the right to Send, and reaches nobody.

        Raises:
            NotifyError: it is not there, or does not take our credentials.
        """
        nobody = Notice("check", "voltmill/check", "CHECK", "warning", 0, None, None, None, 0, 0.0)
        self._post(nobody, "voltmill:check:nobody")
        return "takes notifications"

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _post(self, notice: Notice, tags: str) -> None:
        settings = self._settings
        headers = {
            "Authorization": service_bus_token(self._resource, settings.key_name, settings.key, _TOKEN_SECONDS),
            "Content-Type": "application/json;charset=utf-8",
            "ServiceBusNotification-Format": "template",
        }
        if tags:
            headers["ServiceBusNotification-Tags"] = tags
        self._http.request("POST", notice.template(), headers)


def signature(key: bytes, id_: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers by which a receiver knows that a request is ours, and new: Standard Webhooks 1.0.0.

    Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    digest = hmac.new(key, f"{id_}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": id_,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


class _Http:
    """Requests to one URL, with failures as `NotifyError`."""

    def __init__(self, url: str, ca_file: str, timeout: float, secrets: tuple[str, ...], mends: dict[int, str]) -> None:
        self.secrets, self._timeout, self._mends = secrets, timeout, mends
        self._open = partial(HttpPool, url, ca_file=ca_file)
        self._used = time.monotonic()
        try:
            self._pool = self._open()
        except OSError as error:
            raise ValueError(f"ca_file {ca_file!r} cannot be used: {error}: name a PEM file") from error

    def ask(self, method: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        until = time.monotonic() + self._timeout
        try:
            if time.monotonic() - self._used >= IDLE_SECONDS:
                self._pool.close()
                self._pool = self._open()
            self._used = time.monotonic()
            return self._pool.request(method, body, headers, most_bytes=_MOST_BYTES, until=until)
        except (HTTPError, OSError) as error:
            raise unanswered(error, self._timeout, *self.secrets) from error

    def request(self, method: str, body: bytes, headers: Mapping[str, str]) -> None:
        answer = self.ask(method, body, headers)
        if not answer.good:
            raise refused(answer, self._mends, *self.secrets)

    def close(self) -> None:
        self._pool.close()
