"""The notifications of one shard that wait to be sent to one place, and those that were.

All of it is part of the snapshot, so nothing that was taken in is lost with a process. It is bounded in
number and age, so a receiver that stays away costs neither memory nor the archive.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from voltmill.connectors.notify_notice import Notice
from voltmill.connectors.notify_settings import SEVERITIES, NotifySettings

#: ("v1", JSON: the notices that wait, [id, when it was settled] of those that do not any more)
State = tuple[str, bytes]

#: Ids that are remembered, and for how long: a copy that comes later is sent again, under its old id.
MOST_SETTLED: Final = 4096
SETTLED_SECONDS: Final = 30 * 86_400.0
#: To how much of the bound the outbox is cut where it is reached: each cut looks at all that waits.
_CUT_TO: Final = 0.9

log = logging.getLogger("voltmill.notify")

Observe = Callable[[str, int], None]


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    waiting: tuple[Notice, ...]
    settled: tuple[tuple[str, float], ...]


class Outbox:
    """What waits, in order of arrival. Offered to by the worker, emptied by a thread.

    Args:
        settings: which alerts are told, and how many may wait.
        state: of the snapshot that is resumed.
        observe: called with ``duplicate``, ``expired`` or ``dropped``, and how many.
        on_waiting: called with by how many those that wait became more.
        now: seconds since 1970; for tests.

    Raises:
        ValueError: the state is of another version.
    """

    def __init__(
        self,
        settings: NotifySettings,
        state: State | None,
        *,
        observe: Observe = lambda outcome, count: None,
        on_waiting: Callable[[int], None] = lambda more: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._observe, self._on_waiting, self._now = settings, observe, on_waiting, now
        self._waiting: dict[str, Notice] = {}
        self._settled: dict[str, float] = {}
        self._sending = ""
        self._closed = False
        self._changed = threading.Condition()
        if state is not None:
            if state[0] != "v1":
                raise ValueError(f"notify {settings.name}: the recovery store holds state {state[0]!r}, not 'v1'")
            kept = msgspec.json.decode(state[1], type=_Kept)
            self._waiting = {notice.id: notice for notice in kept.waiting}
            self._settled = dict(kept.settled)
            on_waiting(len(self._waiting))

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def offer(self, notices: Sequence[Notice]) -> None:
        """Take in those that the place is to be told of; never blocks."""
        with self._changed:
            before = len(self._waiting)
            for notice in notices:
                if notice.id in self._waiting or notice.id in self._settled:
                    self._observe("duplicate", 1)
                elif self._wanted(notice):
                    self._waiting[notice.id] = notice
                    if len(self._waiting) > self._settings.most_waiting:
                        self._cut()
            self._on_waiting(len(self._waiting) - before)
            self._changed.notify_all()

    def close(self) -> None:
        """Let ``take`` wait no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, seconds: float) -> Notice | None:
        """The one to be sent next, which stays here until it is settled; None: there was none for so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, seconds)
            self._expire()
            self._sending = next(iter(self._waiting), "")
            return self._waiting.get(self._sending)

    def settle(self, notice: Notice) -> None:
        """It was sent or set aside: forget it, but for its id."""
        with self._changed:
            self._sending = ""
            if self._waiting.pop(notice.id, None) is not None:
                self._on_waiting(-1)
            self._settled[notice.id] = self._now()
            while len(self._settled) > MOST_SETTLED:
                del self._settled[next(iter(self._settled))]
            self._changed.notify_all()

    def wait_empty(self, seconds: float) -> bool:
        """Wait until nothing waits; False: something did for so long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, seconds)

    def snapshot(self) -> State:
        """All that must not be lost."""
        with self._changed:
            oldest = self._now() - SETTLED_SECONDS
            self._settled = {id_: at for id_, at in self._settled.items() if at >= oldest}
            return ("v1", msgspec.json.encode(_Kept(tuple(self._waiting.values()), tuple(self._settled.items()))))

    def _wanted(self, notice: Notice) -> bool:
        """Whether the filters admit it. The end of an alert is told to whom its beginning was, whatever it fell to."""
        wanted = self._settings
        if notice.state not in wanted.on or not _matches(notice.code, wanted.codes):
            return False
        if not _matches(notice.device_id, wanted.devices):
            return False
        if SEVERITIES.index(wanted.severity) <= _rank(notice.severity):
            return True
        return notice.state == "closed" and any(
            id_ in self._settled or id_ in self._waiting for id_ in _openings(notice.alert_id)
        )

    def _expire(self) -> None:
        """Give up what has waited for too long."""
        oldest = self._now() - self._settings.give_up_seconds
        old = [id_ for id_, notice in self._waiting.items() if notice.since < oldest]
        for id_ in old:
            del self._waiting[id_]
        if old:
            self._observe("expired", len(old))
            self._on_waiting(-len(old))
            log.warning("notify %s: %d notifications were too old to be sent", self._settings.place, len(old))
            self._changed.notify_all()

    def _cut(self) -> None:
        """Make room by dropping what an operator misses least.

        First whole episodes that are over and of which nothing was told; then an opening that something later of
        its alert follows; then openings, and last the ends of alerts that were told, or they would stay open for
        ever. Of each the lowest severity first, then the oldest.
        """
        last: dict[str, Notice] = {notice.alert_id: notice for notice in self._waiting.values()}

        def worth(notice: Notice) -> tuple[int, int]:
            ends = last[notice.alert_id]
            if ends.state == "closed" and not any(id_ in self._settled for id_ in _openings(notice.alert_id)):
                kind = 0
            elif notice is not ends:
                kind = 1
            else:
                kind = 2 if notice.state == "opened" else 3
            return kind, _rank(notice.severity)

        most = int(self._settings.most_waiting * _CUT_TO)
        victims = [notice for notice in sorted(self._waiting.values(), key=worth) if notice.id != self._sending]
        victims = victims[: len(self._waiting) - most]
        for notice in victims:
            del self._waiting[notice.id]
        self._observe("dropped", len(victims))
        text = "notify %s: more than %d notifications wait: the %d that matter least are dropped"
        log.warning(text, self._settings.place, self._settings.most_waiting, len(victims))


def _matches(text: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns matches, as in ``[[fleet]]``; without any, all do."""
    return not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)


def _rank(severity: str) -> int:
    """The order of severities; one that is not known is told like the most severe."""
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def _openings(alert_id: str) -> list[str]:
    return [f"{alert_id}-opened-{severity}" for severity in SEVERITIES]
