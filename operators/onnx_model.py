"""OnnxModel: an ONNX file with its contract inside, run by onnxruntime on one thread.

One thread, because a flow scales by workers and a second thread would change neither the result nor
the cost of a row. No padding of small batches: with one thread, onnxruntime computes each row of a
dense network in the same order at every batch size (the conformance suite asserts it of every model).
"""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnxruntime as ort

from voltmill.operators.contract import Contract, Matrix

#: Key of the contract in the metadata of an ONNX file.
METADATA_KEY: Final = "voltmill.contract"
#: Rows per run: an MLP's activations then stay in the cache, and memory does not grow with the batch.
CHUNK_ROWS: Final = 4096

#: Names of the columns of each table a model can be asked about.
Columns = Mapping[str, Collection[str]]


class ModelError(ValueError):
    """A model cannot be used; the message is one line: the thing, the place, the mend."""


class OnnxModel:
    """A model from an ONNX file.

    Example:
        >>> from voltmill.operators.model import SHIPPED
        >>> model = OnnxModel(SHIPPED / "lg_hg2_soc.onnx")
        >>> model.contract.target, model.contract.unit, model.contract.outputs
        ('soc', 'percent', ('value', 'laplace_scale'))
    """

    def __init__(self, path: str | Path, *, columns: Columns | None = None) -> None:
        """Load and check.

        Args:
            path: the ONNX file.
            columns: names of the columns of each table; None: not checked here.

        Raises:
            ModelError: the file is no model that voltmill can use; says why in one line.
        """
        data = read_model(path)
        self.sha256: str = hashlib.sha256(data).hexdigest()
        session = open_session(path, data)
        self.contract: Contract = _contract(path, session)
        check_columns(str(path), self.contract, columns)
        self._inputs = _check_shapes(path, session, self.contract)
        self._session = session
        self._offset = np.array([f.offset for f in self.contract.features], np.float32)
        self._scale = np.array([f.scale for f in self.contract.features], np.float32)

    def predict(self, features: Matrix) -> Matrix:
        """Outputs for a feature matrix, or for windows: see `Model.predict`."""
        out = np.empty((len(features), len(self.contract.outputs)), np.float32)
        for start in range(0, len(features), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            out[rows] = self._session.run(None, {self._inputs[0]: self._scaled(features[rows])})[0]
        return out

    def step(self, features: Matrix, carried: Matrix) -> tuple[Matrix, Matrix]:
        """Outputs and what is carried on: see `StepModel.step`."""
        out = np.empty((len(features), len(self.contract.outputs)), np.float32)
        on = np.empty_like(carried)
        for start in range(0, len(features), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            given = (self._scaled(features[rows]), np.ascontiguousarray(carried[rows]))
            out[rows], on[rows] = self._session.run(None, dict(zip(self._inputs, given, strict=True)))
        return out, on

    def _scaled(self, features: Matrix) -> Matrix:
        scaled: Matrix = (features - self._offset) / self._scale
        return scaled


def read_model(path: str | Path) -> bytes:
    """The bytes of a model file; ModelError if there are none."""
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise ModelError(f"{path}: cannot be read ({e.strerror}): name an ONNX file") from e


def open_session(path: str | Path, data: bytes) -> Any:
    """The file in onnxruntime; ModelError if it cannot be run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what is wrong is raised below, in one line
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime raises a dozen classes of its own
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ModelError(f"{path}: not a model that onnxruntime can run: export it anew ({reason[:160]})") from e


def check_columns(place: str, contract: Contract, columns: Columns | None) -> None:
    """Whether the table that the contract names has every column it reads; ModelError if not."""
    known = () if columns is None else columns[contract.table]
    if columns is not None and (unknown := [name for name in contract.columns if name not in known]):
        raise ModelError(
            f'{place}: features: no feature "{unknown[0]}" in the table {contract.table}: take names of that table'
        )


def _contract(path: str | Path, session: Any) -> Contract:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise ModelError(
            f'{path}: has no contract (JSON in metadata_props["{METADATA_KEY}"]): '
            "`voltmill models describe` writes a template for it"
        )
    try:
        return msgspec.json.decode(text, type=Contract)
    except (msgspec.ValidationError, msgspec.DecodeError) as e:
        raise ModelError(f"{path}: {METADATA_KEY}: {e}") from e


def _check_shapes(path: str | Path, session: Any, contract: Contract) -> list[str]:
    """The names of the inputs, once shapes and types of inputs and outputs are what the contract says."""
    n, m, carried = len(contract.features), len(contract.outputs), contract.state_size
    inputs, outputs = session.get_inputs(), session.get_outputs()
    wanted_in = [(contract.window_rows, n)] if contract.kind == "window" else [(n,)]
    wanted_out = [(m,)]
    if contract.kind == "step":
        wanted_in, wanted_out = [*wanted_in, (carried,)], [*wanted_out, (carried,)]
    for what, nodes, wanted in (("input", inputs, wanted_in), ("output", outputs, wanted_out)):
        # A number in the first place is a fixed batch size; a free one is a name or None.
        fits = len(nodes) == len(wanted) and all(
            node.type == "tensor(float)"
            and len(node.shape) == 1 + len(shape)
            and not isinstance(node.shape[0], int)
            and tuple(node.shape[1:]) == shape
            for node, shape in zip(nodes, wanted, strict=True)
        )
        if not fits:
            found = [(node.type, node.shape) for node in nodes]
            needs = " and ".join(f"(any number of rows, {', '.join(map(str, shape))})" for shape in wanted)
            raise ModelError(
                f"{path}: {what}: found {found}: the contract (kind {contract.kind}, {n} features, {m} outputs) "
                f"needs tensor(float) of {needs}"
            )
    return [str(node.name) for node in inputs]
