"""OnnxModel: an ONNX file with its contract inside, run by onnxruntime on one thread.

One thread, because a flow scales by workers and a second thread would change neither the result nor
the cost of a row. Batches are filled up to a multiple of 16 rows: Log, Softplus, Sin and others compute what
does not fill a register by another formula, and a product of one row is a routine of its own with its own
order of sums, so that without it the last bits of a row would depend on the batch it stands in.
"""

import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from voltmill.operators.contract import Contract, Matrix
from voltmill.operators.contract_text import Columns, read_contract, unknown_columns
from voltmill.operators.onnx_file import facts, read_metadata
from voltmill.operators.onnx_shapes import shape_problems, shape_text, wanted_inputs, wanted_outputs

#: Key of the contract in the metadata of an ONNX file.
METADATA_KEY: Final = "voltmill.contract"
#: Rows per run: an MLP's activations then stay in the cache, and memory does not grow with the batch.
CHUNK_ROWS: Final = 4096
#: Rows that fill a whole number of registers of AVX-512 in each column; CHUNK_ROWS is a multiple of it.
FILLED_ROWS: Final = 16
_TRIED: Final = 3
NO_CONTRACT: Final = (
    f'{{path}}: has no contract (JSON in metadata_props["{METADATA_KEY}"]): '
    "`voltmill models describe {path}` writes a template for it"
)


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

    def __init__(self, path: str | Path, *, columns: Columns | None = None, data: bytes | None = None) -> None:
        """Load and check.

        Args:
            path: the ONNX file.
            columns: names of the columns of each table; None: not checked here.
            data: what the file holds, if it is not written yet; None: it is read.

        Raises:
            ModelError: the file is no model that voltmill can use; says why in one line.
        """
        data = read_model(path) if data is None else data
        self.sha256: str = hashlib.sha256(data).hexdigest()
        session = open_session(path, data)
        self.contract: Contract = _contract(path, data, columns)
        if problems := shape_problems(session.get_inputs(), session.get_outputs(), self.contract):
            raise ModelError(_first(path, problems))
        self._session = session
        self._inputs = [str(node.name) for node in session.get_inputs()]
        self._offset = np.array([f.offset for f in self.contract.features], np.float32)
        self._scale = np.array([f.scale for f in self.contract.features], np.float32)
        self._try_once(path)

    def predict(self, features: Matrix) -> Matrix:
        """Outputs for a feature matrix, or for windows: see `Model.predict`."""
        return self._run(self._scaled(features))[0]

    def step(self, features: Matrix, carried: Matrix) -> tuple[Matrix, Matrix]:
        """Outputs and what is carried on: see `StepModel.step`."""
        out, on = self._run(self._scaled(features), np.ascontiguousarray(carried))
        return out, on

    def _run(self, *given: Matrix) -> list[Matrix]:
        """The outputs, in pieces of CHUNK_ROWS."""
        rows = len(given[0])
        out = [np.empty((rows, *shape), np.float32) for shape in wanted_outputs(self.contract)]
        for start in range(0, rows, CHUNK_ROWS):
            part = slice(start, min(start + CHUNK_ROWS, rows))
            pieces = [_filled(each[part]) for each in given]
            found = self._session.run(None, dict(zip(self._inputs, pieces, strict=True)))
            for whole, piece in zip(out, found, strict=True):
                whole[part] = piece[: part.stop - start]
        return out

    def _scaled(self, features: Matrix) -> Matrix:
        scaled: Matrix = (features - self._offset) / self._scale
        return scaled

    def _try_once(self, path: str | Path) -> None:
        """Three rows of zeros: what they give shows the dimensions that the file leaves open."""
        given = {
            name: np.zeros((_TRIED, *shape), np.float32)
            for name, shape in zip(self._inputs, wanted_inputs(self.contract), strict=True)
        }
        try:
            found = self._session.run(None, given)
        except Exception as e:  # onnxruntime raises a dozen classes of its own
            raise ModelError(f"{path}: cannot compute {_TRIED} rows: export it anew ({_reason(e)})") from e
        for k, (got, shape) in enumerate(zip(found, wanted_outputs(self.contract), strict=True)):
            if got.shape != (_TRIED, *shape):
                raise ModelError(
                    f'{path}: output "{self._session.get_outputs()[k].name}": {_TRIED} rows give {got.shape}, the '
                    f"contract says {shape_text(shape)}: a row in, a row out"
                )


def _filled(rows: Matrix) -> Matrix:
    """The rows, and the last of them again up to a multiple of FILLED_ROWS."""
    more = -len(rows) % FILLED_ROWS
    return np.concatenate([rows, np.repeat(rows[-1:], more, axis=0)]) if more else rows


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
    if outside := _weights_elsewhere(data):  # onnxruntime would look for them in the working directory
        raise ModelError(
            f"{path}: its weights are in another file, {outside}, which its SHA-256 does not cover: export it as one "
            "file (torch.onnx.export: external_data=False)"
        )
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime raises a dozen classes of its own
        raise ModelError(f"{path}: not a model that onnxruntime can run: {_mend(str(e))} ({_reason(e)})") from e


def _weights_elsewhere(data: bytes) -> str:
    try:
        return facts(data).external
    except ValueError:
        return ""  # it is no model: onnxruntime says so


def check_columns(place: str, contract: Contract, columns: Columns | None) -> None:
    """Whether the table that the contract names has every column it reads; ModelError if not."""
    if columns is not None and (unknown := unknown_columns(contract, columns)):
        raise ModelError(_first(place, unknown))


def _contract(path: str | Path, data: bytes, columns: Columns | None) -> Contract:
    try:
        text = read_metadata(data, METADATA_KEY)
    except ValueError as e:
        raise ModelError(f"{path}: not a model that onnxruntime can run: export it anew ({e})") from e
    if text is None:
        raise ModelError(NO_CONTRACT.format(path=path))
    contract, problems = read_contract(text, columns)
    if contract is None:
        raise ModelError(_first(path, [f"{METADATA_KEY}: {line}" for line in problems]))
    return contract


def _first(place: str | Path, problems: list[str]) -> str:
    more = f" (and {len(problems) - 1} more: `voltmill check` tells all)" if len(problems) > 1 else ""
    return f"{place}: {problems[0]}{more}"


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:160]


def _mend(reason: str) -> str:
    """What to do about what onnxruntime says."""
    if "IR version" in reason or "opset" in reason.lower():
        return (
            f"it is newer than onnxruntime {ort.__version__} knows: export it with an older target_opset, or install a "
            "newer onnxruntime"
        )
    if "No Op registered" in reason or "is not a registered function/op" in reason or "NOT_IMPLEMENTED" in reason:
        return "it has an operator that onnxruntime does not: export it with operators of the standard set"
    return "export it anew"
