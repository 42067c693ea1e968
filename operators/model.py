"""Models: what every one can do (`Model`), how they are loaded, and which ones there are.

A model turns a feature matrix in physical units into outputs in its target's unit. An ONNX file that
carries its contract needs only a line of configuration; a Python class with the same three members is
a model too. Whatever is wrong with a model is found here, at load, and said in one line.
"""

import hashlib
from collections.abc import Collection
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from voltmill.operators.contract import Contract, Feature, Fusion

__all__ = ["Contract", "Feature", "Fusion", "Model", "ModelError", "OnnxModel", "discover", "load"]

Matrix = npt.NDArray[np.float32]

#: Key of the contract in the metadata of an ONNX file.
METADATA_KEY: Final = "voltmill.contract"
#: Entry-point group through which other packages bring their models.
GROUP: Final = "voltmill.models"
#: Folder of the models that come with voltmill.
SHIPPED: Final = Path(__file__).parent / "models"
#: Rows per run: an MLP's activations then stay in the cache, and memory does not grow with the batch.
CHUNK_ROWS: Final = 4096


class ModelError(ValueError):
    """A model cannot be used; the message is one line: the thing, the place, the mend."""


@runtime_checkable
class Model(Protocol):
    """What `estimate` needs: two facts and one function without state."""

    @property
    def contract(self) -> Contract:
        """What the model takes, gives and promises."""

    @property
    def sha256(self) -> str:
        """Identity of the model in the key of its predictions: SHA-256, hexadecimal."""

    def predict(self, features: Matrix) -> Matrix:
        """Outputs for a feature matrix.

        Args:
            features: float32 (rows, n features), physical units, in the contract's order.

        Returns:
            float32 (rows, n outputs) in the contract's unit. A row's result depends on that row alone,
            to the bit, whatever batch it stands in: replay relies on it.
        """


class OnnxModel:
    """An ONNX file with its contract inside, run by onnxruntime on one thread.

    One thread, because a flow scales by workers and a second thread would change neither the result
    nor the cost of a row. No padding of small batches: with one thread, onnxruntime computes each row
    of a dense network in the same order at every batch size (the conformance suite asserts it).

    Example:
        >>> model = OnnxModel(SHIPPED / "lg_hg2_soc.onnx")
        >>> model.contract.target, model.contract.unit, model.contract.outputs
        ('soc', 'percent', ('value', 'laplace_scale'))
    """

    def __init__(self, path: str | Path, *, known_features: Collection[str] | None = None) -> None:
        """Load and check.

        Args:
            path: the ONNX file.
            known_features: names of the feature table; None: not checked here.

        Raises:
            ModelError: the file is no model that voltmill can use; says why in one line.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as e:
            raise ModelError(f"{path}: cannot be read ({e.strerror}): name an ONNX file") from e
        self.sha256: str = hashlib.sha256(data).hexdigest()
        session = _session(path, data)
        self.contract: Contract = _contract(path, session)
        _check_names(str(path), self.contract, known_features)
        self._input = _check_shapes(path, session, self.contract)
        self._session = session
        self._offset = np.array([f.offset for f in self.contract.features], np.float32)
        self._scale = np.array([f.scale for f in self.contract.features], np.float32)

    def predict(self, features: Matrix) -> Matrix:
        """Outputs for a feature matrix: see `Model.predict`."""
        out = np.empty((len(features), len(self.contract.outputs)), np.float32)
        for start in range(0, len(features), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            scaled = (features[rows] - self._offset) / self._scale
            out[rows] = self._session.run(None, {self._input: scaled})[0]
        return out


def _session(path: str | Path, data: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what is wrong is raised below, in one line
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime raises a dozen classes of its own
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ModelError(f"{path}: not a model that onnxruntime can run: export it anew ({reason[:160]})") from e


def _contract(path: str | Path, session: Any) -> Contract:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise ModelError(f'{path}: has no contract: store it as JSON in metadata_props["{METADATA_KEY}"]')
    try:
        contract = msgspec.json.decode(text, type=Contract)
    except (msgspec.ValidationError, msgspec.DecodeError) as e:
        raise ModelError(f"{path}: {METADATA_KEY}: {e}") from e
    if contract.kind != "features":
        raise ModelError(f'{path}: kind "{contract.kind}" is not yet supported: make it a model of kind "features"')
    return contract


def _check_names(place: str, contract: Contract, known: Collection[str] | None) -> None:
    unknown = [] if known is None else [name for name in contract.feature_names if name not in known]
    if unknown:
        raise ModelError(f'{place}: features: no feature "{unknown[0]}": take names of the feature table')


def _check_shapes(path: str | Path, session: Any, contract: Contract) -> str:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    places = (
        ("input", inputs, len(contract.features), "features"),
        ("output", outputs, len(contract.outputs), "outputs"),
    )
    for what, nodes, width, names in places:
        found = [(n.type, n.shape) for n in nodes]
        # A number in the first place is a fixed batch size; a free one is a name or None.
        fits = len(nodes) == 1 and nodes[0].type == "tensor(float)" and len(nodes[0].shape) == 2
        if not fits or isinstance(nodes[0].shape[0], int) or nodes[0].shape[1] != width:
            raise ModelError(
                f"{path}: {what}: found {found}: needs one tensor(float) of (any number of rows, {width} {names})"
            )
    return str(inputs[0].name)


class Discovery(NamedTuple):
    """The models that were found, and why others were not."""

    models: dict[str, Model]
    """By name; ``lg_hg2_soc`` for the file ``lg_hg2_soc.onnx``, else the name of the entry point."""
    problems: list[str]
    """One line for each model that could not be loaded."""


def load(path: str | Path, *, known_features: Collection[str] | None = None) -> Model:
    """The model of an ONNX file, or of the shipped name such as ``lg_hg2_soc``.

    Raises:
        ModelError: see `OnnxModel`.
    """
    shipped = SHIPPED / f"{path}.onnx"
    return OnnxModel(shipped if shipped.is_file() else path, known_features=known_features)


def discover(*, known_features: Collection[str] | None = None) -> Discovery:
    """Every model there is: the shipped ones, then those of the entry-point group ``voltmill.models``.

    An entry point names a model, the path of an ONNX file, or a function without arguments that
    returns either. One that fails is reported and takes no other with it.
    """
    found = Discovery({}, [])
    for path in sorted(SHIPPED.glob("*.onnx")):
        _add(found, path.stem, path, known_features)
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        try:
            what = point.load()
            what = what if isinstance(what, (str, Path, Model)) and not isinstance(what, type) else what()
        except Exception as e:  # foreign code: whatever it raises must not stop the others
            found.problems.append(f"entry point {GROUP}: {point.name}: {type(e).__name__}: {e}")
            continue
        _add(found, point.name, what, known_features)
    return found


def _add(found: Discovery, name: str, what: object, known: Collection[str] | None) -> None:
    try:
        model = OnnxModel(what, known_features=known) if isinstance(what, (str, Path)) else what
        if not isinstance(model, Model) or not isinstance(model.contract, Contract):
            raise ModelError(f"{name}: {type(what).__name__} is no model: give it contract, sha256 and predict")
        _check_names(name, model.contract, known)
    except ModelError as e:
        found.problems.append(str(e))
    else:
        found.models[name] = model
