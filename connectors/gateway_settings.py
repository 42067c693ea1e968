"""What can be set about the gateway's way to IoT Hub: the ``[gateway]`` table."""

import msgspec


class GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[gateway]`` table: the hub that the gateway sends to, and the store for when it is away."""

    connection_string: str = ""
    """Connection string of the gateway's device identity. Write it as `"${NAME}"`."""

    def __repr__(self) -> str:
        """Without the connection string: settings end up in logs."""
        return "GatewaySettings()"
