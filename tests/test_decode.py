"""decode: whatever comes in is a row or a dead letter, and the neighbours of bad input survive."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bytewax.operators as op
import pyarrow as pa
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main
from hypothesis import given, settings
from hypothesis import strategies as st
from payloads import ARRIVAL, canonical, exact, raw
from test_sample import BAD

from voltmill.kernels.schema import DEAD_LETTER, TELEMETRY, Quality
from voltmill.operators.decode import Decoder, decode
from voltmill.operators.sample import REASONS, DecodeSettings, Rejected, Sample, from_json

SETTINGS = DecodeSettings()


def run(payloads: list[bytes], **options: Any) -> tuple[list[Any], list[Any]]:
    telemetry, dead_letters = Decoder(SETTINGS, **options)(raw(payloads))
    return ([] if telemetry is None else telemetry.to_pylist()), (
        [] if dead_letters is None else dead_letters.to_pylist()
    )


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize(("payload", "reason"), [pytest.param(p, r, id=name) for name, p, r in BAD])
def test_bad_input_is_a_dead_letter_and_its_neighbours_survive(payload: bytes, reason: str, scan: bool) -> None:
    rows, letters = run([canonical(seq=1), payload, canonical(seq=2)], scan=scan)
    assert [row["seq"] for row in rows] == [1, 2]
    assert [row["source_offset"] for row in rows] == [0, 2]
    (letter,) = letters
    assert (letter["reason"], letter["stage"], letter["source_offset"]) == (reason, "decode", 1)
    assert letter["payload"] == payload
    assert letter["detail"]


@pytest.mark.parametrize("scan", [True, False])
def test_a_message_of_ten_megabytes_is_too_large_whatever_is_in_it(scan: bool) -> None:
    huge = canonical(note="x" * 10_000_000)
    rows, letters = run([canonical(seq=1), huge, canonical(seq=2)], scan=scan)
    assert [row["seq"] for row in rows] == [1, 2]
    assert [(x["reason"], x["payload"] == huge) for x in letters] == [("too_large", True)]


def test_odd_but_sound_values_are_rows() -> None:
    """A 66 V cell or a reading that is missing is for ``quality`` to judge."""
    rows, letters = run(
        [
            canonical(cell_voltage_volt=[66.0, None]),
            canonical(current_ampere=None, voltage_volt=None, seq=None),
            canonical(cell_voltage_volt=[3.6] * 400, cell_temperature_celsius=[]),
            canonical(device_id="Gerät/模块"),
        ]
    )
    assert not letters
    assert rows[0]["cell_voltage_volt"][0] == 66.0 and math.isnan(rows[0]["cell_voltage_volt"][1])
    assert math.isnan(rows[1]["current_ampere"]) and rows[1]["voltage_volt"] is None and rows[1]["seq"] is None
    assert len(rows[2]["cell_voltage_volt"]) == 400 and rows[2]["cell_temperature_celsius"] == []
    assert rows[3]["device_id"] == "Gerät/模块"


def test_rows_carry_what_the_source_said() -> None:
    telemetry, _ = Decoder(SETTINGS, keep_payload=True)(raw([canonical()]))
    assert telemetry is not None and telemetry.schema.equals(TELEMETRY, check_metadata=True)
    (row,) = telemetry.to_pylist()
    assert (row["source"], row["source_partition"], row["source_offset"]) == ("mqtt", "site/#", 0)
    assert telemetry["ingest_time"].cast(pa.int64()).to_pylist() == [ARRIVAL]
    assert (row["payload"], row["quality_bits"]) == (canonical(), 0)


def test_dead_letters_carry_what_the_source_said() -> None:
    _, letters = Decoder(SETTINGS)(raw([b"?"], topic=None))
    assert letters is not None and letters.schema.equals(DEAD_LETTER, check_metadata=True)
    (letter,) = letters.to_pylist()
    assert (letter["topic"], letter["source"], letter["source_partition"]) == (None, "mqtt", "site/#")
    assert letters["ingest_time"].cast(pa.int64()).to_pylist() == [ARRIVAL]


NAN = canonical(seq=12, current_ampere=math.nan)
WRONG = canonical(seq=13, current_ampere="x")


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("pieces", [(b"[", b", ", b"]"), (b"", b"\n", b"\n"), (b"\xef\xbb\xbf[", b",\n", b"]\n")])
def test_arrays_and_lines_lose_their_bad_elements_only(pieces: tuple[bytes, bytes, bytes], scan: bool) -> None:
    first, between, last = pieces
    sound = [canonical(seq=10), canonical(seq=11, note='}],[{ \\" '), canonical(seq=14)]
    many = first + between.join([*sound[:2], NAN, WRONG, sound[2]]) + last
    rows, letters = run([canonical(seq=1), many, canonical(seq=2), b"{", canonical(seq=3)], scan=scan)
    assert [row["seq"] for row in rows] == [1, 10, 11, 14, 2, 3]
    assert [row["source_offset"] for row in rows] == [0, 1, 1, 1, 2, 4]
    assert [(x["reason"], x["payload"], x["source_offset"]) for x in letters] == [
        ("malformed_json", NAN, 1),
        ("wrong_type", WRONG, 1),
        ("malformed_json", b"{", 3),
    ]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"[]", "empty"),
        (b" [ ] ", "empty"),
        (b"", "empty"),
        (b"[" + b"1," * 1000 + b"1]", "wrong_type"),
        (b"[" + canonical() + b"," + canonical()[:-9], "malformed_json"),
        (json.dumps(json.loads(canonical()), indent=1).encode()[:-2], "malformed_json"),
        (b"[" * 100_000, "malformed_json"),
        (b'["' + b"\\" * 100_000, "malformed_json"),
    ],
)
def test_a_payload_that_is_broken_as_a_whole_is_one_dead_letter(payload: bytes, reason: str) -> None:
    rows, letters = run([payload])
    assert not rows
    assert [(x["reason"], x["payload"]) for x in letters] == [(reason, payload)]


def test_an_object_over_many_lines_is_one_sample() -> None:
    pretty = json.dumps(json.loads(canonical(extra={})), indent=0).encode()
    assert len(run([pretty])[0]) == 1


anything = st.recursive(
    st.one_of(st.none(), st.floats(), st.text()), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            anything.map(lambda value: json.dumps(value).encode()),
            st.just(canonical()),
            st.just(b"[" + canonical() + b"]"),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_every_payload_is_accounted_for(payloads: list[bytes]) -> None:
    rows, letters = run(payloads)
    places = {each["source_offset"] for each in (*rows, *letters)}
    assert places == set(range(len(payloads)))
    assert [row["source_offset"] for row in rows] == [i for i, p in enumerate(payloads) if b"gw-1/pack-2" in p]
    assert all(letter["reason"] in REASONS and letter["reason"] != "internal" for letter in letters)


@given(st.lists(st.integers(1, 20), min_size=1))
def test_rows_do_not_depend_on_how_batches_are_cut(cuts: list[int]) -> None:
    payloads = [canonical(seq=i, cell_voltage_volt=[3.0 + i / 7] * (1 + i % 5)) for i in range(sum(cuts))]
    payloads[::6] = [p.replace(b'"seq"', b'"s\\u0065q"') for p in payloads[::6]]
    whole, decoder, begin, parts = raw(payloads), Decoder(SETTINGS), 0, []
    for size in cuts:
        parts.append(decoder(whole.slice(begin, size))[0])
        begin += size
    together = pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
    assert exact(together) == exact(Decoder(SETTINGS)(whole)[0])


class TopicMapper:
    """Reads ``canonical`` with the device named by the topic; a payload of # is a fault of the mapper."""

    def samples(self, payload: bytes, topic: str | None) -> tuple[list[Sample], list[Rejected]]:
        if payload == b"#":
            raise ZeroDivisionError("a fault")
        if payload == b"half":
            return [self._sample(topic), self._sample(topic)], [Rejected("bad_time", "third\ud800" * 999, b"alf")]
        return [self._sample(topic)], []

    def _sample(self, topic: str | None) -> Sample:
        sample = from_json(canonical(device_id=topic), SETTINGS, None)
        sample.converted = True
        return sample


def test_worker_threads_do_not_meet_in_its_memory() -> None:
    """They share one decoder, and the kernel runs without the GIL: one's devices stood in the other's rows."""
    decoder = Decoder(SETTINGS)
    sites = [
        raw([canonical(device_id=f"{site}/m-{n % 7}", seq=n, cell_voltage_volt=[volt] * 16) for n in range(2_000)])
        for site, volt in (("a", 3.0), ("b", 4.0), ("c", 3.5))
    ]
    alone = [decoder(site) for site in sites]

    def again(k: int) -> bool:
        return all(decoder(sites[k]) == alone[k] for _ in range(40))

    with ThreadPoolExecutor(len(sites)) as pool:
        assert all(pool.map(again, range(len(sites))))


def test_a_mapper_reads_what_it_likes_and_its_faults_are_dead_letters() -> None:
    rows, letters = run([b"x", b"#", b"half", canonical()], mapper=TopicMapper())
    assert [row["source_offset"] for row in rows] == [0, 2, 2, 3]
    assert {(row["device_id"], row["quality_bits"]) for row in rows} == {("site/gw-1", Quality.UNIT_CONVERTED)}
    assert [(x["reason"], x["payload"], x["source_offset"]) for x in letters] == [
        ("internal", b"#", 1),
        ("bad_time", b"alf", 2),
    ]


def test_an_empty_batch_gives_nothing() -> None:
    assert Decoder(SETTINGS)(raw([])) == (None, None)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_operator_sends_rows_and_dead_letters_their_ways(workers: int) -> None:
    seconds: list[float] = []
    telemetry: list[pa.RecordBatch] = []
    letters: list[pa.RecordBatch] = []
    batches = [raw([canonical(seq=1), b"?"]), raw([b"??"]), raw([canonical(seq=2)])]
    flow = Dataflow("site")
    source = op.input("raw", flow, TestingSource(batches))
    out = decode("decode", source, settings=SETTINGS, observe=seconds.append)
    op.output("rows", out.telemetry, TestingSink(telemetry))
    op.output("letters", out.dead_letters, TestingSink(letters))
    if workers == 1:
        run_main(flow)
    else:
        cluster_main(flow, [], 0, worker_count_per_proc=workers)
    assert [batch["seq"].to_pylist() for batch in telemetry] == [[1], [2]]
    assert [batch["payload"].to_pylist() for batch in letters] == [[b"?"], [b"??"]]
    assert len(seconds) == 3 and min(seconds) > 0
