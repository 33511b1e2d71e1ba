"""Plans for real models: what is chosen, and that all ways of coming by features give the same."""

import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from processes import run_python
from zoo import ZOO

import reusekit as rk
from reusekit.data import DataSplit, Task
from reusekit.errors import ConfigError, DataError
from reusekit.features import FeatureStore, Padding, StoredSource, feed
from reusekit.planning import Costs, Extraction, Plan, Resources, Trials, obtain
from reusekit.surgery.certificate import random_inputs

SIZE = 40
# The bottom is slow, and reading is quick.
COSTS = Costs(bottom_seconds=1.0, input_seconds=0.0)


def plan(model, trials, train, validation, store, **settings):
    """The plan for settings and resources by their names."""
    room = {name: settings.pop(name) for name in ("disk", "memory", "costs") if name in settings}
    return rk.plan(
        model, trials, train, validation, store, Extraction(**settings), Resources(**room)
    )


def data_of(inputs, split="train", size=SIZE):
    examples = inputs
    if not isinstance(inputs, tf.data.Dataset):
        examples = tf.data.Dataset.from_tensor_slices(keras.tree.lists_to_tuples(inputs))
    examples = tf.data.Dataset.zip(examples, tf.data.Dataset.range(size))
    return DataSplit(
        "made:1.0.0", split, examples, size, Task("classification", ("a", "b")), f"of {split}"
    )


def unreadable(data):
    def fail():
        raise AssertionError("The data set is read.")
        yield

    spec = data.examples.element_spec
    return replace(data, examples=tf.data.Dataset.from_generator(fail, output_signature=spec))


def images(seed=0, size=SIZE):
    return np.random.default_rng(seed).uniform(0, 1, (size, 8, 8, 3)).astype("float32")


@pytest.fixture
def train():
    return data_of(images())


@pytest.fixture
def validation():
    return data_of(images(1, 12), "validation", 12)


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "store", block_bytes=4000)


@pytest.fixture
def residual():
    keras.utils.set_random_seed(0)
    return ZOO["residual"]()


def hows(made):
    return {(one.at, one.pooling): one.how for one in made.features}


def read(batches):
    """All batches, as one array for each tensor, and the labels."""
    parts = [(keras.tree.flatten(inputs), labels.numpy()) for inputs, labels in batches]
    inputs = [np.concatenate(arrays) for arrays in zip(*(flat for flat, _ in parts), strict=True)]
    return inputs, np.concatenate([labels for _, labels in parts])


def same(source, other):
    """Two sources give the same batches in the same order, in each of two passes."""
    one, two = source.batches(7, seed=5), other.batches(7, seed=5)
    assert len(one) == len(two)
    for _ in range(2):
        (x, x_labels), (y, y_labels) = read(one), read(two)
        np.testing.assert_array_equal(x_labels, y_labels)
        for a, b in zip(x, y, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a.astype("float32"), b.astype("float32"), atol=1e-5)


# --- what is chosen ---------------------------------------------------------------------------


def test_all_is_tapped_then_found(residual, train, validation, store):
    trials = [Trials("stem", "avg"), Trials("out0"), Trials("out1", "avg", count=3)]
    first = plan(residual, trials, train, validation, store, costs=COSTS)
    assert set(hows(first).values()) == {"tap"}
    for split, training in ((train, True), (validation, False)):
        sources = obtain(first, residual, store, split, training).values()
        assert {type(source) for source in sources} == {StoredSource}
    assert first.bytes == sum(entry.bytes for entry in store.entries())
    # Neither data set can be read any more, so nothing runs.
    again = plan(residual, trials, unreadable(train), unreadable(validation), store, costs=COSTS)
    assert set(hows(again).values()) == {"stored"}
    for split, training in ((train, True), (validation, False)):
        old, new = (
            obtain(first, residual, store, split, training),
            obtain(again, residual, store, unreadable(split), training),
        )
        for name in old:
            same(old[name], new[name])


def test_costs_need_not_be_measured_where_all_is_stored(residual, train, validation, store):
    trials = [Trials("out0", "avg", count=2)]
    first = plan(residual, trials, train, validation, store)
    assert first.costs.bottom_seconds > 0
    assert first.plain_seconds > 0
    obtain(first, residual, store, train, True), obtain(first, residual, store, validation, False)
    again = plan(residual, trials, unreadable(train), unreadable(validation), store)
    assert again.costs.bottom_seconds is None
    assert again.plain_seconds is None
    assert "not measured" in str(again)


def test_a_small_disk_holds_what_saves_most(residual, train, validation, store):
    trials = [Trials(at) for at in ("stem", "out0", "out1")]
    one = (8 * 8 * 4 * 4 + 8) * (SIZE + 12)
    made = plan(residual, trials, train, validation, store, costs=COSTS, disk=one, memory=10**7)
    # Of equal sizes, the deepest takes longest to compute.
    assert hows(made) == {
        ("stem", None): "recompute",
        ("out0", None): "recompute",
        ("out1", None): "tap",
    }
    assert made.bytes == one
    assert any("does not hold 'stem', 'out0'" in note for note in made.notes)
    all_stored = plan(residual, trials, train, validation, store, costs=COSTS, disk=3 * one)
    ways, plain = (
        obtain(made, residual, store, train, True),
        obtain(all_stored, residual, store, train, True),
    )
    stored = {name for name, source in ways.items() if isinstance(source, StoredSource)}
    assert stored == {("out1", None)}
    for name in plain:
        same(ways[name], plain[name])


def test_a_disk_that_holds_nothing(residual, train, validation, store):
    trials = [Trials("stem"), Trials("out1"), Trials("out1", "avg")]
    made = plan(residual, trials, train, validation, store, costs=COSTS, disk=100)
    assert set(hows(made).values()) == {"recompute"}
    assert any("held in memory" in note for note in made.notes)
    sources = obtain(made, residual, store, train, True)
    assert store.entries() == []
    assert sources["out1", "avg"].arrays() is None
    free = obtain(
        plan(residual, trials, train, validation, store, costs=COSTS), residual, store, train, True
    )
    for name, source in sources.items():
        same(source, free[name])
        assert source.labels.tolist() == list(range(SIZE))
        assert source.size == SIZE


def test_inputs_that_fit_nowhere_are_read_from_the_data_set(residual, train, validation, store):
    trials = [Trials("out1", "avg")]
    made = plan(
        residual, trials, train, validation, store, costs=COSTS, disk=0, memory=4 * 10 * 776
    )
    assert any("window of 10 examples" in note for note in made.notes)
    source = obtain(made, residual, store, train, True)["out1", "avg"]
    (features,), labels = read(source.batches(7, seed=1))
    assert sorted(labels) == list(range(SIZE))
    assert labels.tolist() != list(range(SIZE))
    expected = rk.extract(residual, "out1", "avg").predict(images(), verbose=0)
    np.testing.assert_allclose(features, expected[labels], atol=1e-5)
    (in_order,), labels = read(source.batches(7))
    assert labels.tolist() == source.labels.tolist() == list(range(SIZE))
    np.testing.assert_allclose(in_order, expected, atol=1e-5)


def test_memory_decides_what_is_mapped(residual, train, validation, store):
    trials = [Trials("out0"), Trials("out1", "avg")]
    maps = (8 * 8 * 4 * 4 + 8) * (SIZE + 12)
    roomy = plan(residual, trials, train, validation, store, costs=COSTS, memory=3 * maps)
    tight = plan(residual, trials, train, validation, store, costs=COSTS, memory=maps)
    assert [one.in_memory for one in roomy.features] == [True, True]
    assert [one.in_memory for one in tight.features] == [False, True]
    for name, source in obtain(tight, residual, store, train, True).items():
        same(source, obtain(roomy, residual, store, train, True)[name])


def test_what_is_trained_together_fits_into_memory(residual, train, validation, store):
    trials = [
        Trials("out1", "avg", count=12, parameters=1000, batch_size=16),
        Trials("out1", "avg", count=4, parameters=2000, batch_size=16),
        Trials("out1", "avg", count=2, parameters=1000, batch_size=32),
    ]
    free = plan(residual, trials, train, validation, store, costs=COSTS, memory=10**8)
    assert [(g.batch_size, g.count, g.together) for g in free.groups] == [(16, 16, 16), (32, 2, 2)]
    tight = plan(residual, trials, train, validation, store, costs=COSTS, memory=200_000)
    first = tight.groups[0]
    assert first.together < 16
    assert first.together * 16 * 2000 <= 200_000
    assert tight.seconds > free.seconds
    assert "memory holds" in first.reason


# --- randomness -------------------------------------------------------------------------------


def augmenting():
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3), name="x")
    y = layers.RandomFlip(seed=1, name="flip")(x)
    y = layers.RandomTranslation(0.3, 0.3, seed=2, name="shift")(y)
    y = layers.Conv2D(4, 3, name="conv")(y)
    y = layers.Dropout(0.5, name="drop")(y)
    return keras.Model(x, layers.GlobalAveragePooling2D(name="pool")(y), name="augmenting")


def test_augmentation_is_never_frozen(train, validation, store):
    model, trials = augmenting(), [Trials("drop", "avg"), Trials("drop")]
    made = plan(model, trials, train, validation, store, costs=COSTS)
    assert set(hows(made).values()) == {"recompute"}
    assert {one.validation for one in made.features} == {"tap"}
    assert any("'flip', 'shift'" in note and "augmented_views" in note for note in made.notes)
    assert any("'drop' drop nothing" in note for note in made.notes)
    plain = rk.extract(model, "drop", "avg").predict(images(), verbose=0)
    for name, source in obtain(made, model, store, train, True).items():
        batches = source.batches(8)
        (first, *_), _ = read(batches)
        (second, *_), _ = read(batches)
        assert np.abs(first - second).max() > 1e-3
        assert source.arrays() is None
        # Another trial sees what this one saw, epoch by epoch.
        (again, *_), _ = read(source.batches(8))
        np.testing.assert_allclose(again, first, atol=1e-6)
        (other, *_), _ = read(obtain(made, model, store, train, True)[name].batches(8))
        np.testing.assert_allclose(other, first, atol=1e-6)
    still = obtain(made, model, store, validation, False).values()
    assert {type(source) for source in still} == {StoredSource}
    unaugmented = obtain(made, model, store, train, False)["drop", "avg"]
    np.testing.assert_allclose(unaugmented.arrays(), plain, atol=1e-5)


def test_augmented_batches_come_in_the_usual_order(train, validation, store):
    made = plan(augmenting(), [Trials("drop")], train, validation, store, costs=COSTS)
    source = obtain(made, augmenting(), store, train, True)["drop", None]
    batches, usual = source.batches(7, seed=3), feed(np.zeros(SIZE), np.arange(SIZE), 7, seed=3)
    for _ in range(2):
        assert read(batches)[1].tolist() == read(usual)[1].tolist()


def test_views_are_stored_and_read_in_turn(train, validation, store):
    model = augmenting()
    made = plan(
        model, [Trials("drop", "avg")], train, validation, store, costs=COSTS, augmented_views=3
    )
    assert hows(made) == {("drop", "avg"): "views"}
    assert made.features[0].validation == "tap"
    assert any("3 augmented views" in note for note in made.notes)
    source = obtain(made, model, store, train, True)["drop", "avg"]
    shuffled, in_order = source.batches(7, seed=2), source.batches(7)
    usual = feed(np.zeros(SIZE), np.arange(SIZE), 7, seed=2)
    views = []
    for epoch in range(6):
        (features,), labels = read(in_order)
        views.append(features)
        (mixed,), order = read(shuffled)
        assert order.tolist() == read(usual)[1].tolist()
        np.testing.assert_array_equal(mixed, features[order])
        np.testing.assert_array_equal(features, views[epoch % 3])
        assert labels.tolist() == list(range(SIZE))
    assert min(np.abs(views[0] - views[1]).max(), np.abs(views[1] - views[2]).max()) > 1e-3
    assert len(shuffled) == 6
    # All of them are found again, and neither data set is read.
    obtain(made, model, store, validation, False)
    again = plan(
        model,
        [Trials("drop", "avg")],
        unreadable(train),
        unreadable(validation),
        store,
        costs=COSTS,
        augmented_views=3,
    )
    (found,), _ = read(
        obtain(again, model, store, unreadable(train), True)["drop", "avg"].batches(7)
    )
    np.testing.assert_array_equal(found, views[0])


PROCESS = """
import sys
import numpy as np
sys.path[:0] = sys.argv[2:]
from test_planner import COSTS, SIZE, augmenting, data_of, images, plan, read
from reusekit.features import FeatureStore
from reusekit.planning import Trials, obtain
train, validation = data_of(images()), data_of(images(1, 12), "validation", 12)
store = FeatureStore(sys.argv[1])
np.random.default_rng().normal()
trials = [Trials("drop", "avg")]
for views in (2, 0):
    made = plan(
        augmenting(), trials, train, validation, store, costs=COSTS, augmented_views=views, seed=7
    )
    batches = obtain(made, augmenting(), store, train, True)["drop", "avg"].batches(8, seed=1)
    for _ in range(2):
        (features,), _ = read(batches)
        print(features.astype("float64").sum().round(3), features[0, 0].round(3))
"""


def test_views_and_augmentation_are_the_same_in_another_process(
    tmp_path, request, monkeypatch, capsys
):
    paths = [str(request.config.rootpath / folder) for folder in ("tests", "tests/planning")]
    paths.append(str(request.config.rootpath))
    there = run_python(PROCESS, tmp_path / "there", *paths).stdout
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path / "here"), *paths])
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(PROCESS, {})
    assert capsys.readouterr().out == there
    assert len(set(there.splitlines())) == 4


@keras.saving.register_keras_serializable("planner")
class Jitter(layers.Layer):
    """Random in inference as well, and nothing about it says so: only running it twice shows it."""

    def call(self, x):
        def jitter(values):
            return values + np.random.default_rng().normal(size=values.shape).astype("float32")

        return tf.ensure_shape(tf.numpy_function(jitter, [x], tf.float32), x.shape)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


@keras.saving.register_keras_serializable("planner")
class Unseeded(layers.Layer):
    """Varies the data in training, by numbers that cannot be drawn again."""

    def call(self, x, training=False):
        return x + tf.random.normal(tf.shape(x)) if training else x


def test_no_view_is_stored_that_could_not_be_made_again(train, validation, store):
    x = keras.Input((8, 8, 3), name="x")
    model = keras.Model(x, layers.Conv2D(2, 3, name="conv")(Unseeded(name="unseeded")(x)))
    args = (model, [Trials("conv", "avg")], train, validation, store)
    made = plan(*args, costs=COSTS, augmented_views=2)
    assert hows(made) == {("conv", "avg"): "recompute"}
    assert any("'unseeded' draw cannot be drawn again" in note for note in made.notes)
    batches = obtain(made, model, store, train, True)["conv", "avg"].batches(8)
    assert np.abs(read(batches)[0][0] - read(batches)[0][0]).max() > 1e-3


def test_what_is_random_in_inference_is_never_stored(train, validation, store):
    x = keras.Input((8, 8, 3), name="x")
    early = layers.Conv2D(2, 3, name="early")(x)
    late = layers.Conv2D(2, 3, name="late")(Jitter(name="jitter")(early))
    model = keras.Model(x, late)
    trials = [Trials("early", "avg"), Trials("late", "avg")]
    made = plan(model, trials, train, validation, store, costs=COSTS)
    assert hows(made) == {("early", "avg"): "tap", ("late", "avg"): "recompute"}
    assert made.features[1].validation == "recompute"
    assert any("'late' (avg) is random in inference" in note for note in made.notes)
    source = obtain(made, model, store, train, True)["late", "avg"].batches(8)
    assert np.abs(read(source)[0][0] - read(source)[0][0]).max() > 1e-3
    obtain(made, model, store, validation, False)
    assert {entry.about["cut"] for entry in store.entries()} == {"early"}


# --- several tensors, masks, lengths ------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["masked_attention", "several_inputs_and_outputs", "dict_inputs_and_outputs", "siamese"]
)
def test_every_way_gives_the_same_on_odd_models(name, store):
    keras.utils.set_random_seed(0)
    model = ZOO[name]()
    points = [point.at for point in rk.cut_points(model, max_width=None)]
    shallow, deep = points[len(points) // 3], points[2 * len(points) // 3]
    inputs = random_inputs(rk.graph.read(model), batch=SIZE)
    train, validation = data_of(inputs), data_of(inputs, "validation")
    trials = [Trials(shallow), Trials(deep)]
    # Without the mask that a head would pool under: what crosses the cut, as the top takes it.
    args = (model, trials, train, validation)
    taps = obtain(plan(*args, store, costs=COSTS, mask=None), model, store, train, True)
    made = plan(*args, store, costs=COSTS, disk=0, mask=None)
    for at, source in obtain(made, model, store, train, True).items():
        assert not isinstance(source, StoredSource)
        same(source, taps[at])
    top = rk.split(model, deep).top
    whole = keras.tree.flatten(model.predict(inputs, verbose=0))
    parted = keras.tree.flatten(top.predict(taps[deep, None].batches(7), verbose=0))
    for one, two in zip(whole, parted, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


def test_examples_of_several_lengths(store, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((None,), dtype="int32", name="tokens")
    y = layers.Embedding(20, 6, mask_zero=True, name="embedding")(x)
    y = layers.LSTM(4, return_sequences=True, name="lstm")(y)
    model = keras.Model(x, layers.LSTM(3, name="last")(y))
    lengths = np.random.default_rng(0).integers(1, 9, SIZE)

    def generate():
        for number, length in enumerate(lengths):
            yield (np.arange(length) + number) % 19 + 1

    spec = tf.TensorSpec((None,), tf.int32)
    sentences = tf.data.Dataset.from_generator(generate, output_signature=spec)
    data, validation = data_of(sentences), data_of(sentences, "validation")
    options = {"padding": Padding(9), "costs": COSTS}
    trials = [Trials("lstm"), Trials("last")]
    args = (model, trials, data, validation)
    stored = plan(*args, store, **options)
    computed = plan(*args, FeatureStore(tmp_path / "1"), **options, disk=0)
    assert set(hows(computed).values()) == {"recompute"}
    sources = obtain(stored, model, store, data, True)
    for name, source in obtain(computed, model, store, data, True).items():
        same(source, sources[name])
    obtain(stored, model, store, validation, False)
    assert stored.bytes == sum(entry.bytes for entry in store.entries())


def test_a_bottom_that_computes_in_bfloat16(residual, train, validation, store, tmp_path):
    trials = [Trials("out0"), Trials("out1", "avg")]
    args = (residual, trials, train, validation)
    options = {"costs": COSTS, "compute_dtype": "bfloat16"}
    stored = obtain(plan(*args, store, **options), residual, store, train, True)
    computed = obtain(
        plan(*args, FeatureStore(tmp_path / "1"), **options, disk=0), residual, store, train, True
    )
    exact = obtain(
        plan(*args, FeatureStore(tmp_path / "2"), costs=COSTS), residual, store, train, True
    )
    for name in stored:
        same(stored[name], computed[name])
        (half,), _ = read(stored[name].batches(8))
        (full,), _ = read(exact[name].batches(8))
        assert 0 < np.abs(half - full).max() < 0.1


def test_training_is_the_same_whichever_way(residual, train, validation, store, tmp_path):
    trials = [Trials("out0"), Trials("out0", "avg")]
    args = (residual, trials, train, validation)
    ways = [plan(*args, store, costs=COSTS)]
    ways.append(plan(*args, FeatureStore(tmp_path / "1"), costs=COSTS, disk=0))
    losses = []
    for made in ways:
        keras.utils.set_random_seed(1)
        name = ("out0", "avg")
        head = keras.Sequential([keras.Input((4,)), layers.Dense(SIZE)])
        head.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        history = head.fit(
            obtain(made, residual, store, train, True)[name].batches(8, seed=3),
            validation_data=obtain(made, residual, store, validation, False)[name].batches(8),
            epochs=3,
            shuffle=False,
            verbose=0,
        ).history
        losses.append([*history["loss"], *history["val_loss"]])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_costs_without_a_bottom_are_completed(residual, train, validation, store):
    known = replace(COSTS, bottom_seconds=None)
    made = plan(residual, [Trials("out1", "avg")], train, validation, store, costs=known)
    assert made.costs.bottom_seconds > 0
    assert made.costs.step_overhead == COSTS.step_overhead
    assert hows(made) == {("out1", "avg"): "tap"}


def test_bytes_are_what_is_written(residual, train, validation, store):
    vectors = tf.data.Dataset.from_tensor_slices(np.ones((SIZE, 5), "float32"))
    examples = tf.data.Dataset.zip(train.examples.map(lambda x, _: x), vectors)
    data = replace(train, examples=examples)
    trials = [Trials("out0"), Trials("out1", "max")]
    made = plan(residual, trials, data, data, store, costs=COSTS, dtype="bfloat16")
    obtain(made, residual, store, data, True)
    assert made.bytes == 2 * sum(entry.bytes for entry in store.entries())


# --- the plan as data ---------------------------------------------------------------------------


def test_a_plan_prints_and_is_read_back(residual, train, validation, store, tmp_path):
    trials = [Trials("stem", "avg"), Trials("out1", count=4, parameters=10**6)]
    options = {"costs": COSTS, "padding": Padding(9), "preprocessing": {"scale": (1, 2)}}
    made = plan(residual, trials, train, validation, store, **options)
    for word in ("stem", "out1", "tap", "together", "if computed s", "The plain way"):
        assert word in str(made)
    assert "stem" in made._repr_html_()
    assert made.to_frame()["how"].tolist() == ["tap", "tap"]
    made.save(tmp_path / "plan.json")
    read_back = Plan.load(tmp_path / "plan.json")
    assert read_back == made
    assert read_back.extraction.padding == Padding(9)
    same(
        obtain(read_back, residual, store, train, True)["stem", "avg"],
        obtain(made, residual, store, train, True)["stem", "avg"],
    )
    assert made.seconds < made.plain_seconds
    # 10 epochs of five trials over 52 examples; a seventh of the FLOPs for the first, all else.
    assert made.plain_seconds > 4 * 10 * 52


def test_what_is_no_plan_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        Plan.load(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text('{"features": [], "groups": []}')
    with pytest.raises(ConfigError, match=r"no plan of this version\. Make the plan again"):
        Plan.load(tmp_path / "plan.json")


def test_a_reader_can_check_the_rule(residual, train, validation, store):
    trials = [Trials("stem", epochs=1), Trials("out1", epochs=1), Trials("out1", "avg", epochs=9)]
    slow_disk = replace(COSTS, write_bytes_per_second=10.0)
    for costs in (COSTS, slow_disk):
        made = plan(residual, trials, train, validation, store, costs=costs)
        for one in made.features:
            assert (one.how == "tap") == (one.if_stored < one.if_computed)
    assert hows(made) == {
        ("stem", None): "recompute",
        ("out1", None): "recompute",
        ("out1", "avg"): "tap",
    }


def test_wrong_requests_are_refused(residual, train, validation, store):
    args = (train, validation, store)
    with pytest.raises(ConfigError, match="trials to be a list, not empty"):
        plan(residual, [], *args)
    with pytest.raises(rk.errors.UnknownAddressError, match="'stem'"):
        plan(residual, [Trials("stemm")], *args)
    with pytest.raises(ConfigError, match=r"disk to be .* at least 0\. Received: -1"):
        plan(residual, [Trials("stem")], *args, disk=-1)
    with pytest.raises(ConfigError, match=r"memory to be .* at least 0"):
        plan(residual, [Trials("stem")], *args, memory=-1)
    with pytest.raises(ConfigError, match=r"epochs to be .* at least 1\. Received: 0"):
        Trials("stem", epochs=0)
    with pytest.raises(rk.SurgeryError, match="Did you mean 'avg'"):
        plan(residual, [Trials("stem", "agv")], *args)
    with pytest.raises(rk.errors.CacheError, match="Did you mean 'float16'"):
        plan(residual, [Trials("stem")], *args, dtype="flaot16")
    with pytest.raises(DataError, match="empty"):
        plan(residual, [Trials("stem")], data_of(images()[:0]), validation, store)
    with pytest.raises(DataError, match=r"Expected 50 examples\. Received: 40"):
        more = replace(train, size=50)
        made = plan(residual, [Trials("stem")], more, validation, store, disk=0)
        obtain(made, residual, store, more, True)["stem", None].batches(8)
    assert store.entries() == []
