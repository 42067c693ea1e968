"""What can be set about a model behind HTTP: the ``[model.endpoint]`` table of a ``[[model]]``."""

import re
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

#: What an HTTP header may carry without being quoted or folded (RFC 9110, 5.5): visible ASCII.
_HEADER: Final = re.compile(r"[\x21-\x7e]*")
_URL: Final = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")


class EndpointSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[model.endpoint]`` table: where a model is served, who we are there, how long it is waited for.

    Example:
        >>> settings = EndpointSettings(url="https://soc.example/score", contract="soc.json", key="secret")
        >>> settings.key, "secret" in repr(settings)
        ('secret', False)
    """

    url: str
    """Its scoring URI, as Azure ML shows it: `https://NAME.REGION.inference.ml.azure.com/score`."""
    contract: str
    """JSON file with the contract of the model: what `metadata_props["voltmill.contract"]` is in an ONNX file."""
    key: str = ""
    """Sent as `Authorization: Bearer`: the key or a token of the endpoint. Write `"${NAME}"` to take it from the
    environment. Empty: none is sent."""
    credential: Literal["", "default"] = ""
    """`default`: a token of Entra ID in place of `key`, renewed before it expires, for an endpoint with
    `auth_mode: aad_token`: the identity of the workload or the machine, or a login."""
    deployment: str = ""
    """Name of one deployment of the endpoint, which then answers whatever the traffic rules say; empty: they decide."""
    ca_file: str = ""
    """PEM file of the authorities that are trusted; empty: those of the system."""
    timeout_seconds: float = 5.0
    """How long one request may take, s. Azure ML ends one after `request_timeout_ms` of the deployment: 5 s unless
    set there."""
    attempts: int = 4
    """How often a request is sent at most, where the failure may pass: time-outs, lost connections, 408, 429, 5xx."""
    deadline_seconds: float = 15.0
    """How long a whole batch may take, s, with its waits and repeated requests. Then its rows fall back."""
    batch_rows: int = 1000
    """Rows in one request, at most; halved by itself where the endpoint answers 413 (too large)."""
    concurrency: int = 4
    """Requests under way at the same time, at most. More than the deployment takes in are answered with 429."""
    pause_seconds: float = 1.0
    """How long an endpoint that failed wholly is left alone, s; doubled each time one request more fails."""
    longest_pause_seconds: float = 60.0
    """The longest such pause, s: how late the return of the endpoint is noticed at most."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not _URL.fullmatch(self.url) or not _port_is_one(self.url):
            # Not shown: who writes a secret into it must not find it in a log.
            raise ValueError("url must be http(s)://HOST[:PORT]/PATH, without user, query or fragment; a key is in key")
        if self.ca_file and not self.url.startswith("https:"):
            raise ValueError("ca_file is set, but url is not https: make it https, or leave ca_file out")
        if self.credential and (self.key or not self.url.startswith("https:")):
            raise ValueError('credential = "default" needs an https url, and no key beside it')
        if not self.contract:
            raise ValueError("contract is empty: name the JSON file with the contract of the model")
        for name in ("key", "deployment"):
            if not _HEADER.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} holds what no header can carry: a blank, or a line break at its end?")
        if not (self.timeout_seconds > 0 and self.deadline_seconds >= self.timeout_seconds):
            raise ValueError("timeout_seconds must be above 0, and deadline_seconds at least as long")
        if not (1 <= self.attempts <= 100 and 1 <= self.concurrency <= 100):
            raise ValueError("attempts and concurrency must be 1 to 100")
        if not 1 <= self.batch_rows <= 100_000:
            raise ValueError("batch_rows must be 1 to 100000")
        if not 0 < self.pause_seconds <= self.longest_pause_seconds:
            raise ValueError("pause_seconds must be above 0, and longest_pause_seconds at least as long")

    def __repr__(self) -> str:
        """Without the key: settings end up in logs."""
        return f"EndpointSettings({self.place})"

    @property
    def place(self) -> str:
        """The endpoint as messages name it: no secret in it."""
        return f"{self.url} ({self.deployment})" if self.deployment else self.url


def _port_is_one(url: str) -> bool:
    try:
        return bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        return False
