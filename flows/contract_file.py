"""Contracts as files beside a model: written to be edited, and stored in the model once they hold."""

import json
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from voltmill.flows.choice import Table, table_columns
from voltmill.flows.config import Config
from voltmill.flows.contract_template import as_toml, template
from voltmill.flows.model_check import Checked, check_model_file
from voltmill.operators.contract_text import contract_from, read_contract
from voltmill.operators.model import METADATA_KEY, ModelError
from voltmill.operators.onnx_file import read_metadata, write_metadata
from voltmill.operators.onnx_model import open_session, read_model
from voltmill.operators.onnx_shapes import shape_problems


def describe_model(file: Path, out: Path, config: Config, table: Table) -> tuple[str, list[str], bool]:
    """The contract of a model as text, TOML or JSON by the ending of ``out``; a template if it has none.

    Returns:
        The text, what must be mended in the model itself, and whether the model had a contract.

    Raises:
        ModelError: the file cannot be read or run, or its contract is wrong.
    """
    data = read_model(file)
    session = open_session(file, data)
    text = read_metadata(data, METADATA_KEY)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if text is None:
        if out.suffix == ".json":
            raise ModelError(f"{out}: a template has comments, and JSON none: write it to a .toml file")
        draft = template(file.stem, inputs, outputs, table)
        return as_toml(draft, str(file), str(out), config), shape_problems(inputs, outputs, None), False
    contract, problems = read_contract(text)
    if contract is None:
        raise ModelError(f"{file}: {METADATA_KEY}: {problems[0]}: `voltmill check` tells all; -o and attach replace it")
    notes = shape_problems(inputs, outputs, contract)
    if out.suffix == ".json":
        return msgspec.json.format(msgspec.json.encode(contract)).decode() + "\n", notes, True
    return as_toml(contract, str(file), str(out), config), notes, True


def attach_contract(file: Path, contract: Path, out: Path, config: Config) -> Checked:
    """Store an edited contract in a copy of the model, or in the model itself; only if the two hold together.

    Args:
        file: the ONNX file.
        contract: TOML or JSON.
        out: where the model with its contract goes; it is replaced at once, never half written.
        config: gives the columns of the tables.

    Returns:
        What was found; ``out`` is written if there are no problems.

    Raises:
        ModelError: a file cannot be read.
    """
    found, problems = contract_from(_read(contract), table_columns(config))
    if found is None or problems:
        return Checked(None, [f"{contract}: {line}" for line in problems], [], [])
    data = read_model(file)
    try:
        data = write_metadata(data, METADATA_KEY, msgspec.json.encode(found).decode())
    except ValueError:
        open_session(file, data)  # it says what is wrong
        raise
    checked = check_model_file(file, config, data)
    if not checked.problems:
        _replace(out, data, file)
    return checked


def _read(path: Path) -> Any:
    try:
        text = path.read_text("utf-8-sig")
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as e:
        raise ModelError(f"{path}: cannot be read ({e.strerror}): name the contract of the model") from None
    except UnicodeDecodeError as e:
        raise ModelError(f"{path}: not UTF-8: byte {e.start}") from None
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{path}: not {'JSON' if path.suffix == '.json' else 'TOML'}: {e}") from None


def _replace(path: Path, data: bytes, like: Path) -> None:
    """Write a file beside its place and move it there: a flow that looks at the folder finds the old one or the new."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        shutil.copymode(like, beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
