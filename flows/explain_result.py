"""What ``voltmill explain`` finds: the stored prediction, the one made again, what it was made from."""

from datetime import datetime

import msgspec
import numpy as np

from voltmill.flows.explain_stored import Prediction, Stored
from voltmill.kernels.quality import RULES
from voltmill.kernels.schema import Quality

#: What is compared, to the bit.
COMPARED = ("value", "lo90", "hi90", "quality_bits", "mode")


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """A column that the model reads, at the row that it was asked about."""

    name: str
    value: float | None
    """None: not known."""
    unit: str
    low: float
    high: float
    inside: bool
    """Whether it lies in the range the model was made for."""
    given: float | None = None
    """What the model is given instead of a value that is not known; None: nothing stands for it."""
    condition: bool = False
    """Whether it is no input, but must lie in range all the same."""


class Bit(msgspec.Struct, frozen=True):
    """A quality bit in words."""

    name: str
    meaning: str


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction explained."""

    stored: Stored
    recomputed: Prediction | None
    """None: ``notes`` say why."""
    agree: dict[str, bool]
    """For each of ``COMPARED``, whether it is the same to the bit; empty if nothing was recomputed."""
    table: str
    """What the model was asked about: features, sessions or health; empty if the model is not at hand."""
    inputs: list[Input]
    bits: list[Bit]
    """Of the stored prediction."""
    file: str
    """The file of the archive that holds the row of the lineage; empty if none was found."""
    row: int
    """Its number in that file, from 0; -1 if none was found."""
    rows: int
    """Rows of the device it was recomputed from."""
    notes: list[str]
    """What else there is to know, a line each."""

    @property
    def identical(self) -> bool:
        """Whether everything agrees."""
        return bool(self.agree) and all(self.agree.values())


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Every prediction of a device at a time."""

    device_id: str
    asked: datetime
    """The time that was asked for."""
    time: datetime | None
    """The time of the predictions; None: there are none."""
    predictions: list[Explained]

    @property
    def identical(self) -> bool:
        """Whether there are predictions, and all agree."""
        return bool(self.predictions) and all(each.identical for each in self.predictions)


def agreement(stored: Prediction, recomputed: Prediction) -> dict[str, bool]:
    """Which of ``COMPARED`` are the same; floats as bit patterns, so that not even the sign of a zero may differ."""
    return {name: _same(getattr(stored, name), getattr(recomputed, name)) for name in COMPARED}


def bits_in_words(bits: int) -> list[Bit]:
    """The quality bits that are set."""
    return [Bit(str(bit.name), RULES[bit]) for bit in Quality if bits & bit]


def _same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return np.float32(a).tobytes() == np.float32(b).tobytes()
    return a == b
