"""Are two sets of predictions the same, to the bit?

Rows are matched by primary key. ``mode`` is left out: it says where a prediction was made, not what
it is. Values are compared as bit patterns, so that not even the sign of a zero may differ.
"""

from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from voltmill.kernels.schema import PREDICTION, PREDICTION_KEY

_COMPARED: Final = [name for name in PREDICTION.names if name != "mode"]


class Comparison(msgspec.Struct, frozen=True):
    """What differs between two sets of predictions."""

    left: int
    """Rows in the first set."""
    right: int
    """Rows in the second set."""
    changed: int
    """Rows in both that differ in some column."""
    only_left: int
    """Rows that are missing in the second set."""
    only_right: int
    """Rows that are missing in the first set."""

    @property
    def identical(self) -> bool:
        """Whether nothing differs, and there is something."""
        return self.left > 0 and not (self.changed or self.only_left or self.only_right)


def read(folder: str) -> pa.Table:
    """The predictions of a lake, ready to compare.

    Args:
        folder: A folder that holds ``predictions/``.
    """
    return plain(ds.dataset(f"{folder}/predictions", format="parquet", exclude_invalid_files=False).to_table())


def plain(predictions: pa.Table) -> pa.Table:
    """Predictions ready to compare: sorted by primary key, labels as text, floats as their bits."""
    columns = [_plain(predictions.column(name).combine_chunks()) for name in _COMPARED]
    return pa.table(columns, _COMPARED).sort_by([(name, "ascending") for name in PREDICTION_KEY])


def compare(left: pa.Table, right: pa.Table) -> Comparison:
    """Compare two tables of ``read``."""
    keys, rest = list(PREDICTION_KEY), [name for name in _COMPARED if name not in PREDICTION_KEY]
    if left.select(keys).equals(right.select(keys)):
        differs = np.zeros(len(left), bool)
        for name in rest:
            a, b = left.column(name), right.column(name)
            if not a.equals(b):
                differs |= np.array([x != y for x, y in zip(a.to_pylist(), b.to_pylist(), strict=True)])
        return Comparison(len(left), len(right), int(differs.sum()), 0, 0)
    joined = left.append_column("_l", pa.array(np.ones(len(left), bool))).join(
        right.append_column("_r", pa.array(np.ones(len(right), bool))), keys, join_type="full outer", right_suffix="_2"
    )
    both = joined.filter(pc.and_(joined["_l"].is_valid(), joined["_r"].is_valid()))
    changed = np.zeros(len(both), bool)
    for name in rest:
        pairs = zip(both.column(name).to_pylist(), both.column(f"{name}_2").to_pylist(), strict=True)
        changed |= np.array([x != y for x, y in pairs], bool)
    only_left = int(joined["_r"].null_count)
    return Comparison(len(left), len(right), int(changed.sum()), only_left, int(joined["_l"].null_count))


def _plain(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode()
    return column.view(pa.int32()) if column.type == pa.float32() else column
