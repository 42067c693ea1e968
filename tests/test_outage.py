"""Waiting for an absent system: how often, how long, and that a request to stop ends it."""

import logging
import threading
import time

import pytest

from voltmill.connectors import outage
from voltmill.connectors.drain import Drain
from voltmill.connectors.outage import Patience
from voltmill.connectors.store import LakeAwayError


class Away:
    """Fails so many times, then works; notes when it was tried."""

    def __init__(self, failures: float) -> None:
        self.failures, self.tried = failures, [0.0][:0]

    def __call__(self) -> str:
        self.tried.append(time.monotonic())
        if len(self.tried) <= self.failures:
            raise ConnectionError("away,\n  with a line break")
        return "stored"


def passes(error: Exception) -> bool:
    return isinstance(error, ConnectionError)


def test_what_works_at_once_is_not_waited_for() -> None:
    waiting: list[bool] = []
    away = Away(0)
    assert Patience("it", on_waiting=waiting.append).call(away, passes) == "stored"
    assert len(away.tried) == 1 and not waiting


def test_pauses_grow_to_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "LONGEST_PAUSE_SECONDS", 0.1)
    away, waiting = Away(6), [True][:0]
    Patience("it", on_waiting=waiting.append).call(away, passes)
    pauses = [b - a for a, b in zip(away.tried, away.tried[1:], strict=False)]
    assert len(pauses) == 6
    assert pauses[0] < 0.06 and all(0.045 <= pause < 0.2 for pause in pauses[2:])
    assert waiting == [True, False]


def test_what_does_not_pass_is_raised_at_once_even_in_a_wait() -> None:
    def wrong() -> str:
        raise TypeError("wrong")

    with pytest.raises(TypeError):
        Patience("it").call(wrong, passes)
    errors = iter([ConnectionError("away"), TypeError("wrong")])

    def changes() -> str:
        raise next(errors)

    waiting: list[bool] = []
    with pytest.raises(TypeError):
        Patience("it", on_waiting=waiting.append).call(changes, passes)
    assert waiting == [True, False]


def test_a_limit_ends_the_wait_with_the_last_error() -> None:
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="away"):
        Patience("it", seconds=0.3).call(Away(float("inf")), passes)
    assert 0.25 < time.monotonic() - began < 2.0


def test_a_request_to_stop_gives_a_last_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "DRAIN_SECONDS", 0.4)
    drain = Drain()
    timer = threading.Timer(0.2, drain.request)
    timer.start()
    began = time.monotonic()
    with pytest.raises(ConnectionError):
        Patience("it", drain=drain).call(Away(float("inf")), passes)
    assert 0.5 < time.monotonic() - began < 3.0
    timer.join()
    assert Patience("it", drain=drain).call(Away(2), passes) == "stored"  # still tried, for that long


def test_the_log_says_what_is_waited_for_once_and_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "voltmill.outage"):
        Patience("lake a/b").call(Away(4), passes)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.messages[0] == "waiting for lake a/b: ConnectionError: away, with a line break"
    assert caplog.messages[1] == "lake a/b is back"


def test_what_an_error_of_our_own_says_is_not_said_twice(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Exception] = [LakeAwayError("lake a/b: cannot list: a proxy is in the way")]

    def attempt() -> None:
        if errors:
            raise errors.pop()

    with caplog.at_level(logging.INFO, "voltmill.outage"):
        Patience("lake a/b").call(attempt, lambda error: True)
    assert caplog.messages[0] == "waiting for lake a/b: cannot list: a proxy is in the way"


def test_a_system_that_asks_for_a_pause_is_left_alone_for_it_a_minute_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "_LONGEST_ASKED_SECONDS", 0.4)
    for asked, least in ((0.2, 0.2), (3600.0, 0.4)):
        away = Away(1)

        def attempt(away: Away = away, asked: float = asked) -> str:
            try:
                return away()
            except ConnectionError as error:
                error.retry_after = asked  # type: ignore[attr-defined]
                raise

        assert Patience("it", seconds=30).call(attempt, passes) == "stored"
        assert least <= away.tried[1] - away.tried[0] < least + 2


def test_an_error_is_not_taken_for_the_origin_of_the_next() -> None:
    errors = [ConnectionError("first"), ConnectionError("second"), ValueError("third")]

    def attempt() -> None:
        raise errors.pop(0)

    with pytest.raises(ValueError) as last:
        Patience("it", seconds=30).call(attempt, passes)
    assert last.value.__context__ is None
