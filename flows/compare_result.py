"""What a comparison of predictions finds, as structs; ``report`` of them is JSON as it stands."""

from datetime import datetime

import msgspec


class Comparison(msgspec.Struct, frozen=True):
    """What differs between two sets of predictions."""

    left: int
    """Rows in the first set."""
    right: int
    """Rows in the second set."""
    changed: int
    """Rows in both that differ; with a tolerance, by more than that or in something other than the numbers."""
    only_left: int
    """Rows that are missing in the second set."""
    only_right: int
    """Rows that are missing in the first set."""
    close: int = 0
    """Rows in both that differ within the tolerance, or in nothing but the model that made them."""
    one_null: int = 0
    """Changed rows in which only one side has a value."""
    worst: float = 0.0
    """The largest absolute difference of two values, in their unit."""
    worst_at: datetime | None = None
    """Event time of that row; None where no values differ."""
    mean: float = 0.0
    """Mean absolute difference of the values, over the rows in which both sides have one."""

    @property
    def same(self) -> int:
        """Rows that are the same on both sides, to the bit."""
        return self.left - self.only_left - self.changed - self.close

    @property
    def within(self) -> bool:
        """Whether nothing differs by more than the tolerance, and there is something."""
        return self.left > 0 and not (self.changed or self.only_left or self.only_right)

    @property
    def identical(self) -> bool:
        """Whether nothing differs, and there is something."""
        return self.within and not self.close


class ModelPair(msgspec.Struct, frozen=True):
    """Whose predictions were compared with whose; None: that side has none to compare with."""

    target: str
    left: str | None
    """SHA-256 of the model of the left set."""
    right: str | None
    """SHA-256 of the model of the right set."""
    left_name: str = ""
    right_name: str = ""


class DeviceComparison(msgspec.Struct, frozen=True):
    """What differs for one device and target."""

    device_id: str
    target: str
    found: Comparison


class Report(msgspec.Struct, frozen=True):
    """What differs between two sets of predictions, and where."""

    tolerance: float | None
    """How far numbers may be apart, in their unit; None: not a bit."""
    models: tuple[ModelPair, ...]
    total: Comparison
    targets: dict[str, Comparison]
    same: int
    """Pairs of device and target without a difference."""
    differing: tuple[DeviceComparison, ...]
    """Those with one: the largest difference first, then those with most rows that differ."""

    @property
    def good(self) -> bool:
        """Whether the sets are identical; where a tolerance was given, whether they are within it."""
        return self.total.identical if self.tolerance is None else self.total.within
