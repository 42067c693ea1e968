"""The dead letters of a lake: counted, listed and shown, with what the present configuration makes of them.

Takes the lake of a configuration; gives plain values for the command line. Files are streamed: memory
goes with the number of different topics, and 28 bytes for each letter that was redriven.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from voltmill.connectors.letters import NEVER, Index, letter_ids, read_letters, spooled
from voltmill.connectors.spool import Spool
from voltmill.flows import graph
from voltmill.flows.config import Config, ConfigError
from voltmill.kernels.schema import RAW, TIME, label
from voltmill.operators.decode import Batches, Decoder
from voltmill.operators.mapping import topic_matches

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_GROUPED: Final = ("stage", "reason", "topic", "source_partition")


@dataclass(frozen=True)
class Filter:
    """Which letters are wanted; what is empty asks for nothing."""

    stage: str = ""
    reason: str = ""
    topic: str = ""
    """An MQTT topic filter; letters without a topic match none."""
    start: datetime | None = None
    """First time of arrival; a letter without one is then left out."""
    stop: datetime | None = None
    """Time of arrival to stop before."""
    ids: frozenset[str] = frozenset()

    def mask(self, letters: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which rows match, their ids left aside."""
        mask = np.ones(letters.num_rows, np.bool_)
        if self.stage:
            mask &= _labels(letters["stage"], lambda name: name == self.stage)
        if self.reason:
            mask &= _labels(letters["reason"], lambda name: name == self.reason)
        if self.topic:
            levels = self.topic.split("/")
            mask &= _labels(letters["topic"], lambda name: name is not None and topic_matches(levels, name.split("/")))
        if self.start:
            mask &= _true(pc.greater_equal(letters["ingest_time"], pa.scalar(self.start, TIME)))
        if self.stop:
            mask &= _true(pc.less(letters["ingest_time"], pa.scalar(self.stop, TIME)))
        return mask


class Found(NamedTuple):
    """Some letters that match."""

    rows: pa.RecordBatch
    """``DEAD_LETTER``."""
    ids: list[str]
    redriven: NDArray[np.int64]
    """When each was redriven, µs since 1970, or ``NEVER``."""


@dataclass
class Group:
    """Letters of one stage, reason, topic and partition."""

    letters: int = 0
    redriven: int = 0
    first: int | None = None
    """Arrival of the first one, µs since 1970; None: of none is it known."""
    last: int | None = None
    redriven_at: int | None = None
    """When letters of it were redriven last."""

    def add(self, more: "Group") -> None:
        """Count other letters of the group."""
        self.letters += more.letters
        self.redriven += more.redriven
        self.first = min((t for t in (self.first, more.first) if t is not None), default=None)
        self.last = max((t for t in (self.last, more.last) if t is not None), default=None)
        self.redriven_at = max((t for t in (self.redriven_at, more.redriven_at) if t is not None), default=None)


Key = tuple[str, str, str | None, str]
"""Stage, reason, topic and source partition."""


@dataclass
class Waiting:
    """What stands in the spool and is not through yet."""

    letters: int = 0
    files: list[str] = field(default_factory=list)


class DeadLetters:
    """The dead letters of the lake that a configuration names.

    Raises:
        LakeError: here and in every method: the lake cannot be read.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.spool = Spool(config.lake.open())
        self.spooled = Index()
        self._known: set[int] = set()
        self.refresh()

    def refresh(self) -> int:
        """Take in what came into the spool since; returns the number of the next file."""
        numbers, taken = self.spool.numbers()
        spooled(self.spool, (n for n in numbers if n not in self._known), self.spooled)
        self._known.update(numbers)
        return max([*numbers, *taken], default=-1) + 1

    def read(self, wanted: Filter) -> Iterator[Found]:
        """The letters that match, in order of arrival in each shard."""
        for letters in read_letters(self.config.lake):
            mask = wanted.mask(letters)
            ids = letter_ids(letters.filter(pa.array(mask)))
            if wanted.ids:
                chosen = np.array([id_ in wanted.ids for id_ in ids], np.bool_)
                mask[mask] = chosen
                ids = [id_ for id_, yes in zip(ids, chosen, strict=True) if yes]
            if ids:
                yield Found(letters.filter(pa.array(mask)), ids, self.spooled.find(ids))

    def groups(self, wanted: Filter) -> dict[Key, Group]:
        """The letters counted, the largest group first."""
        groups: dict[Key, Group] = {}
        for found in self.read(wanted):
            for key, group in _grouped(found):
                groups.setdefault(key, Group()).add(group)
        return dict(sorted(groups.items(), key=lambda item: -item[1].letters))

    def find(self, id_: str) -> tuple[dict[str, Any], int]:
        """A letter, and when it was redriven (or ``NEVER``).

        Raises:
            ConfigError: There is none of that id.
        """
        for found in self.read(Filter(ids=frozenset({id_}))):
            letter: dict[str, Any] = found.rows.slice(0, 1).to_pylist()[0]
            return letter, int(found.redriven[0])
        place = self.config.lake.place
        raise ConfigError(f"there is no dead letter {id_} in {place}; voltmill dead-letters list --all")

    def waiting(self) -> Waiting:
        """The spool files that no flow has taken to their end."""
        waiting = Waiting()
        numbers, taken = self.spool.numbers()
        for number in numbers:
            claim = self.spool.claim(number) if number in taken else None
            if claim is not None and claim.done:
                continue
            with self.spool.open(number) as file:
                rows = file.metadata.num_rows - (claim.rows if claim else 0)
                stage = file.read_row_group(0, columns=["stage"])["stage"][0].as_py()
            if stage != "decode":  # one call wrote it, and its letters are stored already
                continue
            name = f"{number:010d}"
            waiting.letters += rows
            waiting.files.append(f"{name} (taken by {claim.store})" if claim else name)
        return waiting


def decoder(config: Config) -> Decoder:
    """What the present configuration reads messages with."""
    return Decoder(config.decode, mapper=graph.mapper(config))


def decode_letters(letters: pa.RecordBatch, decode: Decoder) -> Batches:
    """Letters as they would be decoded now; ``source_offset`` of what comes out is the row of the letter."""
    size = letters.num_rows
    columns = {
        "payload": pc.fill_null(letters["payload"], b""),
        "topic": letters["topic"],
        "ingest_time": pc.fill_null(letters["ingest_time"], pa.scalar(_EPOCH, TIME)),
        "source": label("redrive", size),
        "source_partition": label("", size),
        "source_offset": pa.array(np.arange(size)),
    }
    return decode(pa.RecordBatch.from_arrays([columns[name] for name in RAW.names], schema=RAW))


def time_of(micros: int | None) -> datetime | None:
    """µs since 1970 as a time; None and ``NEVER`` are none."""
    return None if micros is None or micros == NEVER else _EPOCH + timedelta(microseconds=micros)


def _labels(column: pa.DictionaryArray, wanted: Any) -> NDArray[np.bool_]:
    """Which rows of a label column are wanted; each label is asked about once. A null is asked about as None."""
    verdicts = np.array([*map(wanted, column.dictionary.to_pylist()), wanted(None)], np.bool_)
    mask: NDArray[np.bool_] = verdicts[pc.fill_null(column.indices, len(verdicts) - 1).to_numpy()]
    return mask


def _true(found: pa.BooleanArray) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = pc.fill_null(found, False).to_numpy(zero_copy_only=False)
    return mask


def _grouped(found: Found) -> Iterator[tuple[Key, Group]]:
    columns = {name: found.rows[name].cast(pa.string()) for name in _GROUPED}
    redriven = pa.array(found.redriven, mask=found.redriven == NEVER)
    columns |= {"time": found.rows["ingest_time"].cast(pa.int64()), "redriven": redriven}
    asked = [("stage", "count"), ("redriven", "count"), ("time", "min"), ("time", "max"), ("redriven", "max")]
    for row in pa.table(columns).group_by(list(_GROUPED)).aggregate(asked).to_pylist():
        group = Group(*(row[f"{name}_{how}"] for name, how in asked))
        yield (row["stage"], row["reason"], row["topic"], row["source_partition"]), group
