"""Takes the oldest messages from the store, sends them to IoT Hub as packs, and forgets them when they are confirmed.

**At least once, in order.** One pack is under way at a time, and its messages leave the store only when the
hub has confirmed it. What was under way when a connection broke, or the gateway was killed, is sent again.

**No message stands in the way of the rest.** A pack that takes too long is halved, down to single messages,
for a slow network carries a small one in time; success doubles it again. A pack that the hub rejects is halved
until the message is found that it rejects; that one becomes a dead letter.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from voltmill.connectors.gateway_hub import PROPERTY_BYTES, Hub, HubError, Outgoing
from voltmill.connectors.gateway_settings import GatewaySettings
from voltmill.connectors.gateway_store import GatewayStore, Waiting
from voltmill.connectors.pack import pack

#: To what a pack is halved at most where the network is slow, bytes.
LEAST_BYTES: Final = 4096
#: How many messages are given up one after the other; then it is the hub, or the way to it, that is wrong.
_MOST_REJECTED: Final = 3
_IDLE_SECONDS: Final = 1.0
_WORD_EVERY_SECONDS: Final = 60.0

log = logging.getLogger("voltmill.gateway")


def body_bytes(settings: GatewaySettings) -> int:
    """How long the body of a message to the hub may be."""
    return settings.max_message_bytes - PROPERTY_BYTES


def entry_bytes(settings: GatewaySettings) -> int:
    """How long a message may be to fit into a pack alone."""
    return body_bytes(settings) - 2


class Sender:
    """The thread that sends.

    Args:
        settings: how large, how patiently.
        store: what to send; filled by another thread.
        hub: where to.
        on_sent: called with the messages, the bytes and the lateness of each pack that was confirmed.
        on_failure: called with the kind of each failure.
        on_away: called with True when sending begins to fail, and with False when it works again.
        clock: s since 1970.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        store: GatewayStore,
        hub: Hub,
        *,
        on_sent: Callable[[int, int, bool], None] = lambda messages, size, late: None,
        on_failure: Callable[[str], None] = lambda kind: None,
        on_away: Callable[[bool], None] = lambda away: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._store, self._hub, self._clock = settings, store, hub, clock
        self._on_sent, self._on_failure, self._on_away = on_sent, on_failure, on_away
        self._most = self._limit = body_bytes(settings) - 1  # the brackets less the comma that is not there
        self._failures = self._rejected_in_a_row = 0
        self._away_since = 0.0
        self._said = -_WORD_EVERY_SECONDS
        self._confirmed = 0
        self._until = float("inf")
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway-sender", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, seconds: float) -> bool:
        """Send what waits, at most for so long, then leave the hub; return whether the thread has ended."""
        self._until = time.monotonic() + seconds
        self._leaving.set()
        self._store.added.set()
        self._thread.join(seconds + 0.5)
        self._hub.close()
        self._thread.join(2.0)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._over():
            try:
                self._turn()
            except HubError as error:
                self._failed(error)
            except Exception as error:  # a thread that ends would leave everything in the store
                self._failed(HubError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", "internal"))
        if self._store.messages:
            log.info("messages wait for the next start", extra={"messages": self._store.messages})

    def _over(self) -> bool:
        """Whether to leave: nothing waits, the time is over, or the hub is away."""
        if not self._leaving.is_set():
            return False
        return not self._store.messages or bool(self._failures) or time.monotonic() >= self._until

    def _turn(self) -> None:
        """Send one pack, or wait until there is one."""
        self._forget()
        self._store.added.clear()
        if not self._store.messages:
            self._store.added.wait(_IDLE_SECONDS)
            return
        self._linger()
        waiting = self._store.oldest(self._limit)
        try:
            self._send(waiting)
        except HubError as error:
            self._halve(waiting, error)
            if error.kind != "rejected":
                raise
            if len(waiting) == 1:
                self._rejected(waiting[0], error)
            self._on_failure(error.kind)

    def _rejected(self, message: Waiting, error: HubError) -> None:
        """The hub will not take this one. If it takes none at all, it is not the message that is wrong."""
        if self._rejected_in_a_row >= _MOST_REJECTED:
            raise error
        self._rejected_in_a_row += 1
        log.error("message rejected by the hub", extra={"reason": error.problem, "id": message.id})
        self._store.bury(message, "rejected")

    def _linger(self) -> None:
        """Wait for others to share a message with, while there is room for them."""
        until = time.monotonic() + self._settings.linger_seconds
        while self._store.entry_bytes < self._limit and not self._leaving.is_set():
            left = until - time.monotonic()
            if left <= 0:
                return
            self._store.added.wait(left)
            self._store.added.clear()

    def _send(self, waiting: Sequence[Waiting]) -> None:
        first, last = waiting[0], waiting[-1]
        late = self._clock() - first.at > self._settings.late_seconds
        body = pack(one.entry for one in waiting)
        self._hub.send(Outgoing(body, f"{self._store.name}-{first.id}-{last.id}", late))
        self._confirmed = last.id
        self._rejected_in_a_row = 0
        self._limit = min(2 * self._limit, self._most)
        self._on_sent(len(waiting), len(body), late)
        self._forget()
        if self._failures:
            self._back()

    def _forget(self) -> None:
        """Remove what the hub has; where the disk does not let us, this is tried again and nothing is sent twice."""
        if self._confirmed:
            self._store.remove(self._confirmed)
            self._confirmed = 0

    def _halve(self, waiting: Sequence[Waiting], error: HubError) -> None:
        """Make the next pack smaller where this one may have been too large for the hub, or for the network."""
        size = sum(len(one.entry) + 1 for one in waiting)
        if error.kind == "rejected" and len(waiting) > 1:
            self._limit = size // 2
        elif error.sending and error.kind in ("timeout", "unreachable"):
            self._limit = max(min(size, self._limit) // 2, LEAST_BYTES)

    def _failed(self, error: HubError) -> None:
        """Say it, and wait."""
        self._on_failure(error.kind)
        now = time.monotonic()
        if not self._failures:
            self._away_since = now
            self._on_away(True)
        self._failures += 1
        if now - self._said >= _WORD_EVERY_SECONDS:
            self._said = now
            level = logging.ERROR if error.kind == "refused" else logging.WARNING
            waits = {"messages": self._store.messages, "seconds": round(now - self._away_since, 1)}
            log.log(level, "waiting for %s: %s", self._settings.place, error, extra=waits | {"kind": error.kind})
        longest = min(
            self._settings.retry_min_seconds * 2.0 ** min(self._failures - 1, 30), self._settings.retry_max_seconds
        )
        self._leaving.wait(max(longest * random.uniform(0.5, 1.0), error.retry_after))

    def _back(self) -> None:
        seconds = round(time.monotonic() - self._away_since, 1)
        log.info("%s is back", self._settings.place, extra={"messages": self._store.messages, "seconds": seconds})
        self._failures, self._said = 0, -_WORD_EVERY_SECONDS
        self._on_away(False)
