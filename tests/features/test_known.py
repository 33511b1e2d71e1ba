"""Of a data set that has grown, or changed, only the examples that are new are computed."""

import hashlib
from dataclasses import replace
from functools import cache

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import reusekit as rk
from reusekit.data.texts import tokenized
from reusekit.errors import CacheError, DataError
from reusekit.features import Extraction, FeatureKey, FeatureStore, stored, stored_features
from reusekit.planning import Costs, Resources, Trials

POOL = 14
IMAGES = np.random.default_rng(0).integers(0, 256, (96, 8, 8, 1), "uint8")
CUT = "features"
ROUNDING = 1e-6  # of the largest number: the last batch has another size


@cache
def model():
    """A network of two convolutions."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 1))
    y = keras.layers.Conv2D(3, 3, activation="relu", name="early")(x)
    return keras.Model(x, keras.layers.Conv2D(5, 3, name=CUT)(y))


def arrays(rows, labels=None, **options):
    """A split of some of the images."""
    labels = np.arange(len(rows)) % 2 if labels is None else labels
    return rk.data.from_arrays(IMAGES[rows], labels, names=["even", "odd"], **options)


def watched(data):
    """The split with its examples closed, and the list of positions that are asked for."""
    asked = []

    def taken(at):
        asked.extend(at.tolist())
        return data.contents.taken(at)

    def unreadable():
        raise AssertionError("Examples are read that are known.")
        yield

    closed = tf.data.Dataset.from_generator(unreadable, output_signature=data.examples.element_spec)
    contents = replace(data.contents, taken=taken)
    return replace(data, examples=closed, contents=contents), asked


def entry_of(store, data, pooling="avg", at=CUT, of=None, view=None, **options):
    """All that the store holds of the features of a split."""
    extraction = Extraction(**options)
    (source,) = stored_features(
        store, of or model(), [at], data, pooling=pooling, view=view, extraction=extraction
    )
    return {name: np.asarray(values) for name, values in source.entry.items()}


def assert_same(entry, other, share=0.0):
    """Two entries hold the same; features up to a share of the largest number."""
    assert entry.keys() == other.keys()
    for name, values in entry.items():
        apart = 0.0 if name.startswith(":") else share * np.abs(values).max()
        np.testing.assert_allclose(values, other[name], atol=apart, rtol=0)


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "store")


# --- what is computed ---------------------------------------------------------------------------


@given(
    before=st.lists(st.integers(0, POOL - 1), min_size=1, max_size=10),
    now=st.lists(st.integers(0, POOL - 1), min_size=2, max_size=12),
    batch_size=st.integers(1, 5),
    weighed=st.booleans(),
)
@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])
def test_what_is_new_is_computed_wherever_it_lies(
    before, now, batch_size, weighed, tmp_path_factory
):
    store, fresh = (FeatureStore(tmp_path_factory.mktemp("s"), block_bytes=200) for _ in range(2))
    entry_of(store, arrays(before), batch_size=batch_size)
    # Other labels than before, too.
    data = arrays(now, np.arange(len(now))[::-1] % 2)
    data = data.balanced() if weighed else data
    new = [place for place, one in enumerate(now) if one not in before]
    data_then, asked = watched(data) if len(new) < len(now) else (data, new)
    found = entry_of(store, data_then, batch_size=batch_size)
    assert asked == new
    assert_same(found, entry_of(fresh, data, batch_size=batch_size), ROUNDING)


def test_in_batches_of_one_size_the_entry_is_that_made_from_nothing(store, tmp_path):
    entry_of(store, arrays(range(64)), batch_size=16)
    order = np.random.default_rng(1).permutation(96)
    found = entry_of(store, watched(arrays(order))[0], batch_size=16)
    fresh = FeatureStore(tmp_path / "fresh")
    assert_same(found, entry_of(fresh, arrays(order), batch_size=16))
    (made,) = fresh.entries()
    (grown,) = (one for one in store.entries() if one.size == 96)
    for file in sorted(made.folder.glob("*.npy")):
        ours = (grown.folder / file.name).read_bytes()
        assert hashlib.sha256(ours).digest() == hashlib.sha256(file.read_bytes()).digest()


def test_several_entries_have_a_part_each(store):
    parts = [range(10), range(8, 30), range(50, 60)]
    for part in parts:
        entry_of(store, arrays(list(part)))
    data, asked = watched(arrays(list(range(60))))
    entry_of(store, data)
    assert asked == list(range(30, 50))
    data, asked = watched(arrays(list(range(55))))  # fewer than there were
    entry_of(store, data)
    assert asked == []


def test_whole_maps_of_every_cut_are_taken_over(store, tmp_path):
    def both(store, data):
        cuts = ["early", CUT]
        return stored_features(store, model(), cuts, data, pooling=[None, "max"])

    both(store, arrays(range(40)))
    found = both(store, watched(arrays(range(50)))[0])
    for one, other in zip(
        found, both(FeatureStore(tmp_path / "b"), arrays(range(50))), strict=True
    ):
        assert_same(one.entry, other.entry, ROUNDING)


@pytest.mark.parametrize(
    "other",
    [
        {"pooling": "max"},
        {"at": "early"},
        {"dtype": "float16"},
        {"compute_dtype": "bfloat16"},
        {"preprocessing": "twice"},
    ],
    ids=str,
)
def test_features_of_another_kind_are_never_taken(other, store):
    entry_of(store, arrays(range(20)), **other)
    data, asked = watched(arrays(range(24)))
    with pytest.raises(Exception, match="that are known"):
        entry_of(store, data)  # it reads all of its examples
    assert asked == []


def test_inputs_treated_otherwise_are_never_taken(store):
    entry_of(store, arrays(range(20)))
    for treatment in (
        {"channels": 1, "image_size": (8, 8)},
        {"image_size": (8, 8), "resize": "pad"},
    ):
        data = arrays(range(24), treatment=rk.data.Treatment(**treatment))
        with pytest.raises(Exception, match="that are known"):
            entry_of(store, watched(data)[0])


def test_augmented_views_are_always_computed(store):
    def data(size):
        return arrays(range(size)).augmented([keras.layers.RandomFlip(seed=1)])

    entry_of(store, data(20), view=0)
    entry_of(store, data(20))
    found = entry_of(store, data(24), view=0)
    assert ":examples" not in found
    with pytest.raises(Exception, match="that are known"):
        entry_of(store, watched(data(28))[0], view=0)
    entry_of(store, watched(data(24))[0])  # what does not vary is taken


def test_examples_of_which_a_program_makes_others_are_not_known():
    data = arrays(range(8))
    assert data.contents is not None
    examples = data.examples.map(lambda image, label: (255 - image, label))
    assert replace(data, examples=examples, fingerprint="negatives").contents is None
    assert replace(data, examples=data.examples.take(3), size=3).contents is None


def test_a_key_without_its_examples_is_refused():
    with pytest.raises(CacheError, match="Expected ':examples' as the last array"):
        FeatureKey("a", ("x",), 2, alike="b", examples=np.arange(2))


# --- what may go wrong --------------------------------------------------------------------------


def test_a_damaged_entry_gives_nothing(store, tmp_path):
    entry_of(store, arrays(range(20)))
    (entry,) = store.entries()
    file = entry.folder / "0.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    data, asked = watched(arrays(range(24)))
    found = entry_of(store, data)
    assert asked == list(range(24))
    assert_same(found, entry_of(FeatureStore(tmp_path / "b"), arrays(range(24))))


def test_the_budget_holds_the_new_entry_alone(tmp_path):
    wanted = FeatureStore(tmp_path / "a")
    found = entry_of(wanted, arrays(range(24)))
    (entry,) = wanted.entries()
    store = FeatureStore(tmp_path / "b", budget=entry.bytes)
    entry_of(store, arrays(range(20)))
    data, asked = watched(arrays(range(24)))
    assert_same(found, entry_of(store, data), ROUNDING)
    assert asked == list(range(20, 24))
    assert [one.size for one in store.entries()] == [24]


def test_an_interrupted_pass_goes_on(tmp_path, monkeypatch):
    store = FeatureStore(tmp_path / "a", block_bytes=200)
    entry_of(store, arrays(range(0, 40, 2)), batch_size=4)
    merged, batches = stored.merged, []

    def interrupted(*args):
        for batch in merged(*args):
            if len(batches) == 7:
                raise RuntimeError("interrupted")
            batches.append(batch)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(stored, "merged", interrupted)
        with pytest.raises(RuntimeError, match="interrupted"):
            entry_of(store, arrays(range(40)), batch_size=4)
    data, asked = watched(arrays(range(40)))
    found = entry_of(store, data, batch_size=4)
    assert asked[0] == 29  # the blocks before are there
    fresh = FeatureStore(tmp_path / "b")
    assert_same(found, entry_of(fresh, arrays(range(40)), batch_size=4), ROUNDING)


def test_an_entry_of_before_is_found_and_gives_no_examples(store):
    data = arrays(range(20))
    entry_of(store, replace(data, contents=None))  # as it was made before
    kept = watched(data)[0]
    assert ":examples" not in entry_of(store, kept)
    with pytest.raises(Exception, match="that are known"):
        entry_of(store, watched(arrays(range(24)))[0])


def test_new_examples_of_another_shape_are_refused(store):
    flexible = keras.Input((None, None, 1))
    of_any = keras.Model(flexible, keras.layers.Conv2D(2, 3, name=CUT)(flexible))
    entry_of(store, arrays(range(8)), pooling=None, of=of_any)
    data = arrays(range(10))
    wide = data.examples.map(lambda image, label: (tf.tile(image, (2, 1, 1)), label))
    contents = replace(data.contents, taken=lambda at: wide.skip(8))
    with pytest.raises(DataError, match="Expected features of one shape at 'features'"):
        entry_of(store, replace(data, contents=contents), pooling=None, of=of_any)


# --- where examples come from -------------------------------------------------------------------


def folder_of(path, numbers):
    for number in numbers:
        folder = path / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{number}.png"
        if not file.exists():
            Image.fromarray(IMAGES[number, ..., 0]).save(file)
    return path


def table_of(path):
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.normal(size=(30, 3)), columns=list("abc"))
    frame["kind"], frame["counts"] = np.arange(30) % 2, 1.0 + np.arange(30)
    return rk.data.from_table(
        frame, "train", input=["a", "b", "c"], label="kind", weight="counts", parts=None
    )


def several_tasks():
    labels = {"side": np.arange(20) % 2, "size": np.linspace(0, 1, 20)}
    return rk.data.from_arrays({"image": IMAGES[:20]}, labels)


def texts():
    split = rk.data.load("python_topics", "test[:12]")
    return tokenized(split, rk.load_backbone("reusekit/prosenet").tokenizer(8))


SOURCES = {
    "arrays": lambda path: arrays(range(20)),
    "balanced": lambda path: table_of(path).balanced(),
    "dataset": lambda path: rk.data.from_dataset(
        tf.data.Dataset.from_tensor_slices((IMAGES[:20], np.arange(20) % 2)).batch(6)
    ),
    "few digits": lambda path: rk.data.load(
        "sklearn_digits",
        "train[:200]",
        treatment=rk.data.Treatment(examples_per_class=2, image_size=(6, 6)),
    ),
    "folder": lambda path: rk.data.from_folder(
        folder_of(path, range(20)), "train", shares=rk.data.Shares()
    ),
    "several tasks": lambda path: several_tasks(),
    "table": table_of,
    "texts": lambda path: texts(),
}


@pytest.mark.parametrize("source", SOURCES)
def test_examples_are_taken_as_all_are_read(source, tmp_path):
    data = SOURCES[source](tmp_path)
    at = np.array([0, 1, data.size // 2, data.size - 1])
    every = list(data.examples.as_numpy_iterator())
    taken = list(data.contents.taken(at).as_numpy_iterator())
    assert len(data.contents.keys) == data.size == len(every)
    for number, (place, found) in enumerate(zip(at, taken, strict=True)):
        told = tf.nest.map_structure(lambda part: part[at], data.contents.told)
        told = tf.nest.map_structure(lambda part, number=number: part[number], told)
        for wanted in (every[place], (every[place][0], *told)):
            tf.nest.map_structure(np.testing.assert_array_equal, found, wanted)
            dtypes = (
                [np.asarray(part).dtype for part in tf.nest.flatten(one)] for one in (found, wanted)
            )
            assert next(dtypes) == next(dtypes)


def test_of_a_folder_files_that_are_new_or_changed_are_computed(store, tmp_path):
    def opened():
        return rk.data.from_folder(tmp_path / "pets", "all", shares=rk.data.Shares())

    def keys(data):
        return set(data.contents.keys.tolist())

    folder_of(tmp_path / "pets", range(30))
    before = opened()
    entry_of(store, before)
    folder_of(tmp_path / "pets", range(30, 34))
    file = tmp_path / "pets" / "cat" / "1.png"
    Image.fromarray(255 - IMAGES[1, ..., 0]).save(file)
    now = opened()
    data, asked = watched(now)
    entry_of(store, data)
    assert set(now.contents.keys[asked].tolist()) == keys(now) - keys(before)
    assert 4 <= len(asked) < now.size / 2


# --- the plan -----------------------------------------------------------------------------------


def test_the_plan_counts_what_is_known(store):
    def planned(train, validation):
        trials = [Trials("early", "avg"), Trials(CUT, "avg", count=3)]
        room = Resources(costs=Costs(bottom_seconds=1.0))
        made = rk.plan(model(), trials, train, validation, store, resources=room)
        for split in (train, validation):
            stored_features(store, model(), ["early", CUT], split, pooling="avg")
        return made

    first = planned(arrays(range(40)), arrays(range(60, 70)))
    assert {one.known for one in first.features} == {0}
    assert "are known" not in str(first)
    grown = planned(arrays([*range(44), 60]), arrays(range(61, 72)))
    assert {one.how for one in grown.features} == {"tap"}
    assert {one.known for one in grown.features} == {41 + 9}
    said = " ".join(str(grown).split())
    assert "41 of 45 training examples and 9 of 11 validation examples are known" in said
    there = sum(entry.bytes for entry in store.entries())
    assert first.bytes + grown.bytes == there


def test_a_part_of_floats_that_are_all_known_is_taken_from_them(tmp_path):
    store, floats = FeatureStore(tmp_path), IMAGES[:POOL].astype("float32")
    whole = rk.data.from_arrays(floats, np.arange(POOL) % 2, names=["even", "odd"])
    part = rk.data.from_arrays(floats[:6], np.arange(6) % 2, names=["even", "odd"])
    held = entry_of(store, whole)[CUT]
    closed, asked = watched(part)
    np.testing.assert_array_equal(entry_of(store, closed)[CUT], held[:6])
    assert not asked
