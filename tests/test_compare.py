"""Comparing predictions: as a naive comparison row by row does it, whatever the sets; and what is left to say."""

import math
import struct
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.store import LakeError
from voltmill.flows import compare_spill
from voltmill.flows.compare import Comparison, Selection, compare, compare_lakes, read, report
from voltmill.flows.compare_tally import pair_models
from voltmill.kernels.schema import PREDICTION

START = datetime(2026, 11, 22, tzinfo=UTC)
ROW: dict[str, Any] = {
    "device_id": "m",
    "event_time": START,
    "target": "soc",
    "model_sha256": "a" * 64,
    "value": 50.0,
    "lo90": 45.0,
    "hi90": 55.0,
    "unit": "percent",
    "model_name": "one",
    "model_version": "1",
    "mode": "live",
    "quality_bits": 0,
    "source": "mqtt",
    "source_partition": "p",
    "source_offset": 1,
}


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([ROW | row for row in rows], PREDICTION)


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


# --- against the naive comparison ----------------------------------------------------------------

MODELS = [("a" * 64, "one"), ("b" * 64, "two"), ("c" * 64, "one")]
numbers = st.sampled_from([None, 0.0, -0.0, 1.0, 1.5, 1e9, math.nan, math.inf])
predictions = st.lists(
    st.fixed_dictionaries(
        {
            "device_id": st.sampled_from(["m-1", "m-2", "gw/ü"]),
            "event_time": st.integers(0, 3).map(at),
            "target": st.sampled_from(["soc", "soh"]),
            "model": st.sampled_from(MODELS),
            "value": numbers,
            "hi90": numbers,
            "mode": st.sampled_from(["live", "replay"]),
            "quality_bits": st.sampled_from([0, 1 << 31]),
            "source_partition": st.sampled_from(["p", "q"]),
            "unit": st.sampled_from(["percent", "percent", "percent", "cycles"]),
        }
    ).map(
        lambda row: (
            {k: v for k, v in row.items() if k != "model"}
            | dict(zip(("model_sha256", "model_name"), row["model"], strict=True))
        )
    ),
    max_size=25,
)


def bits(value: float | None) -> bytes | None:
    return None if value is None else struct.pack("<f", value)


def distance(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return None
    if bits(a) == bits(b):
        return 0.0
    far = abs(float(np.float32(a)) - float(np.float32(b)))
    return math.inf if math.isnan(far) else far


def naive(left: list[dict[str, Any]], right: list[dict[str, Any]], tolerance: float | None) -> dict[str, Any]:
    """Counts by device and target, by comparing row for row."""
    pairs = pair_models(*([tuple(r[n] for n in compare_spill.KIND) for r in side] for side in (left, right)))
    number = {(p.target, sha, k): n for n, p in enumerate(pairs) for k, sha in enumerate((p.left, p.right)) if sha}
    keyed: list[dict[Any, list[dict[str, Any]]]] = [defaultdict(list), defaultdict(list)]
    for k, side in enumerate((left, right)):
        for r in side:
            keyed[k][r["device_id"], r["target"], r["event_time"], number[r["target"], r["model_sha256"], k]].append(r)
    found: dict[Any, dict[str, Any]] = {}
    for key in {*keyed[0], *keyed[1]}:
        ours, theirs = keyed[0].get(key, []), keyed[1].get(key, [])
        c = found.setdefault(key[:2], dict.fromkeys(["left", "right", "only_left", "only_right"], 0))
        for name in ("changed", "close", "one_null"):
            c.setdefault(name, 0)
        c.setdefault("apart", [])
        both = min(len(ours), len(theirs))
        c["left"] += len(ours)
        c["right"] += len(theirs)
        c["only_left"] += len(ours) - both
        c["only_right"] += len(theirs) - both
        for a, b in zip(ours, theirs, strict=False):
            far = [distance(a[n], b[n]) for n in ("value", "lo90", "hi90")]
            nulls = any((a[n] is None) != (b[n] is None) for n in ("value", "lo90", "hi90"))
            rest = any(a[n] != b[n] for n in ("unit", "quality_bits", "source", "source_partition", "source_offset"))
            same = all(bits(a[n]) == bits(b[n]) for n in ("value", "lo90", "hi90"))
            near = same or (tolerance is not None and not nulls and all(f is None or f <= tolerance for f in far))
            model = all(a[n] == b[n] for n in compare_spill.KIND)
            c["changed"] += rest or not near
            c["close"] += not rest and near and not (same and model)
            c["one_null"] += (a["value"] is None) != (b["value"] is None)
            if far[0] is not None:
                c["apart"].append((far[0], a["event_time"]))
    return found


def check(found: Comparison, wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if name != "apart":
            assert getattr(found, name) == value, name
    apart = [far for far, _ in wanted["apart"]]
    assert found.worst == max(apart, default=0.0)
    times = [time for far, time in wanted["apart"] if far == found.worst and far > 0]
    assert found.worst_at == min(times, default=None)
    assert found.mean == pytest.approx(sum(apart) / max(len(apart), 1))


@settings(deadline=None, max_examples=60)
@given(
    left=predictions,
    right=predictions,
    shared=predictions,
    tolerance=st.sampled_from([None, 0.0, 0.5]),
    cut=st.integers(1, 9),
)
def test_as_a_naive_comparison_does_it(left: Any, right: Any, shared: Any, tolerance: float | None, cut: int) -> None:
    left, right = [ROW | r for r in left + shared], [ROW | r for r in shared + right]
    wanted = naive(left, right, tolerance)
    batches = [table(*side).to_batches(max_chunksize=cut) for side in (left, right)]
    found = report(*batches, tolerance=tolerance)
    assert found.same + len(found.differing) == len(wanted)
    for device in found.differing:
        check(device.found, wanted.pop((device.device_id, device.target)))
    for (device_id, target), rest in wanted.items():
        assert not any(rest[n] for n in ("changed", "close", "only_left", "only_right")), (device_id, target)
    assert found.total == compare(table(*left), table(*right)) or tolerance is not None
    assert sum(t.left for t in found.targets.values()) == found.total.left == len(left)
    worst = [d.found.worst for d in found.differing]
    assert worst == sorted(worst, reverse=True)


# --- single facts --------------------------------------------------------------------------------


def test_one_bit_is_seen_and_the_mode_is_not() -> None:
    left = table({"value": 0.0})
    assert compare(left, table({"value": 0.0, "mode": "replay"})).identical
    assert compare(left, table({"value": -0.0})).changed == 1
    assert compare(left, table({"value": np.nextafter(np.float32(0), np.float32(1))})).changed == 1
    assert compare(left, table({"value": 0.0, "quality_bits": 1 << 16})).changed == 1
    assert compare(left, table({"value": 0.0, "source_offset": 2})).changed == 1
    assert compare(left, table({"value": 0.0, "device_id": "y"})) == Comparison(1, 1, 0, 1, 1)


def test_a_null_is_not_a_zero() -> None:
    found = compare(table({"value": 0.0}), table({"value": None}))
    assert (found.changed, found.one_null, found.worst, found.mean) == (1, 1, 0.0, 0.0)
    assert compare(table({"lo90": None}), table({"lo90": 0.0})).changed == 1
    assert compare(table({"value": None}), table({"value": None})).identical


def test_rows_that_are_missing_and_doubled() -> None:
    assert compare(table({}, {"event_time": at(1)}), table({})) == Comparison(2, 1, 0, 1, 0)
    assert compare(table({}), table({}, {})) == Comparison(1, 2, 0, 0, 1)


def test_nothing_is_not_identical() -> None:
    assert not compare(table(), table()).identical and not compare(table(), table()).within


def test_the_worst_is_named_with_its_place() -> None:
    left = [{"device_id": f"m-{k}", "event_time": at(t)} for k in range(4) for t in range(5)]
    right = [dict(row) for row in left]
    right[7] |= {"value": 53.0}  # m-1 at 2 s
    right[8] |= {"value": 48.0}
    right[16] |= {"value": 90.0}  # m-3 at 1 s
    found = report(table(*left).to_batches(), table(*right).to_batches())
    assert (found.total.changed, found.total.worst, found.total.worst_at) == (3, 40.0, at(1))
    assert found.total.mean == pytest.approx(45 / 20) and found.same == 2 and not found.good
    first, second = found.differing
    assert (first.device_id, first.found.worst, first.found.changed) == ("m-3", 40.0, 1)
    assert (second.device_id, second.found.worst, second.found.worst_at) == ("m-1", 3.0, at(2))
    assert second.found.mean == 1.0 and second.found.same == 3


def test_within_a_tolerance() -> None:
    left, right = table({}), table({"value": 50.25, "lo90": 44.75})
    near = report(left.to_batches(), right.to_batches(), tolerance=0.25)
    assert near.good and (near.total.changed, near.total.close, near.total.worst) == (0, 1, 0.25)
    assert not report(left.to_batches(), right.to_batches(), tolerance=0.2).good
    assert not report(left.to_batches(), right.to_batches()).good
    other = table({"quality_bits": 1})
    assert not report(left.to_batches(), other.to_batches(), tolerance=1e9).good


def test_two_models_are_compared_and_never_identical() -> None:
    other = {"model_sha256": "b" * 64, "model_name": "two"}
    found = report(table({}).to_batches(), table(other).to_batches())
    assert [(p.left_name, p.right_name) for p in found.models] == [("one", "two")]
    assert (found.total.only_left, found.total.changed, found.total.close) == (0, 0, 1) and not found.good
    assert report(table({}).to_batches(), table(other).to_batches(), tolerance=0.0).good
    shadowed = table({}, other | {"mode": "shadow"})
    assert report(shadowed.to_batches(), table({}).to_batches()).total == Comparison(2, 1, 0, 1, 0)


def kind(sha: str, name: str, target: str = "soc") -> tuple[str, ...]:
    return (target, sha, name, "1", "percent")


def test_models_are_paired_by_digest_then_name_then_rest() -> None:
    left = [kind("a", "x"), kind("b", "y"), kind("c", "z"), kind("a", "x", "soh")]
    right = [kind("a", "x"), kind("d", "y"), kind("e", "w")]
    made = [(p.target, p.left, p.right) for p in pair_models(left, right)]
    assert made == [("soc", "a", "a"), ("soc", "b", "d"), ("soc", "c", "e"), ("soh", "a", None)]
    unclear = pair_models([kind("a", "x"), kind("b", "y")], [kind("c", "z"), kind("d", "w")])
    assert [(p.left, p.right) for p in unclear] == [("a", None), ("b", None), (None, "c"), (None, "d")]


# --- lakes ---------------------------------------------------------------------------------------


def lake(folder: Path, predictions: pa.Table, *, files: int = 1, group: int = 100, **options: Any) -> LakeSettings:
    edges = np.linspace(0, len(predictions), files + 1).astype(int).tolist()
    for k, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        rows = predictions.slice(start, stop - start)
        path = folder / "predictions" / "date=2026-11-22" / f"shard=0{k % 2}" / f"s-{k:010d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, path, row_group_size=group, **options)
    return LakeSettings(url=str(folder))


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LakeSettings, LakeSettings]]:
    rows = [
        {"device_id": f"site-{k % 3}/m-{k % 7}", "event_time": at(k), "value": k / 7, "target": ["soc", "soh"][k % 2]}
        for k in range(2_000)
    ]
    folder = tmp_path_factory.mktemp("lakes")
    other = [row | ({"value": None} if k == 1234 else {}) for k, row in enumerate(rows)]
    yield lake(folder / "left", table(*rows), files=4), lake(folder / "right", table(*other[::-1]), files=7)


def test_lakes_of_other_files_and_another_order(lakes: tuple[LakeSettings, LakeSettings]) -> None:
    found = compare_lakes(*lakes)
    assert found.total == Comparison(2_000, 2_000, 1, 0, 0, one_null=1) and len(found.differing) == 1
    assert found.differing[0].device_id == f"site-{1234 % 3}/m-{1234 % 7}"
    assert compare(read(lakes[0]), read(lakes[1])) == found.total


@pytest.mark.parametrize(
    ("selection", "keep"),
    [
        (Selection(start=at(300), stop=at(900)), lambda k: 300 <= k < 900),
        (Selection(devices=("site-1/*", "*/m-3")), lambda k: k % 3 == 1 or k % 7 == 3),
        (Selection(targets=("soh",), stop=at(1235)), lambda k: k % 2 == 1 and k < 1235),
        (Selection(start=at(5_000)), lambda k: False),
    ],
)
def test_a_part_is_compared(lakes: tuple[LakeSettings, LakeSettings], selection: Selection, keep: Any) -> None:
    wanted = [k for k in range(2_000) if keep(k)]
    found = compare_lakes(*lakes, selection)
    assert (found.total.left, found.total.right, found.total.changed) == (len(wanted), len(wanted), 1234 in wanted)


def test_the_buffer_is_cut_as_it_fills(
    lakes: tuple[LakeSettings, LakeSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_spill, "BUFFER_ROWS", 64)
    seen: list[int] = []
    assert compare_lakes(*lakes, on_progress=seen.append).total.changed == 1
    assert seen[-1] == 4_000 and seen == sorted(seen)


def test_plain_text_columns_are_compared_too(tmp_path: Path) -> None:
    rows = table({}, {"event_time": at(1), "source_partition": "q"})
    fields = [pa.field(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in PREDICTION]
    left, right = lake(tmp_path / "a", rows), lake(tmp_path / "b", rows.cast(pa.schema(fields)), store_schema=False)
    assert compare_lakes(left, right).good


def test_what_is_no_set_of_predictions_is_one_line(tmp_path: Path) -> None:
    good = lake(tmp_path / "good", table({}))
    with pytest.raises(LakeError, match="no Parquet file in predictions"):
        compare_lakes(good, LakeSettings(url=str(tmp_path)))
    with pytest.raises(LakeError, match="not predictions: no column lo90; there are: device_id"):
        compare_lakes(good, lake(tmp_path / "bad", table({}).drop_columns("lo90")))
    nameless = table({}).set_column(0, "device_id", pa.array([None], pa.string()))
    with pytest.raises(LakeError, match="not predictions: a device_id is null"):
        compare_lakes(good, lake(tmp_path / "null", nameless))
