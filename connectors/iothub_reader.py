"""The thread that reads one partition of the hub into its inbox, and connects again whenever it must.

It drives the consumer of azure-eventhub itself, instead of ``receive_batch``, for three reasons (5.15):

- ``receive_batch`` hands on what has come only when ``prefetch`` events have, or none has for 0.2 s. With 20 events a
  second and a prefetch of 1000 that is after 50 s. Here each event is taken as it comes.
- Its keep-alive thread reads frames beside the thread that receives, so now and then two events change places. What
  comes after a higher sequence number would be taken for a redelivery, and be lost. Here there is no such thread.
- It begins where it was told to when it was made, whatever has come since.

``_create_consumer``, ``_keep_alive``, ``_open`` and ``_message_received`` are not part of its public interface;
``tests/test_iothub.py`` fails if a release does without them.
"""

import itertools
import logging
import random
import threading
import time
from datetime import datetime
from typing import Any, Final

from voltmill.connectors.iothub_client import HubError, PartitionState, connect, partition_state, port, trouble
from voltmill.connectors.iothub_events import event, sequence_of
from voltmill.connectors.iothub_inbox import Inbox
from voltmill.connectors.iothub_position import Position, next_level
from voltmill.connectors.iothub_settings import IotHubSettings
from voltmill.connectors.iothub_watch import Watch
from voltmill.connectors.time_limit import TimeLimit

log = logging.getLogger("voltmill.iothub")

#: The client keeps the tag of each delivery until the link ends, about 100 bytes; so the link is renewed after these.
RENEW_AFTER: Final = 250_000
#: A refusal comes after the link stands: the first call of ``receive`` reads it, the second raises it.
_SURE_AFTER: Final = 2
_WORD_EVERY_SECONDS: Final = 60.0


class _Missing(Exception):
    """Events are missing between two that came over one connection."""


class Reader(threading.Thread):
    """Reads until it is ended.

    Attributes:
        level: the owner level of the newest link.
        baseline: with ``start = "latest"``, the last event there was when reading began.
        failure: why it ended by itself.
        connected: whether the hub lets us read.

    Args:
        settings: the hub and the limits.
        partition: its id.
        position: the last event that was handed out.
        inbox: where events go.
        watch: what is counted.
    """

    def __init__(
        self, settings: IotHubSettings, partition: str, position: Position, inbox: Inbox, watch: Watch
    ) -> None:
        super().__init__(name=f"iothub-{partition}", daemon=True)
        self.level = position.level
        self.baseline: int | None = None
        self.failure: HubError | None = None
        self.connected = False
        self._settings = settings
        self._partition = partition
        self._last = position.sequence
        self._anew = position.hub != settings.name
        self._inbox = inbox
        self._watch = watch
        self._ending = threading.Event()
        self._ever = False
        self._said: dict[str, float] = {}
        self._begin()
        if self._anew:
            self._last = None
            log.warning("iothub the store is of another hub: reading this one from the earliest", extra=self._facts())

    def end(self) -> None:
        """Read no more; what waits in the inbox stays at the hub."""
        self._ending.set()
        self._inbox.close()

    def run(self) -> None:
        """Connect and read, again and again."""
        pause = self._settings.reconnect_min_seconds
        while not self._ending.is_set():
            try:
                self._read()
            except Exception as error:
                if self.connected:
                    self.connected, pause = False, self._settings.reconnect_min_seconds
                if self._ending.is_set() or not self._passes(error):
                    return
                self._ending.wait(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, self._settings.reconnect_max_seconds)

    def _passes(self, error: Exception) -> bool:
        """Whether to try again; else ``failure`` says why not."""
        if isinstance(error, HubError):
            self.failure = error
            return False
        found = trouble(error, self._settings)
        if found.kind == "stolen" or (found.kind != "away" and not self._ever):
            self.failure = HubError(f"{self._settings.place}, partition {self._partition}: {found}")
            return False
        self._watch.on_reconnect(self._partition)
        now = time.monotonic()
        if now - self._said.get(found.kind, -_WORD_EVERY_SECONDS) >= _WORD_EVERY_SECONDS:
            self._said[found.kind] = now
            log.warning("iothub connection lost, trying again: %s", found, extra=self._facts())
        return True

    def _read(self) -> None:
        """One connection, until it is lost, is to be renewed, or reading ends."""
        with connect(self._settings) as client:
            start = self._start(client)
            self._begin()
            self.level = next_level(self.level)
            consumer = self._consumer(client, start)
            try:
                self._open(consumer)
                log.info("iothub reading", extra=self._facts() | {"after": str(start), "level": self.level})
                for turn in itertools.count():
                    if self._ending.is_set() or self._received >= RENEW_AFTER:
                        return
                    if turn == _SURE_AFTER:
                        self._admitted()
                    consumer.receive(batch=True)
                    if self._wrong is not None:
                        raise self._wrong
            finally:
                consumer.close()

    def _admitted(self) -> None:
        """The hub lets us read."""
        self.connected = self._ever = True
        self._said.clear()

    def _consumer(self, client: Any, start: int | str | datetime) -> Any:
        consumer = client._create_consumer(
            self._settings.consumer_group,
            self._partition,
            start,
            lambda events: None,  # never called: what arrives does not wait where it would be taken from
            event_position_inclusive=isinstance(start, datetime),
            owner_level=self.level,
            prefetch=self._settings.prefetch,
            track_last_enqueued_event_properties=True,
        )
        if not all(hasattr(consumer, name) for name in ("_keep_alive", "_message_received", "_open")):
            raise HubError("this azure-eventhub is not one that voltmill knows: pip install 'azure-eventhub==5.15.*'")
        consumer._keep_alive = None
        consumer._message_received = self._arrived
        return consumer

    def _open(self, consumer: Any) -> None:
        seconds = self._settings.timeout_seconds
        until = time.monotonic() + seconds
        with TimeLimit(port(self._settings)).opening(seconds):
            while not consumer._open() and not self._ending.is_set():
                if time.monotonic() > until:
                    raise TimeoutError(f"the hub did not let us in within {seconds:g} s")

    def _start(self, client: Any) -> int | str | datetime:
        """Where to read on."""
        from_now = self._last is None and self._settings.start == "latest" and not self._anew
        # The client takes half a second for the question; a connection that brought something has answered it.
        if from_now or (self._last is not None and self._received == 0):
            self._compare(partition_state(client, self._settings, self._partition), from_now)
        if self._last is None:
            return "-1" if self._anew else self._settings.start_position()
        return self._last if self._last >= 0 else "-1"

    def _compare(self, state: PartitionState, from_now: bool) -> None:
        """What the hub holds against where we are."""
        if from_now:  # what comes while no connection stands is read as well
            self._last = self.baseline = state.last
        elif self._last is not None and state.last < self._last:
            facts = self._facts() | {"after": self._last, "newest": state.last}
            log.warning("iothub the hub counts anew: reading from the earliest", extra=facts)
            self._last, self._anew = None, True

    def _begin(self) -> None:
        """A connection has brought nothing yet."""
        self._received = 0
        self._wrong: Exception | None = None

    def _arrived(self, message: Any) -> None:
        """Take one message; the client only logs what its callback raises, so it is raised later."""
        if self._wrong is not None or self._ending.is_set():
            return
        try:
            self._take(message)
        except Exception as error:
            self._wrong = error

    def _take(self, message: Any) -> None:
        sequence = sequence_of(message)
        first, self._received = self._received == 0, self._received + 1
        if first:
            self._admitted()
        if self._last is not None:
            if sequence <= self._last:
                self._watch.on_redelivered(1)
                return
            if sequence > self._last + 1:
                self._jump(sequence, first)
        if self._inbox.add(event(message)):
            self._last = sequence

    def _jump(self, sequence: int, first: bool) -> None:
        """Events are missing: gone at the hub if the connection begins so, else to be asked for again."""
        assert self._last is not None
        missing = sequence - self._last - 1
        if not first:
            raise _Missing(f"events {self._last + 1} to {sequence - 1} did not come")
        self._watch.on_expired(self._partition, missing)
        facts = self._facts() | {"lost": missing, "after": self._last, "first_available": sequence}
        log.error(
            "iothub events have expired at the hub before they were read: going on from the earliest", extra=facts
        )

    def _facts(self) -> dict[str, Any]:
        return {"hub": self._settings.name, "partition": self._partition}
