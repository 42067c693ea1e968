"""One canonical sample: its typed form, how JSON becomes one, and what is refused on the way.

Takes the bytes of one JSON object, or a ``Sample`` made by a mapping; gives a ``Sample`` in which
every value is known to be sound, or ``Refused`` with a reason class (for counting) and a detail (for
people). Checked here, once: JSON, types, finiteness, ranges of the columns, device ids, times and
counts. Whether a 66 V cell can be true is not asked here; ``quality`` flags it.
"""

import math
import re
from collections.abc import Callable
from datetime import tzinfo
from typing import Final, Protocol
from zoneinfo import ZoneInfo

import msgspec

from voltmill.operators.event_time import in_century, parse_time
from voltmill.operators.refusal import REASONS, Refused, Rejected, quoted, refusal

__all__ = [
    "FLOAT32_MAX",
    "MAX_DEVICE_ID_BYTES",
    "REASONS",
    "DecodeSettings",
    "Mapper",
    "Refused",
    "Rejected",
    "Sample",
    "Wire",
    "check",
    "from_json",
    "parse_time",
    "refusal",
]

#: The largest finite float32, IEEE 754 binary32.
FLOAT32_MAX: Final = 3.4028234663852886e38
_SEQ_MAX: Final = 2**64 - 1
#: Longest device id, bytes of UTF-8: it is part of the primary key in SQL, and SQL Server ends at 900.
MAX_DEVICE_ID_BYTES: Final = 256
# Ids become paths, keys, patterns and labels: no control characters (C0, DEL, C1), no quotes, no backslash.
_ID_REFUSED: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\"'\\]")


class _Readings(msgspec.Struct, kw_only=True):
    """What a sample says, beside its time; units and meaning as in ``schema.TELEMETRY``."""

    device_id: str
    current_ampere: float | None
    cell_voltage_volt: list[float | None]
    cell_temperature_celsius: list[float | None]
    seq: int | None = None
    voltage_volt: float | None = None
    ambient_temperature_celsius: float | None = None
    bms_soc_percent: float | None = None
    bms_soh_percent: float | None = None
    charge_ah: float | None = None
    discharge_ah: float | None = None


class Sample(_Readings, kw_only=True):
    """One sample of one module or pack.

    ``None`` says not measured: in a list it becomes NaN (a cell or probe without reading), in
    ``current_ampere`` too, elsewhere null.
    """

    event_time: int
    """Microseconds since 1970-01-01 UTC."""
    converted: bool = False
    """A mapping scaled, offset or sign-flipped a value."""


class Wire(_Readings, kw_only=True):
    """The canonical JSON object: the columns of ``TELEMETRY`` that a device can know.

    Unknown keys are ignored; of a key given twice the last counts.
    """

    event_time: str | int | float

    def sample(self, zone: tzinfo | None) -> Sample:
        """The sample with its time understood; raises ``Refused``."""
        time = parse_time(self.event_time, zone)
        return Sample(
            device_id=self.device_id,
            event_time=time,
            seq=self.seq,
            current_ampere=self.current_ampere,
            voltage_volt=self.voltage_volt,
            cell_voltage_volt=self.cell_voltage_volt,
            cell_temperature_celsius=self.cell_temperature_celsius,
            ambient_temperature_celsius=self.ambient_temperature_celsius,
            bms_soc_percent=self.bms_soc_percent,
            bms_soh_percent=self.bms_soh_percent,
            charge_ah=self.charge_ah,
            discharge_ah=self.discharge_ah,
        )


class Mapper(Protocol):
    """What ``decode`` needs of a mapping from another dialect (``operators/mapping.py``)."""

    def samples(self, payload: bytes, topic: str | None) -> tuple[list[Sample], list[Rejected]]:
        """Every sample of a payload, and every part that is none; both in the payload's order."""


class DecodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[decode]`` table: what a payload looks like and how large it may be."""

    mapping: str = "canonical"
    """Name of the mapping: a shipped one, or a ``[mapping.NAME]`` table."""
    max_payload_bytes: int = 1 << 20
    """Largest payload, bytes; larger ones are dead letters. 1 MiB is four times what IoT Hub takes."""
    max_cells: int = 400
    """Most cell voltages in one sample; 400 is more than an 1,000 V string of 3 V cells has."""
    max_temperatures: int = 400
    """Most temperature probes in one sample."""
    time_zone: str = ""
    """IANA name of the zone of times without an offset, such as Europe/Berlin; empty: they are refused."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if min(self.max_payload_bytes, self.max_cells, self.max_temperatures) < 1:
            raise ValueError("decode: max_payload_bytes, max_cells and max_temperatures are at least 1")
        self.zone()

    def zone(self) -> tzinfo | None:
        """The zone of times without an offset, None if there is to be none."""
        try:
            return ZoneInfo(self.time_zone) if self.time_zone else None
        except (KeyError, ValueError, OSError):
            raise ValueError(f"decode: time_zone {self.time_zone!r} is no IANA name, such as Europe/Berlin") from None


_decode_wire: Final[Callable[[bytes], Wire]] = msgspec.json.Decoder(Wire).decode


def from_json(payload: bytes, settings: DecodeSettings, zone: tzinfo | None) -> Sample:
    """The sample that one canonical JSON object describes, checked.

    Raises:
        Refused: any reason of ``REASONS`` but ``too_large``, which is for whole payloads.

    Example:
        >>> text = b'{"device_id": "gw/m", "event_time": 1795341605, "current_ampere": -1.5,'
        >>> text += b' "cell_voltage_volt": [3.6, null], "cell_temperature_celsius": []}'
        >>> from_json(text, DecodeSettings(), None).cell_voltage_volt
        [3.6, None]
    """
    try:
        if not payload.isascii():
            payload.decode()  # msgspec looks at the text of known keys only
        sample = _decode_wire(payload).sample(zone)
    except Refused:
        raise
    except Exception as error:
        raise refusal(error, payload) from None
    check(sample, settings)
    return sample


def check(sample: Sample, settings: DecodeSettings) -> None:
    """Refuse what the columns of ``TELEMETRY`` cannot hold or what names no device.

    Raises:
        Refused: ``bad_device_id``, ``bad_time``, ``cell_count``, ``not_finite``, ``out_of_range``, with
            the place in ``detail``.
    """
    _check_device_id(sample.device_id)
    in_century(sample.event_time, sample.event_time)
    if sample.seq is not None and not 0 <= sample.seq <= _SEQ_MAX:
        raise Refused("out_of_range", f"seq: {quoted(sample.seq)} is not in 0..2^64-1")
    if not sample.cell_voltage_volt:
        raise Refused("cell_count", "cell_voltage_volt: no cells")
    _check_list("cell_voltage_volt", sample.cell_voltage_volt, settings.max_cells)
    _check_list("cell_temperature_celsius", sample.cell_temperature_celsius, settings.max_temperatures)
    for name in _FLOAT32_FIELDS:
        _check_number(name, getattr(sample, name), FLOAT32_MAX)
    for name in _FLOAT64_FIELDS:
        _check_number(name, getattr(sample, name), math.inf)


_FLOAT32_FIELDS: Final = (
    "current_ampere",
    "voltage_volt",
    "ambient_temperature_celsius",
    "bms_soc_percent",
    "bms_soh_percent",
)
_FLOAT64_FIELDS: Final = ("charge_ah", "discharge_ah")


def _check_device_id(device_id: str) -> None:
    try:
        size = len(device_id.encode())
    except UnicodeEncodeError:
        raise Refused("bad_device_id", f"device_id: {quoted(device_id)} holds half a surrogate pair") from None
    if not 0 < size <= MAX_DEVICE_ID_BYTES:
        raise Refused("bad_device_id", f"device_id: {size} bytes, 1 to {MAX_DEVICE_ID_BYTES} are taken")
    if _ID_REFUSED.search(device_id):
        raise Refused("bad_device_id", f"device_id: {quoted(device_id)} holds a control character, quote or backslash")


def _check_list(name: str, values: list[float | None], limit: int) -> None:
    if len(values) > limit:
        raise Refused("cell_count", f"{name}: {len(values)} values, at most {limit} are taken")
    for place, value in enumerate(values):
        if value is not None and not -FLOAT32_MAX <= value <= FLOAT32_MAX:
            _check_number(f"{name}[{place}]", value, FLOAT32_MAX)


def _check_number(name: str, value: float | None, limit: float) -> None:
    if value is None or -limit <= value <= limit and abs(value) != math.inf:
        return
    reason = "out_of_range" if math.isfinite(value) else "not_finite"
    raise Refused(reason, f"{name}: {quoted(value)} is not {'finite' if reason == 'not_finite' else 'a float32'}")
