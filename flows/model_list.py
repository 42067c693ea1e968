"""``voltmill models``: every model that is found, where it is from, and what the configuration makes of it."""

from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

from voltmill.flows.choice import load_entry, table_columns
from voltmill.flows.config import Config
from voltmill.flows.metrics import Metrics
from voltmill.operators.model import GROUP, SHIPPED, Columns, Model, ModelError, OnnxModel, discover


class Listed(NamedTuple):
    """A model that was found."""

    name: str
    model: Model
    origin: str
    """shipped, package (an entry point), folder (``[models] folder``), file or endpoint (a ``[[model]]``)."""
    file: str
    """Of a package what its entry point names; of an endpoint its URL."""
    mode: str
    """live, shadow or fallback; empty: no ``[[model]]`` names it."""


def list_models(config: Config) -> tuple[list[Listed], list[str]]:
    """All models, and one line for each that cannot be used.

    Args:
        config: names models, and the folder of others.
    """
    columns = table_columns(config)
    found = discover(columns=columns)
    problems = list(found.problems)
    modes: dict[str, str] = {entry.name: entry.mode for entry in config.model}
    in_folder = dict(_of_folder(config, columns, modes, problems))
    listed = [
        # A file in the folder stands in for another model of its name.
        Listed(name, model, *_origin(name), "" if name in in_folder else modes.get(name, ""))
        for name, model in found.models.items()
    ]
    listed += in_folder.values()
    for entry in config.model:
        if entry.name in in_folder or (entry.name in found.models and not entry.endpoint):
            continue
        try:
            model = load_entry(entry, columns, Metrics())
            where = ("endpoint", entry.endpoint.url) if entry.endpoint else ("file", entry.name)
            listed.append(Listed(entry.name, model, *where, entry.mode))
        except ModelError as e:
            problems.append(f"[[model]] {e}")
    return listed, problems


def _origin(name: str) -> tuple[str, str]:
    shipped = SHIPPED / f"{name}.onnx"
    if shipped.is_file():
        return "shipped", str(shipped)
    return "package", next((point.value for point in entry_points(group=GROUP) if point.name == name), "")


def _of_folder(
    config: Config, columns: Columns, modes: dict[str, str], problems: list[str]
) -> Iterator[tuple[str, Listed]]:
    if not config.models.folder:
        return
    for path in sorted(Path(config.models.folder).glob("*.onnx")):
        try:
            model = OnnxModel(path, columns=columns)
        except ModelError as e:
            problems.append(str(e))
        else:
            yield path.stem, Listed(path.stem, model, "folder", str(path), modes.get(path.stem, "shadow"))
