"""Contracts as text: decoded with all that is wrong at once, each line with its place and the mend.

Whoever writes a contract by hand would otherwise mend one error, ask again and meet the next.
"""

import difflib
import json
import math
import typing
from collections.abc import Collection, Iterator, Mapping
from types import NoneType, SimpleNamespace
from typing import Any, Final

import msgspec

from voltmill.operators.contract import RULES, Contract

#: Names of the columns of each table a model can be asked about.
Columns = Mapping[str, Collection[str]]

#: What stands in a template where the author has to write something.
BLANK: Final = "?"
_NAMED: Final = 12  # blanks that are named, of many


def read_contract(text: str | bytes, columns: Columns | None = None) -> tuple[Contract | None, list[str]]:
    """The contract that JSON holds.

    Args:
        text: the JSON.
        columns: names of the columns of each table; None: not checked.

    Returns:
        The contract and no problems, or None and one line for each of them.

    Example:
        >>> read_contract('{"kind": "stepp", "colour": 3}')[1][:2]
        ['unknown key "colour"', 'kind: must be one of features, step, window (did you mean "step"?)']
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as e:
        return None, [f"is not JSON: {e}"]
    return contract_from(data, columns)


def contract_from(data: Any, columns: Columns | None = None) -> tuple[Contract | None, list[str]]:
    """The same from values that were read, of a JSON or TOML file.

    Example:
        >>> contract_from([])
        (None, ['is a list: an object with the keys of a contract is wanted'])
    """
    problems = _joined(_problems(data, Contract, ""))
    if isinstance(data, dict):
        problems += _broken_rules(data)
        problems += _unknown_columns(data, columns or {})
    if problems:
        return None, problems
    try:
        return msgspec.convert(data, Contract), []
    except msgspec.ValidationError as e:
        return None, [str(e)]


def unknown_columns(contract: Contract, columns: Columns) -> list[str]:
    """One line for each column that the contract names and its table does not have.

    Args:
        contract: says which table.
        columns: names of the columns of each table.
    """
    return list(_unknown_columns(msgspec.to_builtins(contract), columns))


def did_you_mean(word: object, words: Collection[str]) -> str:
    """``(did you mean "x"?)`` with a space before it, or nothing if no word is near."""
    close = difflib.get_close_matches(str(word).lower(), words, 1)
    return f' (did you mean "{close[0]}"?)' if close else ""


def _unknown_columns(data: dict[str, Any], columns: Columns) -> Iterator[str]:
    table = data.get("table", "features")
    if not isinstance(table, str) or table not in columns:
        return
    for place, what in (("features", "feature"), ("conditions", "column")):
        entries = data.get(place, ())
        for k, entry in enumerate(entries if isinstance(entries, list | tuple) else ()):
            name = entry.get("name") if isinstance(entry, dict) else None
            if isinstance(name, str) and name != BLANK and name not in columns[table]:
                other = _other_column(name, table, columns)
                yield f'{place}[{k}]: no {what} "{name}" in the table {table}: {other}'


def _other_column(name: str, table: str, columns: Columns) -> str:
    elsewhere = [t for t, names in columns.items() if t != table and name in names]
    if elsewhere:
        return f'the table {elsewhere[0]} has it: set table = "{elsewhere[0]}"'
    if close := difflib.get_close_matches(name, columns[table], 3):
        return "did you mean " + " or ".join(f'"{c}"' for c in close) + "?"
    return "take names of that table, which `voltmill models describe` lists"


def _broken_rules(data: dict[str, Any]) -> Iterator[str]:
    """What does not hold between the fields that are themselves right; a rule about a wrong one waits for it."""
    right = SimpleNamespace()
    for field in msgspec.structs.fields(Contract):
        if field.name not in data and not field.required:
            setattr(right, field.name, _default(field))
        elif field.name in data and not any(_problems(data[field.name], field.type, "")):
            setattr(right, field.name, msgspec.convert(data[field.name], field.type))
    for holds, words in RULES:
        try:
            if not holds(typing.cast(Contract, right)):
                yield words
        except AttributeError:
            continue


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def _problems(value: Any, type_: Any, place: str) -> Iterator[str]:
    """What is wrong with a value for itself, and with each part of it."""
    of = typing.get_args(type_)
    if NoneType in of:  # Fusion | None, float | None
        if value is not None:
            yield from _problems(value, of[0], place)
    elif hasattr(type_, "__struct_fields__"):
        yield from _of_struct(value, type_, place)
    elif typing.get_origin(type_) is tuple and hasattr(of[0], "__struct_fields__") and isinstance(value, list):
        for k, each in enumerate(value):
            yield from _of_struct(each, of[0], f"{place}[{k}]")
    elif typing.get_origin(type_) is dict and isinstance(value, dict):
        for key, each in value.items():
            yield from _problems(each, of[1], f"{place}.{key}")
    elif value == BLANK or (isinstance(value, list) and BLANK in value):
        choices = f": one of {', '.join(map(str, of))}" if typing.get_origin(type_) is typing.Literal else ""
        yield _at(place, f'is still "{BLANK}": fill it in{choices}')
    elif isinstance(value, float) and not math.isfinite(value):
        yield _at(
            place, f"is {value}: a finite number is wanted, for JSON has no other; a very large one, if any holds"
        )
    elif typing.get_origin(type_) is typing.Literal and value not in of:
        yield _at(place, f"must be one of {', '.join(map(str, of))}{did_you_mean(value, of)}")
    else:
        yield from _of_value(value, type_, place)


def _joined(problems: Iterator[str]) -> list[str]:
    """All that is still blank on one line; there is much of it in a template."""
    ending = f': is still "{BLANK}": fill it in'
    blank: list[str] = []
    other: list[str] = []
    for line in problems:
        (blank if line.endswith(ending) else other).append(line)
    if len(blank) < 2:
        return other + blank
    places = [line.removesuffix(ending) for line in blank]
    more = f" and {len(places) - _NAMED} more places" if len(places) > _NAMED else ""
    return [*other, f'still "{BLANK}": {", ".join(places[:_NAMED])}{more}: fill them in']


def _of_struct(value: Any, struct: Any, place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        what = "a list" if isinstance(value, list) else json.dumps(value, default=str)
        yield _at(place, f"is {what}: an object with the keys of a {struct.__name__.lower()} is wanted")
        return
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    found = []
    for key in (k for k in value if k not in fields):
        found.append(_at(place, f"unknown key {json.dumps(key, ensure_ascii=False)}{did_you_mean(key, fields)}"))
    for name, field in fields.items():
        if name in value:
            found += _problems(value[name], field.type, f"{place}.{name}" if place else name)
        elif field.required:
            found.append(_at(place, f'the key "{name}" is missing'))
    if not found and place:  # the whole contract is judged by RULES, all of them
        found += _of_value(value, struct, f"{place} ({value['name']})" if "name" in value else place)
    yield from found


def _of_value(value: Any, type_: Any, place: str) -> Iterator[str]:
    try:
        msgspec.convert(value, type_)
    except msgspec.ValidationError as e:
        text, _, inner = str(e).partition(" - at `$")
        yield _at(place + inner.rstrip("`"), text[:1].lower() + text[1:])


def _at(place: str, text: str) -> str:
    return (f"{place}: {text}" if place else text).replace("\n", "\\n")  # a key may hold anything
