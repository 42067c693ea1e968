"""What can be set about each kind of place that alerts go to: the tables below a ``[[notify]]``."""

import base64
import binascii
import re
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from voltmill.connectors.mqtt_settings import MqttSettings

#: What an HTTP header may carry without being quoted or folded (RFC 9110, 5.5).
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_OWN: Final = {"content-type", "content-length", "host", "webhook-id", "webhook-timestamp", "webhook-signature"}
#: Characters that a part of a URL or a header has at least to be struck out of messages.
_LEAST_SECRET: Final = 6
_URL: Final = re.compile(r"https?://[^\s/?#@]+([/?][^\s#]*)?")


class WebhookSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[notify.webhook]`` table: a URL that takes CloudEvents.

    Example:
        >>> WebhookSettings(url="https://hooks.example/T0/B1?sig=secret")
        WebhookSettings(hooks.example)
    """

    url: str
    """Where each alert is posted. A URL that is a secret itself is written `"${NAME}"`; only its host is ever shown."""
    headers: dict[str, str] = {}
    """Headers sent along, such as `{ Authorization = "Bearer ${TOKEN}" }`."""
    signing_secret: str = ""
    """`whsec_` and base64: each request is signed with it as Standard Webhooks says. Write `"${NAME}"`. Empty: none."""
    origin: str = ""
    """Sent as `WebHook-Request-Origin`, for receivers that want it (CloudEvents' abuse protection): our domain name."""
    ca_file: str = ""
    """PEM file of the authorities that are trusted; empty: those of the system."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not _URL.fullmatch(self.url) or not _has_host(self.url):
            # Not shown: it may be a secret.
            raise ValueError("url must be http(s)://HOST[:PORT]/PATH, without user and fragment")
        if self.ca_file and not self.url.startswith("https:"):
            raise ValueError("ca_file is set, but url is not https: make it https, or leave ca_file out")
        for name, value in self.headers.items():
            if not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN:
                raise ValueError(f"headers: {name!r} is no name of a header, or one that is set by itself")
            if not _HEADER.fullmatch(value):
                raise ValueError(f"headers: the value of {name!r} is what no header can carry, or empty")
        if self.origin and not re.fullmatch(r"[A-Za-z0-9.-]{1,253}", self.origin):
            raise ValueError("origin is a domain name, such as plant-1.example.com")
        if self.signing_secret:
            self.signing_key()

    def __repr__(self) -> str:
        """The host alone: the rest may hold credentials, and settings end up in logs."""
        return f"WebhookSettings({self.place})"

    @property
    def place(self) -> str:
        """The receiver as messages name it: no secret in it."""
        return urlsplit(self.url).netloc

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must be in no message, the longest first: a receiver may send back what it was sent, or a part of it."""
        at = urlsplit(self.url)
        said = [*self.headers.values(), *(word for value in self.headers.values() for word in value.split())]
        said += [self.url, f"{at.path}?{at.query}", at.query, *(value for _, value in parse_qsl(at.query))]
        said += [at.path, *(part for part in at.path.split("/") if len(part) >= _LEAST_SECRET), self.signing_secret]
        found = {form for word in said for form in (word, unquote(word))}
        return tuple(sorted((word for word in found if len(word) >= _LEAST_SECRET), key=len, reverse=True))

    def signing_key(self) -> bytes:
        """The key of the signatures.

        Raises:
            ValueError: ``signing_secret`` is none; the message does not show it.
        """
        try:
            key = base64.b64decode(self.signing_secret.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not 24 <= len(key) <= 64:
            raise ValueError("signing_secret must be whsec_ and base64 of 24 to 64 bytes (Standard Webhooks)")
        return key


class HubSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[notify.notification_hubs]`` table: a hub of Azure Notification Hubs, which reaches phones.

    Example:
        >>> text = "Endpoint=sb://bms.servicebus.windows.net/;SharedAccessKeyName=Send;SharedAccessKey=secret"
        >>> HubSettings(connection_string=text, hub="fleet")
        HubSettings(bms.servicebus.windows.net/fleet)
    """

    connection_string: str
    """`Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…` of an access policy of the hub that may Send.
    Write it as `"${NAME}"`."""
    hub: str
    """Name of the hub."""
    tags: str = ""
    """Tag expression of who gets it, such as `duty && site-a`; empty: every registration with a template."""
    api_version: str = "2015-01"
    """Version of the REST API that is asked for."""
    ca_file: str = ""
    """PEM file of the authorities that are trusted; empty: those of the system."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        for name in ("endpoint", "key_name", "key"):
            getattr(self, name)
        if not re.fullmatch(r"[A-Za-z0-9](?:[\w./-]{0,258}[A-Za-z0-9])?", self.hub):
            raise ValueError("hub is the name of a hub: letters, digits, '.', '_', '-', '/'")
        if self.tags and not re.fullmatch(r"[\w@#.:\-&|!() $]+", self.tags, re.ASCII):
            raise ValueError("tags is an expression of tags (letters, digits, _@#.:-) with &&, ||, ! and parentheses")
        if not re.fullmatch(r"\d{4}-\d{2}", self.api_version):
            raise ValueError('api_version is a year and a month, such as "2015-01"')

    def __repr__(self) -> str:
        """Without the connection string: settings end up in logs."""
        return f"HubSettings({self.place})"

    @property
    def endpoint(self) -> str:
        """Host of the namespace, with a port if one is named."""
        host = self._part("Endpoint")
        found = re.fullmatch(r"(?:sb|https)://([A-Za-z0-9.-]+(?::\d{1,5})?)/?", host)
        if not found:
            raise ValueError("connection_string: Endpoint must be sb://NAMESPACE.servicebus.windows.net/")
        return found[1]

    @property
    def key_name(self) -> str:
        """Name of the access policy."""
        return self._part("SharedAccessKeyName")

    @property
    def key(self) -> str:
        """Its key."""
        return self._part("SharedAccessKey")

    @property
    def place(self) -> str:
        """The hub as messages name it: no secret in it."""
        return f"{self.endpoint}/{self.hub}"

    def _part(self, name: str) -> str:
        for part in self.connection_string.split(";"):
            key, _, value = part.strip().partition("=")
            if key == name and value:
                return value
        raise ValueError(f"connection_string has no {name}=: copy it whole from the access policies of the hub")


class NotifyMqttSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[notify.mqtt]`` table: a topic, on the broker of ``[mqtt]`` or on another one.

    Example:
        >>> NotifyMqttSettings().topic_of("site-a/rack-1/module-7", "OVER_TEMP_ALARM", "alarm")
        'voltmill/alerts/site-a/rack-1/module-7'
    """

    topic: str = "voltmill/alerts/{device_id}"
    """Topic of each alert; `{device_id}`, `{code}` and `{severity}` stand for those of the alert."""
    broker: MqttSettings | None = None
    """The broker, with the keys of `[mqtt]`; not given: that of `[mqtt]`. Its `topics` are not used."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        plain = re.sub(r"\{(device_id|code|severity)\}", "", self.topic)
        if not self.topic or set(plain) & set("{}+#\0"):
            raise ValueError("topic is a topic without wildcards; {device_id}, {code} and {severity} may stand in it")

    def topic_of(self, device_id: str, code: str, severity: str) -> str:
        """The topic of an alert; what no topic may hold becomes ``_``."""
        facts = {"device_id": device_id, "code": code, "severity": severity}
        return re.sub(r"\{(\w+)\}", lambda name: re.sub(r"[+#\0]", "_", facts[name[1]]), self.topic)


def _has_host(url: str) -> bool:
    try:
        return bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        return False
