"""What can be set about the gateway's way to IoT Hub: the ``[gateway]`` table."""

import base64
import binascii
import re
from typing import Final, Literal

import msgspec

#: Body and properties of one message, bytes. The hub takes 256 KiB (learn.microsoft.com/azure/iot-hub/
#: iot-hub-devguide-quotas-throttling); Microsoft's C client stays this far below, and so do we.
MOST_MESSAGE_BYTES: Final = 255 * 1024 - 1

_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_HOST_AND_PORT: Final = re.compile(_HOST.pattern + r"(:\d{1,5})?")
#: What a device id may consist of (learn.microsoft.com/azure/iot-hub/iot-hub-devguide-identity-registry).
_DEVICE: Final = re.compile(r"[A-Za-z0-9\-.+%_#*?!(),:=@$']{1,128}")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a connection string of a device says.

    Example:
        >>> found = Identity.parse("HostName=bms.azure-devices.net;DeviceId=gw-1;SharedAccessKey=c2VjcmV0")
        >>> found.device_id, found.server
        ('gw-1', 'bms.azure-devices.net')
        >>> found
        Identity(gw-1 at bms.azure-devices.net)
    """

    host: str
    """Name of the hub, with a port where the string has one."""
    device_id: str
    """Name of the device at the hub."""
    key: str
    """Its primary or secondary key, base64."""
    gateway_host: str = ""
    """IoT Edge gateway to connect to in place of the hub; empty: none."""

    @classmethod
    def parse(cls, text: str) -> "Identity":
        """Read a connection string.

        Raises:
            ValueError: it is none of a device; the message shows nothing of it.
        """
        if text.strip()[:1] in ("'", '"'):  # files of variables for containers keep them
            raise ValueError("connection_string begins with a quotation mark: leave the marks out")
        pairs = [part.partition("=") for part in text.strip().rstrip(";").split(";")]
        found = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if len(found) < len(pairs):
            raise ValueError(f"connection_string names a part twice; {_SHAPE}")
        for name, mend in _NOT_OURS.items():
            if name in found:
                raise ValueError(f"connection_string {mend}; {_SHAPE}")
        for name in ("HostName", "DeviceId", "SharedAccessKey"):
            if not found.get(name.lower()):
                raise ValueError(f"connection_string lacks {name}; {_SHAPE}")
        if unknown := found.keys() - {"hostname", "deviceid", "sharedaccesskey", "gatewayhostname"}:
            raise ValueError(f"connection_string has parts that are none of a device's ({len(unknown)}); {_SHAPE}")
        identity = cls(
            host=found["hostname"],
            device_id=found["deviceid"],
            key=found["sharedaccesskey"],
            gateway_host=found.get("gatewayhostname", ""),
        )
        identity.check()
        return identity

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is wrong.
        """
        if not _HOST_AND_PORT.fullmatch(self.host) or not _HOST_AND_PORT.fullmatch(self.server):
            raise ValueError("connection_string: HostName is no host name: NAME.azure-devices.net")
        if not _DEVICE.fullmatch(self.device_id):
            raise ValueError("connection_string: DeviceId has characters that no device id has")
        try:
            base64.b64decode(self.key, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("connection_string: SharedAccessKey is not base64: copy it whole, with its '='") from None

    @property
    def server(self) -> str:
        """The host, and the port if one is named, to connect to."""
        return self.gateway_host or self.host

    @property
    def resource(self) -> str:
        """What a SAS token of this device admits to: ``HOST/devices/DEVICE``."""
        return f"{self.host.partition(':')[0]}/devices/{self.device_id}"

    def __repr__(self) -> str:
        """Without the key."""
        return f"Identity({self.device_id} at {self.server})"


_SHAPE: Final = 'write "HostName=…;DeviceId=…;SharedAccessKey=…", as the portal shows it at the device'
_NOT_OURS: Final = {
    "endpoint": "is that of the Event Hubs-compatible endpoint, from which one reads: take that of the device",
    "sharedaccesskeyname": "is that of a policy of the hub, which may do everything there: take that of the device",
    "moduleid": "is that of a module: take that of the device",
    "x509": "asks for a certificate, but the gateway logs in with a key",
    "sharedaccesssignature": "holds a token, which expires: take the one with the key",
}


class GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[gateway]`` table: the hub that the gateway sends to, and the store for when it is away.

    Example:
        >>> settings = GatewaySettings(connection_string="HostName=h.example;DeviceId=gw-1;SharedAccessKey=c2VjcmV0")
        >>> settings.place, "c2VjcmV0" in repr(settings)
        ('IoT Hub h.example, device gw-1', False)
    """

    connection_string: str = ""
    """Connection string of the gateway's device identity. Write it as `"${NAME}"`."""
    transport: Literal["mqtt", "mqtt_ws", "https"] = "mqtt"
    """mqtt: MQTT over TLS on port 8883. mqtt_ws: the same in a WebSocket on port 443, where 8883 is closed.
    https: requests on port 443, for networks that let nothing else through."""
    ca_file: str = ""
    """PEM file of the authorities that are trusted; empty: those of the system, which IoT Hub needs."""
    store: str = "voltmill-data/gateway.db"
    """File on a local disk in which messages wait until the hub has them."""
    max_store_bytes: int = 4 << 30
    """Bytes of messages in it, at most; beyond it the site's broker keeps what comes. Free disk space for
    a tenth more is needed."""
    max_dead_letter_bytes: int = 64 << 20
    """Bytes of messages too large for the hub that are kept; beyond it the oldest of them are removed."""
    max_message_bytes: int = MOST_MESSAGE_BYTES
    """Bytes of one message to the hub with its properties, at most. The hub counts, and bills, blocks of 4 KB."""
    linger_seconds: float = 1.0
    """How long a message waits for others to share a hub message with, s."""
    late_seconds: float = 60.0
    """Age at sending beyond which the oldest message of a pack marks it as late, s."""
    sas_ttl_seconds: float = 3600.0
    """How long a token, made from the key, holds, s; it is renewed three minutes before."""
    timeout_seconds: float = 30.0
    """How long connecting, or sending one message until the hub confirms it, may take, s."""
    keepalive_seconds: int = 30
    """How often an idle MQTT connection is tried, s; a hub that fell silent is noticed after twice this time."""
    retry_min_seconds: float = 0.5
    """Wait after the first failure, s; doubled at each further one, with jitter."""
    retry_max_seconds: float = 30.0
    """The longest such wait, s: how late the return of the hub is noticed at most."""
    drain_seconds: float = 5.0
    """How long a gateway that is asked to stop goes on sending what it has stored, s. The rest is sent after
    the next start."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if self.connection_string:
            identity = self.identity
            if self.transport != "https" and ":" in identity.host + identity.server:
                raise ValueError(
                    "connection_string: HostName with a port goes with transport https alone: leave it out"
                )
        if not self.store:
            raise ValueError("store is empty: name a file")
        if not 4096 <= self.max_message_bytes <= MOST_MESSAGE_BYTES:
            raise ValueError(f"max_message_bytes must be 4096 to {MOST_MESSAGE_BYTES}")
        if self.max_store_bytes < 1 << 20 or self.max_dead_letter_bytes < 1 << 20:
            raise ValueError("max_store_bytes and max_dead_letter_bytes must be at least 1048576 (1 MiB)")
        if self.linger_seconds < 0 or self.late_seconds <= 0 or self.drain_seconds < 0:
            raise ValueError("linger_seconds and drain_seconds must be at least 0, late_seconds above 0")
        if not 300 <= self.sas_ttl_seconds <= 365 * 86_400:
            raise ValueError("sas_ttl_seconds must be 300 to 31536000 (a year)")
        if not 1 <= self.timeout_seconds <= 3600:
            raise ValueError("timeout_seconds must be 1 to 3600")
        if not 5 <= self.keepalive_seconds <= 1740:  # the load balancer in front of a hub closes idle ones then
            raise ValueError("keepalive_seconds must be 5 to 1740")
        if not 0 < self.retry_min_seconds <= self.retry_max_seconds:
            raise ValueError("retry_min_seconds must be above 0, and at most retry_max_seconds")

    @property
    def identity(self) -> Identity:
        """The device as which the gateway sends."""
        return Identity.parse(self.connection_string)

    @property
    def place(self) -> str:
        """Hub and device as messages name them: no secret in it."""
        return f"IoT Hub {self.identity.server}, device {self.identity.device_id}"

    def __repr__(self) -> str:
        """Without the connection string: settings end up in logs."""
        place = self.place if self.connection_string else "none"
        return f"GatewaySettings({place}, transport={self.transport!r}, store={self.store!r})"
