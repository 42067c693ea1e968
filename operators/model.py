"""Models: what every one can do, how they are loaded, and which ones there are.

A model turns features in physical units into outputs in its target's unit. An ONNX file that carries
its contract needs only a line of configuration; a Python class with the same members is a model too.
Whatever is wrong with a model is found here, at load, and said in one line.
"""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol, runtime_checkable

from voltmill.operators.contract import Contract, Feature, Fusion, Matrix, Range
from voltmill.operators.contract_text import Columns
from voltmill.operators.onnx_model import METADATA_KEY, ModelError, OnnxModel, check_columns

__all__ = [
    "METADATA_KEY",
    "Choice",
    "Chosen",
    "Columns",
    "Contract",
    "Feature",
    "Fusion",
    "Matrix",
    "Mode",
    "Model",
    "ModelError",
    "OnnxModel",
    "PredictModel",
    "Range",
    "StepModel",
    "check_columns",
    "check_model",
    "discover",
    "load",
]

#: Entry-point group through which other packages bring their models.
GROUP: Final = "voltmill.models"
#: Folder of the models that come with voltmill.
SHIPPED: Final = Path(__file__).parent / "models"

Mode = Literal["live", "shadow", "replay", "fallback"]


@runtime_checkable
class Model(Protocol):
    """Two facts that every model knows; what it computes is in `PredictModel` or `StepModel`.

    One with the attribute ``remote`` set is asked over a network: `estimate` calls it in a thread of
    its own and goes on. Only models of the kind features can be remote.
    """

    @property
    def contract(self) -> Contract:
        """What the model takes, gives and promises."""

    @property
    def sha256(self) -> str:
        """Identity of the model in the key of its predictions: SHA-256, hexadecimal."""


@runtime_checkable
class PredictModel(Model, Protocol):
    """A model of the kind features or window."""

    def predict(self, features: Matrix) -> Matrix:
        """Outputs for a feature matrix.

        Args:
            features: float32 (rows, n features), physical units, in the contract's order; for the kind
                window (rows, window_rows, n features), oldest first.

        Returns:
            float32 (rows, n outputs) in the contract's unit. A row's result depends on that row alone,
            to the bit, whatever batch it stands in: replay relies on it.
        """


@runtime_checkable
class StepModel(Model, Protocol):
    """A model of the kind step."""

    def step(self, features: Matrix, carried: Matrix) -> tuple[Matrix, Matrix]:
        """Outputs for one row of each of several devices, and what is carried to their next rows.

        Args:
            features: float32 (rows, n features), physical units, in the contract's order.
            carried: float32 (rows, state_size), what the device's last row gave; zeros before its first.

        Returns:
            float32 (rows, n outputs) and float32 (rows, state_size). A row depends on itself alone, to the bit.
        """


class Chosen(NamedTuple):
    """A model that runs, and how."""

    model: Model
    mode: Mode
    """live, or replay: its values count. shadow: only compared. fallback: asked where a model that counts failed."""


#: Gives the models of one table that run now; asked again after each snapshot.
Choice = Callable[[], Sequence[Chosen]]


class Discovery(NamedTuple):
    """The models that were found, and why others were not."""

    models: dict[str, Model]
    """By name; ``lg_hg2_soc`` for the file ``lg_hg2_soc.onnx``, else the name of the entry point."""
    problems: list[str]
    """One line for each model that could not be loaded."""


def load(name: str | Path, *, columns: Columns | None = None) -> Model:
    """One model: a shipped one by name, such as ``lg_hg2_soc``, an entry point's by its name, else an ONNX file's.

    Raises:
        ModelError: there is none of the name, or it cannot be used; says why in one line.
    """
    if (shipped := SHIPPED / f"{name}.onnx").is_file():
        return OnnxModel(shipped, columns=columns)
    for point in entry_points(group=GROUP):
        if point.name == str(name):
            return _of_package(point, columns)
    try:
        return OnnxModel(name, columns=columns)
    except ModelError as e:
        known = [*(path.stem for path in SHIPPED.glob("*.onnx")), *(p.name for p in entry_points(group=GROUP))]
        close = [] if Path(name).exists() else get_close_matches(str(name), known, 1)
        if not close:
            raise
        raise ModelError(f'{e} (did you mean "{close[0]}"?)') from e


def discover(*, columns: Columns | None = None) -> Discovery:
    """Every model there is: the shipped ones, then those of the entry-point group ``voltmill.models``.

    An entry point names a model, the path of an ONNX file, or a function without arguments that
    returns either. One that fails is reported and takes no other with it.

    Args:
        columns: names of the columns of each table; None: not checked.
    """
    found = Discovery({}, [])
    sources: list[tuple[str, Callable[[], Model]]] = [
        *((path.stem, partial(OnnxModel, path, columns=columns)) for path in sorted(SHIPPED.glob("*.onnx"))),
        *((p.name, partial(_of_package, p, columns)) for p in sorted(entry_points(group=GROUP), key=lambda p: p.name)),
    ]
    for name, get in sources:
        try:
            found.models[name] = get()
        except ModelError as e:
            found.problems.append(str(e))
    return found


def check_model(name: str, what: object) -> Model:
    """The object, if it has what its kind of model needs; ModelError if not."""
    if not isinstance(what, Model) or not isinstance(what.contract, Contract):
        raise ModelError(f"{name}: {type(what).__name__} is no model: give it contract and sha256")
    needs = "step" if what.contract.kind == "step" else "predict"
    if not callable(getattr(what, needs, None)):
        raise ModelError(f"{name}: {type(what).__name__} is of kind {what.contract.kind}: give it the method {needs}")
    if getattr(what, "remote", False) and what.contract.kind != "features":
        raise ModelError(f"{name}: a remote model of kind {what.contract.kind}: only the kind features can be remote")
    return what


def _of_package(point: EntryPoint, columns: Columns | None) -> Model:
    try:
        what = point.load()
        what = what if isinstance(what, (str, Path, Model)) and not isinstance(what, type) else what()
    except Exception as e:  # foreign code: whatever it raises is the fault of that model alone
        raise ModelError(f"entry point {GROUP}: {point.name}: {type(e).__name__}: {e}") from e
    if isinstance(what, (str, Path)):
        return OnnxModel(what, columns=columns)
    model = check_model(point.name, what)
    check_columns(point.name, model.contract, columns)
    return model
