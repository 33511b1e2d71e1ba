"""An entry is computed once, reads back as it was written, and is found by its key alone."""

import gc
import json
import re
import shutil
import signal
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reusekit.errors import CacheError, DataError
from reusekit.features import FeatureKey, FeatureStore, default_path

SIZE = 100


def key(name="k", arrays=("x",), size=SIZE):
    return FeatureKey(name, arrays, size, {"cut": "somewhere"})


class Source:
    """Computes rows that say which they are, and remembers what it was asked for."""

    def __init__(self, width=8, dtype="float32", size=SIZE, batch=7, name="x"):
        self.values = np.arange(size * width).reshape(size, width).astype(dtype)
        self.batch, self.name = batch, name
        self.runs = []

    def __call__(self, start, stop):
        self.runs.append((start, stop))
        stop = len(self.values) if stop == SIZE else stop
        for at in range(start, stop, self.batch):
            yield {self.name: self.values[at : min(at + self.batch, stop)]}


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "store", block_bytes=20 * 32)  # 14 rows of Source's, 8 blocks


def files(store, pattern="entries/*/*.npy"):
    return sorted(store.path.glob(pattern))


def test_what_is_there_is_not_computed_again(store):
    source = Source()
    first = store.get_or_compute(key(), source)
    np.testing.assert_array_equal(np.asarray(first["x"]), source.values)
    assert store.get(key("other")) is None
    again = FeatureStore(store.path).get_or_compute(key(), source)
    np.testing.assert_array_equal(np.asarray(again["x"]), source.values)
    assert source.runs == [(0, SIZE)]
    assert len(files(store)) == 1
    assert not files(store, "drafts/*")


def test_an_entry_of_another_size_is_no_answer(store):
    store.get_or_compute(key(size=40), lambda start, stop: Source()(start, stop)).close()
    assert store.get(key(size=60)) is None
    made = store.get_or_compute(key(size=60), lambda start, stop: Source()(start, stop))
    assert len(made["x"]) == 60


def test_processes_may_make_a_store_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: FeatureStore(tmp_path / "new"), range(40)))


def test_arrays_go_by_the_names_of_whoever_asks(store):
    store.get_or_compute(key(arrays=("x",)), Source())
    renamed = store.get_or_compute(key(arrays=("y",)), Source())
    assert list(renamed) == ["y"]


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "bfloat16", "float64", "bool", "int32", "uint8"]
)
def test_every_dtype_reads_back_to_the_bit(dtype, store):
    source = Source(dtype=dtype, width=3)
    array = store.get_or_compute(key(), source)["x"]
    assert array.dtype == source.values.dtype
    assert array[[3, 70]].dtype == source.values.dtype
    np.testing.assert_array_equal(np.asarray(array), source.values)


def test_several_arrays_are_kept_together(store):
    rows = np.arange(SIZE)

    def compute(start, stop):
        for at in range(start, stop, 10):
            part = rows[at : at + 10]
            yield {"b": part.astype("bool"), "a": np.tile(part[:, None, None], (1, 3, 4))}

    entry = store.get_or_compute(key(arrays=("a", "b")), compute)
    assert {name: array.shape for name, array in entry.items()} == {"a": (100, 3, 4), "b": (100,)}
    assert entry["a"][[99, 5, -2]][:, 2, 3].tolist() == [99, 5, 98]
    assert entry["b"][:2].tolist() == [False, True]


@settings(deadline=None, max_examples=60)
@given(choice=st.data())
def test_rows_are_taken_as_from_one_array(choice, tmp_path_factory):
    size = choice.draw(st.integers(1, 40))
    source = Source(size=size, width=2, batch=choice.draw(st.integers(1, 50)))
    store = FeatureStore(
        tmp_path_factory.mktemp("store"), block_bytes=choice.draw(st.integers(1, 400))
    )

    def compute(start, stop):
        yield from source(start, SIZE)

    array = store.get_or_compute(key(size=size), compute)["x"]
    rows = choice.draw(
        st.one_of(
            st.lists(st.integers(-size, size - 1)),
            st.slices(size),
            st.integers(-size, size - 1),
            st.lists(st.booleans(), min_size=size, max_size=size).map(np.array),
        )
    )
    wanted = rows if not isinstance(rows, list) else np.array(rows, int)
    np.testing.assert_array_equal(array[rows], source.values[wanted])
    for beyond in (size, -size - 1):
        with pytest.raises(IndexError, match="out of bounds"):
            array[[0, beyond]]


def test_one_pass_makes_several_entries_and_only_those_that_lack(store):
    asked = []

    def compute(keys, start, stop):
        asked.append([one.digest for one in keys])
        for at in range(start, stop, 10):
            yield [{"x": np.full((10, 2 + len(one.digest)), at, "float32")} for one in keys]

    store.get_or_compute_all([key("a"), key("ccc")], compute)
    found = store.get_or_compute_all([key("ccc"), key("bb"), key("a")], compute)
    assert asked == [["a", "ccc"], ["bb"]]
    assert [entry["x"].shape[1] for entry in found] == [5, 4, 3]
    named = [key("a", arrays=("x",)), key("a", arrays=("y",))]
    assert [list(entry) for entry in store.get_or_compute_all(named, compute)] == [["x"], ["y"]]
    with pytest.raises(CacheError, match="keys of one size"):
        store.get_or_compute_all([key("a"), key("d", size=3)], compute)


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def damage_header(path):
    path.write_bytes(path.read_bytes().replace(b"'<f4'", b"'<i4'"))


def damage_empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "blocks"),
    [
        (damage_truncate, 1),
        (damage_flip, 1),
        (damage_header, 8),
        (damage_empty, 8),
        (Path.unlink, 8),
    ],
)
def test_a_damaged_entry_is_found_and_computed_again(damage, blocks, store):
    source = Source()
    store.get_or_compute(key(), source).close()
    damage(*files(store))
    assert store.verify() == {"k": blocks}
    assert store.get(key()) is None
    repaired = store.get_or_compute(key(), source)
    np.testing.assert_array_equal(np.asarray(repaired["x"]), source.values)
    assert source.runs == [(0, SIZE)] * 2
    assert store.verify() == {"k": 0}


def interrupted_at(source, batch):
    def compute(start, stop):
        for number, part in enumerate(source(start, stop)):
            if number == batch:
                with suppress(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGTERM)
                return  # as an iterator of TensorFlow's may
            yield part

    return compute


def test_one_pass_writes_to_each_entry_what_it_lacks(store):
    source = Source()
    with pytest.raises(KeyboardInterrupt):
        store.get_or_compute(key("a"), interrupted_at(source, 7))

    def compute(keys, start, stop):
        for batch in source(start, stop):
            yield [{"x": batch["x"][:, : 8 // len(one.digest)]} for one in keys]

    found = store.get_or_compute_all([key("a"), key("bb")], compute)
    assert source.runs[1:] == [(0, SIZE)]
    np.testing.assert_array_equal(np.asarray(found[0]["x"]), source.values)
    np.testing.assert_array_equal(np.asarray(found[1]["x"]), source.values[:, :4])


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', None])
def test_a_damaged_manifest_is_never_believed(text, store):
    source = Source()
    store.get_or_compute(key(), source).close()
    (path,) = files(store, "entries/*/manifest.json")
    if text is None:
        told = json.loads(path.read_text())
        told["about"] = {"cut": "elsewhere"}
        text = json.dumps(told)
    path.write_text(text)
    assert store.verify() == {"k": 1}
    again = store.get_or_compute(key(), source)
    np.testing.assert_array_equal(np.asarray(again["x"]), source.values)
    assert source.runs == [(0, SIZE)] * 2


def test_a_reader_keeps_what_it_has_while_another_repairs(store):
    source = Source()
    reading = store.get_or_compute(key(), source)
    files(store)[0].unlink()
    store.get_or_compute(key(), source)
    np.testing.assert_array_equal(np.asarray(reading["x"]), source.values)


def test_an_interrupted_computation_goes_on_at_its_last_whole_block(store):
    source = Source()
    with pytest.raises(KeyboardInterrupt):  # after two blocks of two batches, and a half
        store.get_or_compute(key(), interrupted_at(source, 5))
    assert store.get(key()) is None
    assert [entry.whole for entry in store.entries()] == [False]
    entry = store.get_or_compute(key(), source)
    np.testing.assert_array_equal(np.asarray(entry["x"]), source.values)
    assert source.runs == [(0, SIZE), (28, SIZE)]


def test_an_interrupted_computation_goes_on_before_a_damaged_block(store):
    source = Source()
    with pytest.raises(KeyboardInterrupt):
        store.get_or_compute(key(), interrupted_at(source, 7))
    (file,) = files(store, "drafts/*/*.npy")
    content = bytearray(file.read_bytes())
    content[-42 * 32 + 20 * 32] ^= 1  # in the second block
    file.write_bytes(content)
    entry = store.get_or_compute(key(), source)
    np.testing.assert_array_equal(np.asarray(entry["x"]), source.values)
    assert source.runs[1:] == [(14, SIZE)]


def nothing_is_left(store):
    return store.entries() == [] and not files(store, "drafts/*") and not files(store, "removed/*")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_features_that_are_not_finite_are_refused(value, dtype, store):
    source = Source(dtype=dtype)
    source.values[60, 3] = value
    with pytest.raises(CacheError, match=r"at 'x'.* not finite \(examples 56 to 62\)"):
        store.get_or_compute(key(), source)
    assert nothing_is_left(store)


@pytest.mark.parametrize(("size", "received"), [(99, "99, and no more"), (101, "101 or more")])
def test_a_data_set_of_another_size_is_refused(size, received, store):
    with pytest.raises(DataError, match=f"Expected 100 examples. Received: {received}"):
        store.get_or_compute(key(), Source(size=size))
    assert nothing_is_left(store)


def test_batches_that_do_not_fit_together_are_refused(store):
    def compute(second):
        def give(start, stop):
            yield {"x": np.zeros((5, 3), "float32")}
            yield second

        return give

    for second, said in [
        ({"x": np.zeros((5, 4), "float32")}, r"shape \(3,\).*Received: shape \(4,\).*Padding"),
        ({"x": np.zeros((5, 3), "float64")}, "float64"),
        ({"y": np.zeros((5, 3), "float32")}, "Expected the arrays x. Received: y"),
    ]:
        with pytest.raises(CacheError, match=said):
            store.get_or_compute(key(), compute(second))
        assert nothing_is_left(store)
    with pytest.raises(CacheError, match="as many examples of each"):
        store.get_or_compute(
            key(arrays=("x", "y")), lambda *_: [{"x": np.zeros(3), "y": np.zeros(4)}]
        )
    with pytest.raises(CacheError, match="at least one number"):
        store.get_or_compute(key(), lambda *_: [{"x": np.zeros((3, 0))}])


def test_two_threads_compute_once(store):
    source, found = Source(), []
    threads = [
        threading.Thread(target=lambda: found.append(store.get_or_compute(key(), source)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert source.runs == [(0, SIZE)]


class TestBudget:
    BYTES = SIZE * 8 * 4

    def test_what_was_used_longest_ago_goes_first(self, tmp_path):
        store = FeatureStore(tmp_path, budget=3 * self.BYTES)
        for name in "abc":
            store.get_or_compute(key(name), Source()).close()
        store.get(key("a")).close()
        store.get_or_compute(key("d"), Source()).close()
        assert [entry.digest for entry in store.entries()] == ["c", "a", "d"]

    def test_what_is_in_use_stays(self, tmp_path):
        store = FeatureStore(tmp_path, budget=2 * self.BYTES)
        used = store.get_or_compute(key("a"), Source())
        array = used["x"]
        del used  # its array is enough
        store.get_or_compute(key("b"), Source()).close()
        other = FeatureStore(tmp_path, budget=2 * self.BYTES)
        held = other.get_or_compute(key("c"), Source())
        assert {entry.digest for entry in store.entries()} == {"a", "c"}
        with pytest.raises(CacheError, match="in use"):
            store.get_or_compute(key("d"), Source())
        assert {entry.digest for entry in store.entries()} == {"a", "c"}
        held.close()
        del array
        gc.collect()
        store.get_or_compute(key("d"), Source())
        assert {entry.digest for entry in store.entries()} == {"c", "d"}

    def test_less_than_one_entry_is_refused_before_anything_is_written(self, tmp_path):
        store = FeatureStore(tmp_path, budget=self.BYTES - 1)
        with pytest.raises(CacheError, match=r"at least 3,200 bytes.*Received: 3,199"):
            store.get_or_compute(key(), Source())
        assert nothing_is_left(store)
        FeatureStore(tmp_path, budget=self.BYTES).get_or_compute(key(), Source())

    def test_a_budget_of_nothing_is_refused(self, tmp_path):
        with pytest.raises(CacheError, match=r"Expected budget to be .* at least 1"):
            FeatureStore(tmp_path, budget=0)


def test_gc_removes_what_was_left_and_what_is_too_much(store):
    for name in "ab":
        store.get_or_compute(key(name), Source()).close()

    def interrupted(start, stop):
        yield {"x": np.zeros((50, 8), "float32")}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get_or_compute(key("c"), interrupted)
    held = store.get(key("a"))
    assert [entry.digest for entry in store.gc()] == ["c"]
    assert [entry.digest for entry in store.gc(budget=1)] == ["b"]
    assert [entry.digest for entry in store.clear()] == []
    held.close()
    assert [entry.digest for entry in store.clear()] == ["a"]
    assert nothing_is_left(store)


def test_a_store_that_lost_a_folder_says_so(store):
    shutil.rmtree(store.path / "locks")
    for use in (lambda: store.get(key()), lambda: store.get_or_compute(key(), Source())):
        with pytest.raises(CacheError, match="that can be used"):
            use()
    shutil.rmtree(store.path)
    with pytest.raises(CacheError, match="No such file"):
        store.entries()


def test_a_folder_that_is_no_store_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(CacheError, match="holds something else"):
        FeatureStore(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(CacheError, match=r"can be used.*Not a directory"):
        FeatureStore(tmp_path / "thesis.txt" / "store")
    other = tmp_path / "future"
    other.mkdir()
    (other / "feature_store.json").write_text('{"format": 3}')
    with pytest.raises(CacheError, match=r'"format": 2.*Received: .*"format": 3'):
        FeatureStore(other)
    (other / "feature_store.json").write_text('{"format": 1}')
    with pytest.raises(CacheError, match=r"Remove its folder, .* earlier version"):
        FeatureStore(other)


def test_memory_does_not_grow_with_the_number_of_examples(store):
    def peak(size):
        def compute(start, stop):
            for at in range(start, stop, 10):
                yield {"x": np.full((10, 50_000), at, "float32")}

        tracemalloc.start()
        with store.get_or_compute(key(f"m{size}", size=size), compute) as entry:
            for at in range(0, size, 10):
                assert entry["x"][at : at + 10][0, 0] == at
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(20)  # what is made once
    assert peak(400) < 1.1 * peak(40)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells, others do not")
def test_what_was_read_does_not_stay_in_memory(store, monkeypatch):
    monkeypatch.setattr("reusekit.features.entry.RESIDENT_BYTES", 4 << 20)

    def mapped_kilobytes():
        (line,) = re.findall(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(line)

    def compute(start, stop):
        for at in range(start, stop, 10):
            yield {"x": np.full((10, 100_000), at, "float32")}

    array = store.get_or_compute(key(), compute)["x"]  # 40 MB
    before = mapped_kilobytes()
    for at in np.random.default_rng(0).permutation(SIZE).reshape(-1, 5):
        np.testing.assert_array_equal(array[at][:, 0], at // 10 * 10)
    assert mapped_kilobytes() - before < 12_000


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a container whose user is in no list
    assert default_path() == tmp_path / "reusekit" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(CacheError, match=r"Expected the home folder .* Set HOME, or name a folder"):
        FeatureStore()
