"""What goes to a model behind HTTP and what comes back: JSON, made and read here for both sides.

    request   {"input_data": {"columns": ["c_rate", ...], "data": [[0.5, null, ...], ...]}}
    answer    {"outputs": [[57.3, 0.9], ...]}

The request is the one that Azure ML and MLflow know. A row of ``data`` is a row of features in physical
units, in the order of the contract; for the kind window it is a list of such rows, oldest first. ``null``
is a value that is not known; JSON has no infinity, so that becomes ``null`` too. Numbers are written as
the shortest decimal from which the same float32 is read again, so nothing is lost either way.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Array = npt.NDArray[np.float32]

_ROWS: Final = list[list[float | None]]
_WINDOWS: Final = list[list[list[float | None]]]


class WireError(ValueError):
    """What was received is not what this page says; one line."""


class _Input(msgspec.Struct):
    columns: list[str]
    data: msgspec.Raw


class _Request(msgspec.Struct):
    input_data: _Input


def request(columns: Sequence[str], features: Array) -> bytes:
    """The body of a request.

    Example:
        >>> request(["c_rate", "power"], np.array([[0.1, np.nan]], np.float32))
        b'{"input_data":{"columns":["c_rate","power"],"data":[[0.1,null]]}}'
    """
    return msgspec.json.encode({"input_data": {"columns": list(columns), "data": _numbers(features)}})


def read_request(body: bytes | str, columns: Sequence[str], window_rows: int = 0) -> Array:
    """The features of a request.

    Args:
        body: what was received.
        columns: the names and the order that are asked for.
        window_rows: rows in a window; 0: a row of features is a row of the request.

    Returns:
        float32 (rows, n features) or (rows, window_rows, n features).

    Raises:
        WireError: it is not such a request.
    """
    kind: Any = _WINDOWS if window_rows else _ROWS
    if not body:  # what the server thinks a form it does not hand on
        raise WireError("the body is empty: send JSON, with Content-Type application/json")
    try:
        found = msgspec.json.decode(body, type=_Request).input_data
        data = msgspec.json.decode(found.data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"the body is no request: {error}") from None
    if found.columns != list(columns):
        raise WireError(f"input_data.columns: the model takes {', '.join(columns)}, in this order")
    shape = (window_rows, len(columns)) if window_rows else (len(columns),)
    return _array(data, (len(data), *shape), "input_data.data")


def answer(outputs: Array) -> bytes:
    """The body of an answer; what is no number is null.

    Example:
        >>> answer(np.array([[57.3, 0.9], [np.nan, 0.5]], np.float32))
        b'{"outputs":[[57.3,0.9],[null,0.5]]}'
    """
    return msgspec.json.encode({"outputs": _numbers(outputs)})


def read_answer(body: bytes, rows: int, width: int) -> Array:
    """The outputs of an answer: NaN where it gives no finite number.

    A plain list of rows is an answer too, and where there is one output a plain list of numbers; so is
    JSON in a JSON string, which scoring scripts give that encode what Azure ML's server encodes once more.
    ``NaN``, which Python writes though JSON has no such thing, is read as null.

    Args:
        body: what was received.
        rows: how many rows were sent.
        width: number of outputs.

    Returns:
        float32 (rows, width).

    Raises:
        WireError: it is no answer, or one of another shape.
    """
    try:
        found = json.loads(body)
        found = json.loads(found) if isinstance(found, str) else found
        found = found.get("outputs") if isinstance(found, dict) else found
        if width == 1 and isinstance(found, list) and not any(isinstance(row, list) for row in found):
            found = [[value] for value in found]
        data = msgspec.convert(found, _ROWS)
    except msgspec.ValidationError as error:
        raise WireError(f'no "outputs" with a list of numbers a row ({error})') from None
    except (ValueError, RecursionError):
        raise WireError("the body is not JSON") from None
    return _array(data, (rows, width), "outputs")


def _numbers(array: Array) -> list[Any]:
    """Nested lists of floats whose shortest decimal is that of the float32: half as long as that of its float64.

    Whoever reads float64 and rounds to float32 gets the same bits. Being rounded twice, 7.038531e-26 and its
    negative alone of all float32 do not (all were tried): what does not is written as its float64.
    """
    flat = np.ascontiguousarray(array).ravel()
    found = pc.cast(pc.cast(pa.array(flat), pa.string()), pa.float64()).to_numpy(zero_copy_only=False).copy()
    lost = found.astype(np.float32) != flat
    found[lost] = flat[lost]
    nested: list[Any] = found.reshape(array.shape).tolist()
    return nested


def _array(data: list[Any], shape: tuple[int, ...], what: str) -> Array:
    try:
        found = np.array(data, np.float64) if data else np.empty((0, *shape[1:]))
    except ValueError:  # rows of different lengths
        found = np.empty(0)
    if found.shape != shape:
        size = " x ".join(map(str, shape))
        raise WireError(f"{what}: {len(data)} rows where {size} numbers belong, or rows of another length")
    with np.errstate(over="ignore"):
        out = found.astype(np.float32)
    out[np.isinf(out)] = np.nan
    return out
