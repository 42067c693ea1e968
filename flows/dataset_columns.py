"""Which columns a training table has: those of its own table, those of telemetry beside them, labels."""

import difflib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voltmill.flows.config import Config, ConfigError
from voltmill.kernels.schema import LABEL, TELEMETRY, TIME
from voltmill.kernels.session_table import session_columns
from voltmill.operators.features import CARRIED

Kind = Literal["features", "sessions", "telemetry"]

#: What every row begins with.
BASE: Final = ("device_id", "event_time", "split", "cell_type", "capacity_ah", "quality_bits")
#: What a session has beside.
SESSION: Final = ("start_time", "session")
#: Columns of telemetry that are chosen by name only.
_BY_NAME: Final = ("ingest_time", "seq", "source", "source_partition", "source_offset", "payload")


class Label(msgspec.Struct, frozen=True):
    """A column that a model is to learn: another one under a name of its own, or a quotient of two in percent."""

    name: str
    column: str
    over: str = ""

    @classmethod
    def parse(cls, text: str) -> "Label":
        """Read ``NAME=COLUMN`` or ``NAME=COLUMN/COLUMN``.

        Raises:
            ConfigError: It is neither.

        Example:
            >>> Label.parse("soh=measured_capacity_ah/capacity_ah")
            Label(name='soh', column='measured_capacity_ah', over='capacity_ah')
        """
        name, given, what = text.partition("=")
        column, divided, over = what.partition("/")
        if not (name and given and column) or (divided and not over):
            raise ConfigError(f"--label {text}: write NAME=COLUMN, or NAME=COLUMN/COLUMN for a quotient in percent")
        return cls(name, column, over)


def own_columns(table: Kind, config: Config) -> list[str]:
    """The columns that a table has by itself, without those of ``BASE``."""
    if table == "features":
        names = [n for n in config.features.schema().names if n not in CARRIED]
    elif table == "sessions":
        names = [c.name for c in session_columns()]
    else:
        names = [n for n in TELEMETRY.names if n not in _BY_NAME]
    return [n for n in names if n not in BASE]


class Columns:
    """The chosen columns of a table.

    Args:
        table: Which one.
        config: Names the windows of the features.
        chosen: Names or shell patterns; none: all of the table's own.
        labels: What is to be learnt.

    Attributes:
        schema: of the rows that ``select`` gives.

    Raises:
        ConfigError: A column that there is not, or a name that is taken.
    """

    def __init__(self, table: Kind, config: Config, chosen: Sequence[str], labels: Sequence[Label]) -> None:
        self._table, own = table, own_columns(table, config)
        self._known = dict.fromkeys([*own, *BASE, *TELEMETRY.names])
        names = [n for pattern in chosen for n in self._matching(pattern, own)] if chosen else own
        self._own, self._labels = set(own), labels
        self._names = [n for n in dict.fromkeys(names) if n not in (*BASE, *SESSION)]
        for label in labels:
            self._check(label)
        extra = SESSION if table == "sessions" else ()
        fields = [_field(n) for n in (*BASE, *extra)]
        fields += [self._typed(n) for n in self._names]
        self.schema = pa.schema(fields + [pa.field(label.name, pa.float32(), True) for label in labels])

    @property
    def from_telemetry(self) -> bool:
        """Whether a column comes of the telemetry row rather than of the table."""
        wanted = [*self._names, *(n for label in self._labels for n in (label.column, label.over) if n)]
        return any(n not in self._own and n not in BASE for n in wanted)

    def select(self, base: dict[str, Any], rows: pa.RecordBatch, telemetry: pa.RecordBatch | None) -> pa.RecordBatch:
        """The rows with the chosen columns.

        Args:
            base: The columns of ``BASE``, and of ``SESSION``.
            rows: Of the table.
            telemetry: The telemetry row of each, if one is needed.
        """

        def column(name: str) -> Any:
            if name in base:
                return base[name]
            source = rows if name in rows.schema.names or telemetry is None else telemetry
            return source.column(name)

        found = {n: column(n) for n in self.schema.names if n in base or n in self._names}
        for label in self._labels:
            value = column(label.column).cast(pa.float64())
            if label.over:
                value = pc.multiply(pc.divide(value, column(label.over).cast(pa.float64())), 100.0)
            found[label.name] = value.cast(pa.float32())
        arrays = [found[field.name].cast(field.type) for field in self.schema]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def labelled(self, rows: pa.RecordBatch) -> Any:
        """Which rows have a finite number as every label."""
        known = np.ones(len(rows), np.bool_)
        for label in self._labels:
            known &= np.isfinite(rows.column(label.name).to_numpy(zero_copy_only=False))
        return known

    def _matching(self, pattern: str, own: list[str]) -> list[str]:
        if pattern in self._known:
            return [pattern]
        if found := [n for n in own if fnmatchcase(n, pattern)]:
            return found
        raise ConfigError(f"--columns {pattern}: no such column{_hint(pattern, self._known)}")

    def _check(self, label: Label) -> None:
        for name in filter(None, (label.column, label.over)):
            if name not in self._known:
                raise ConfigError(f"--label {label.name}: no column {name}{_hint(name, self._known)}")
            if name in TELEMETRY.names and name not in self._own and not _is_number(TELEMETRY.field(name).type):
                raise ConfigError(f"--label {label.name}: {name} is no number")
        if label.name in (*self._names, *BASE, *SESSION):
            raise ConfigError(f"--label {label.name}: a column has this name; choose another")

    def _typed(self, name: str) -> pa.Field:
        if name in self._own and self._table != "telemetry":
            return pa.field(name, pa.float32(), True)
        return TELEMETRY.field(name).with_nullable(True).remove_metadata()


def _field(name: str) -> pa.Field:
    types: dict[str, Callable[[], Any]] = {
        "device_id": pa.string,
        "event_time": lambda: TIME,
        "start_time": lambda: TIME,
        "capacity_ah": pa.float32,
        "quality_bits": pa.uint32,
    }
    return pa.field(name, types.get(name, lambda: LABEL)(), name == "capacity_ah")


def _is_number(type_: Any) -> bool:
    return bool(pa.types.is_floating(type_) or pa.types.is_integer(type_))


def _hint(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f' (did you mean "{close[0]}"?)' if close else ""
