"""The scanner gives the rows that msgspec gives, bit for bit, or leaves them to it."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from payloads import canonical, exact, raw

from voltmill.operators.decode import Decoder
from voltmill.operators.rows import Scanner
from voltmill.operators.sample import DecodeSettings

SETTINGS = DecodeSettings(max_cells=20, max_temperatures=6)
# One scanner for all examples: what it remembers of one message must not change the next.
SCANNING = Decoder(SETTINGS)
SLOW = Decoder(SETTINGS, scan=False)


def assert_same(payloads: list[bytes]) -> None:
    batch = raw(payloads)
    for scanned, slow in zip(SCANNING(batch), SLOW(batch), strict=True):
        assert exact(scanned) == exact(slow)


def taken(payloads: list[bytes]) -> list[bool]:
    return Scanner(SETTINGS).scan(pa.array(payloads, pa.binary()))[0].tolist()


def spell(value: Any, number: Any, gap: str) -> str:
    """JSON with a number style and white space of choice."""
    if isinstance(value, dict):
        inner = f"{gap},{gap}".join(f"{json.dumps(k)}{gap}:{gap}{spell(v, number, gap)}" for k, v in value.items())
        return f"{{{gap}{inner}{gap}}}"
    if isinstance(value, list):
        return f"[{gap}{f'{gap},{gap}'.join(spell(v, number, gap) for v in value)}{gap}]"
    return number(value) if isinstance(value, float) else json.dumps(value)


NUMBER_STYLES = [
    repr,
    lambda v: f"{v:.4f}",
    lambda v: f"{v:.9f}",
    lambda v: f"{v:.25f}",
    lambda v: f"{v:.6e}",
    lambda v: f"{v:.17E}",
    lambda v: str(round(v)) if math.isfinite(v) else repr(v),
]
readings = st.one_of(
    st.floats(-100, 100).map(lambda v: round(v, 4)),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.sampled_from([0.0, -0.0, 1e-300, 3.4028234663852886e38, 3.4028235677973366e38, 1e39, 0.1, 9007199254740993.0]),
)
times = st.one_of(
    st.datetimes().map(lambda t: t.isoformat() + "Z"),
    st.datetimes().map(lambda t: t.isoformat(timespec="milliseconds") + "+00:00"),
    st.datetimes().map(lambda t: t.isoformat() + "+02:00"),
    st.integers(946_000_000, 4_103_000_000).flatmap(lambda s: st.sampled_from([s, s * 10**3, s * 10**6, s * 10**9])),
    st.integers(),
    st.floats(9e8, 5e9),
    st.text(max_size=30),
)
unknown = st.dictionaries(
    st.text(st.characters(codec="ascii"), max_size=12),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.just([1, {"a": []}])),
    max_size=2,
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Mostly sound messages in every spelling, with something odd now and then."""
    optional = st.one_of(st.none(), readings)
    fields: dict[str, Any] = {
        "device_id": draw(st.one_of(st.text(st.characters(codec="ascii"), max_size=12), st.just("gw-1/pack-2/m-3"))),
        "event_time": draw(times),
        "current_ampere": draw(readings),
        "cell_voltage_volt": draw(st.lists(st.one_of(readings, readings, st.none()), max_size=22)),
        "cell_temperature_celsius": draw(st.lists(optional, max_size=7)),
    }
    extra = {
        "seq": st.one_of(st.none(), st.integers(-1, 2**65), st.just(1.0)),
        "voltage_volt": optional,
        "ambient_temperature_celsius": optional,
        "bms_soc_percent": optional,
        "bms_soh_percent": optional,
        "charge_ah": optional,
        "discharge_ah": optional,
    }
    for name in draw(st.sets(st.sampled_from(sorted(extra)))):
        fields[name] = draw(extra[name])
    fields |= draw(unknown)
    names = draw(st.permutations(sorted(fields)))
    gap = draw(st.sampled_from(["", " ", "\n\t"]))
    return spell({name: fields[name] for name in names}, draw(st.sampled_from(NUMBER_STYLES)), gap).encode()


@settings(max_examples=150, deadline=None)
@given(st.lists(messages(), min_size=1, max_size=8))
def test_any_spelling_gives_the_same_rows_and_dead_letters(payloads: list[bytes]) -> None:
    assert_same(payloads)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    message = bytearray(canonical(seq=draw(st.integers(0, 99))))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(message) - 1))
        piece = draw(
            st.one_of(
                st.binary(max_size=3), st.sampled_from([b'"', b"{", b"}", b"]", b",", b"0", b"-", b"e", b" ", b"."])
            )
        )
        message[place : place + draw(st.integers(0, 2))] = piece
        if not message:
            return b""
    return bytes(message[: draw(st.integers(0, len(message)))]) if draw(st.booleans()) else bytes(message)


@settings(max_examples=300, deadline=None)
@given(st.lists(damaged(), min_size=1, max_size=8))
def test_damaged_messages_never_make_the_two_ways_disagree(payloads: list[bytes]) -> None:
    assert_same([*payloads, canonical()])


def test_each_cut_and_each_changed_byte_of_a_message() -> None:
    message = canonical()
    cuts = [message[:end] for end in range(len(message))]
    digits = [message[:i] + bytes([change]) + message[i + 1 :] for i in range(len(message)) for change in b'0."}-e, ']
    assert_same(cuts)
    assert_same(digits)


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30), min_size=1, max_size=20)
)
def test_values_are_the_nearest_float32_of_the_nearest_float64(values: list[float]) -> None:
    telemetry, _ = SCANNING(raw([canonical(cell_voltage_volt=values)]))
    assert telemetry is not None
    expected = np.array(values).astype(np.float32)
    assert telemetry["cell_voltage_volt"].values.to_numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"event_time": 1795341605},
        {"event_time": 1795341605123},
        {"event_time": 1795341605123456},
        {"event_time": 1795341605123456789},
        {"event_time": "2024-02-29T23:59:59Z"},
        {"event_time": "2024-02-29T23:59:59.123456+00:00"},
        {"current_ampere": None},
        {"seq": None},
        {"seq": 2**63 - 1},
        {"seq": 10**19 - 1},
        {"cell_voltage_volt": [3.6, None, 3.651234567890123, 4]},
        {"cell_temperature_celsius": []},
        {"charge_ah": 1234.567891},
        {"firmware": "v1.2", "ok": True, "bad": False, "none": None, "n": -1.5e3},
    ],
)
def test_ordinary_messages_are_taken(change: dict[str, Any]) -> None:
    """Rows that went the slow way would be right, but ten times as dear."""
    for separators in ((",", ":"), (", ", ": ")):
        payload = canonical(separators=separators, **change)
        assert taken([payload, b" " + payload + b"\r\n"]) == [True, True]
    assert_same([canonical(**change)])


def test_odd_messages_are_left_alone() -> None:
    sound = canonical()
    odd = [
        sound.replace(b'"seq"', b'"s\\u0065q"'),
        sound.replace(b"gw-1", "gw-ä".encode()),
        sound[:-1] + b',"seq":5}',
        canonical(extra={"a": 1}),
        sound.replace(b"-1.234", b"-0"),
        sound.replace(b"2026-11-22T10:00", b"\0" * 16),
        sound.replace(b"3.6512", b"1.000000059604644775"),  # next to the middle of two float32
        *(canonical(event_time=f"{day}T10:00:00Z") for day in ("2025-02-29", "2026-02-30", "2026-04-31", "2026-00-01")),
        *(canonical(device_id=name) for name in ("gw'1", "gw\x7f", "", "x" * 257)),
        canonical(seq=10**19),
        canonical(seq=2**64),
        canonical(charge_ah=9007199254740993),
        sound.replace(b"-1.234", b"1e-30"),
        b"[" + sound + b"]",
    ]
    assert taken(odd) == [False] * len(odd)
    assert_same(odd)


@pytest.mark.parametrize("padding", range(64))
def test_the_last_payload_may_end_where_its_memory_ends(padding: int) -> None:
    payloads = [canonical(), canonical(firmware="x" * padding)]
    data = b"".join(payloads)
    offsets = np.cumsum([0, *map(len, payloads)]).astype(np.int32)
    array = pa.Array.from_buffers(pa.binary(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    flags, columns = Scanner(SETTINGS).scan(array)
    assert flags.all()
    assert columns["device_id"].to_pylist() == ["gw-1/pack-2/m-3"] * 2


def test_a_slice_of_a_batch_is_decoded_as_if_it_stood_alone() -> None:
    payloads = [canonical(seq=i) for i in range(50)]
    payloads[13] = b"nothing"
    batch = raw(payloads).slice(10, 25)
    telemetry, dead_letters = SCANNING(batch)
    assert telemetry is not None and dead_letters is not None
    assert telemetry["seq"].to_pylist() == [i for i in range(10, 35) if i != 13]
    assert telemetry["source_offset"].to_pylist() == telemetry["seq"].to_pylist()
    assert dead_letters["source_offset"].to_pylist() == [13]


def test_what_a_batch_gave_stays_when_the_next_one_comes() -> None:
    first, _ = SCANNING(raw([canonical(device_id="a", cell_voltage_volt=[1.0])]))
    before = exact(first)
    SCANNING(raw([canonical(device_id="b", cell_voltage_volt=[2.0])]))
    assert exact(first) == before
