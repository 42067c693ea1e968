"""The tables that may be read from elsewhere, and which of their columns a foreign data set must have."""

from typing import Final, Literal

from voltmill.connectors.conform import TELEMETRY_FORM, Form
from voltmill.operators.sessions import schema

#: What of the archive can be replayed.
Replayable = Literal["telemetry", "sessions"]

FORMS: Final[dict[str, Form]] = {
    "telemetry": TELEMETRY_FORM,
    "sessions": Form(schema(), ("device_id", "event_time", "start_time", "session")),
}
