"""The time of a sample: ISO 8601 text or an epoch number in, microseconds since 1970 UTC out.

Epoch numbers bear no unit; their magnitude tells it, as times outside 2000 to 2099 are not taken.
"""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from voltmill.operators.refusal import Refused, quoted

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
#: 2000-01-01 and 2100-01-01 in epoch seconds: the first time that is taken, and the first that is not.
FIRST_SECOND: Final = 946_684_800
END_SECOND: Final = 4_102_444_800
#: The unit of an epoch number: each is 1,000 times the one before, and the century 2000..2099 spans a
#: factor of 4.3 only, so that no number can be read in two ways.
_UNITS: Final = ((1, 1_000_000), (1_000, 1_000), (1_000_000, 1), (1_000_000_000, 0))
_ISO_8601: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d([.,]\d+)?)?(?P<offset>[Zz]|[+-]\d\d(:?\d\d)?)?", re.ASCII
)


def parse_time(value: str | int | float, zone: tzinfo | None) -> int:
    """A time as microseconds since 1970-01-01 UTC; what is finer is cut off.

    Args:
        value: ISO 8601 date and time, or an epoch number: seconds if it is in 946,684,800 up to
            4,102,444,800, milliseconds, microseconds or nanoseconds if it is 10^3, 10^6 or 10^9 times that.
            Fractions of a float are rounded to the nearest microsecond.
        zone: The zone of ISO times that have no offset; None refuses them. Of an hour that comes
            twice in autumn the first is meant.

    Raises:
        Refused: ``bad_time``, ``naive_time``.

    Example:
        >>> parse_time("2026-11-22T10:00:05.123Z", None)
        1795341605123000
        >>> parse_time(1795341605123, None) == parse_time(1795341605.123, None)
        True
    """
    if isinstance(value, str):
        return _parse_iso(value, zone)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("wrong_type", f"event_time: expected a text or a number, got {type(value).__name__}")
    for per_second, microseconds in _UNITS:
        if FIRST_SECOND * per_second <= value < END_SECOND * per_second:
            return in_century(round(value * microseconds) if microseconds else int(value) // 1_000, value)
    raise Refused("bad_time", f"event_time: {quoted(value)} is in no unit a time of the years 2000 to 2099")


def _parse_iso(text: str, zone: tzinfo | None) -> int:
    match = _ISO_8601.fullmatch(text)
    if match is None:
        raise Refused("bad_time", f"event_time: {quoted(text)} is not ISO 8601, such as 2026-11-22T10:00:05.123Z")
    try:
        time = datetime.fromisoformat(text.upper())
        if match["offset"] is None:
            if zone is None:
                raise Refused("naive_time", f"event_time: {quoted(text)} has no offset; set decode.time_zone")
            time = time.replace(tzinfo=zone)
        return in_century((time - _EPOCH) // _MICROSECOND, text)
    except (ValueError, OverflowError) as error:
        raise Refused("bad_time", f"event_time: {quoted(text)}: {error}") from None


def in_century(time: int, value: object) -> int:
    """The time, if it is of the years 2000 to 2099; raises ``Refused`` that quotes ``value``."""
    if not FIRST_SECOND * 1_000_000 <= time < END_SECOND * 1_000_000:
        raise Refused("bad_time", f"event_time: {quoted(value)} is outside the years 2000 to 2099")
    return time
