"""Settings of the simulated fleet: its size, its pace, its faults."""

from datetime import UTC, datetime
from typing import Final

import msgspec

Interval = tuple[float, float]


class FaultSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What goes wrong, and how often. A rate or share of 0 switches a fault off."""

    enabled: bool = True
    """False switches all of them off."""
    drop_rate: float = 0.001
    """Share of messages that are measured and never sent."""
    double_rate: float = 0.001
    """Share of messages that are sent twice."""
    malformed_rate: float = 0.001
    """Share of messages whose payload is broken, in turn in each of the ways of ``MALFORMED``."""
    clock_jump_share: float = 0.02
    """Share of modules whose clock goes wrong once in each ``period_seconds``, in turn ahead and back."""
    clock_jump_seconds: float = 3600.0
    """How far it jumps, s."""
    clock_jump_length_seconds: float = 60.0
    """How long it stays wrong, s of event time."""
    stuck_share: float = 0.02
    """Share of modules in which one cell reading freezes once in each ``period_seconds``, while driving."""
    stuck_length_seconds: float = 180.0
    """How long it stays frozen, s of event time."""
    weak_share: float = 0.02
    """Share of modules with one weak cell from the start: 20 % less capacity, 60 % more resistance."""
    hot_share: float = 0.02
    """Share of modules in which one cell is heated to 70 °C once in each ``period_seconds``."""
    hot_length_seconds: float = 300.0
    """How long it is heated, s of event time."""
    period_seconds: float = 3600.0
    """Each episode of a fault happens once in such a period, s of event time (in a shorter run: once)."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name.endswith(("_rate", "_share")) and not 0 <= value <= 1:
                raise ValueError(f"faults.{name}: a share, from 0 to 1, not {value:g}")
            if name.endswith("_seconds") and not value > 0:
                raise ValueError(f"faults.{name}: above 0, not {value:g}")
        if self.drop_rate + self.double_rate + self.malformed_rate > 1:
            raise ValueError("faults: drop_rate, double_rate and malformed_rate add up to more than 1")
        if self.clock_jump_share + self.stuck_share + self.weak_share + self.hot_share > 1:
            raise ValueError("faults: a module has one lasting fault at most; the shares add up to more than 1")


class SimulateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A fleet with known truth."""

    site: str = "site-1"
    """First part of every device id."""
    gateways: int = 4
    """Each is a publisher of its own."""
    packs_per_gateway: int = 4
    """Packs of one car or container."""
    modules_per_pack: int = 16
    """Devices; the default fleet has 256."""
    cells: int = 16
    """Cells in series in a module."""
    parallel: int = 1
    """Cells in parallel at each place; the module's capacity is 3.0 Ah times this."""
    interval_seconds: float = 5.0
    """Event time between two samples of a module, s; modules take turns within it."""
    speed: float = 1.0
    """Event seconds per wall second."""
    duration_seconds: float = 0.0
    """Event time to simulate, s; 0: until stopped."""
    start_time: datetime | None = None
    """Event time of the beginning. Default: now; with ``speed`` above 1 as long before now as the run lasts,
    so that no sample is from the future. Without a wall clock: 2026-01-01."""
    ambient_celsius: Interval = (5.0, 35.0)
    """Lowest and highest ambient temperature; each pack has its own."""
    start_soc: Interval = (0.25, 0.98)
    """Lowest and highest state of charge at the start, 0 to 1; each module has its own."""
    seed: int = 1
    """The same settings and seed give the same fleet, the same noise and the same faults."""
    cell_spread: float = 0.01
    """Standard deviation of capacity among cells, relative; of resistance: three times that."""
    voltage_noise_volt: float = 0.002
    """Standard deviation of a cell reading, V; its fixed bias has half of it."""
    current_noise_ampere: float = 0.02
    """Standard deviation of a current reading, A per parallel cell; its fixed bias has half of it."""
    temperature_noise_celsius: float = 0.3
    """Standard deviation of a temperature reading, °C; its fixed bias has the same."""
    faults: FaultSettings = FaultSettings()
    """What goes wrong."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        for name in ("gateways", "packs_per_gateway", "modules_per_pack", "cells", "parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"simulate.{name}: at least 1, not {getattr(self, name)}")
        if not (self.interval_seconds >= 1 and self.interval_seconds == int(self.interval_seconds)):
            raise ValueError(f"simulate.interval_seconds: whole seconds, at least 1, not {self.interval_seconds:g}")
        if not (self.speed > 0 and self.duration_seconds >= 0):
            raise ValueError("simulate: speed is above 0, duration_seconds at least 0")
        if self.start_time is not None and self.start_time.tzinfo is None:
            raise ValueError("simulate.start_time: with a time zone, such as 2026-01-01T00:00:00Z")
        if not -20 <= self.ambient_celsius[0] <= self.ambient_celsius[1] <= 45:
            raise ValueError(
                "simulate.ambient_celsius: the lower first, both from -20 to 45: the cell was measured there"
            )
        if not 0.1 <= self.start_soc[0] <= self.start_soc[1] <= 1:
            raise ValueError("simulate.start_soc: the lower first, both from 0.1 to 1")
        if not self.site or any(c in self.site for c in "+#/\0"):
            raise ValueError(f"simulate.site: one level of an MQTT topic, not {self.site!r}")

    @property
    def modules(self) -> int:
        """How many devices there are."""
        return self.gateways * self.packs_per_gateway * self.modules_per_pack


#: The beginning of event time where there is no wall clock.
EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
