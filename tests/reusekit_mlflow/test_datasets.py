"""A split in MLflow: named by content, and found again from what MLflow stored."""

import json

import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from mlflow.data.schema import TensorDatasetSchema

import reusekit as rk
from reusekit_mlflow.datasets import SplitDataset

FEW = rk.data.Treatment(examples_per_class=5, seed=3, image_size=(16, 16), channels=3)


@pytest.fixture(scope="module")
def few():
    return rk.data.load("sklearn_digits", "train", treatment=FEW)


def logged(client, dataset):
    """Log a data set as an input of a run; return it as the server has it."""
    with mlflow.start_run() as run:
        mlflow.log_input(dataset, context="training")
    (found,) = client.get_run(run.info.run_id).inputs.dataset_inputs
    return found


def test_a_logged_split_can_be_loaded_again_as_it_was(tracking, few):
    found = logged(tracking, mlflow.data.from_tfds(few))
    assert found.dataset.name == "sklearn_digits:1.0.0"
    assert found.dataset.digest == few.fingerprint
    source = mlflow.data.get_source(found)
    again = source.load()
    assert isinstance(again, tf.data.Dataset)
    pairs = list(zip(again.as_numpy_iterator(), few.examples.as_numpy_iterator(), strict=True))
    assert len(pairs) == 50
    for (image, label), (expected_image, expected_label) in pairs:
        np.testing.assert_array_equal(image, expected_image)
        assert label == expected_label
    assert source.load_split().fingerprint == few.fingerprint
    assert source.load_split().class_names == few.class_names


def test_schema_and_profile_are_for_machines_and_for_mlflows_pages(tracking, few):
    dataset = logged(tracking, mlflow.data.from_tfds(few)).dataset
    schema = json.loads(dataset.schema)
    read = TensorDatasetSchema.from_dict(schema)
    assert read.features.inputs[0].shape == (-1, 16, 16, 3)
    assert read.features.inputs[0].type == np.float32
    assert read.targets.inputs[0].type == np.int64
    assert schema["mlflow_colspec"] == [
        {"name": "input", "type": "float32 (-1, 16, 16, 3)"},
        {"name": "label", "type": "int64 (-1,)"},
    ]
    assert json.loads(dataset.profile) == {
        "split": "train",
        "examples": 50,
        "task": "classification",
        "classes": 10,
        "class_names": [str(digit) for digit in range(10)],
    }


def test_a_name_and_a_split_do_what_loading_first_does(few):
    made = mlflow.data.from_tfds("sklearn_digits", split="train", name="five each", treatment=FEW)
    assert isinstance(made, SplitDataset)
    assert made.name == "five each"
    assert made.digest == few.fingerprint
    assert made.to_dict()["source"] == SplitDataset(few).to_dict()["source"]


def test_any_source_that_is_a_split_is_known(few):
    pixels = mlflow.data.from_numpy(np.zeros((2, 3)), source=few)
    assert pixels.source.to_dict() == SplitDataset(few).source.to_dict()


def test_other_data_than_was_logged_are_refused(few):
    source = mlflow.data.from_tfds(few).source
    changed = type(source).from_dict(source.to_dict() | {"fingerprint": "0" * 32})
    with pytest.raises(rk.DataError, match=f"with the fingerprint 0+. Received: {few.fingerprint}"):
        changed.load()
    with pytest.raises(rk.DataError, match=few.fingerprint):
        mlflow.data.from_tfds(few, digest="0" * 32)
    assert mlflow.data.from_tfds(few, digest=few.fingerprint).digest == few.fingerprint


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"data": "sklearn_digits"}, "without a split"),
        ({"data": 3, "split": "train"}, "Received: 3 with split"),
        ({"data": "sklearn_digits", "split": "trian"}, "Did you mean 'train'"),
    ],
)
def test_what_is_no_split_is_refused_in_one_sentence(options, told):
    with pytest.raises(rk.DataError, match=told):
        mlflow.data.from_tfds(**options)


def test_a_loaded_split_takes_no_options(few):
    with pytest.raises(rk.DataError, match="with split, seed"):
        mlflow.data.from_tfds(few, split="train", seed=1)


def test_tables_are_found_again_where_they_lie_now_and_arrays_are_not(tracking):
    frame = pd.DataFrame({"x": np.arange(30.0), "y": ["a", "b", "c"] * 10, "part": ["train"] * 30})
    splits = [
        rk.data.from_table(frame, "train", input=["x"], label="y", parts=parts)
        for parts in (rk.data.Shares(seed=2), "part", None)
    ]
    arrays = rk.data.from_arrays(frame[["x"]].to_numpy(), frame.y.to_numpy())
    with mlflow.start_run() as run:
        for split in (*splits, arrays):
            mlflow.log_input(SplitDataset(split, split.fingerprint), "training")
    inputs = tracking.get_run(run.info.run_id).inputs.dataset_inputs
    logged = {one.dataset.digest: one for one in inputs}
    for split in splits:
        source = mlflow.data.get_source(logged[split.fingerprint])
        assert logged[split.fingerprint].dataset.source_type == "table"
        assert source.load_split(table=frame).fingerprint == split.fingerprint
        with pytest.raises(rk.DataError, match="with the fingerprint"):
            source.load_split(table=frame.assign(x=frame.x + 1))
        with pytest.raises(rk.DataError, match=r"as rk.data.from_table takes it"):
            source.load_split()
    with pytest.raises(rk.DataError, match="was in a program's memory"):
        mlflow.data.get_source(logged[arrays.fingerprint]).load()
