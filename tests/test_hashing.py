"""The hash of device ids: it decides the shard, so it must never change."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltmill.kernels.hashing import find_slots, insert_slots, shard_order
from voltmill.operators.table import hashes_of, id_buffers

MASK = 2**64 - 1


def reference(name):
    """FNV-1a and the finaliser of MurmurHash3, from their definitions."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    h = ((h ^ (h >> 33)) * 0xFF51AFD7ED558CCD) & MASK
    h = ((h ^ (h >> 33)) * 0xC4CEB9FE1A85EC53) & MASK
    return h ^ (h >> 33)


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_it_is_what_it_says(names):
    assert hashes_of(pa.array(names, pa.string())).tolist() == [reference(n) for n in names]


def test_it_is_the_one_that_recovery_stores_were_made_with():
    """Written down once. If this fails, every device of every store would change its shard."""
    names = ["", "a", "gw-1/pack-2/module-3", "Zelle-ä"]
    assert hashes_of(pa.array(names)).tolist() == [
        17280346270528514342,
        9413272369427828315,
        17774535047291834268,
        13210769930255367522,
    ]


@pytest.mark.parametrize("shards", [2, 7, 16, 64])
def test_ids_that_differ_in_their_last_digits_are_spread_evenly(shards):
    names = pa.array([f"site-a/gw-{k // 100}/m-{k % 100:02d}" for k in range(64_000)])
    counts = np.bincount((hashes_of(names) % np.uint64(shards)).astype(np.int64), minlength=shards)
    mean = 64_000 / shards
    assert np.abs(counts - mean).max() < 5 * np.sqrt(mean)  # as evenly as dice


@given(st.lists(st.integers(0, MASK), max_size=60), st.integers(1, 9))
def test_shard_order_is_a_stable_sort(hashes, shards):
    order, starts = np.empty(len(hashes), np.int64), np.empty(shards + 1, np.int64)
    shard_order(np.array(hashes, np.uint64), shards, order, starts)
    assert order.tolist() == sorted(range(len(hashes)), key=lambda k: hashes[k] % shards)
    assert starts.tolist() == [sum(h % shards < s for h in hashes) for s in range(shards + 1)]


def test_an_index_that_is_full_but_for_one_bucket():
    names = pa.array([f"m-{k}" for k in range(15)])
    offsets, data = id_buffers(names)
    for hashes in (hashes_of(names), np.full(15, 15, np.uint64)):  # all probe from the last bucket on
        buckets, slots = np.zeros(16, np.int32), np.empty(15, np.int32)
        insert_slots(buckets, hashes, 0, 15)
        assert sorted(buckets.tolist()) == list(range(16))
        assert find_slots(offsets, data, hashes, buckets, hashes, offsets.astype(np.int64), data, slots) == 0
        assert slots.tolist() == list(range(15))
