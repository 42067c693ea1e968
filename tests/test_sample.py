import math
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from payloads import canonical

from voltmill.operators.sample import DecodeSettings, Refused, Sample, check, from_json, parse_time

SETTINGS = DecodeSettings()
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
in_century = st.datetimes(datetime(2000, 1, 1), datetime(2099, 12, 31, 23, 59, 59))  # noqa: DTZ001 - drawn naive


def micros(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1)


def reason_of(call: Any, *arguments: Any) -> str:
    with pytest.raises(Refused) as refused:
        call(*arguments)
    return refused.value.reason


@given(in_century, st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu"]))
def test_iso_times_mean_the_same_in_every_zone(time: datetime, zone: str) -> None:
    local = time.replace(tzinfo=UTC).astimezone(ZoneInfo(zone))
    if 2000 < local.year < 2099:
        assert parse_time(local.isoformat(), None) == micros(time.replace(tzinfo=UTC))


@given(in_century)
def test_epoch_numbers_are_told_apart_by_magnitude(time: datetime) -> None:
    truth = micros(time.replace(tzinfo=UTC))
    assert parse_time(truth, None) == truth
    assert parse_time(truth // 10**6, None) == truth // 10**6 * 10**6
    assert parse_time(truth // 10**3, None) == truth // 10**3 * 10**3
    assert parse_time(truth * 1000 + 999, None) == truth
    assert abs(parse_time(truth / 1e6, None) - truth) <= 1  # binary64 seconds of this century: 0.5 µs apart


def test_the_century_ends_at_its_last_microsecond_in_every_unit() -> None:
    first, end = micros(datetime(2000, 1, 1, tzinfo=UTC)), micros(datetime(2100, 1, 1, tzinfo=UTC))
    assert parse_time(first * 1000, None) == first
    assert parse_time(end * 1000 - 1, None) == end - 1
    for beyond in (first * 1000 - 1, end * 1000, first - 1, end, first // 10**6 - 1, end // 10**6, math.nan, math.inf):
        assert reason_of(parse_time, beyond, None) == "bad_time"


def test_local_times_need_a_zone() -> None:
    zone = DecodeSettings(time_zone="Europe/Berlin").zone()
    assert reason_of(parse_time, "2026-11-22T10:00:05", None) == "naive_time"
    assert parse_time("2026-11-22T10:00:05", zone) == parse_time("2026-11-22T09:00:05Z", None)
    # 02:30 comes twice on 2026-10-25; the first is summer time.
    assert parse_time("2026-10-25 02:30", zone) == parse_time("2026-10-25T00:30Z", None)


@pytest.mark.parametrize(
    "text",
    ["", "now", "2026-11-22", "10:00:05Z", "2026-13-01T00:00Z", "2026-02-29T00:00Z", "2026-11-22T24:00:01Z",
     "2026-11-22T10:00:60Z", "1795341605", "2026-11-22T10:00:05Zulu", "٢٠٢٦-11-22T10:00:05Z", "0001-01-01T00:00+14:00",
     "1970-01-01T00:00:00Z", "2100-01-01T00:00:00Z", "1999-12-31T23:59:59.999999Z"],
)  # fmt: skip
def test_what_is_no_time_of_this_century_is_refused(text: str) -> None:
    assert reason_of(parse_time, text, None) == "bad_time"


@given(st.one_of(st.text(), st.integers(), st.floats()))
def test_parse_time_gives_a_time_of_the_century_or_refuses(value: str | int | float) -> None:
    try:
        time = parse_time(value, UTC)
    except Refused as refused:
        assert refused.reason == "bad_time"
        assert len(refused.detail) < 200
    else:
        assert 2000 <= (EPOCH + timedelta(microseconds=time)).year <= 2099


def test_a_message_means_what_it_says() -> None:
    sample = from_json(canonical(unknown={"x": [1]}), SETTINGS, None)
    assert sample.device_id == "gw-1/pack-2/m-3"
    assert sample.event_time == micros(datetime(2026, 11, 22, 10, 0, 5, 123000, tzinfo=UTC))
    assert (sample.seq, sample.current_ampere, sample.cell_temperature_celsius) == (12345, -1.234, [25.1, 25.35])
    assert sample.bms_soh_percent is None and not sample.converted


def test_of_a_key_given_twice_the_last_counts() -> None:
    assert from_json(canonical()[:-1] + b',"seq":7}', SETTINGS, None).seq == 7


BAD: list[tuple[str, Any, str]] = [
    ("truncated", canonical()[:-1], "malformed_json"),
    ("not JSON", b"Hello", "malformed_json"),
    ("NaN literal", canonical(current_ampere=math.nan), "malformed_json"),
    ("Infinity literal", canonical(voltage_volt=-math.inf), "malformed_json"),
    ("nested without end", b'{"x":' + b"[" * 100_000, "malformed_json"),
    ("deeply nested", b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "malformed_json"),
    ("beyond float64", canonical().replace(b"-1.234", b"1e999"), "out_of_range"),
    ("5,000 digits", canonical().replace(b"-1.234", b"9" * 5000), "out_of_range"),
    ("beyond float32", canonical(voltage_volt=1e39), "out_of_range"),
    ("a cell beyond float32", canonical(cell_voltage_volt=[3.6, -1e39]), "out_of_range"),
    ("text for a number", canonical(current_ampere="1.5"), "wrong_type"),
    ("text in a list", canonical(cell_voltage_volt=[3.6, "3.6"]), "wrong_type"),
    ("number for a list", canonical(cell_voltage_volt=3.6), "wrong_type"),
    ("null for a list", canonical(cell_voltage_volt=None), "wrong_type"),
    ("number for an id", canonical(device_id=7), "wrong_type"),
    ("bool for a time", canonical(event_time=True), "wrong_type"),
    ("fraction for seq", canonical(seq=1.5), "wrong_type"),
    ("no object", b"[1]", "wrong_type"),
    ("a number", b"1", "wrong_type"),
    *((f"no {key}", canonical(**{key: ...}), "missing_key") for key in
      ("device_id", "event_time", "current_ampere", "cell_voltage_volt", "cell_temperature_celsius")),
    ("negative seq", canonical(seq=-1), "out_of_range"),
    ("seq beyond 64 bits", canonical(seq=2**64), "out_of_range"),
    ("not UTF-8", canonical().replace(b"gw-1", b"gw-\xff"), "not_utf8"),
    ("not UTF-8 in an unknown key", canonical(note="x").replace(b'"x"', b'"\xff"'), "not_utf8"),
    ("UTF-16", canonical().decode().encode("utf-16"), "not_utf8"),
    ("no id", canonical(device_id=""), "bad_device_id"),
    ("long id", canonical(device_id="ä" * 129), "bad_device_id"),
    ("NUL in id", canonical(device_id="gw\0"), "bad_device_id"),
    ("line feed in id", canonical(device_id="gw\n1"), "bad_device_id"),
    ("C1 control in id", canonical(device_id="gw\x85"), "bad_device_id"),
    ("quotes in id", canonical(device_id='gw"; DROP TABLE'), "bad_device_id"),
    ("apostrophe in id", canonical(device_id="gw' OR 1"), "bad_device_id"),
    ("no cells", canonical(cell_voltage_volt=[]), "cell_count"),
    ("500 cells", canonical(cell_voltage_volt=[3.6] * 500), "cell_count"),
    ("500 probes", canonical(cell_temperature_celsius=[25] * 500), "cell_count"),
    ("1970", canonical(event_time="1970-01-01T00:00:00Z"), "bad_time"),
    ("1970 as a number", canonical(event_time=0), "bad_time"),
    ("2100", canonical(event_time="2100-01-01T00:00:00Z"), "bad_time"),
    ("5,000 digits of time", canonical().replace(b'"2026-11-22T10:00:05.123Z"', b"9" * 200), "bad_time"),
    ("no zone", canonical(event_time="2026-11-22T10:00:05"), "naive_time"),
    ("empty", b" \n", "empty"),
]  # fmt: skip


@pytest.mark.parametrize(("payload", "reason"), [pytest.param(p, r, id=name) for name, p, r in BAD])
def test_what_is_refused_and_why(payload: bytes, reason: str) -> None:
    assert reason_of(from_json, payload, SETTINGS, None) == reason


def test_the_detail_names_the_place() -> None:
    with pytest.raises(Refused, match=r"cell_voltage_volt\[1\]: 1e\+39"):
        from_json(canonical(cell_voltage_volt=[3.6, 1e39]), SETTINGS, None)
    with pytest.raises(Refused, match=r"Expected `str`, got `int` - at `\$.device_id`"):
        from_json(canonical(device_id=7), SETTINGS, None)


def test_check_refuses_what_only_a_mapping_can_make() -> None:
    fine: dict[str, Any] = {
        "device_id": "gw",
        "event_time": 1_795_341_605_000_000,
        "current_ampere": None,
        "cell_voltage_volt": [None],
        "cell_temperature_celsius": [],
    }
    check(Sample(**fine), SETTINGS)
    for change, reason in (
        ({"current_ampere": math.nan}, "not_finite"),
        ({"cell_voltage_volt": [math.inf]}, "not_finite"),
        ({"charge_ah": math.nan}, "not_finite"),
        ({"charge_ah": -math.inf}, "not_finite"),
        ({"event_time": 5}, "bad_time"),
        ({"device_id": "\ud800"}, "bad_device_id"),
    ):
        assert reason_of(check, Sample(**{**fine, **change}), SETTINGS) == reason


@pytest.mark.parametrize("wrong", [{"max_cells": 0}, {"max_payload_bytes": -1}, {"time_zone": "Mars/Olympus"}])
def test_nonsense_settings_are_refused_where_they_enter(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="^decode: "):
        DecodeSettings(**wrong)
