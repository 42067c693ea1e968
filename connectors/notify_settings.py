"""What can be set about where alerts go: the ``[[notify]]`` tables."""

import msgspec


class NotifySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One ``[[notify]]`` table: a place that alerts are sent to."""

    name: str
    """What logs and metrics call it."""
