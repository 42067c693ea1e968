"""``voltmill check``: what is wrong with a file, or with a connection that it names, and how to mend it."""

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from voltmill.connectors.probe import Finding
from voltmill.flows.checking_connections import by_default, named, tried
from voltmill.flows.choice import Models
from voltmill.flows.config import Config, ConfigError, load
from voltmill.flows.model_check import check_model_file
from voltmill.flows.model_text import described
from voltmill.kernels.fleet import FleetEntry
from voltmill.operators.dialects import SHIPPED
from voltmill.operators.mapping import fit
from voltmill.operators.model import Chosen
from voltmill.operators.sharing import serves

Findings = tuple[list[str], list[str]]
"""Problems, and what else there is to say, a line each."""


@dataclass(frozen=True)
class Checked:
    """What came of a check, a line each.

    Attributes:
        problems: of the file itself: it cannot be used as it is.
        report: what else there is to say of it.
        connections: what came of trying the connections that it names.
    """

    problems: list[str]
    report: list[str]
    connections: Iterable[Finding] = ()


def check_file(file: Path, config: Config, *, offline: bool = False) -> Checked:
    """Check a configuration, a sample message or a model file, by the ending of its name.

    Args:
        file: what is checked.
        config: what a message or a model is checked against.
        offline: the connections that a configuration names are not tried.
    """
    if file.suffix == ".toml":
        return _configuration(file, offline)
    return Checked(*(_model if file.suffix == ".onnx" else _message)(file, config))


def _configuration(file: Path, offline: bool) -> Checked:
    try:
        config = load(file)
    except ConfigError as e:
        return Checked([str(e)], [])
    try:
        if config.mqtt.tls:
            config.mqtt.tls.context()
        models = Models(config)
        found = models.current()
    except ValueError as e:  # of files that it names
        return Checked([f"{file}: {e}"], [])
    report = [f"{file}: good", *models.problems]
    if not config.fleet and not config.gateway.connection_string:  # a gateway knows no devices
        report.append("no [[fleet]] table: every device is unknown and gets no prediction")
    cells = {model.contract.cell_type for model, _ in found}
    for entry in config.fleet:
        place = f'[[fleet]] match = "{entry.match}"'
        if not cells & {entry.cell_type, "*"}:
            report.append(f'{place}: no model was made for cell type "{entry.cell_type}": no predictions')
        elif not entry.capacity_ah:
            report.append(f"{place}: capacity_ah is not set: no predictions")
        elif blind := _without_capacity(found, entry):
            report.append(f"{place}: operating_volt is not set: no capacity is measured, no values of {blind}")
        report += [f"{place}: {line}" for line in _side_by_side(found, entry)]
    if config.run.source == "mqtt" and config.iothub != Config().iothub:
        report.append('[iothub] is not read from: set [run] source = "iothub"')
    tables = tomllib.loads(file.read_text("utf-8-sig"))
    if unnamed := by_default(tables, config):
        report.append(unnamed)
    return Checked([], report, () if offline else tried(named(tables, config)))


def _without_capacity(found: Sequence[Chosen], entry: FleetEntry) -> str:
    """Models that go by measured capacities, which take the voltages of empty and full, where none are given."""
    if any(entry.operating_volt):
        return ""
    contracts = [model.contract for model, _ in found if serves(model.contract, entry)]
    return ", ".join(each.name for each in contracts if "measured_capacity_ah" in each.feature_names)


def _side_by_side(found: Sequence[Chosen], entry: FleetEntry) -> Iterator[str]:
    """Targets for which more than one model counts."""
    by_target: dict[str, list[str]] = {}
    for model, mode in found:
        if mode == "live" and serves(model.contract, entry):
            by_target.setdefault(model.contract.target, []).append(model.contract.name)
    for target, names in by_target.items():
        if len(names) > 1:
            yield f"{target}: {' and '.join(names)} both count, others go on from {names[0]}: set mode of the rest"


def _message(file: Path, config: Config) -> Findings:
    try:
        payload = file.read_bytes()
    except OSError as e:
        return [f"{file}: cannot be read: {e.strerror}"], []
    found = fit(payload, mappings={**SHIPPED, **config.mapping}, settings=config.decode)
    if fitting := [f.mapping for f in found if not f.problems]:
        return [], [f"{file}: fits the mapping {fitting[0]}", *(f"  it also fits {name}" for name in fitting[1:])]
    best = found[0]
    return [f"{file}: fits no mapping; nearest is {best.mapping}:", *(f"  {line}" for line in best.problems)], []


def _model(file: Path, config: Config) -> Findings:
    checked = check_model_file(file, config)
    report = [f"warning: {line}" for line in checked.warnings]
    if checked.model is None:
        return checked.problems, report
    about = [*described(file.stem, checked.model), *(f"  {line}" for line in checked.facts)]
    return checked.problems, [*about, *report] if checked.problems else [f"{file}: good", *about, *report]
