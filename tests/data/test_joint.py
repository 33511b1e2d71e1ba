"""Labels of several tasks at once, from each source."""

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from data_builders import F, prepare

import reusekit as rk
from reusekit.data.task import Task, by_task, joined
from reusekit.errors import DataError

COUNT = 40
X = np.arange(2.0 * COUNT, dtype="float32").reshape(COUNT, 2)
KIND = np.array(["cat", "dog"] * (COUNT // 2), object)
AGE = np.arange(COUNT)  # whole numbers, which would be classes
TABLE = pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "kind": KIND, "age": AGE, "kg": AGE / 2})
NUMBERS = rk.data.Treatment(task={"age": "regression"})


def of_arrays(**options):
    return rk.data.from_arrays(X, {"kind": KIND, "age": AGE}, treatment=NUMBERS, **options)


def of_dataset(**options):
    labels = {"kind": (KIND == "dog").astype(int), "age": AGE}
    data = tf.data.Dataset.from_tensor_slices((X, labels)).batch(16)
    return rk.data.from_dataset(data, names={"kind": ["cat", "dog"]}, treatment=NUMBERS, **options)


def of_table(parts=None, **options):
    label = {"kind": "kind", "age": "age"}
    return rk.data.from_table(
        TABLE, "train", input=["a", "b"], label=label, parts=parts, treatment=NUMBERS, **options
    )


@pytest.mark.parametrize("read", [of_arrays, of_dataset, of_table])
def test_each_task_has_its_kind_and_its_labels(read):
    data = read()
    kinds = {name: part.kind for name, part in data.task.by_name.items()}
    assert (data.task.kind, kinds) == ("joint", {"kind": "classification", "age": "regression"})
    assert data.task.by_name["kind"].names == ("cat", "dog") and data.class_names == ("kind", "age")
    inputs, labels = data.arrays()
    np.testing.assert_array_equal(inputs, X)
    assert labels["kind"].tolist() == [0, 1] * (COUNT // 2)
    assert labels["age"].dtype == np.float32 and labels["age"].tolist() == AGE.tolist()
    assert data.check().tolist() == [COUNT // 2, COUNT // 2, COUNT]
    assert data.fingerprint == read().fingerprint
    batch = next(iter(data.batches(4)))[1]
    assert {name: part.shape for name, part in batch.items()} == {"kind": (4,), "age": (4,)}


def test_a_table_may_have_several_columns_for_a_task():
    label = {"kind": "kind", "body": ["age", "kg"]}
    data = rk.data.from_table(TABLE, "train", input=["a"], label=label, parts=None)
    assert data.task.by_name["body"] == Task("regression", ("age", "kg"))
    assert data.origin["label"] == label
    assert data.arrays()[1]["body"].shape == (COUNT, 2)


def test_shares_have_the_classes_of_every_task_in_proportion():
    rare = np.repeat([0, 1], [COUNT - 4, 4])
    shares = rk.data.Shares(train=0.5, validation=0.25, test=0.25)
    labels = {"kind": KIND, "rare": rare, "age": AGE / 2}
    parts = [
        rk.data.from_arrays(X, labels, part, shares=shares)
        for part in ("train", "validation", "test")
    ]
    assert [part.size for part in parts] == [20, 10, 10]
    counts = np.array([part.check()[:4] for part in parts])
    assert counts[:, 2:].tolist() == [[18, 2], [9, 1], [9, 1]]
    assert np.abs(counts[:, 0] - counts[:, 1]).max() <= 2


def test_a_data_set_of_tfds_names_the_feature_of_each_task(tmp_path):
    features = {
        "x": F.Tensor(shape=(2,), dtype=np.float32),
        "kind": F.ClassLabel(names=["cat", "dog"]),
        "old": np.bool_,
        "wild": np.bool_,
        "age": np.int64,
    }
    rows = [
        {"x": X[n], "kind": n % 2, "old": n > 9, "wild": n < 9, "age": 200 + n} for n in range(20)
    ]
    name = prepare(tmp_path, "animals", features, rows, supervised=None)
    label = {"kind": "kind", "is": ["old", "wild"], "age": "age"}
    read = {"input": "x", "label": label, "data_dir": tmp_path, "treatment": NUMBERS}
    data = rk.data.load(name, "train", **read)
    assert [part.kind for part in data.task.parts] == ["classification", "multilabel", "regression"]
    assert data.task.by_name["is"].names == ("old", "wild") and data.task.size == 5
    *_, last = data.examples.as_numpy_iterator()
    assert set(last[1]) == set(label) and last[1]["is"].shape == (2,)
    assert data.check()[:2].sum() == 20 and data.origin["label"] == label
    assert rk.data.load(name, "train", **read | {"label": "kind", "treatment": rk.data.Treatment()}
                        ).fingerprint != data.fingerprint  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rk.data.from_arrays(X, {"kind": KIND}), "two tasks or more.*Received: 'kind'"),
        (lambda: rk.data.from_arrays(X, {"a": KIND, "b": AGE[:3]}), "40 of labels a, 3 of lab"),
        (lambda: rk.data.from_arrays(X, {"a/b": KIND, "b": AGE / 2}), 'text without "/"'),
        (
            lambda: rk.data.from_arrays(X, {"a": KIND, "b": AGE}, names=["cat", "dog"]),
            "names by task, some of 'a', 'b'",
        ),
        (lambda: rk.data.from_arrays(X, KIND, names={"a": ["cat"]}), "names of one task"),
        (
            lambda: rk.data.from_arrays(X, {"kind": KIND, "agee": AGE}, treatment=NUMBERS),
            "has a label. Received: 'age'. Did you mean 'agee'",
        ),
        (lambda: rk.data.from_arrays(X, KIND, treatment=NUMBERS), "Expected one task, since"),
        (
            lambda: rk.data.from_arrays(X, {"kind": KIND, "age": np.where(AGE > 3, AGE, np.nan)}),
            "task 'age'. Received: 4 of 40 without a label, the first at position 0",
        ),
        (lambda: of_table().balanced(), "Received: joint"),
        (
            lambda: rk.data.from_arrays(
                X, {"a": KIND, "b": AGE / 2}, treatment=rk.data.Treatment(examples_per_class=2)
            ),
            "one class an example for examples_per_class. Received: those of joint",
        ),
        (lambda: rk.data.from_arrays(X, {"a": KIND, "a_b": AGE / 2}), "Received: 'a_b'"),
        (lambda: rk.data.from_arrays(X, {"a": KIND, "val": AGE / 2}), "none is val"),
        (lambda: Task("joint", ("a",), (Task("regression", ("a",)),)), "two tasks or more"),
        (lambda: Task("regression", ("a",), (Task("regression", ("a",)),)), "none of another"),
    ],
)  # fmt: skip
def test_what_is_no_label_of_several_tasks_is_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_an_array_of_one_task_stays_as_it_is_and_rows_have_to_agree():
    assert by_task(AGE) is AGE
    with pytest.raises(DataError, match="as many rows for each task"):
        joined({"a": AGE, "b": AGE[:1]})
