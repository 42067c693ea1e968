"""What the IoT Hub source tells of itself, to whoever counts."""

from collections.abc import Callable
from dataclasses import dataclass


def _ignore(*what: object) -> None:
    pass


@dataclass(frozen=True)
class Watch:
    """What is called with what happens; from any thread."""

    on_events: Callable[[int, int], None] = _ignore
    """Events and bytes of their bodies that were handed out."""
    on_lag: Callable[[str, int], None] = _ignore
    """Partition, and how many events it holds that were not handed out."""
    on_reconnect: Callable[[str], None] = _ignore
    """Partition whose connection was lost or could not be made."""
    on_redelivered: Callable[[int], None] = _ignore
    """Events that the hub delivered again: they were held back."""
    on_expired: Callable[[str, int], None] = _ignore
    """Partition, and how many events the hub let go before they were read."""
    on_broken_pack: Callable[[int], None] = _ignore
    """Events that called themselves packs and were none."""
