"""What can go wrong with sending a notification: whether it may pass, and what mends it."""

from typing import Final

from urllib3 import exceptions as broken

from voltmill.connectors.http_pool import Answer, one_line, retry_after

#: Statuses of a receiver that is away, or wants to be left alone; nothing is wrong with the notification.
_AWAY: Final = frozenset({408, 425, 429, 502, 503, 504})
#: Statuses that are about the one notification; others may do better.
_ABOUT_IT: Final = frozenset({400, 413, 415, 422})


class NotifyError(RuntimeError):
    """A notification was not taken; one line without a secret.

    Args:
        text: what is wrong, and what mends it.
        outcome: in one word, for metrics: the status, timeout or connection.
        passes: whether it may be taken later; if not, it is set aside.
        away: whether others would not be taken either: then the place is left alone for a while.
        counts: whether it is the receiver that failed on it: that is tried ``attempts`` times only.
        retry_after: how long the place asked to be left alone, s.
        mend: what to do about it.
    """

    def __init__(
        self,
        text: str,
        *,
        outcome: str,
        passes: bool = True,
        away: bool = True,
        counts: bool = False,
        retry_after: float = 0.0,
        mend: str = "",
    ) -> None:
        super().__init__(f"{text}{f': {mend}' if mend else ''}")
        self.problem, self.mend = text, mend
        self.outcome, self.passes, self.away, self.counts, self.retry_after = outcome, passes, away, counts, retry_after


def unanswered(error: Exception, seconds: float, *secrets: str) -> NotifyError:
    """The error for a request without an answer, or with half of one."""
    timed_out = isinstance(error, broken.TimeoutError | TimeoutError)
    if timed_out and not isinstance(error, broken.NewConnectionError):
        return NotifyError(f"no answer within {seconds:g} s", outcome="timeout")
    reason = one_line(str(error), *secrets) or type(error).__name__
    mend = "name the authority of its certificate in ca_file" if "CERTIFICATE_VERIFY_FAILED" in reason else ""
    return NotifyError(f"no connection: {reason}", outcome="connection", mend=mend)


def refused(answer: Answer, mends: dict[int, str], *secrets: str) -> NotifyError:
    """The error for an answer with a status that is none of success.

    Args:
        answer: it.
        mends: status -> what mends it there.
        secrets: what is struck out of the text.
    """
    status, rest = answer.status, retry_after(answer.headers.get("retry-after", ""))
    said = one_line(answer.body.decode("utf-8", "replace"), *secrets)
    # Older versions of Notification Hubs say 403 for "too many", with a Retry-After, which a wrong key has not.
    passes = status in _AWAY or status >= 500 or (status == 403 and rest > 0)
    return NotifyError(
        f"answers {status}{f' ({said})' if said else ''}",
        outcome=str(status),
        passes=passes,
        away=status not in _ABOUT_IT,
        counts=status >= 500 and status not in _AWAY,
        retry_after=rest if passes else 0.0,
        mend="" if passes else mends.get(status, ""),
    )
