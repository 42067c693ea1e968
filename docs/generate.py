"""Regenerates the tables of the documentation that come from the code.

    python docs/generate.py             rewrite what lies between the markers of docs/*.md
    python docs/generate.py --check     change nothing; name what is out of date, exit status 1 if anything is

A part of a page looks so; its name is a key of ``PARTS``:

    <!-- generated: NAME -->
    ...
    <!-- end -->
"""

import json
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import click
import msgspec
import typer
from prometheus_client import Counter, Gauge, Histogram

from voltmill.connectors.endpoint import EndpointSettings
from voltmill.connectors.gateway_settings import GatewaySettings
from voltmill.connectors.iothub_settings import IotHubSettings
from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.mqtt_settings import MqttSettings, TlsSettings
from voltmill.connectors.notify_places import HubSettings, NotifyMqttSettings, WebhookSettings
from voltmill.connectors.notify_settings import NotifySettings
from voltmill.connectors.redrive import RedriveSettings
from voltmill.connectors.sql import SqlSettings
from voltmill.flows.cli import app
from voltmill.flows.config import ArchiveSettings, ModelEntry, ModelsSettings, RunSettings
from voltmill.flows.field_docs import field_docs, plain
from voltmill.flows.gateway_metrics import GatewayMetrics
from voltmill.flows.metrics import Metrics
from voltmill.flows.metrics_server import Served
from voltmill.flows.simulate_settings import FaultSettings, SimulateSettings
from voltmill.kernels import (
    feature_table,
    features,
    fusion,
    health,
    health_table,
    quality,
    session_state,
    session_table,
)
from voltmill.kernels.fleet import FleetEntry, Limits
from voltmill.kernels.schema import REFUSED, SCHEMAS, TELEMETRY, Quality, describe
from voltmill.operators.contract import Contract, Fusion, Range
from voltmill.operators.contract import Feature as ContractFeature
from voltmill.operators.features import FeatureSettings
from voltmill.operators.health import HealthSettings
from voltmill.operators.mapping_spec import Column, MappingSpec
from voltmill.operators.model import discover
from voltmill.operators.quality import QualitySettings
from voltmill.operators.sample import DecodeSettings
from voltmill.operators.sessions import SessionSettings

_MODELS: Final = discover().models
DOCS: Final = Path(__file__).parent
_PART: Final = re.compile(r"(<!-- generated: ([\w. ]+) -->\n)(?:(?!<!-- ).)*(<!-- end -->)", re.DOTALL)

_AVERAGES: Final = feature_table.INSTANT + 3 * len(feature_table.TAUS)  # the windows begin after them

#: Place in the configuration file -> the struct it is decoded into.
TABLES: Final[dict[str, type[msgspec.Struct]]] = {
    "run": RunSettings,
    "mqtt": MqttSettings,
    "mqtt.tls": TlsSettings,
    "iothub": IotHubSettings,
    "gateway": GatewaySettings,
    "decode": DecodeSettings,
    "mapping.NAME": MappingSpec,
    "mapping.NAME.columns": Column,
    "quality": QualitySettings,
    "features": FeatureSettings,
    "sessions": SessionSettings,
    "health": HealthSettings,
    "[model]": ModelEntry,
    "model.endpoint": EndpointSettings,
    "models": ModelsSettings,
    "[fleet]": FleetEntry,
    "fleet.limits": Limits,
    "archive": ArchiveSettings,
    "lake": LakeSettings,
    "redrive": RedriveSettings,
    "sql": SqlSettings,
    "[notify]": NotifySettings,
    "notify.webhook": WebhookSettings,
    "notify.notification_hubs": HubSettings,
    "notify.mqtt": NotifyMqttSettings,
    "simulate": SimulateSettings,
    "simulate.faults": FaultSettings,
}


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table whose columns line up as text, but for the last, which is as long as it is."""
    escaped = [tuple(cell.replace("|", "\\|") for cell in row) for row in [header, *rows]]
    widths = [max(len(row[k]) for row in escaped) for k in range(len(header) - 1)]
    lines = ["| " + " | ".join([*map(str.ljust, row, widths), row[-1]]) + " |" for row in escaped]
    lines.insert(1, "|" + "|".join(["-" * (w + 2) for w in widths] + ["---"]) + "|")
    return "\n".join(lines)


def settings(struct: type[msgspec.Struct]) -> str:
    """The keys of a table of the configuration, with their defaults and docstrings."""
    docs = field_docs(struct)
    rows = []
    for field in msgspec.structs.fields(struct):
        default = "" if isinstance(field.default, msgspec.Struct) else _toml(_default(field))
        rows.append((f"`{field.name}`", default, docs[field.name] or _borrowed(struct, field.name)))
    return table(("key", "default", "meaning"), rows)


def _borrowed(struct: type[msgspec.Struct], name: str) -> str:
    """What is said elsewhere of a field without words of its own."""
    if struct is Limits:  # one name everywhere: the limits of a column bear the column's name
        doc = TELEMETRY.field(name).metadata[b"doc"].decode()
        return f"lowest and highest that is believed of: {doc.split(';')[0]}"
    if struct is FleetEntry and name == "limits":
        return "The table `[fleet.limits]`: the readings that are believed."
    raise ValueError(f"{struct.__name__}.{name} has no docstring")


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else msgspec.NODEFAULT


def _toml(value: Any) -> str:
    """A default as it would stand in the file."""
    if value is msgspec.NODEFAULT:
        return "required"
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, list | tuple):
        return f"`[{', '.join(_toml(v).strip('`') for v in value)}]`"
    return "`{}`" if isinstance(value, dict) else f"`{value}`"


def _contract(struct: type[msgspec.Struct]) -> str:
    """The keys of a contract, or of what stands in it."""
    docs = field_docs(struct)
    rows = [
        (f"`{field.name}`", _kind(field.type), _toml(_default(field)), docs[field.name])
        for field in msgspec.structs.fields(struct)
    ]
    return table(("key", "value", "default", "meaning"), rows)


def _kind(type_: Any) -> str:
    """What may stand there, in a word or two."""
    of = typing.get_args(type_)
    if typing.get_origin(type_) is Literal:
        return ", ".join(f"`{word}`" for word in of)
    if type(None) in of:
        return _kind(of[0])
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return "table, below"
    if typing.get_origin(type_) is tuple:
        words = {str: "names", float: "two numbers"}
        return words.get(of[0], "list of tables, below")
    return {str: "text", float: "number", int: "whole number"}.get(type_, "table of tables")


def _schema(name: str) -> str:
    """The columns of a schema, lined up."""
    lines = describe(SCHEMAS[name]).splitlines()
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    return table(cells[0], list(cells[2:]))


def _bits() -> str:
    """Every quality bit: number, name, what it does to the row, rule."""
    rows = []
    for bit in Quality:
        state = "no" if bit & REFUSED else "yes"
        rows.append((str(bit.bit_length() - 1), str(int(bit)), f"`{bit.name}`", state, quality.RULES[bit]))
    return table(("bit", "value", "name", "in state", "raised when"), rows)


def _features(which: slice) -> str:
    """Some of the features; sources as numbers, which ``_sources`` explains."""
    found = feature_table.features()
    sources = _numbered(found)
    rows = [(f"`{f.name}`", f.unit, sources.get(f.source, ""), f.formula) for f in found[which]]
    return table(("feature", "unit", "source", "formula"), rows)


def _sessions() -> str:
    """The columns of a session; a row stands for those that differ in a number or in what they are kept of."""
    shown: dict[str, tuple[str, ...]] = {}
    sources = _numbered(session_table.session_columns())
    for column in session_table.session_columns():
        name = re.sub(r"_bin_\d\d_", "_bin_00…47_", column.name)
        name = re.sub(r"^(baseline|recent)_.*", r"\1_…", name)
        formula = re.sub(r" in bin \d+ ", " in this bin ", column.formula)
        unit = column.unit
        if name.endswith("…"):
            formula, unit = formula.rsplit(" of ", 1)[0] + f" of {', '.join(_kept())}", ""
        of = "" if column.sessions == session_table.KINDS else ", ".join(column.sessions)
        shown.setdefault(name, (f"`{name}`", unit, of, sources.get(column.source, ""), formula))
    return table(("column", "unit", "of", "source", "formula"), list(shown.values()))


def _health() -> str:
    """The columns of the SOH history."""
    columns = health_table.health_columns()
    sources = _numbered(columns)
    rows = [(f"`{c.name}`", c.unit, sources.get(c.source, ""), c.formula) for c in columns]
    return table(("column", "unit", "source", "formula"), rows)


def _kept() -> list[str]:
    """What baseline and recent average are kept of."""
    return [f"`{name}`" for name in session_table.TRACKED_CHARGE]


def _sources(columns: Sequence[feature_table.Feature | session_table.Column]) -> str:
    return "\n".join(f"- {number} {source}" for source, number in _numbered(columns).items())


def _numbered(columns: Sequence[feature_table.Feature | session_table.Column]) -> dict[str, str]:
    named = dict.fromkeys(column.source for column in columns if column.source)
    return {source: f"[{k}]" for k, source in enumerate(named, 1)}


def _metrics(metrics: Served) -> str:
    """What a flow serves on its metrics port."""
    kinds = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
    labels = {m._name: m._labelnames for m in vars(metrics).values() if isinstance(m, tuple(kinds.values()))}
    rows = []
    for family in metrics.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append((f"`{name}`", family.type, ", ".join(labels.get(family.name, ())), family.documentation))
    return table(("metric", "kind", "labels", "meaning"), rows)


def _state() -> str:
    """Bytes of state a device in each stateful operator."""
    cell, windows = quality.CELL.itemsize, len(feature_table.WINDOWS)
    panes = f"{windows} windows of {features.PANES} panes of {features.PANE.itemsize} bytes"
    rows = [
        (
            "quality",
            f"{quality.STATE.itemsize}, and {cell} a cell",
            "newest time, counters seen, last readings",
        ),
        ("features", str(features.state_dtype(windows).itemsize), f"averages, counters, {panes}"),
        (
            "sessions",
            str(session_state.STATE.itemsize),
            f"running and pending session with {session_table.BINS} bins each, baseline, recent averages",
        ),
        ("health", str(health.STATE.itemsize), "regression lines, last values, the cycles at each half percent of SOH"),
        ("estimate, a model", str(fusion.FUSION_STATE.itemsize), "the filter: SOC, variance, age"),
    ]
    return table(("operator", "bytes a device", "holds"), rows)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Each command of the command line that does something, with its full name."""
    yield from _leaves("voltmill", typer.main.get_command(app))


def _leaves(name: str, command: Any) -> Iterator[tuple[str, click.Command]]:
    inner = getattr(command, "commands", {})
    if not inner or command.invoke_without_command:
        yield name, command
    for word, each in inner.items():
        yield from _leaves(f"{name} {word}", each)


def _command_line() -> str:
    rows = []
    for name, command in commands():
        words = [name]
        for p in command.params:
            takes = "" if getattr(p, "is_flag", False) else f" {_value_name(p)}"
            if p.param_type_name == "argument":
                argument = (p.name or "").upper()
                words.append(argument if p.required else f"[{argument}]")
            else:
                option = min(p.opts, key=lambda o: (not o.startswith("--"), len(o))) + takes
                words.append(option if p.required else f"[{option}]")
        rows.append((f"`{' '.join(words)}`", plain(command.help or "")))
    return "\n".join(f"- {call}\n  {text}" for call, text in rows)


def _value_name(parameter: Any) -> str:
    names = {"config": "F", "lake": "DIR", "out": "DIR", "start": "TIME", "stop": "TIME", "warm_up": "HOURS"}
    names |= {"truth": "DIR", "folder": "DIR", "addresses": "LIST", "topic": "TOPIC", "device": "ID", "broker": "NAME"}
    names |= {"before": "DATE", "table": "NAME", "finished": "STORE"}
    names |= {"stage": "STAGE", "reason": "REASON", "to_file": "FILE", "model_file": "FILE"}
    names |= {"target": "TARGET", "telemetry": "DIR", "columns": "LIST", "label": "NAME=COLUMN", "every": "SECONDS"}
    names |= {"without": "LIST", "split": "SHARES", "seed": "TEXT", "model": "NAME"}
    return names.get(parameter.name, "N")


_SOC_CASES: Final = {
    "right_start": "from full, every 5 s",
    "unknown_start": "begun at 25, 50 or 75 % of the cycle",
    "lost_30_percent": "30 % of the samples lost",
    "every_10_seconds": "every 10 s",
    "every_second": "every second",
    "current_plus_50_milliampere": "current sensor +50 mA off",
    "current_minus_50_milliampere": "current sensor -50 mA off",
    "voltage_plus_10_millivolt": "voltage sensor +10 mV off",
    "capacity_plus_10_percent": "capacity_ah 10 % too high",
    "capacity_minus_10_percent": "capacity_ah 10 % too low",
    "start_10_percent_wrong": "told a SOC 10 points wrong",
}


def _soc() -> str:
    """SOC of the shipped model and of the baselines, case by case."""
    names = ("lg_hg2_soc", "lg_hg2_ekf", "lg_hg2_coulomb")
    errors = [_MODELS[name].contract.errors for name in names]
    rows = [(words, *(_soc_figures(each.get(case)) for each in errors)) for case, words in _SOC_CASES.items()]
    return table(("telemetry", *(f"`{name}`" for name in names)), rows)


def _soc_figures(e: dict[str, float] | None) -> str:
    return f"{e['mae']:.2f} / {e['rmse']:.2f} / {e['worst']:.1f} / {e['coverage90']:.0f}" if e else "-"


def _soh() -> str:
    """SOH on unseen cells, model by model."""
    rows = []
    for name, model in _MODELS.items():
        for case, e in model.contract.errors.items() if model.contract.target == "soh" else ():
            if "mape" in e and "/" not in case:
                words = [f"{e[k]:.2f}" if k in e else "-" for k in ("mape", "worst_cell_mape", "worst", "coverage90")]
                rows.append((f"`{name}`", case.replace("_", " "), *words))
    return table(("model", "case", "MAPE, %", "worst cell, %", "worst, points", "covered, %"), rows)


def _rul() -> str:
    """RUL on unseen cells, model by model, and what a simpler rule gives."""
    rows = []
    for name, model in _MODELS.items():
        for case, e in model.contract.errors.items() if model.contract.target == "rul" else ():
            words = (f"{e['percent_of_life']:.1f}", f"{e['rmse']:.0f}", f"{e['worst']:.0f}", f"{e['coverage90']:.0f}")
            rows.append((f"`{name}`", case.replace("_", " "), *(words if e["coverage90"] else (*words[:3], "-"))))
    return table(("model", "case", "error, % of life", "RMSE, cycles", "worst, cycles", "covered, %"), rows)


def _chaos() -> str:
    """What the last long run of the chaos suite found."""
    run = json.loads((DOCS.parent / "tests" / "chaos" / "latest.json").read_text())
    parts = [*run["scenarios"], run["memory"], run["mutations"]]
    shown = "\n".join(dict.fromkeys(part["command"] for part in parts))
    blocks = [f"The last long run:\n\n```sh\n{shown}\n```", _chaos_verdicts(run)]
    for scenario in run["scenarios"]:
        blocks += [f"**{_chaos_name(scenario)}**, fault by fault, seconds:", _chaos_faults(scenario["faults"])]
    return "\n\n".join(blocks)


def _chaos_name(scenario: dict[str, Any]) -> str:
    return f"{scenario['scenario']}, {scenario['database']}, {scenario['lake']}"


def _chaos_verdicts(run: dict[str, Any]) -> str:
    rows = []
    for found in run["scenarios"]:
        what = f"{_chaos_name(found)}; seed {found['seed']}, {found['seconds'] / 60:.0f} minutes"
        replay = "identical" if found["replay_identical"] else "DIFFERS"
        rows.append((what, str(found["kills"]), *_chaos_counts(found), replay))
    memory, mutated = run["memory"], run["mutations"]
    growth = memory["rss_peak_megabytes"] / memory["rss_before_megabytes"] - 1
    what = (
        f"database away for {memory['database_away_minutes']:g} minutes at {memory['messages_per_second']} "
        f"messages/s: memory {memory['rss_before_megabytes']} MB before, {memory['rss_peak_megabytes']} MB at most "
        f"({growth:+.0%}), working again after {memory['recovery_seconds']:.1f} s"
    )
    rows.append((what, "0", *_chaos_counts(memory), ""))
    what = f"mutated payloads through decode: {mutated['rows']:,} rows, {mutated['dead_letters']:,} dead letters"
    raised = str(mutated["raised_lost_or_doubled"])
    rows.append((f"{what}; none may raise", "", f"{mutated['messages']:,}", raised, raised, ""))
    return table(("run", "kills", "messages", "lost", "doubled", "replay"), rows)


def _chaos_counts(found: dict[str, Any]) -> tuple[str, str, str]:
    return f"{found['messages']:,}", str(found["lost"]), str(found["doubled"])


def _chaos_faults(faults: list[dict[str, Any]]) -> str:
    columns = (
        "count",
        "kills",
        "outage_seconds",
        "recovery_median_seconds",
        "recovery_worst_seconds",
        "start_up_median_seconds",
        "worst_without_start_up_seconds",
    )
    header = ("fault", "times", "kills", "away", "recovery, median", "worst", "start-up", "worst without start-up")
    return table(header, [(fault["fault"], *(f"{fault[name]:g}" for name in columns)) for fault in faults])


PARTS: Final[dict[str, Callable[[], str]]] = {
    **{f"schema {name}": (lambda name=name: _schema(name)) for name in SCHEMAS},
    **{f"settings {place.strip('[]')}": (lambda s=struct: settings(s)) for place, struct in TABLES.items()},
    "contract": lambda: _contract(Contract),
    "contract features": lambda: _contract(ContractFeature),
    "contract conditions": lambda: _contract(Range),
    "contract fusion": lambda: _contract(Fusion),
    "features instant": lambda: _features(slice(0, feature_table.INSTANT)),
    "features averages": lambda: _features(slice(feature_table.INSTANT, _AVERAGES)),
    "features windows": lambda: _features(slice(_AVERAGES, None)),
    "features sources": lambda: _sources(feature_table.features()),
    "sessions columns": _sessions,
    "sessions sources": lambda: _sources(session_table.session_columns()),
    "health columns": _health,
    "health sources": lambda: _sources(health_table.health_columns()),
    "quality bits": _bits,
    "metrics": lambda: _metrics(Metrics()),
    "metrics gateway": lambda: _metrics(GatewayMetrics()),
    "state": _state,
    "commands": _command_line,
    "chaos": _chaos,
    "models soc": _soc,
    "models soh": _soh,
    "models rul": _rul,
}


def generated(text: str) -> str:
    """A page with its generated parts made anew.

    Raises:
        KeyError: it asks for a part that there is none of.
    """
    return _PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}\n{part[3]}", text)


def main() -> int:
    """Rewrite or check every page."""
    check = "--check" in sys.argv[1:]
    stale = 0
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text()
        new = generated(text)
        if new != text:
            stale += 1
            print(f"{page}: {'out of date: run python docs/generate.py' if check else 'rewritten'}")
            if not check:
                page.write_text(new)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
