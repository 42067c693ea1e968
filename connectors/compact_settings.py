"""What a compaction is told, and what it tells."""

from datetime import date

import msgspec


class CompactSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is merged."""

    before: date
    """Days from this one on are left alone."""
    max_file_mb: int = 128
    """Size of a merged file, MiB, that only its last part may pass: a power of two from 1 to 1024."""
    finished: frozenset[str] = frozenset()
    """Recovery stores whose flow never runs again: all of their files are settled, all of their days over."""
    compression_level: int = 1
    """As in ``LakeSettings``."""
    dry_run: bool = False
    """Whether only to say what would be merged."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not 1 <= self.max_file_mb <= 1024 or self.max_file_mb & (self.max_file_mb - 1):
            raise ValueError(f"max_file_mb = {self.max_file_mb}: must be a power of two from 1 to 1024")


class Compacted(msgspec.Struct, kw_only=True):
    """What was done with a table, and what was left."""

    table: str
    merged: int = 0
    """Files that were merged."""
    into: int = 0
    """Files that they became."""
    rows: int = 0
    """Rows that were merged."""
    bytes_before: int = 0
    """Bytes of the files that were merged."""
    bytes_after: int = 0
    """Bytes of what they became."""
    cleared: int = 0
    """Covered files removed that an earlier compaction had left."""
    later: int = 0
    """Files left: of days that are left alone."""
    waiting: int = 0
    """Files left: at the end of a day that may go on."""
    unsettled: dict[str, int] = {}
    """Files left, by store: a restart of its flow may take them back."""
    problems: list[str] = []
    """Why a folder was left, a line each."""
