"""How a flow is asked to stop: the signal handler sets it, the sources of the process heed it.

A source that heeds it reads no more, waits until what it handed out is durable, acknowledges that,
and ends. So nothing is lost and nothing comes twice at the next start.
"""

import threading


class Drain:
    """One request to stop, shared by all the sources of a process.

    Example:
        >>> drain = Drain()
        >>> drain.requested
        False
        >>> drain.request()
        >>> drain.requested
        True
    """

    def __init__(self) -> None:
        self._event = threading.Event()

    def request(self) -> None:
        """Ask every source to stop; may be called from a signal handler, and again."""
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is requested, at most ``timeout`` seconds; return whether it is."""
        return self._event.wait(timeout)
