"""What can be set about reading IoT Hub: the ``[iothub]`` table."""

import msgspec


class IotHubSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[iothub]`` table: the hub's Event Hubs-compatible endpoint, which the live flow reads."""

    connection_string: str = ""
    """Event Hubs-compatible endpoint with its `EntityPath`, as the portal shows it. Write it as `"${NAME}"`."""
    consumer_group: str = "$Default"
    """Consumer group; one of its own for each flow that reads the hub."""

    def __repr__(self) -> str:
        """Without the connection string: settings end up in logs."""
        return f"IotHubSettings(consumer_group={self.consumer_group!r})"
