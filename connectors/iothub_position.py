"""Where a partition of the hub is read: the snapshot, and what an event's sequence number says.

Sequence numbers of a partition go up by one. A number that was passed is an event that the hub delivers again; one
that is too high shows that events are gone.
"""

import time
from dataclasses import dataclass
from typing import Any

Snapshot = tuple[str, str, int | None, str, int]
"""``("v1", name of the hub, sequence number and offset of the last event handed out, level of the reader)``; the
sequence number is None before the first event, and -1 stands before that of an empty partition."""


@dataclass(frozen=True)
class Position:
    """The last event of a partition that was handed out.

    Attributes:
        hub: Event Hub-compatible name, which is another one after a failover of the hub.
        sequence: its sequence number; None: there was none.
        offset: its offset, for the operator who looks into the store.
        level: the owner level of the last reader: the next one takes a higher one.
    """

    hub: str
    sequence: int | None = None
    offset: str = ""
    level: int = 0

    def snapshot(self) -> Snapshot:
        """As it stands in the recovery store."""
        return ("v1", self.hub, self.sequence, self.offset, self.level)


def position(state: Any, hub: str) -> Position:
    """The position that a snapshot holds.

    Raises:
        ValueError: it is of another version.

    Example:
        >>> position(("v1", "bms", 41, "10640", 7), "bms").sequence
        41
        >>> position(None, "bms").sequence is None
        True
    """
    if state is None:
        return Position(hub)
    if isinstance(state, tuple) and len(state) == 5 and state[0] == "v1":
        return Position(*state[1:])
    version = state[0] if isinstance(state, tuple) and state else type(state).__name__
    raise ValueError(f"iothub: the recovery store is of version {version!r}, this release reads v1: start a new one")


def next_level(last: int, now: float | None = None) -> int:
    """An owner level above all former ones: the hub lets the reader with the highest one read, and no other.

    It is the time in milliseconds, so a process that starts later wins; and never below the last one of the store, so
    a clock that was set back does not make a restarted flow wait for a reader that is gone.

    Example:
        >>> next_level(0, 5.0), next_level(9000, 5.0)
        (5000, 9001)
    """
    return max(int((time.time() if now is None else now) * 1000), last + 1)
