"""Shared access signatures: the short-lived tokens by which Azure lets in whoever knows a key.

IoT Hub and Service Bus (to whose family Event Hubs and Notification Hubs belong) sign the same text in the
same way, but differ in the key: IoT Hub's is base64 and decoded first, Service Bus' is used as it stands. Formats:
https://learn.microsoft.com/azure/iot-hub/authenticate-authorize-sas and
https://learn.microsoft.com/rest/api/eventhub/generate-sas-token.
"""

import base64
import binascii
import hashlib
import hmac
import time
from urllib.parse import quote


def iothub_token(uri: str, key: str, ttl: float, *, now: float | None = None) -> str:
    """A token for IoT Hub, under the key of one device.

    Args:
        uri: what it admits to: `HOST/devices/DEVICE`.
        key: the device's primary or secondary key, base64 as the portal shows it.
        ttl: how long it holds, s.
        now: the time, s since 1970; the clock's if not given.

    Raises:
        ValueError: the key is not base64; the message does not show it.

    Example:
        >>> token = iothub_token("hub.example/devices/gw-1", "c2VjcmV0", 3600, now=1_700_000_000)
        >>> token.partition("&sig=D8ms2o%2FnKwf%2FGFFebxYrLoMvWSKMZHsF8Jcb39fUikM%3D")[::2]
        ('SharedAccessSignature sr=hub.example%2Fdevices%2Fgw-1', '&se=1700003600')
    """
    try:
        secret = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the SharedAccessKey is not base64: copy it whole, with the '=' at its end") from None
    return _token(uri, secret, ttl, now)


def service_bus_token(uri: str, name: str, key: str, ttl: float, *, now: float | None = None) -> str:
    """A token for Notification Hubs, Event Hubs or Service Bus, under a shared access policy.

    Args:
        uri: what it admits to: `https://NAMESPACE.servicebus.windows.net/HUB`; signed in lower case, as
            Notification Hubs wants it.
        name: name of the policy.
        key: its key, used as text though it looks like base64.
        ttl: how long it holds, s.
        now: the time, s since 1970; the clock's if not given.

    Example:
        >>> token = service_bus_token("https://ns.example/Hub", "Send", "a2V5", 3600, now=1_700_000_000)
        >>> token.partition("&sig=LEwWOmfQfndZ5sQVmzGHXQ3LEmaHKRjhaRaSPMmM2OI%3D")[::2]
        ('SharedAccessSignature sr=https%3A%2F%2Fns.example%2Fhub', '&se=1700003600&skn=Send')
    """
    return f"{_token(uri.lower(), key.encode(), ttl, now)}&skn={quote(name, safe='')}"


def _token(uri: str, secret: bytes, ttl: float, now: float | None) -> str:
    resource = quote(uri, safe="")
    expires = int((time.time() if now is None else now) + ttl)
    digest = hmac.new(secret, f"{resource}\n{expires}".encode(), hashlib.sha256).digest()
    return f"SharedAccessSignature sr={resource}&sig={quote(base64.b64encode(digest), safe='')}&se={expires}"
