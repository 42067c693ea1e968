"""A contract as a TOML file that a person can edit: what each key means stands above it.

For a model without a contract it is a template: what the file says of itself is filled in, and all that
only its author knows is a ``?``, at which `voltmill models attach` stops.
"""

import json
import shlex
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from voltmill.flows.choice import Table, tables
from voltmill.flows.config import Config
from voltmill.flows.field_docs import field_docs
from voltmill.operators.contract import OUTPUTS, Contract, Feature, Fusion, Range
from voltmill.operators.contract_text import BLANK
from voltmill.operators.onnx_shapes import row_shape

_WIDTH: Final = 100
_NESTED: Final[dict[str, type[msgspec.Struct]]] = {"features": Feature, "conditions": Range, "fusion": Fusion}
_TABLES: Final = ("errors", "fusion")  # what begins with [NAME] stands last in TOML


def template(name: str, inputs: Sequence[Any], outputs: Sequence[Any], table: Table) -> dict[str, Any]:
    """The contract of a model without one, as far as its inputs and outputs tell; ``?`` for the rest.

    Args:
        name: of the model.
        inputs: of its onnxruntime session.
        outputs: the same.
        table: whose columns it takes.
    """
    shape = row_shape(inputs[0]) if inputs else ()
    kind = "features"
    if len(inputs) == 2 and len(outputs) == 2:
        kind = "step"
    elif len(shape) == 2:
        kind = "window"
    width = (shape[-1] if shape else None) or 1
    count = (row_shape(outputs[0])[-1:] or (None,))[0] if outputs else None
    blank = {"name": BLANK, "offset": 0.0, "scale": 1.0, "low": BLANK, "high": BLANK}
    return {
        "kind": kind,
        "table": table,
        "session": "any",
        "name": name,
        "version": "1",
        "target": BLANK,
        "unit": BLANK,
        "outputs": next((list(names) for names in OUTPUTS if len(names) == count), [BLANK]),
        "current_sign": BLANK,
        "dt_range_seconds": [BLANK, BLANK],
        "cell_type": BLANK,
        "nominal_ah": BLANK,
        "state_size": ((row_shape(inputs[1])[-1:] or (None,))[0] or BLANK) if kind == "step" else 0,
        "window_rows": (shape[0] or BLANK) if kind == "window" else 0,
        "capacity_fraction": 1.0,
        "warm_up_seconds": 0.0,
        "training_data_sha256": BLANK,
        "features": [blank] * width,
        "errors": {},
    }


def as_toml(contract: Contract | dict[str, Any], file: str, own: str, config: Config) -> str:
    """A contract, or a template, as a TOML file with comments.

    Args:
        contract: what stands in it.
        file: the model file, for the comments.
        own: the TOML file itself, for them too.
        config: gives the columns of the tables.
    """
    data = contract if isinstance(contract, dict) else msgspec.to_builtins(contract)
    return "\n".join([*_heading(data, file, own), *_columns(data["table"], config), "", *_body(data)]) + "\n"


def _heading(data: dict[str, Any], file: str, own: str) -> Iterator[str]:
    yield from _comment(
        f"The contract of {file}: what the model takes and gives, and for what it was made. Fill in or change what is "
        f"below (a {BLANK} must go), then check it and store it in the model file with"
    )
    yield f"#     voltmill models attach {shlex.quote(file)} {shlex.quote(own)}"
    yield "#"
    yield from _comment(
        f"A feature is a column of the table {data['table']}. The model's input is (column - offset) / scale, float32: "
        "leave 0 and 1 if the model does its own scaling. Where a column is outside low to high, or not known, there "
        "is no prediction."
    )


def _columns(table: Table, config: Config) -> Iterator[str]:
    columns = tables(config)[table]
    name = max(len(c.name) for c in columns)
    unit = max(len(c.unit) for c in columns)
    yield "#"
    yield f"# Columns of the table {table}: name, unit, meaning"
    for c in columns:
        yield f"#   {c.name:{name}}  {c.unit:{unit}}  {c.formula}"


def _body(data: dict[str, Any]) -> Iterator[str]:
    docs = field_docs(Contract)
    for field in msgspec.structs.fields(Contract):
        name = field.name
        if name in _TABLES or name not in data or not (data[name] or field.required or name not in _NESTED):
            continue
        words = f" One of {', '.join(typing.get_args(field.type))}." if _is_choice(field.type) else ""
        yield from _comment(docs[name] + words)
        if name in _NESTED:
            yield from _meaning(name)
            yield f"{name} = ["
            yield from (f"    {_value(entry)}," for entry in data[name])
            yield "]"
        else:
            yield f"{name} = {_value(data[name])}"
        yield ""
    yield from _comment(docs["errors"])
    if not data["errors"]:
        yield "# unseen_cells = { mae = 1.0, rmse = 1.3, worst = 5.0, coverage90 = 90.0 }"
    yield "[errors]"
    yield from (f"{json.dumps(case)} = {_value(figures)}" for case, figures in data["errors"].items())
    if data.get("fusion"):
        yield ""
        yield from _comment(docs["fusion"])
        yield from _meaning("fusion")
        yield "[fusion]"
        yield from (f"{key} = {_value(value)}" for key, value in data["fusion"].items())


def _is_choice(type_: Any) -> bool:
    return typing.get_origin(type_) is typing.Literal


def _meaning(name: str) -> Iterator[str]:
    for key, text in field_docs(_NESTED[name]).items():
        yield from _comment(f"{key}: {text}", "  ")


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text.replace("`", ""), _WIDTH, initial_indent=f"# {indent}", subsequent_indent=f"# {indent}")


def _value(value: Any) -> str:
    """A value as TOML. A basic string of TOML is one of JSON, but for DEL, which no name has."""
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{key} = {_value(each)}" for key, each in value.items() if each is not None)
        return f"{{ {pairs} }}"
    return repr(value)
