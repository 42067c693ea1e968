"""A circuit breaker: a system that is down is left alone for a while, so that asking it slows nothing down."""

import threading
import time
from collections.abc import Callable


class Breaker:
    """Says whether a system may be called: closed, it may; open, it may not; then one call probes it.

    Safe to use from several threads.

    Args:
        first_seconds: length of the first pause, s; doubled when a probe fails.
        longest_seconds: length of the longest pause, s.
        on_open: called with True when the system is given up and with False when it is back.
        clock: gives the time, s; only differences count.

    Example:
        >>> now = 0.0
        >>> breaker = Breaker(1.0, 60.0, clock=lambda: now)
        >>> breaker.failed()
        >>> breaker.remaining
        1.0
        >>> now = 1.0
        >>> breaker.admits(), breaker.admits()  # the probe, and no other call while it is under way
        (True, False)
        >>> breaker.failed()
        >>> breaker.remaining
        2.0
    """

    def __init__(
        self,
        first_seconds: float,
        longest_seconds: float,
        *,
        on_open: Callable[[bool], None] = lambda is_open: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first, self._longest, self._on_open, self._clock = first_seconds, longest_seconds, on_open, clock
        self._lock = threading.Lock()
        self._pause = 0.0  # 0: closed
        self._until = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether calls are held back, but for a probe."""
        return self._pause > 0

    @property
    def remaining(self) -> float:
        """How long no call is admitted, s."""
        return max(0.0, self._until - self._clock())

    def admits(self) -> bool:
        """Whether the call may be made; each that is admitted must end in ``failed`` or ``succeeded``."""
        with self._lock:
            if not self._pause:
                return True
            if self._probing or self._clock() < self._until:
                return False
            self._probing = True
            return True

    def failed(self, at_least: float = 0.0) -> None:
        """The call failed in a way that another would as well.

        Args:
            at_least: how long the system asked to be left alone, s; up to the longest pause.
        """
        with self._lock:
            opens = not self._pause
            if not opens and not self._probing:
                return  # it was admitted before another one failed: that one decides
            longer = max(2 * self._pause, self._first, at_least)
            self._pause = min(longer, self._longest)
            self._until = self._clock() + self._pause
            self._probing = False
        if opens:
            self._on_open(True)

    def succeeded(self) -> None:
        """The call was answered."""
        with self._lock:
            closes = self._pause > 0
            self._pause = self._until = 0.0
            self._probing = False
        if closes:
            self._on_open(False)
