"""The configuration: one TOML file, decoded into typed structs; an empty file runs.

Unknown keys and wrong values are errors of one line that names the place. A value may hold
``${NAME}``, which stands for an environment variable: secrets belong there and nowhere else.
"""

import difflib
import os
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.mqtt import MqttSettings
from voltmill.connectors.sql import SqlSettings
from voltmill.flows.simulate_settings import SimulateSettings
from voltmill.kernels.fleet import Fleet, FleetEntry
from voltmill.operators.features import FeatureSettings
from voltmill.operators.mapping import MappingSpec
from voltmill.operators.quality import QualitySettings
from voltmill.operators.sample import DecodeSettings


class ConfigError(ValueError):
    """The configuration is wrong; one line with file, place and mend."""


class RunSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[run]`` table: how the flow runs."""

    state: str = "voltmill-data/state"
    """Folder of the recovery store, on a local disk."""
    shards: int = 4
    """Parts the state is cut into, the most workers that can share it; fixed for a recovery store."""
    recovery_partitions: int = 1
    """Files the recovery store is cut into, at least one a process; fixed for a recovery store."""
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
        if not (1 <= self.shards <= 1000 and self.recovery_partitions >= 1):
            raise ValueError("shards must be 1 to 1000, recovery_partitions at least 1")
        if self.epoch_seconds <= 0:
            raise ValueError("epoch_seconds must be above 0")


class ArchiveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[archive]`` table: what the telemetry archive holds."""

    payload: bool = False
    """Whether each row keeps its native message; it makes the archive about four times as large."""


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One ``[[model]]`` table: a model that runs."""

    name: str
    """Name of a model that ``voltmill models`` lists, or the path of an ONNX file with a contract."""
    shadow: bool = False
    """Whether its predictions are only compared: their mode is then shadow."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that can be configured; each table has its own struct, beside the code it sets."""

    run: RunSettings = RunSettings()
    mqtt: MqttSettings = MqttSettings()
    decode: DecodeSettings = DecodeSettings()
    mapping: dict[str, MappingSpec] = {}
    quality: QualitySettings = QualitySettings()
    features: FeatureSettings = FeatureSettings()
    model: tuple[ModelEntry, ...] = (ModelEntry(name="lg_hg2_soc"),)
    fleet: tuple[FleetEntry, ...] = ()
    archive: ArchiveSettings = ArchiveSettings()
    lake: LakeSettings = LakeSettings()
    sql: SqlSettings = SqlSettings()
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
        data = tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read: {e}") from None
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path}: not TOML: {e}") from None
    return parse(data, str(path), os.environ if environ is None else environ)


def parse(data: dict[str, Any], name: str, environ: Mapping[str, str]) -> Config:
    """Decode a configuration that was read; ``name`` is what its errors call it."""
    try:
        return msgspec.convert(_substitute(data, "", name, environ), Config)
    except msgspec.ValidationError as e:
        raise ConfigError(f"{name}: {_explain(str(e))}") from None


def _substitute(value: Any, place: str, name: str, environ: Mapping[str, str]) -> Any:
    """Put the environment in for each ``${NAME}``."""
    if isinstance(value, dict):
        return {k: _substitute(v, f"{place}.{k}" if place else k, name, environ) for k, v in value.items()}
    if isinstance(value, list):
        return [_substitute(v, f"{place}[{k}]", name, environ) for k, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise ConfigError(f"{name}: {place}: the environment variable {match[1]} is not set")
        return environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", look_up, value)


def _explain(message: str) -> str:
    """What msgspec says, with the place as it stands in the file and the key that was meant."""
    text, _, path = message.partition(" - at `$")
    place = path.rstrip("`").removeprefix(".").replace("[...]", ".")
    where = f"[{place}] " if place else ""
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text)
    if not unknown:
        return f"{where}{text[:1].lower()}{text[1:]}"
    close = difflib.get_close_matches(unknown[1], _fields(Config, place), 1)
    return f'{where}unknown key "{unknown[1]}"' + (f' (did you mean "{close[0]}"?)' if close else "")


def _fields(struct: Any, place: str) -> list[str]:
    """The keys of the table at a place."""
    for key in filter(None, re.split(r"\.|\[\d+\]", place)):
        hints = typing.get_type_hints(struct)
        arguments = [hints.get(key), *typing.get_args(hints.get(key))]
        structs = [a for a in arguments if hasattr(a, "__struct_fields__")]
        if not structs:
            return []
        struct = structs[0]
    return list(struct.__struct_fields__)
