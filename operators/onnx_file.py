"""What an ONNX file says of itself, read and written without running it: its metadata, versions and operators.

A file is one protobuf message (onnx.proto3, ModelProto). Only the fields that are asked for are read, and all
that is not is kept to the byte, so that a model with another contract still computes the same.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

# Numbers of fields in onnx.proto3
_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA = 1, 7, 8, 14
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_OP, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT = 1, 3
_TENSOR_EXTERNAL = 13
_KEY, _VALUE = 1, 2  # of StringStringEntryProto and OperatorSetIdProto

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED: Final = {_FIXED64: 8, _FIXED32: 4}


class Field(NamedTuple):
    """One field of a protobuf message."""

    number: int
    value: int | bytes
    """An int for numbers, bytes for texts, messages and floating-point numbers."""
    start: int
    """Where it begins in the message, with its tag."""
    end: int


class Facts(NamedTuple):
    """What a file says of itself."""

    ir_version: int
    opsets: dict[str, int]
    """Version of each operator set; the standard one is called ``""``."""
    operators: frozenset[str]
    """Kinds of operators in the graph, ``Gemm`` for example."""
    training: frozenset[str]
    """Those of them that are switched to training."""
    external: str
    """The file that holds the weights, if it is not this one."""


def read_metadata(data: bytes, key: str) -> str | None:
    """The text under a key of metadata_props; None: there is none.

    Raises:
        ValueError: the data are no protobuf message, or the text is not UTF-8.

    Example:
        >>> read_metadata(write_metadata(b"", "greeting", "hello"), "greeting")
        'hello'
    """
    found = [f.value for f in fields(data) if _is_entry(f, key)]
    return _text(_first(found[-1], _VALUE, b"")) if found else None  # onnxruntime takes the last as well


def write_metadata(data: bytes, key: str, text: str) -> bytes:
    """The file with this text under a key of metadata_props, in place of what was there; all else is kept.

    Raises:
        ValueError: the data are no protobuf message.

    Example:
        >>> twice = write_metadata(write_metadata(b"", "greeting", "hello"), "greeting", "good bye")
        >>> read_metadata(twice, "greeting"), b"hello" in twice
        ('good bye', False)
    """
    kept = b"".join(data[f.start : f.end] for f in fields(data) if not _is_entry(f, key))
    return kept + _field(_MODEL_METADATA, _field(_KEY, key.encode()) + _field(_VALUE, text.encode()))


def facts(data: bytes) -> Facts:
    """What the file says of itself; ValueError if it is no protobuf message."""
    ir_version, opsets, operators, training, external = 0, {}, set(), set(), ""
    for field in fields(data):
        if field.number == _MODEL_IR and isinstance(field.value, int):
            ir_version = field.value
        elif field.number == _MODEL_OPSET:
            opsets[_text(_first(field.value, _KEY, b""))] = int(_first(field.value, _VALUE, 0))
        elif field.number == _MODEL_GRAPH:
            for part in fields(_bytes(field.value)):
                if part.number == _GRAPH_NODE:
                    name = _text(_first(part.value, _NODE_OP, b""))
                    operators.add(name)
                    if _is_training(_bytes(part.value)):
                        training.add(name)
                elif part.number == _GRAPH_INITIALIZER:
                    external = external or _external(_bytes(part.value))
    return Facts(ir_version, opsets, frozenset(operators), frozenset(training), external)


def fields(message: bytes) -> Iterator[Field]:
    """The fields of a message, in their order.

    Raises:
        ValueError: it is no protobuf message.
    """
    at = 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        wire = tag & 7
        value: int | bytes
        if wire == _VARINT:
            value, at = _varint(message, at)
        else:
            if wire == _BYTES:
                length, at = _varint(message, at)
            elif wire in _FIXED:
                length = _FIXED[wire]
            else:
                raise ValueError(f"not protobuf: wire type {wire} at byte {start}")
            value, at = message[at : at + length], at + length
        if at > len(message) or not tag >> 3:
            raise ValueError(f"not protobuf, or cut off: field at byte {start}")
        yield Field(tag >> 3, value, start, at)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 70 and at < len(message):
        byte = message[at]
        number, shift, at = number | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return number, at
    raise ValueError(f"not protobuf, or cut off: number at byte {at}")


def _field(number: int, value: bytes) -> bytes:
    return _to_varint(number << 3 | _BYTES) + _to_varint(len(value)) + value


def _to_varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _is_entry(field: Field, key: str) -> bool:
    return field.number == _MODEL_METADATA and _first(field.value, _KEY, b"") == key.encode()


def _is_training(node: bytes) -> bool:
    attributes = [_bytes(f.value) for f in fields(node) if f.number == _NODE_ATTRIBUTE]
    return any(
        _first(a, _ATTRIBUTE_NAME, b"") == b"training_mode" and _first(a, _ATTRIBUTE_INT, 0) == 1 for a in attributes
    )


def _external(tensor: bytes) -> str:
    """The file that holds a tensor, if it is another one."""
    entries = [_bytes(f.value) for f in fields(tensor) if f.number == _TENSOR_EXTERNAL]
    places = [_text(_first(entry, _VALUE, b"")) for entry in entries if _first(entry, _KEY, b"") == b"location"]
    return places[0] if places else ""


def _first(message: int | bytes, number: int, default: int | bytes) -> int | bytes:
    return next((f.value for f in fields(_bytes(message)) if f.number == number), default)


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("not protobuf of a model: a number where a message is wanted")
    return value


def _text(value: int | bytes) -> str:
    return _bytes(value).decode()
