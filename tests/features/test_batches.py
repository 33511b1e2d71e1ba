"""Batches from arrays: everything once a pass, rows kept together, shuffled from a seed."""

import keras
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from reusekit.features import FeatureKey, FeatureStore, feed


def rows(batches) -> list[int]:
    taken = []
    for inputs, labels in batches.as_numpy_iterator():
        np.testing.assert_array_equal(inputs[:, 0], labels)
        taken += labels.tolist()
    return taken


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 1000))
def test_every_row_once_a_pass(size, batch, seed):
    inputs = np.arange(size, dtype="float32")[:, None].repeat(3, axis=1)
    labels = np.arange(size)
    assert rows(feed(inputs, labels, batch)) == list(range(size))
    shuffled = feed(inputs, labels, batch, seed)
    first, second = rows(shuffled), rows(shuffled)
    assert sorted(first) == sorted(second) == list(range(size))
    assert rows(feed(inputs, labels, batch, seed)) == first
    assert len(shuffled) == -(-size // batch)


def test_the_order_follows_from_the_seed_alone():
    inputs, labels = np.arange(50.0)[:, None], np.arange(50)
    orders = []
    for global_seed in (1, 2):
        keras.utils.set_random_seed(global_seed)
        orders.append(rows(feed(inputs, labels, 8, seed=5)))
    assert orders[0] == orders[1]
    keras.utils.set_random_seed(0)


def test_passes_differ_and_reach_across_the_whole_file(tmp_path):
    inputs = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "float32", (500, 2))
    inputs[:] = np.arange(500)[:, None]
    shuffled = feed(inputs, np.arange(500), 50, seed=1)
    first, second = rows(shuffled), rows(shuffled)
    assert first != second
    assert max(first[:50]) > 400
    assert min(first[:50]) < 100


def test_structures_and_stored_arrays_come_in_the_order_of_plain_ones(tmp_path):
    rows = np.arange(90, dtype="float32")

    def compute(start, stop):
        for at in range(start, stop, 8):
            part = rows[at : min(at + 8, stop)]
            yield {"maps": np.tile(part[:, None], (1, 5)).astype("bfloat16"), ":labels": part}

    store = FeatureStore(tmp_path, block_bytes=300)
    entry = store.get_or_compute(FeatureKey("k", ("maps", ":labels"), 90), compute)
    plain = {"maps": np.asarray(entry["maps"]), "more": [rows.astype(bool), rows]}
    stored = {"maps": entry["maps"], "more": [rows.astype(bool), rows]}
    pairs = zip(feed(plain, rows, 7, 3), feed(stored, entry[":labels"], 7, 3), strict=True)
    for (one, label), (other, stored_label) in pairs:
        assert other["maps"].dtype == "bfloat16"
        assert other["maps"].shape[1:] == (5,)
        np.testing.assert_array_equal(other["maps"], one["maps"])
        np.testing.assert_array_equal(other["maps"][:, 0], label)
        np.testing.assert_array_equal(other["more"][0], label != 0)
        np.testing.assert_array_equal(other["more"][1], one["more"][1])
        np.testing.assert_array_equal(label, stored_label)
