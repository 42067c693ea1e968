"""Mappings: the language, the shipped dialects as documented, bad input, and the real vehicles."""

import base64
import json
import math
import os
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltmill.flows import graph
from voltmill.flows.config import load
from voltmill.flows.publish import json_rows
from voltmill.operators.mapping import SHIPPED, UNITS, ByTopic, Mapper, MappingSpec, build_mapper, fit
from voltmill.operators.paths import follow, parse_path
from voltmill.operators.sample import REASONS, DecodeSettings, Refused, Rejected, Sample, from_json, parse_time

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs/mappings.md").read_text()
DATA = Path(os.environ.get("VOLTMILL_DATA", ROOT / "../shared/data"))
VEHICLES = tomllib.loads((ROOT / "docs/examples/vehicle.toml").read_text())
SAMPLES = dict(re.findall(r"```json (\w+)\n(.*?)```", DOCS, re.DOTALL))
TIME = parse_time("2026-11-22T10:00:05.123Z", None)


def mapper(columns: dict[str, Any] | None = None, **keys: Any) -> Mapper:
    """A mapping on top of short keys: d, t, i, c, T."""
    short = {"device_id": "d", "event_time": "t", "current_ampere": "i", "cell_voltage_volt": "c"}
    given = {name: source for name, source in {**short, **(columns or {})}.items() if source is not None}
    return Mapper(MappingSpec(columns=given, **keys), DecodeSettings())


def read(mapping: Mapper, *objects: Any, topic: str | None = None) -> tuple[list[Sample], list[Rejected]]:
    return mapping.samples(json.dumps(objects[0] if len(objects) == 1 else list(objects)).encode(), topic)


def only(mapping: Mapper, message: Any, topic: str | None = None) -> Sample:
    good, bad = read(mapping, message, topic=topic)
    assert not bad and len(good) == 1, bad
    return good[0]


def refusal(mapping: Mapper, message: Any, topic: str | None = None) -> tuple[str, str]:
    good, bad = read(mapping, message, topic=topic)
    assert not good and len(bad) == 1
    return bad[0].reason, bad[0].detail


def is_alone(rejected: Rejected, mapping: Mapper) -> bool:
    """A dead letter can be decoded again, and is the same dead letter (if perhaps in other words)."""
    good, bad = mapping.samples(rejected.payload, None)
    return not good and [r.payload for r in bad] == [rejected.payload]


def message(**keys: Any) -> dict[str, Any]:
    return {"d": "gw/m", "t": 1795341605123, "i": -1.5, "c": [3.6, 3.7], **keys}


# The shipped dialects, as documented


def test_every_shipped_mapping_is_documented_with_a_sample() -> None:
    assert set(SAMPLES) == {*SHIPPED, "example"}


@pytest.mark.parametrize("name", SHIPPED)
def test_documented_samples_of_all_dialects_say_the_same(name: str) -> None:
    sample = only(Mapper(SHIPPED[name], DecodeSettings()), json.loads(SAMPLES[name]))
    probes = [25.1, 25.3, None, None] if name == "nested" else [25.1, 25.3]
    assert sample.device_id == "site-a/pack-1/m-7" and sample.event_time == TIME and sample.seq == 4711
    assert sample.cell_voltage_volt == [*map(pytest.approx, [3.651, 3.648]), None, pytest.approx(3.65)]
    assert sample.cell_temperature_celsius == [x if x is None else pytest.approx(x) for x in probes]
    rest = [
        sample.current_ampere,
        sample.voltage_volt,
        sample.ambient_temperature_celsius,
        sample.bms_soc_percent,
        sample.bms_soh_percent,
        sample.charge_ah,
        sample.discharge_ah,
    ]
    assert rest == pytest.approx([-12.5, 14.6, 21.5, 63.5, 97.0, 1250.5, 1248.25])
    assert sample.converted == (name in ("compact", "nested"))


@pytest.mark.parametrize("name", SHIPPED)
def test_arrays_and_lines_of_every_dialect(name: str) -> None:
    mapping = Mapper(SHIPPED[name], DecodeSettings())
    text = json.dumps(json.loads(SAMPLES[name])).encode()
    for payload in (
        b"[" + text + b"," + text + b"]",
        text + b"\n" + text + b"\r\n\n",
        b"\xef\xbb\xbf" + text + b"\n" + text,
    ):
        good, bad = mapping.samples(payload, None)
        assert len(good) == 2 and not bad
        assert good[0] == good[1] == mapping.samples(text, None)[0][0]


@pytest.mark.parametrize("name", SHIPPED)
def test_fit_finds_the_dialect_and_no_other(name: str) -> None:
    fits = fit(SAMPLES[name].encode())
    assert fits[0] == (name, [])
    assert all(other.problems for other in fits[1:])


def test_fit_tells_everything_that_is_missing() -> None:
    found = {name: problems for name, problems in fit(b'{"device_id": "a", "event_time": 1795341605}')}
    assert found["canonical"] == [
        'missing_key: current_ampere: there is no "current_ampere"',
        'missing_key: cell_voltage_volt: there is no "cell_voltage_volt"',
        'missing_key: cell_temperature_celsius: there is no "cell_temperature_celsius"',
    ]
    assert found["cloudevents"] == ['missing_key: envelope: there is no "data"']


def test_fit_puts_the_nearest_first() -> None:
    nearest = fit(b'{"device_id": "a", "timestamp": 1795341605, "current": "x"}')[0]
    assert nearest.mapping == "flat"
    assert nearest.problems == [
        "wrong_type: current_ampere: expected number, got text",
        'missing_key: cell_voltage_volt: there is no "cell_{n}_voltage"',
    ]


def test_fit_of_what_is_no_json() -> None:
    assert {problems[0].split(":")[0] for _, problems in fit(b"<xml/>")} == {"malformed_json"}


def test_fit_doubts_millivolts_read_as_volts() -> None:
    text = SAMPLES["canonical"].replace("3.65", "3650").replace("3.648", "3648").replace("3.651", "3651")
    assert "mV" in fit(text.encode())[0].problems[0]


def test_fit_of_a_message_without_a_topic() -> None:
    spec = MappingSpec(columns={"device_id": "$topic[3]", "event_time": "t", "cell_voltage_volt": "c"})
    assert fit(json.dumps(message()).encode(), mappings={"mine": spec}) == [("mine", [])]


def test_documented_example_of_a_mapping() -> None:
    (toml,) = re.findall(r"```toml example\n(.*?)```", DOCS, re.DOTALL)
    mappings = msgspec.convert(tomllib.loads(toml)["mapping"], dict[str, MappingSpec])
    mapping = build_mapper(DecodeSettings(), mappings)
    (sample,), bad = mapping.samples(SAMPLES["example"].encode(), "plant-3/rack-7/telemetry")
    assert not bad and sample.device_id == "plant-3/rack-7" and sample.converted
    assert sample.event_time == parse_time("2026-11-22T10:00:05Z", None)
    assert sample.current_ampere == -1.25 and sample.bms_soc_percent == 63.0
    assert sample.cell_voltage_volt == [pytest.approx(3.651), pytest.approx(3.648), None]
    assert sample.cell_temperature_celsius == [25.0, pytest.approx(25.3), None]


def test_documented_units_are_those_of_the_code() -> None:
    for quantity, units in UNITS.items():
        assert f"| {quantity} | {', '.join(f'`{unit}`' for unit in units)} |" in DOCS


def test_the_vehicle_example_is_a_whole_configuration() -> None:
    config = load(ROOT / "docs/examples/vehicle.toml")
    assert isinstance(graph.mapper(config), ByTopic)
    assert config.devices.facts("car2").gap_seconds == 45


# The language


@pytest.mark.parametrize(
    ("column", "unit", "raw", "value"),
    [
        ("voltage_volt", "mV", 3650, 3.65),
        ("current_ampere", "dA", -125, -12.5),
        ("ambient_temperature_celsius", "K", 298.15, 25.0),
        ("ambient_temperature_celsius", "dK", 2981.5, 25.0),
        ("ambient_temperature_celsius", "F", 77, 25.0),
        ("ambient_temperature_celsius", "F", -40, -40.0),
        ("bms_soc_percent", "1", 0.5, 50.0),
        ("charge_ah", "As", 3600, 1.0),
    ],
)
def test_units(column: str, unit: str, raw: float, value: float) -> None:
    sample = only(mapper({column: {"path": "x", "unit": unit}}), message(x=raw))
    assert getattr(sample, column) == pytest.approx(value)
    assert sample.converted


def test_scale_and_offset_come_before_the_unit_and_the_sign_last() -> None:
    column = {"path": "x", "scale": 0.5, "offset": 100, "unit": "mA", "sign": -1}
    assert only(mapper({"current_ampere": column}), message(x=1000)).current_ampere == pytest.approx(-0.6)


def test_a_mapping_that_only_renames_converts_nothing() -> None:
    assert not only(mapper({"voltage_volt": {"path": "u", "unit": "V"}}), message(u=7.2)).converted
    assert not only(mapper({"voltage_volt": {"path": "u", "unit": "mV"}}), message()).converted, "the value is absent"


def test_invalid_codes_are_no_reading_and_are_raw() -> None:
    codes = {"invalid": [255, 511, "n/a"], "scale": 0.1}
    mapping = mapper(
        {
            "current_ampere": {"path": "i", **codes},
            "cell_temperature_celsius": {"path": "T", **codes},
            "bms_soc_percent": {"path": "soc", **codes},
        }
    )
    sample = only(mapping, message(i=511, T=[255, 250, 511.0, "n/a", None, 2550], soc=255))
    assert sample.cell_temperature_celsius == [None, 25.0, None, None, None, 255.0]
    assert sample.current_ampere is None and sample.bms_soc_percent is None
    assert refusal(mapping, message(T=["N/A"]))[0] == "wrong_type"
    assert refusal(mapping, message(T=[True]))[1] == "cell_temperature_celsius[0]: expected number, got boolean"


@pytest.mark.parametrize(
    ("flows", "current"),
    [
        ({"in": 5}, 5.0),
        ({"out": 5}, -5.0),
        ({"in": 1, "out": 5}, -4.0),
        ({"in": None, "out": 5}, -5.0),
        ({"in": None}, None),
    ],
)
def test_charge_and_discharge_apart(flows: dict[str, Any], current: float | None) -> None:
    mapping = mapper({"current_ampere": {"charge": "f.in", "discharge": "f.out"}})
    assert only(mapping, message(f=flows)).current_ampere == current
    assert refusal(mapping, message(f={}))[0] == "missing_key"


def test_pattern_orders_by_number_and_keeps_holes() -> None:
    mapping = mapper({"cell_voltage_volt": {"pattern": "V_{n}"}})
    cells = {"V_10": 10, "V_2": 2, "V_09": 9, "V_x": 1, "xV_3": 1, "V_": 0, "V_4": 4, "V_5": None}
    assert only(mapping, message(**cells)).cell_voltage_volt == [2, None, 4, None, None, None, None, 9, 10]
    assert only(mapping, message(V_0=1, V_1=2)).cell_voltage_volt == [1, 2]
    assert refusal(mapping, message(V_1=1, V_999999=1))[0] == "cell_count"
    assert refusal(mapping, message())[0] == "missing_key"


def test_pattern_with_a_fixed_range() -> None:
    fixed = mapper({"cell_voltage_volt": {"pattern": "cells.c{n}.v", "count": 4}})
    cells = {"c2": {"v": 2}, "c3": {}, "c5": {"v": 5}, "c0": {"v": 0}}
    assert only(fixed, message(cells=cells)).cell_voltage_volt == [None, 2, None, None]
    from_zero = mapper({"cell_voltage_volt": {"pattern": "cells.c{n}.v", "count": 3, "first": 0}})
    assert only(from_zero, message(cells=cells)).cell_voltage_volt == [0, None, 2]


def test_no_probe_of_a_pattern_is_no_probe() -> None:
    mapping = mapper({"cell_temperature_celsius": {"pattern": "T_{n}"}})
    assert only(mapping, message()).cell_temperature_celsius == []


def test_device_id_from_topic_numbers_and_parts() -> None:
    named = mapper({"device_id": ["$topic[0]", "$topic[-1]", "pack"]})
    assert only(named, message(pack=7), "site/x/m-1").device_id == "site/m-1/7"
    assert only(mapper({"device_id": "$topic"}), message(), "a/b").device_id == "a/b"
    assert only(mapper({"device_id": {"constant": "lab"}}), message()).device_id == "lab"
    assert refusal(mapper({"device_id": "$topic[2]"}), message(), "a/b") == (
        "missing_key",
        'device_id: there is no "$topic[2]"',
    )
    assert refusal(mapper({"device_id": "$topic"}), message())[0] == "missing_key"
    assert refusal(mapper(), message(d=True))[0] == "wrong_type"
    assert refusal(mapper(), message(d='a"b'))[0] == "bad_device_id"


def test_rows_inherit_the_keys_around_them() -> None:
    mapping = mapper({"device_id": "$.gateway"}, envelope="body", rows="part.rows")
    rows = [{"t": 1795341605}, {"t": 1795341606, "i": 2}, {"t": "x"}, 5]
    text = {"gateway": "gw", "body": {"i": 1, "c": [3.6], "part": {"rows": rows}}}
    good, bad = read(mapping, text)
    assert [(s.device_id, s.current_ampere) for s in good] == [("gw", 1.0), ("gw", 2.0)]
    assert [r.reason for r in bad] == ["bad_time", "wrong_type"]
    assert all(is_alone(rejected, mapping) for rejected in bad)


def test_envelope_of_many_as_text_and_as_base64() -> None:
    mapping = mapper(envelope="a.data")
    inner = [message(d="x"), 7, message(d="y", i="no")]
    for data in (inner, json.dumps(inner)):
        good, bad = read(mapping, {"a": {"data": data}})
        assert [s.device_id for s in good] == ["x"] and [r.reason for r in bad] == ["wrong_type", "wrong_type"]
        assert all(is_alone(rejected, mapping) for rejected in bad)
    encoded = base64.b64encode(json.dumps(message()).encode()).decode()
    assert only(mapping, {"a": {"data_base64": encoded}}).device_id == "gw/m"
    assert refusal(mapping, {"a": {"data_base64": "%"}})[0] == "malformed_json"
    assert refusal(mapping, {"a": {"data": "{"}})[0] == "malformed_json"
    assert refusal(mapping, {"a": {"data": []}})[0] == "empty"
    assert refusal(mapping, {"a": 1})[0] == "missing_key"


def test_naive_times_need_a_zone() -> None:
    naive = message(t="2021-05-05T09:10:00")
    assert refusal(mapper(), naive)[0] == "naive_time"
    assert only(mapper(time_zone="Asia/Shanghai"), naive).event_time == parse_time("2021-05-05T01:10:00Z", None)
    epoch_2000 = mapper({"event_time": {"path": "t", "offset": 946684800}})
    assert only(epoch_2000, message(t=86400)).event_time == parse_time("2000-01-02T00:00:00Z", None)


def test_the_topic_chooses_the_mapping() -> None:
    columns = {"event_time": "t", "current_ampere": "i", "cell_voltage_volt": "c"}
    specs = {
        "one": MappingSpec(topic="site/+/bms", columns={"device_id": {"constant": "one"}, **columns}),
        "two": MappingSpec(topic="lab/#", columns={"device_id": {"constant": "two"}, **columns}),
        "rest": MappingSpec(columns={"device_id": {"constant": "rest"}, **columns}),
    }
    mapping = build_mapper(DecodeSettings(mapping="rest"), specs)
    payload = json.dumps(message()).encode()
    topics = ["site/a/bms", "site/a/b/bms", "site/bms", "lab", "lab/x/y", "else", None]
    found = [mapping.samples(payload, topic)[0][0].device_id for topic in topics]
    assert found == ["one", "rest", "rest", "two", "two", "rest", "rest"]


def test_paths() -> None:
    document = {"a": [{"b.c": [1, 2]}, {"b.c": [3]}], "1": {"x": 5}}
    assert follow(document, parse_path('a[-1]["b.c"][0]')) == 3
    assert follow(document, parse_path('a[*]["b.c"][*]')) == [1, 2, 3]
    assert follow(document, parse_path("1.x")) == 5


# Refused at the start


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"cell_voltage": "c"}, 'columns.cell_voltage is no telemetry column (did you mean "cell_voltage_volt"?)'),
        ({"voltage_volt": {"pth": "u"}}, 'columns.voltage_volt: unknown key "pth" (did you mean "path"?)'),
        ({"voltage_volt": {"path": "u", "unit": "mA"}}, 'columns.voltage_volt: unknown unit "mA"'),
        (
            {"voltage_volt": {"path": "u", "unit": "mv"}},
            'unknown unit "mv" (did you mean "mV"?); there are V, mV, uV, kV',
        ),
        (
            {"voltage_volt": {"path": "u", "scale": "x"}},
            "columns.voltage_volt: Expected `float`, got `str` - at `scale`",
        ),
        ({"voltage_volt": {"path": "u", "scale": 0}}, "scale is not 0"),
        ({"voltage_volt": {"path": "u", "sign": 2}}, "sign is 1 or -1"),
        ({"voltage_volt": {"path": "u", "constant": 3.0}}, "one of path, pattern"),
        ({"voltage_volt": {"constant": 3.0, "unit": "mV"}}, "a constant is in the canonical unit"),
        ({"voltage_volt": {"constant": "x"}}, "wrong type"),
        ({"voltage_volt": {}}, "one of path, pattern"),
        ({"voltage_volt": 5}, "columns.voltage_volt: Expected `object`, got `int`"),
        ({"voltage_volt": "$topic[0]"}, "only device_id can come from it"),
        ({"voltage_volt": "a..b"}, '"a..b" is no path'),
        ({"voltage_volt": "a[x]"}, "is no path"),
        ({"voltage_volt": ".a"}, "is no path"),
        ({"voltage_volt": {"pattern": "v{n}"}}, "a pattern is for a list"),
        ({"cell_voltage_volt": {"pattern": "v"}}, "needs {n} once"),
        ({"cell_voltage_volt": {"path": "v", "count": 5}}, "first and count belong to a pattern"),
        ({"current_ampere": {"charge": "a"}}, "charge and discharge go together"),
        ({"voltage_volt": {"charge": "a", "discharge": "b"}}, "for current_ampere"),
        ({"event_time": {"path": "t", "unit": "ms"}}, "told apart by size"),
        ({"seq": {"path": "n", "scale": 2.0}}, "scale, offset and sign are for measured values"),
        ({"device_id": {"path": "n", "invalid": ["x"]}}, "invalid is for measured values"),
        ({"device_id": "$topic[x]"}, "is no part of a topic"),
        ({"device_id": None}, "columns.device_id is missing"),
    ],
)
def test_wrong_mappings_are_refused_in_one_line(columns: dict[str, Any], line: str) -> None:
    base = {"device_id": "d", "event_time": "t", "cell_voltage_volt": "c", **columns}
    spec = MappingSpec(columns={name: source for name, source in base.items() if source is not None})
    with pytest.raises(ValueError) as error:
        Mapper(spec, DecodeSettings(), name="rack")
    assert str(error.value).startswith("[mapping.rack]: ") and line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"time_zone": "Mars/Base"}, "time_zone 'Mars/Base' is no IANA name"),
        ({"envelope": "a[0]"}, 'envelope: "a[0]" is to be keys alone'),
        ({"rows": "a..b"}, 'rows: "a..b" is no path'),
    ],
)
def test_wrong_keys_are_refused(keys: dict[str, str], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        mapper(**keys)


# Bad input


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty"),
        (b" \n ", "empty"),
        (b"[]", "empty"),
        (b"{", "malformed_json"),
        (b'{"d": NaN}', "malformed_json"),
        (b"[" * 100_000, "malformed_json"),
        (b'{"d": "\xff"}', "not_utf8"),
        (b"\xff\xfe{\x00", "not_utf8"),
        (b"[1, 2, 3]", "wrong_type"),
        (b"null", "wrong_type"),
        (b'"text"', "wrong_type"),
        (b"{}", "missing_key"),
        (b"x" * (1 << 21), "too_large"),
        (b'{\n "d": 1,\n "t":', "malformed_json"),
    ],
)
def test_payloads_that_are_wrong_as_a_whole(payload: bytes, reason: str) -> None:
    good, bad = mapper().samples(payload, None)
    assert not good and [(r.reason, r.payload) for r in bad] == [(reason, payload)]


BAD_ELEMENTS = {
    b"5": "wrong_type",
    b"null": "wrong_type",
    b'{"d": "\xff"}': "not_utf8",
    b'{"d": "a", "t": 1795341605, "i": 1e999, "c": [1]}': "not_finite",
    b'{"d": "a", "t": 1795341605, "i": 1, "c": [1' + b"0" * 400 + b"]}": "out_of_range",
    b'{"d": "a", "t": 1795341605, "i": 1, "c": [1e39]}': "out_of_range",
    b'{"d": "a", "t": 1795341605, "i": 1, "c": []}': "cell_count",
    b'{"d": "a", "t": 1795341605, "i": 1, "c": ' + json.dumps([3.6] * 500).encode() + b"}": "cell_count",
    b'{"d": "a", "t": 5, "i": 1, "c": [1]}': "bad_time",
    b'{"d": "a\\u0000", "t": 1795341605, "i": 1, "c": [1]}': "bad_device_id",
    b'{"d": "a", "t": 1795341605, "i": "1", "c": [1]}': "wrong_type",
    b'{"d": "a", "t": 1795341605, "i": 1, "c": {"1": 1}}': "wrong_type",
}


@pytest.mark.parametrize(("element", "reason"), BAD_ELEMENTS.items())
def test_a_bad_element_costs_no_neighbour(element: bytes, reason: str) -> None:
    neighbour = json.dumps(message()).encode()
    for payload in (
        b"[%b, %b,%b]" % (neighbour, element, neighbour),
        b"%b\n%b\n%b\n" % (neighbour, element, neighbour),
    ):
        good, bad = mapper().samples(payload, None)
        assert len(good) == 2
        assert [(r.reason, r.payload) for r in bad] == [(reason, element)]


def test_a_truncated_line_costs_no_neighbour() -> None:
    line = json.dumps(message()).encode()
    good, bad = mapper().samples(line + b"\n" + line[:20] + b"\n[1, 2]\n" + line, None)
    assert len(good) == 2 and [r.reason for r in bad] == ["malformed_json", "wrong_type"]


def test_many_bad_rows_in_a_large_envelope_stay_small() -> None:
    text = {"note": "x" * 100_000, "rows": [{"t": "?"}] * 10_000}
    good, bad = read(mapper(rows="rows"), text)
    assert not good and len(bad) == 10_000
    assert sum(len(r.payload) for r in bad) < 6 * len(json.dumps(text))


KEYS = st.sampled_from(["d", "t", "i", "c", "data", "data_base64", "rows", "V_1", "V_2", "cells", "x"]) | st.text(
    max_size=3
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=20,
)
MAPPINGS = [
    *(Mapper(spec, DecodeSettings()) for spec in SHIPPED.values()),
    mapper(envelope="data", rows="rows"),
    mapper({"cell_voltage_volt": {"pattern": "V_{n}", "unit": "mV", "invalid": [1, "x"]}, "device_id": "$topic[1]"}),
    mapper({"current_ampere": {"charge": "i.c", "discharge": "$.t"}, "cell_voltage_volt": "c[*].x[*]"}, rows="rows"),
]


def account(payload: bytes) -> None:
    """Nothing is raised, and what comes out is sound."""
    for mapping in MAPPINGS:
        good, bad = mapping.samples(payload, "a/b")
        assert good or bad
        assert {r.reason for r in bad} <= set(REASONS) - {"internal"}
        for sample in good:
            assert sample.device_id and sample.cell_voltage_volt
            assert all(x is None or math.isfinite(x) for x in [*sample.cell_voltage_volt, sample.current_ampere])


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(payload: bytes) -> None:
    account(payload)


@settings(max_examples=150, deadline=None)
@given(
    JSON
    | st.builds(lambda over, data: {**message(**over), "data": data, "rows": [data]}, st.dictionaries(KEYS, JSON), JSON)
)
def test_arbitrary_json(value: Any) -> None:
    account(json.dumps(value).encode())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.just(message()), JSON.filter(lambda e: type(e) is not list)), max_size=6))
def test_each_element_of_an_array_is_accounted_for(elements: list[Any]) -> None:
    good, bad = mapper().samples(json.dumps(elements).encode(), None)
    if any(type(e) is dict for e in elements):
        assert len(good) + len(bad) == len(elements)
        assert all(is_alone(rejected, mapper()) for rejected in bad)


WIRE = st.fixed_dictionaries(
    {"device_id": st.just("a"), "event_time": st.just(1795341605), "current_ampere": JSON, "cell_voltage_volt": JSON},
    optional={"cell_temperature_celsius": st.lists(st.none() | st.floats(-1, 1)), "seq": JSON, "voltage_volt": JSON},
)


@settings(max_examples=150, deadline=None)
@given(WIRE)
def test_the_canonical_mapping_agrees_with_the_canonical_decoder(wire: dict[str, Any]) -> None:
    payload = json.dumps(wire).encode()
    good, bad = Mapper(SHIPPED["canonical"], DecodeSettings()).samples(payload, None)
    try:
        assert good == [from_json(payload, DecodeSettings(), None)]
    except Refused as refused:
        assert not good
        assert {bad[0].reason, refused.reason} <= {"missing_key", "wrong_type", "out_of_range", "cell_count"}


# The real vehicles: what was counted in the files by other means must come out of the mapping

CARS = {
    "car1": {
        "rows": 66_666,
        "cells": 96,
        "probes": 24,
        "at_60_v": 64,
        "at_0_v": 0,
        "doubled": 6,
        "charging": 2_810,
    },
    "car2": {"rows": 14_385, "cells": 88, "probes": 19, "at_60_v": 0, "at_0_v": 15, "doubled": 1, "charging": 0},
}
TEMPERATURES = {"car1": (27, 43), "car2": (-40, 44)}


@pytest.mark.slow
@pytest.mark.parametrize("car", CARS)
def test_every_row_of_the_vehicles_is_a_sample(car: str) -> None:
    file = DATA / f"ev_fault_{car}.parquet"
    if not file.exists():
        pytest.skip("no vehicle data: set VOLTMILL_DATA")
    mapping = build_mapper(DecodeSettings(), msgspec.convert(VEHICLES["mapping"], dict[str, MappingSpec]))
    seen: Counter[str] = Counter()
    probes: set[float | None] = set()
    last = 0
    for payload in json_rows(file):
        (sample,), bad = mapping.samples(payload, f"vehicles/{car}")
        assert not bad and sample.device_id == car and sample.converted
        cells = [x for x in sample.cell_voltage_volt if x is not None]
        seen["rows"] += 1
        seen["cells"] = max(seen["cells"], len(cells))
        seen["probes"] = max(seen["probes"], len(sample.cell_temperature_celsius))
        seen["at_60_v"] += max(cells) > 60
        seen["at_0_v"] += min(cells) == 0
        seen["doubled"] += sample.event_time == last
        seen["charging"] += (sample.current_ampere or 0.0) > 100
        probes |= set(sample.cell_temperature_celsius)
        last = sample.event_time
    assert seen == CARS[car]
    assert (min(probes), max(probes)) == TEMPERATURES[car]  # type: ignore[type-var]
