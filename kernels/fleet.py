"""What is known of a device beside its telemetry: cell type, capacity, limits.

Facts come from ``[[fleet]]`` tables matched by pattern on ``device_id``; the first match wins, so a
new gateway needs no change. A device that matches none is unknown: it gets no prediction.
"""

import re
from collections.abc import Sequence
from fnmatch import translate
from typing import Final

import msgspec

Interval = tuple[float, float]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The readings that are believed; one outside raises ``Quality.RANGE`` and is not used.

    These are limits of the sensors and the chemistry, wider than those an alert watches.
    """

    cell_voltage_volt: Interval = (0.5, 5.0)
    """Lowest and highest cell voltage, V: what any lithium cell and its sensor can show."""
    cell_temperature_celsius: Interval = (-40.0, 100.0)
    """Lowest and highest temperature of a probe, °C: the range of common sensors."""
    current_ampere: Interval = (-5000.0, 5000.0)
    """Lowest and highest module current, A, positive while charging."""


class FleetEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One ``[[fleet]]`` table: facts of every device whose id matches."""

    match: str
    """Pattern on ``device_id``, as in a shell: ``*`` matches any characters, slashes too."""
    cell_type: str = ""
    """Name of the cell, such as lg-hg2; a model is used only for the cell type it was made for."""
    capacity_ah: float = 0.0
    """Nominal capacity of the module, Ah, cells in parallel counted in; 0: unknown."""
    series: int = 0
    """Cells in series; 0: as many as are reported."""
    parallel: int = 1
    """Cells in parallel at each place."""
    limits: Limits = Limits()
    """The readings that are believed."""
    gap_seconds: float = 30.0
    """Time without a sample that counts as a gap, s."""
    operating_volt: Interval = (0.0, 0.0)
    """Cell voltage at which discharging ends, and at which charging ends, V; 0 and 0: unknown."""
    cv_c_rate: Interval = (0.05, 0.25)
    """C-rates between which the constant-voltage phase of a charge is looked at, 1/h, lowest first; as the model in use
    was trained on."""
    models: tuple[str, ...] | None = None
    """Names of the models to use, of those in force that were made for the cell type; not given: all of them."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not (0 <= self.capacity_ah <= 1e9 and self.series >= 0 and self.parallel >= 1):
            raise ValueError("capacity_ah is from 0 to 1e9, series at least 0, parallel at least 1")
        if not 0 < self.gap_seconds <= 1e9:
            raise ValueError("gap_seconds must be above 0, and 1e9 at most")
        empty, full = self.operating_volt
        if (empty, full) != (0.0, 0.0) and not 0.0 < empty < full:
            raise ValueError("operating_volt: the voltage of the empty cell comes first, both above 0")
        low, high = self.cv_c_rate
        if not 0 < low < high <= 1e9:
            raise ValueError("cv_c_rate: the lower C-rate comes first, both above 0 and 1e9 at most")
        for name in self.limits.__struct_fields__:
            low, high = getattr(self.limits, name)
            if not low < high:
                raise ValueError(f"limits.{name}: the lower limit comes first")


#: What is assumed of a device that no entry matches: nothing but physics.
UNKNOWN: Final = FleetEntry(match="*")


class Fleet:
    """The fleet tables in order.

    Example:
        >>> fleet = Fleet([FleetEntry(match="site-a/*", cell_type="lg-hg2", capacity_ah=3.0)])
        >>> fleet.facts("site-a/pack-1/m-7").cell_type
        'lg-hg2'
        >>> fleet.facts("elsewhere/m-1") is UNKNOWN
        True
    """

    def __init__(self, entries: Sequence[FleetEntry] = ()) -> None:
        self.entries = tuple(entries)
        self._patterns = [re.compile(translate(e.match)).match for e in self.entries]

    def index(self, device_id: str) -> int:
        """The index of the first entry that matches, or -1."""
        for k, matches in enumerate(self._patterns):
            if matches(device_id):
                return k
        return -1

    def facts(self, device_id: str) -> FleetEntry:
        """The first entry that matches, or ``UNKNOWN``."""
        k = self.index(device_id)
        return UNKNOWN if k < 0 else self.entries[k]
