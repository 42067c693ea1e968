"""``voltmill check model.onnx``: all that is wrong with a model file at once, and how to mend it."""

from pathlib import Path
from typing import Any, NamedTuple

from voltmill.flows.choice import table_columns
from voltmill.flows.config import Config
from voltmill.flows.model_trial import try_model
from voltmill.operators.contract import Contract
from voltmill.operators.contract_text import read_contract
from voltmill.operators.model import METADATA_KEY, Model, ModelError, OnnxModel
from voltmill.operators.onnx_file import facts, read_metadata
from voltmill.operators.onnx_model import NO_CONTRACT, open_session, read_model
from voltmill.operators.onnx_shapes import shape_problems

#: A range this wide refuses nothing that a battery could show.
ANYTHING = 1e9


class Checked(NamedTuple):
    """A model file, and what was found; a line each."""

    model: Model | None
    problems: list[str]
    warnings: list[str]
    facts: list[str]


def check_model_file(path: Path, config: Config, data: bytes | None = None) -> Checked:
    """Check a model file and run it on random rows.

    Args:
        path: the file, as the lines name it.
        config: gives the columns of the tables, and the fleet that it may be made for.
        data: its bytes, where they are not on disk yet; None: they are read.
    """
    try:
        data = read_model(path) if data is None else data
    except ModelError as e:
        return Checked(None, [str(e)], [], [])
    contract, problems = _contract(path, data, config)
    try:
        session = open_session(path, data)
    except ModelError as e:
        return Checked(None, [str(e), *problems], [], [])
    problems += [f"{path}: {line}" for line in _shapes(session, contract)]
    if problems:
        return Checked(None, problems, [], [])
    try:
        model = OnnxModel(path, data=data, columns=table_columns(config))
    except ModelError as e:
        return Checked(None, [str(e)], [], [])
    about = facts(data)
    trial = try_model(model, about)
    opsets = ", ".join(f"{name or 'onnx'} {version}" for name, version in about.opsets.items())
    return Checked(
        model,
        [f"{path}: {line}" for line in trial.problems],
        _doubts(model.contract, config) + trial.warnings,
        [*trial.facts, f"IR version {about.ir_version}, operator sets {opsets}"],
    )


def _contract(path: Path, data: bytes, config: Config) -> tuple[Contract | None, list[str]]:
    try:
        text = read_metadata(data, METADATA_KEY)
    except ValueError:
        return None, []  # no model: onnxruntime says so
    if text is None:
        return None, [NO_CONTRACT.format(path=path)]
    contract, problems = read_contract(text, table_columns(config))
    return contract, [f"{path}: {METADATA_KEY}: {line}" for line in problems]


def _shapes(session: Any, contract: Contract | None) -> list[str]:
    return shape_problems(session.get_inputs(), session.get_outputs(), contract)


def _doubts(contract: Contract, config: Config) -> list[str]:
    """What is allowed, and yet a reason to hesitate."""
    found = []
    if not contract.errors:
        found.append("errors: none are given: measure it on data that it never saw, and say its worst")
    for case, figures in contract.errors.items():
        if lacking := [name for name in ("mae", "rmse", "worst") if name not in figures]:
            found.append(f"errors.{case}: without {', '.join(lacking)}")
    for f in contract.features:
        if f.high - f.low >= ANYTHING:
            found.append(
                f"features: {f.name}: {f.low:g} to {f.high:g} refuses nothing: give the range of the training data"
            )
    digest = contract.training_data_sha256
    if len(digest) != 64 or not set(digest.lower()) <= set("0123456789abcdef"):
        found.append("training_data_sha256: 64 hexadecimal digits are wanted, to tell later what it was trained on")
    cells = {entry.cell_type for entry in config.fleet}
    if config.fleet and contract.cell_type not in ("*", *cells):
        found.append(f'cell_type "{contract.cell_type}": no [[fleet]] table has it: no device gets a prediction')
    return found
