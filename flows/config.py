"""The configuration: one TOML file, decoded into typed structs; an empty file runs.

Unknown keys and wrong values are errors of one line that names the place. A value may hold
``${NAME}``, which stands for an environment variable: secrets belong there and nowhere else. What came
from the environment is never shown, not even in an error about it.
"""

import difflib
import json
import math
import os
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from voltmill.connectors.endpoint import EndpointSettings
from voltmill.connectors.gateway_settings import GatewaySettings
from voltmill.connectors.iothub_settings import IotHubSettings
from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.mqtt import MqttSettings
from voltmill.connectors.notify_settings import NotifySettings
from voltmill.connectors.redrive import RedriveSettings
from voltmill.connectors.sql import SqlSettings
from voltmill.flows.simulate_settings import SimulateSettings
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.operators.features import FeatureSettings
from voltmill.operators.health import HealthSettings
from voltmill.operators.mapping import MappingSpec, build_mapper
from voltmill.operators.quality import QualitySettings
from voltmill.operators.sample import DecodeSettings
from voltmill.operators.sessions import SessionSettings


class ConfigError(ValueError):
    """The configuration is wrong; one line with file, place and mend."""


class RunSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[run]`` table: how the flow runs."""

    source: typing.Literal["mqtt", "iothub"] = "mqtt"
    """What the live flow reads: the broker of ``[mqtt]``, or the hub of ``[iothub]``."""
    state: str = "voltmill-data/state"
    """Folder of the recovery store, on a local disk."""
    shards: int = 4
    """Parts the state is cut into, the most workers that can share it; fixed for a recovery store."""
    recovery_partitions: int = 1
    """Files the recovery store is cut into, at least one a process; changed by `voltmill rescale`."""
    epoch_seconds: float = 5.0
    """Time between two snapshots, s; what was read is acknowledged, and could come again, this late.
    Each writes the whole state, up to 2 KB a device, so shorter ones cost more in large fleets."""
    metrics_host: str = "127.0.0.1"
    """Address on which Prometheus metrics are served."""
    metrics_port: int = 0
    """Port of the metrics; 0: none are served."""
    log_level: typing.Literal["debug", "info", "warning", "error"] = "info"
    """Least level of the log lines on standard error."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not self.state:
            raise ValueError("state is empty: name a folder")
        if not (1 <= self.shards <= 1000 and 1 <= self.recovery_partitions <= 1000):
            raise ValueError("shards and recovery_partitions must be 1 to 1000")
        if not 0 < self.epoch_seconds <= 3600:
            raise ValueError("epoch_seconds must be above 0, and 3600 at most")
        if not 0 <= self.metrics_port < 65_536:
            raise ValueError("metrics_port must be 1 to 65535, or 0 for none")


class ArchiveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[archive]`` table: what the telemetry archive holds."""

    payload: bool = False
    """Whether each row keeps its native message; it makes the archive about four times as large."""


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One ``[[model]]`` table: a model that runs."""

    name: str
    """Name of a model in ``[models] folder`` or that ``voltmill models`` lists, or the path of an ONNX file."""
    mode: typing.Literal["live", "shadow", "fallback"] = "live"
    """live: its predictions count. shadow: they are only compared. fallback: it is asked where a live one failed."""
    endpoint: EndpointSettings | None = None
    """Where the model is served over HTTP, if it is; its contract names it then."""


class ModelsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[models]`` table: where models come from while the flow runs."""

    folder: str = ""
    """Folder of ONNX files with contracts; empty: none. A file whose name, without .onnx, a ``[[model]]`` bears is
    that model; any other runs in shadow. What is new or replaced there takes over at an epoch boundary."""
    look_seconds: float = 5.0
    """How often the folder is looked at, s."""

    def __post_init__(self) -> None:
        """Check the values once, where they enter."""
        if not 0 <= self.look_seconds <= 3600:
            raise ValueError("look_seconds must be 0 to 3600")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that can be configured; each table has its own struct, beside the code it sets."""

    run: RunSettings = RunSettings()
    mqtt: MqttSettings = MqttSettings()
    iothub: IotHubSettings = IotHubSettings()
    gateway: GatewaySettings = GatewaySettings()
    decode: DecodeSettings = DecodeSettings()
    mapping: dict[str, MappingSpec] = {}
    quality: QualitySettings = QualitySettings()
    features: FeatureSettings = FeatureSettings()
    sessions: SessionSettings = SessionSettings()
    health: HealthSettings = HealthSettings()
    model: tuple[ModelEntry, ...] = (ModelEntry(name="lg_hg2_soc"),)
    models: ModelsSettings = ModelsSettings()
    fleet: tuple[FleetEntry, ...] = ()
    archive: ArchiveSettings = ArchiveSettings()
    lake: LakeSettings = LakeSettings()
    redrive: RedriveSettings = RedriveSettings()
    sql: SqlSettings = SqlSettings()
    notify: tuple[NotifySettings, ...] = ()
    simulate: SimulateSettings = SimulateSettings()

    @property
    def devices(self) -> Fleet:
        """The fleet tables as the operators use them."""
        return Fleet(self.fleet)


def load(path: str | Path | None, environ: Mapping[str, str] | None = None) -> Config:
    """Read a configuration file.

    Args:
        path: The TOML file; None: the defaults.
        environ: The environment; the process's own if not given.

    Raises:
        ConfigError: The file cannot be read, is not TOML, or holds what it must not.
    """
    if path is None:
        return Config()
    try:
        data = tomllib.loads(Path(path).read_text("utf-8-sig"))  # some editors put a byte order mark first
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror or e}") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8: byte {e.start}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise ConfigError(f"{path}: not TOML: {e}") from None
    return parse(data, str(path), os.environ if environ is None else environ)


def parse(data: dict[str, Any], name: str, environ: Mapping[str, str]) -> Config:
    """Decode a configuration that was read; ``name`` is what its errors call it.

    Raises:
        ConfigError: A key is unknown, a value is wrong, or a variable is not in ``environ``.
    """
    filled = _Filled(environ)
    try:
        values = filled.value(data, "")
        if filled.missing:  # all of them at once
            raise ConfigError("; ".join(filled.missing))
        config = msgspec.convert(values, Config)
        build_mapper(config.decode, config.mapping)  # what stands in a mapping is checked as it is compiled
        _check_places(config.notify)
    except msgspec.ValidationError as e:
        line = filled.hidden(_explain(str(e), data)).replace("\n", "\\n")  # a quoted key may hold anything
        raise ConfigError(f"{name}: {line}") from None
    except ValueError as e:
        raise ConfigError(f"{name}: {filled.hidden(str(e))}".replace("\n", "\\n")) from None
    return config


def _check_places(places: Sequence[NotifySettings]) -> None:
    """Two of one name would share their metrics, and their place in the recovery store."""
    seen: set[str] = set()
    for place in places:
        if place.name in seen:
            raise ValueError(f'[notify] two tables bear the name "{place.name}": give each its own')
        seen.add(place.name)


class _Filled:
    """Puts the environment in for each ``${NAME}``, and takes it out of messages again."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._used: dict[str, str] = {}
        self.missing: list[str] = []

    def value(self, value: Any, place: str) -> Any:
        if isinstance(value, dict):
            return {k: self.value(v, f"{place}.{k}" if place else k) for k, v in value.items()}
        if isinstance(value, list):
            return [self.value(v, f"{place}[{k}]") for k, v in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"[{place}] {value} is no finite number")
        if not isinstance(value, str):
            return value
        return re.sub(r"\$\{([^{}]*)\}", lambda match: self._look_up(match[1], place), value)

    def hidden(self, message: str) -> str:
        """A message without what came from the environment."""
        for name, value in sorted(self._used.items(), key=lambda item: -len(item[1])):
            for form in {value, repr(value)[1:-1]} - {""}:
                message = message.replace(form, f"${{{name}}}")
        return message

    def _look_up(self, name: str, place: str) -> str:
        if name not in self._environ:
            self.missing.append(f"[{place}] the environment variable {name} is not set")
            return ""
        return self._used.setdefault(name, self._environ[name])


def _explain(message: str, data: dict[str, Any]) -> str:
    """What msgspec says, with the place as it stands in the file and the key that was meant."""
    text, _, path = message.rpartition(" - at `$") if " - at `$" in message else (message, "", "")
    place = path.rstrip("`").removeprefix(".")
    if place.startswith("mapping[...]"):
        place = place.replace("[...]", f".{_wrong_mapping(data)}", 1)
    where = f"[{place}] " if place else ""
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL):
        close = difflib.get_close_matches(unknown[1], _fields(place), 1)
        hint = f' (did you mean "{close[0]}"?)' if close else ""
        return f"{where}unknown key {json.dumps(unknown[1], ensure_ascii=False)}{hint}"
    if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
        return f'{where}the key "{missing[1]}" is missing'
    choices = _choices(place)
    if choices and text.startswith("Invalid enum value"):
        return f"{where}must be one of {', '.join(choices)}"
    if place in ("fleet", "model", "notify") and text.startswith("Expected `array`"):
        return f"{where}is a list of tables: write [[{place}]]"
    for prefix in (f"{place}.", f"{place}: ", f"{place.rpartition('.')[2]}: "):
        text = text.removeprefix(prefix)  # structs name their own table where they do not know who asks
    return f"{where}{text[:1].lower()}{text[1:]}"


def _wrong_mapping(data: dict[str, Any]) -> str:
    """The name of the first mapping that is wrong: msgspec says ``[...]`` for any key of a dictionary."""
    for name, spec in data["mapping"].items():
        try:
            msgspec.convert(spec, MappingSpec)
        except msgspec.ValidationError:
            return str(name)
    return "*"


def _type_at(place: str) -> Any:
    """The type of what stands at a place: for a table its struct."""
    found: Any = Config
    for key in filter(None, re.split(r"\.|\[\d+\]", place)):
        hints = typing.get_type_hints(found) if hasattr(found, "__struct_fields__") else {}
        if key in hints:  # else it is the name of a mapping, whose struct we have already
            structs = [a for a in (hints[key], *typing.get_args(hints[key])) if hasattr(a, "__struct_fields__")]
            found = structs[0] if structs else hints[key]
    return found


def _fields(place: str) -> list[str]:
    """The keys of the table at a place."""
    return list(getattr(_type_at(place), "__struct_fields__", ()))


def _choices(place: str) -> list[str]:
    """The words that may stand at a place."""
    found = _type_at(place)
    return list(map(str, typing.get_args(found))) if typing.get_origin(found) is typing.Literal else []
