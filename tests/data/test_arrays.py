"""Splits of arrays and of Keras data sets: labels, names, weights, and what is refused."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_diabetes, load_wine

import reusekit as rk
from reusekit.data import Shares, Treatment, from_arrays, from_dataset

SIZE = 40
RNG = np.random.default_rng(0)
X = RNG.normal(size=(SIZE, 5)).astype("float32")
Y = np.arange(SIZE) % 3
HOT = np.eye(3, dtype="float32")[Y]
SEVERAL = np.maximum(HOT, HOT[::-1])
WORDS = np.array(["x", "z", "y"])[Y]


def test_real_sets_of_scikit_learn():
    wine = load_wine()
    parts = [
        from_arrays(wine.data, wine.target, part, names=[*wine.target_names], shares=Shares())
        for part in ("train", "validation", "test")
    ]
    assert sum(part.size for part in parts) == len(wine.data)
    assert not any(one.overlaps(other) for one in parts for other in parts if one is not other)
    for part in parts:
        inputs, labels = part.arrays()
        of = [np.flatnonzero((wine.data.astype("float32") == row).all(axis=1))[0] for row in inputs]
        np.testing.assert_array_equal(labels, wine.target[of])
        assert part.class_names == tuple(wine.target_names)
    diabetes = load_diabetes()
    split = from_arrays(diabetes.data, diabetes.target)
    assert (split.task.kind, split.task.names) == ("regression", ("0",))
    np.testing.assert_allclose(split.arrays()[1], diabetes.target)


@pytest.mark.parametrize(
    ("labels", "names", "kind", "found", "expected"),
    [
        (Y, None, "classification", ("0", "1", "2"), Y),
        (Y * 10, None, "classification", ("0", "10", "20"), Y),
        (Y, ["a", "b", "c", "d"], "classification", ("a", "b", "c", "d"), Y),
        (WORDS, None, "classification", ("x", "y", "z"), np.array([0, 2, 1])[Y]),
        (np.array(["x", "z"])[Y % 2], ["z", "x"], "classification", ("z", "x"), 1 - Y % 2),
        (Y == 0, None, "classification", ("False", "True"), Y == 0),
        ((Y == 0).astype("float32")[:, None], None, "classification", ("0", "1"), Y == 0),
        (HOT, ["a", "b", "c"], "classification", ("a", "b", "c"), Y),
        (SEVERAL, None, "multilabel", ("0", "1", "2"), SEVERAL),
        (X[:, 0], ["depth"], "regression", ("depth",), X[:, 0]),
        (X[:, :2], None, "regression", ("0", "1"), X[:, :2]),
        (Y + 1, ["1", "2", "3", "4"], "classification", ("1", "2", "3", "4"), Y),
        (Y % 2, ["1", "0"], "classification", ("1", "0"), 1 - Y % 2),
        (Y == 0, ["True", "False"], "classification", ("True", "False"), Y != 0),
        (Y == 0, ["no", "yes"], "classification", ("no", "yes"), Y == 0),
    ],
)
def test_labels_state_their_task(labels, names, kind, found, expected):
    for split in (
        from_arrays(X, labels, names=names),
        from_dataset(tf.data.Dataset.from_tensor_slices((X, labels)).batch(7), names=names),
    ):
        assert (split.task.kind, split.task.names) == (kind, found)
        np.testing.assert_array_equal(split.arrays()[1], expected)
        np.testing.assert_array_equal(split.arrays()[0], X)
        split.check()


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        (np.array([0.5, 1.5] * 20, object), "regression", ("0",)),
        (pd.Series([0.5, 1.5] * 20, dtype="Float64"), "regression", ("0",)),
        (np.array([10, 2] * 20, object), "classification", ("2", "10")),
        (np.array(["cat", b"dog", "dog", b"cat"] * 10, object), "classification", ("cat", "dog")),
        (["1,5", "2,5"] * 20, None, "without commas"),
        (["cat", float("nan")] * 20, None, "20 of 40 without a class, the first at position 1"),
        (["cat", 1] * 20, None, "to be all words, or all numbers"),
        (np.array([b"\xe4", b"b"] * 20), None, "in UTF-8"),
        (np.array([1j, 2] * 20), None, "Received: complex128"),
    ],
)
def test_objects_are_the_words_or_numbers_that_they_hold(labels, kind, names):
    if kind is None:
        with pytest.raises(rk.DataError, match=names):
            from_arrays(X, labels)
    else:
        task = from_arrays(X, labels).task
        assert (task.kind, task.names) == (kind, names)


def test_a_missing_text_is_no_text():
    with pytest.raises(rk.DataError, match="Received: object"):
        from_arrays(["good", float("nan")], ["a", "b"])
    with pytest.raises(rk.DataError, match="UTF-8 can hold"):
        from_arrays(["good", "\ud800"], ["a", "b"])


def test_class_names_of_keras_readers(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4), len(tmp_path.name)).save(tmp_path / name / "1.png")
    for mode in ("int", "categorical", "binary"):
        read = keras.utils.image_dataset_from_directory(
            tmp_path, label_mode=mode, image_size=(4, 4), shuffle=False, verbose=False
        )
        assert from_dataset(read).task == rk.data.Task("classification", ("cat", "dog"))


def test_a_task_that_is_asked_for_counts():
    several = from_arrays(X, HOT, treatment=Treatment(task="multilabel"))
    assert several.task.kind == "multilabel"
    assert from_arrays(X, Y, treatment=Treatment(task="regression")).task.kind == "regression"


def test_inputs_by_name_text_and_pictures():
    named = from_arrays({"a": X, "b": np.arange(SIZE)}, Y)
    inputs, _ = named.arrays()
    np.testing.assert_array_equal(inputs["a"], X)
    np.testing.assert_array_equal(inputs["b"], np.arange(SIZE))
    text = from_arrays(np.array([f"text {n}" for n in range(SIZE)]), Y)
    assert text.arrays()[0][7] == b"text 7"
    images = RNG.integers(0, 256, (SIZE, 6, 4, 1)).astype("uint8")
    small = from_arrays(images, Y, treatment=Treatment(image_size=(3, 3), channels=3))
    assert small.input_shape == (3, 3, 3)
    np.testing.assert_array_equal(from_arrays(images, Y).arrays()[0], images.astype("float32"))
    np.testing.assert_array_equal(from_arrays(images / 255, Y).arrays()[0].shape, images.shape)


def test_the_fingerprint_follows_content_and_not_the_way_it_came():
    def found(inputs=X, labels=Y, **options):
        return from_arrays(inputs, labels, **options).fingerprint

    other = X.copy()
    other[3, 3] += 1
    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    assert found() == found(X.copy()) == from_dataset(dataset).fingerprint
    different = [
        found(),
        found(other),
        found(labels=Y[::-1]),
        found(names=["a", "b", "c"]),
        found(weights=np.ones(SIZE)),
        found(treatment=Treatment(examples_per_class=5)),
        found(shares=Shares()),
        found(shares=Shares(seed=1)),
    ]
    assert found() == found(treatment=Treatment(resize="crop", skip_unreadable=True, seed=3))
    assert len(set(different)) == len(different)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 6

    def __getitem__(self, number):
        rows = slice(7 * number, 7 * number + 7)
        return X[rows], Y[rows], np.ones(len(X[rows]))


def test_data_sets_of_keras():
    single = tf.data.Dataset.from_tensor_slices((X, Y))
    sets = [single, single.batch(7), single.batch(7).prefetch(1), Batches()]
    for dataset in sets:
        split = from_dataset(dataset)
        inputs, labels, *weights = split.arrays()
        np.testing.assert_array_equal(inputs, X)
        np.testing.assert_array_equal(labels, Y)
        assert split.size == SIZE
        assert len(weights) == (dataset is sets[-1])
    parts = [from_dataset(single.batch(9), part, shares=Shares()) for part in ("train", "test")]
    assert not parts[0].overlaps(parts[1])
    rows = [np.flatnonzero((row == X).all(axis=1))[0] for row in parts[0].arrays()[0]]
    np.testing.assert_array_equal(parts[0].arrays()[1], Y[rows])
    counted = from_dataset(
        tf.data.Dataset.from_generator(
            lambda: zip(X, Y, strict=True),
            output_signature=(tf.TensorSpec((5,)), tf.TensorSpec((), tf.int64)),
        )
    )
    assert counted.size == SIZE


SLICES = tf.data.Dataset.from_tensor_slices
BROKEN = tf.data.Dataset.from_generator(
    lambda: (1 / 0 if n else (X[n], Y[n]) for n in range(2)),
    output_signature=(tf.TensorSpec((5,)), tf.TensorSpec((), tf.int64)),
)
RAGGED = tf.RaggedTensor.from_row_splits(np.arange(60), [*range(SIZE), 60])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: from_arrays(X, Y[:-1]), "Received: 40 of inputs, 39 of labels"),
        (lambda: from_arrays(X, Y, weights=[1]), "1 of weights"),
        (lambda: from_arrays(X, Y, weights=X), "float32 of shape (40, 5)."),
        (lambda: from_arrays(X, Y, weights=Y - 1.0), "weights to be numbers of at least 0"),
        (lambda: from_arrays(X[:0], Y[:0]), "0 of inputs"),
        (lambda: from_arrays([[1], [1, 2]], [0, 1]), "each example of one shape"),
        (lambda: from_arrays(np.where(X > 2, np.nan, X), Y), "not finite"),
        (lambda: from_arrays(X, np.where(Y == 2, np.nan, X[:, 0])), "without a label"),
        (lambda: from_arrays(X, Y - 1, names=["a", "b"]), "Expected labels from 0 to 1"),
        (lambda: from_arrays(X, np.array(["a", "b", "x"])[Y], names=["a", "b"]), "Received: 'x'"),
        (lambda: from_arrays(X, X, names=["a"]), "a name for each of 5 outputs"),
        (lambda: from_arrays(X, HOT, names=["a", "b"]), "a name for each of 3 outputs"),
        (lambda: from_arrays(X, Y == 0, names=["a", "b", "c"]), "a name for each of 2 outputs"),
        (lambda: from_arrays(X, X[:, :, None]), "Expected a word, a number or several numbers"),
        (lambda: from_arrays(X, np.arange(SIZE) * 7 % 41, shares=Shares(group="g")), "from_table"),
        (lambda: from_arrays(X, Y, "tset", shares=Shares()), "Did you mean 'test'?"),
        (
            lambda: from_arrays(np.arange(200), np.arange(200)),
            "at most 100 different",
        ),
        (lambda: from_arrays(np.ma.masked_greater(X, 0), Y), "of inputs. Received: a masked array"),
        (lambda: from_dataset(BROKEN), "Received: ZeroDivisionError: division by zero"),
        (lambda: from_dataset(SLICES((X, Y)).repeat()), "Received: an infinite one"),
        (lambda: from_dataset(SLICES((X, Y)).shuffle(SIZE)), "Received: other ones at the second"),
        (lambda: from_dataset(SLICES(X)), "Expected a data set of (input, label)"),
        (lambda: from_dataset(SLICES((X, Y)).take(0)), "with examples. Received: none"),
        (lambda: from_dataset(SLICES((X, (Y, Y)))), "Expected one tensor of labels"),
        (lambda: from_dataset(SLICES((X, HOT)).batch(8, drop_remainder=True)), "batched=True or"),
        (lambda: from_dataset(SLICES((RAGGED, Y))), "Received: ragged or sparse"),
    ],
)
def test_what_is_no_data_is_refused_in_one_sentence(make, says):
    with pytest.raises(rk.DataError) as caught:
        make()
    assert says in str(caught.value)
    assert not any(word in str(caught.value) for word in ("\n", "Traceback"))


def test_arrays_that_change_are_not_read_on():
    x = X.copy()
    split = from_arrays({"a": x}, Y)
    x /= 2
    with pytest.raises(rk.DataError, match="arrays that have changed since"):
        split.check()


def test_numbers_in_the_other_order_of_bytes():
    swapped = from_arrays(X.astype(X.dtype.newbyteorder()), Y.astype(Y.dtype.newbyteorder()))
    assert swapped.fingerprint == from_arrays(X, Y).fingerprint
    whole = from_arrays(np.arange(6, dtype=">i4").reshape(3, 2), np.array(["a", "b", "a"], ">U4"))
    assert whole.arrays()[0].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_search_names_what_makes_a_split(tmp_path):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    for given in ((X, Y), tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)):
        with pytest.raises(rk.ConfigError, match=r"from_arrays and from_dataset make it"):
            rk.CutSearch(model, given, given, folder=tmp_path)
