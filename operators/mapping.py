"""Payloads of any dialect of JSON to samples, as a ``MappingSpec`` describes them.

Takes the bytes of one message: an object, an array of objects, or lines of them (NDJSON), each perhaps
an envelope around samples. Gives a ``Sample`` or a ``Rejected`` for every element, in order; one bad
element costs no neighbour, and nothing is raised. All checks are those of ``sample``.
"""

from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from voltmill.operators.dialects import SHIPPED
from voltmill.operators.documents import documents
from voltmill.operators.envelope import Unwrapper
from voltmill.operators.mapping_sources import Reader, reader
from voltmill.operators.mapping_spec import MEASURED, QUANTITIES, REQUIRED, UNITS, Column, MappingSpec, column_of, meant
from voltmill.operators.sample import DecodeSettings, Refused, Rejected, Sample, check, refusal

__all__ = ["SHIPPED", "UNITS", "ByTopic", "Column", "Fit", "Mapper", "MappingSpec", "Rejected", "build_mapper", "fit"]

# What rejected elements repeat of the message around them, all of one payload together, in payload sizes:
# without a bound, a large envelope around thousands of bad rows would fill the memory.
_REPEATED: Final = 4
_STAND_IN: Final = "/".join(f"level-{k}" for k in range(16))
#: Topics whose mapping is remembered.
_TOPICS: Final = 65_536
#: Readings beyond these are surely in another unit: no cell has 10 V, none lives above 200 °C.
_ABSURD: Final = {"cell_voltage_volt": (10.0, "mV"), "cell_temperature_celsius": (200.0, "dC or K")}


class Mapper:
    """One mapping, compiled.

    Args:
        spec: The mapping.
        settings: Limits, and the time zone where the mapping names none.
        name: Its name, for messages.

    Raises:
        ValueError: The mapping is wrong; one line with the place, the fault and what may be meant.

    Example:
        >>> mapper = Mapper(SHIPPED["compact"], DecodeSettings())
        >>> good, bad = mapper.samples(b'{"id": "gw/7", "t": 1795341605, "i": -1500, "c": [3601], "T": []}', None)
        >>> good[0].current_ampere, good[0].converted, bad
        (-1.5, True, [])
    """

    def __init__(self, spec: MappingSpec, settings: DecodeSettings, *, name: str = "") -> None:
        place = f"[mapping.{name}]" if name else "mapping"
        self._settings = settings
        self._readers = _readers(spec, settings, place)
        self._elements = Unwrapper(spec.envelope, spec.rows, place).elements

    def samples(self, payload: bytes, topic: str | None) -> tuple[list[Sample], list[Rejected]]:
        """Every sample of a payload, and every part that is none; both in the payload's order.

        The payload of a ``Rejected`` is again a message of this dialect, with that one element in it: it can
        be decoded once more when the mapping or the sender is mended.
        """
        good: list[Sample] = []
        bad: list[Rejected] = []
        try:
            self._read(payload, topic, good, bad)
        except Exception as error:  # whatever it is, it must not stop the stream
            refused = error if isinstance(error, Refused) else refusal(error, payload)
            return [], [Rejected(refused.reason, refused.detail, payload)]
        return good, bad

    def judge(self, payload: bytes, topic: str | None) -> tuple[int, list[str]]:
        """How the first element of a payload is taken.

        Returns:
            How many columns were found in it, and what keeps it from being a sample or makes it doubtful, a
            line each.
        """
        good, bad = self.samples(payload, topic)
        found, problems = 0, list[str]()
        try:
            root, _ = next(documents(payload))
            obj = next(self._elements(root)).obj
            if not isinstance(obj, Refused):
                found, problems = self._try(obj, root, topic)
        except Refused:
            pass  # told by the first of bad
        if good and not bad:
            return found, _doubts(good[0])
        return found, problems or [f"{bad[0].reason}: {bad[0].detail}"]

    def _try(self, obj: Any, root: Any, topic: str | None) -> tuple[int, list[str]]:
        found, problems = 0, []
        for _, read, _ in self._readers:
            try:
                found += read(obj, root, topic) not in (None, [])
            except Refused as refused:
                problems.append(str(refused))
        return found, problems

    def _read(self, payload: bytes, topic: str | None, good: list[Sample], bad: list[Rejected]) -> None:
        if len(payload) > self._settings.max_payload_bytes:
            raise Refused("too_large", f"{len(payload)} bytes, at most {self._settings.max_payload_bytes} are taken")
        budget = _REPEATED * len(payload)
        for root, text in documents(payload):
            for element in self._elements(root):
                try:
                    good.append(self._sample(element.obj, root, topic))
                except Refused as refused:
                    message = text() if element.alone is None else element.encode(budget)
                    budget -= len(message)
                    bad.append(Rejected(refused.reason, refused.detail, message))

    def _sample(self, obj: Any, root: Any, topic: str | None) -> Sample:
        if isinstance(obj, Refused):
            raise obj
        values: dict[str, Any] = {"current_ampere": None, "cell_temperature_celsius": []}
        converted = False
        for column, read, converts in self._readers:
            value = values[column] = read(obj, root, topic)
            converted = converted or (converts and value is not None)
        sample = Sample(converted=converted, **values)
        check(sample, self._settings)
        return sample


class ByTopic:
    """Many mappings in one flow: each message goes to the first whose topic filter matches.

    Args:
        routes: Topic filter and mapping, in order of preference.
        default: The mapping of all other topics, and of sources without topics.
    """

    def __init__(self, routes: Sequence[tuple[str, Mapper]], default: Mapper) -> None:
        self._routes = [(filter_.split("/"), mapper) for filter_, mapper in routes]
        self._default = default
        self._known: dict[str, Mapper] = {}

    def samples(self, payload: bytes, topic: str | None) -> tuple[list[Sample], list[Rejected]]:
        """As ``Mapper.samples``."""
        if topic is None:
            return self._default.samples(payload, topic)
        mapper = self._known.get(topic)
        if mapper is None:
            mapper = next((m for levels, m in self._routes if topic_matches(levels, topic.split("/"))), self._default)
            if len(self._known) < _TOPICS:
                self._known[topic] = mapper
        return mapper.samples(payload, topic)


def topic_matches(levels: list[str], topic: list[str]) -> bool:
    """Whether a topic matches a filter, both cut at ``/``: + is any level, # any rest (MQTT 5, section 4.7)."""
    for place, level in enumerate(levels):
        if level == "#":
            return True
        if place >= len(topic) or level not in ("+", topic[place]):
            return False
    return len(levels) == len(topic)


def build_mapper(settings: DecodeSettings, mappings: Mapping[str, MappingSpec]) -> Mapper | ByTopic:
    """What ``decode`` is to use: ``decode.mapping``, and by topic each mapping that names one.

    Args:
        settings: The ``[decode]`` table.
        mappings: The ``[mapping.NAME]`` tables; a name of ``SHIPPED`` takes the place of the shipped one.

    Raises:
        ValueError: A mapping is wrong, or there is none of that name; one line.

    Example:
        >>> build_mapper(DecodeSettings(mapping="compat"), {})
        Traceback (most recent call last):
        ValueError: decode.mapping: there is no mapping "compat" (did you mean "compact"?)
    """
    known = {**SHIPPED, **mappings}
    if settings.mapping not in known:
        hint = meant(settings.mapping, known)
        raise ValueError(f'decode.mapping: there is no mapping "{settings.mapping}"{hint}')
    compiled = {name: Mapper(known[name], settings, name=name) for name in {*mappings, settings.mapping}}
    routes = [(spec.topic, compiled[name]) for name, spec in mappings.items() if spec.topic]
    default = compiled[settings.mapping]
    return ByTopic(routes, default) if routes else default


class Fit(NamedTuple):
    """How a mapping takes a sample message."""

    mapping: str
    problems: list[str]
    """What fails or is doubtful, a line each; empty: it fits."""


def fit(
    payload: bytes,
    topic: str | None = None,
    mappings: Mapping[str, MappingSpec] = SHIPPED,
    settings: DecodeSettings | None = None,
) -> list[Fit]:
    """How each mapping takes a sample message, the best first.

    Args:
        payload: The message; of an array or of lines the first element counts.
        topic: Where it was published, for mappings that read the topic; None, as for a message in a file: a
            stand-in, so that only the message is judged.
        mappings: The candidates by name.
        settings: Limits and time zone; the defaults if none.

    Raises:
        ValueError: A candidate is wrong in itself.

    Example:
        >>> fit(b'{"id": "gw/7", "t": 1795341605, "i": -1500, "c": [3601]}')[0]
        Fit(mapping='compact', problems=['missing_key: cell_temperature_celsius: there is no "T"'])
    """
    settings = settings or DecodeSettings()
    topic = _STAND_IN if topic is None else topic
    judged = [(name, *Mapper(spec, settings, name=name).judge(payload, topic)) for name, spec in mappings.items()]
    # Of those that fail, the nearest is the one that knows most of the message.
    judged.sort(key=lambda each: (bool(each[2]), -each[1], len(each[2])))
    return [Fit(name, problems) for name, _, problems in judged]


def _doubts(sample: Sample) -> list[str]:
    doubts = []
    for column, (limit, unit) in _ABSURD.items():
        readings = [abs(x) for x in getattr(sample, column) if x is not None]
        if readings and min(readings) > limit:
            doubts.append(f"doubtful: {column}: every reading is above {limit:g}; is it sent in {unit}?")
    return doubts


def _readers(spec: MappingSpec, settings: DecodeSettings, place: str) -> list[tuple[str, Reader, bool]]:
    """Column, its reader, and whether a value of it was converted."""
    columns = {name: column_of(name, source, place) for name, source in spec.columns.items()}
    for name in REQUIRED:
        if name not in columns:
            raise ValueError(f"{place}: columns.{name} is missing; there is no sample without it")
    zone = _zone(spec.time_zone, place) if spec.time_zone else settings.zone()
    readers = []
    for name, column in columns.items():
        try:
            read = reader(name, column, settings, zone)
        except ValueError as error:
            raise ValueError(f"{place}: columns.{name}: {error}") from None
        readers.append((name, read, name in MEASURED and column.converts(QUANTITIES[name])))
    return readers


def _zone(name: str, place: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{place}: time_zone {name!r} is no IANA name, such as Europe/Berlin") from None
