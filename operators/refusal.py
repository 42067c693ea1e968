"""Why a payload, or a part of one, is no sample: reason classes to count by, and words to read.

Takes what a parser or a check found wrong; gives ``Refused`` inside a step, ``Rejected`` on the way to
the dead letters.
"""

from typing import Final, NamedTuple

import msgspec

#: Every reason class ``decode`` gives; ``internal`` is a fault of ours, never the sender's.
REASONS: Final = (
    "malformed_json",  # not JSON: NaN and Infinity literals, truncation, nesting without end
    "wrong_type",  # a text where a number belongs
    "missing_key",
    "not_finite",  # NaN or an infinity computed by a mapping
    "out_of_range",  # a number that its column cannot hold
    "bad_time",  # no ISO 8601 time or epoch number, or a year outside 2000..2099
    "naive_time",  # no offset from UTC, and decode.time_zone is not set
    "too_large",  # more bytes than decode.max_payload_bytes
    "not_utf8",
    "empty",  # nothing but white space, or an array without elements
    "bad_device_id",
    "cell_count",  # no cells, or more values than decode.max_cells or max_temperatures
    "internal",
)


class Refused(Exception):  # noqa: N818 - the name of the outcome, not of a fault
    """A payload, or a part of one, is no sample."""

    def __init__(self, reason: str, detail: str) -> None:
        """Keep the class to count by and the words to read."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Rejected(NamedTuple):
    """A payload, or one element of one, on its way to the dead letters."""

    reason: str
    detail: str
    payload: bytes


def refusal(error: Exception, payload: bytes) -> Refused:
    """What a parser's exception says, as a reason class and one line of detail."""
    text = str(error)
    if isinstance(error, UnicodeError):
        return Refused("not_utf8", text)
    if not payload.strip(b" \t\r\n"):
        return Refused("empty", "the payload is empty")
    if isinstance(error, RecursionError):
        return Refused("malformed_json", "arrays or objects are nested too deeply")
    if text.startswith(("Number out of range", "Integer value out of range")):
        return Refused("out_of_range", text)
    if text.startswith("Object missing required field"):
        return Refused("missing_key", text)
    if isinstance(error, msgspec.ValidationError):
        return Refused("wrong_type", text)
    if isinstance(error, msgspec.DecodeError):
        return Refused("malformed_json", text)
    return Refused("internal", f"{type(error).__name__}: {text}")


def quoted(value: object) -> str:
    """A value for a message: never longer than a line."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "an integer of more than 64 bits"  # Python refuses to print those of thousands of digits
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
