"""Loading TFDS data: splits, slices, selection, order, and what is said where it fails."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_builders import F, prepare
from sklearn.datasets import load_digits

import reusekit as rk
from reusekit.data.fingerprint import fingerprint


def labels(split) -> np.ndarray:
    return split.arrays()[1]


def labels_of(batches) -> list[int]:
    return [int(label) for _, labels in batches for label in labels]


def test_the_digits_are_those_of_scikit_learn(digits):
    source = load_digits()
    images = np.concatenate(
        [
            rk.data.load("sklearn_digits", part).arrays()[0]
            for part in ("train", "validation", "test")
        ]
    )
    expected = np.round(source.images * 255 / 16)[..., None]
    assert sorted(map(bytes, images.astype("uint8"))) == sorted(
        map(bytes, expected.astype("uint8"))
    )
    assert digits.class_names == tuple("0123456789")
    assert digits.name == "sklearn_digits:1.0.0"


@pytest.mark.parametrize(("split", "size"), [("train", 897), ("validation", 300), ("test", 600)])
def test_each_split_has_its_size_and_every_class_in_proportion(split, size):
    part = rk.data.load("sklearn_digits", split)
    share = np.bincount(labels(part)) / part.size
    overall = np.bincount(load_digits().target) / 1797
    assert part.size == size
    np.testing.assert_allclose(share, overall, atol=0.003)


def test_slices_and_sums_of_splits():
    assert rk.data.load("sklearn_digits", "train[:10%]").size == 90
    assert rk.data.load("sklearn_digits", "train[5:7]+test").size == 602
    assert rk.data.load("sklearn_digits", "train[5 : 7] + test ").size == 602


def test_images_are_resized_and_turned_to_colour():
    part = rk.data.load(
        "sklearn_digits",
        "validation[:3]",
        treatment=rk.data.Treatment(image_size=(12, 20), channels=3),
    )
    images, _ = part.arrays()
    assert images.shape == (3, 12, 20, 3)
    assert images.dtype == np.float32
    assert 0 <= images.min() < 10
    assert 200 < images.max() <= 255
    np.testing.assert_array_equal(images[..., 0], images[..., 2])


def test_padding_keeps_the_aspect_ratio():
    part = rk.data.load(
        "sklearn_digits", "test[:5]", treatment=rk.data.Treatment(image_size=(8, 16), resize="pad")
    )
    images, _ = part.arrays()
    plain, _ = rk.data.load("sklearn_digits", "test[:5]").arrays()
    np.testing.assert_allclose(images[:, :, 4:12], plain, atol=1e-3)
    assert not images[:, :, :4].any()


def test_few_of_each_class_are_drawn_by_the_seed():
    def drawn(seed):
        return rk.data.load(
            "sklearn_digits", "train", treatment=rk.data.Treatment(examples_per_class=3, seed=seed)
        ).arrays()

    images, drawn_labels = drawn(1)
    np.testing.assert_array_equal(np.bincount(drawn_labels), [3] * 10)
    np.testing.assert_array_equal(drawn(1)[0], images)
    assert not np.array_equal(drawn(2)[0], images)


def test_the_plain_order_is_fixed_and_shuffled_passes_differ():
    part = rk.data.load("sklearn_digits", "train[:100]")
    fixed = labels_of(part.batches(7))
    shuffled = part.batches(7, shuffle_seed=3)
    first, second = labels_of(shuffled), labels_of(shuffled)
    assert fixed == labels(part).tolist()
    assert first != fixed
    assert first != second
    assert sorted(first) == sorted(second) == sorted(fixed)
    again = rk.data.load("sklearn_digits", "train[:100]").batches(7, shuffle_seed=3)
    assert labels_of(again) == first


def test_the_fingerprint_follows_whatever_changes_the_numbers():
    def found(split="train", **options):
        treatment = rk.data.Treatment(**options)
        return rk.data.load("sklearn_digits", split, treatment=treatment).fingerprint

    assert found() == found(seed=5)
    others = [
        found(),
        found("test"),
        found(image_size=(16, 16)),
        found(image_size=(16, 16), resize="crop"),
        found(channels=3),
        found(examples_per_class=5),
        found(examples_per_class=5, seed=1),
    ]
    assert len(set(others)) == len(others)


def test_the_fingerprint_follows_the_content(digits, tmp_path):
    builder = tfds.builder("sklearn_digits", data_dir=tmp_path)
    builder.download_and_prepare()
    before = fingerprint(builder, "train", {})
    file = next(tmp_path.glob("**/*train*.tfrecord*"))
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    assert fingerprint(builder, "train", {}) != before


def test_any_data_set_of_the_catalogue():
    with tfds.testing.mock_data(num_examples=6):
        pets = rk.data.load(
            "oxford_iiit_pet",
            "train",
            treatment=rk.data.Treatment(image_size=(24, 24), resize="crop"),
        )
        images, breeds = pets.arrays()
    assert images.shape == (6, 24, 24, 3)
    assert pets.classes == 37
    assert breeds.max() < 37


def test_arrays_can_lie_on_disk(tmp_path):
    part = rk.data.load("sklearn_digits", "validation[:20]")
    on_disk, disk_labels = part.arrays(tmp_path / "images.npy")
    assert isinstance(on_disk, np.memmap)
    np.testing.assert_array_equal(on_disk, part.arrays()[0])
    np.testing.assert_array_equal(disk_labels, labels(part))


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("train", "test", False),
        ("train", "train[:1%]", True),
        ("train[:80%]", "train[80%:]", False),
        ("train[:80%]", "train[79%:]", True),
        ("validation+test", "test[5:]", True),
    ],
)
def test_splits_know_whether_they_share_examples(one, other, overlap):
    first, second = rk.data.load("sklearn_digits", one), rk.data.load("sklearn_digits", other)
    assert first.overlaps(second) == second.overlaps(first) == overlap


def test_equal_content_of_other_rows_is_counted(tmp_path):
    def rows(*levels):
        return [{"image": np.full((4, 4, 1), level, "uint8"), "label": 0} for level in levels]

    features = {"image": F.Image(shape=(4, 4, 1)), "label": F.ClassLabel(num_classes=1)}
    name = prepare(tmp_path, "greys", features, {"train": rows(1, 2, 3), "test": rows(3, 4, 3)})
    train, test = (rk.data.load(name, part, data_dir=tmp_path) for part in ("train", "test"))
    assert not train.overlaps(test)
    assert (test.equal_examples(train), train.equal_examples(test)) == (2, 1)


@pytest.mark.parametrize(
    ("name", "split", "options", "says"),
    [
        ("sklearn_digit", "train", {}, "Did you mean 'sklearn_digits'"),
        ("mnits", "train", {}, "Did you mean 'mnist'"),
        ("sklearn_digits", "trian", {}, "Did you mean 'train'?"),
        ("sklearn_digits", "train[:x%]", {}, "such as train[:80%] or"),
        ("sklearn_digits", "train[:50%", {}, "such as train[:80%] or"),
        ("sklearn_digits", "train + tset", {}, "Did you mean 'test'?"),
        ("sklearn_digits", "train[:99999]", {}, "897 examples"),
        ("sklearn_digits", "train[:0]", {}, "Received: 'train[:0]', which has none"),
        ("sklearn_digits", "train[5:2]", {}, "such as train[2:5]. Received: 'train[5:2]'"),
        ("sklearn_digits", "train[:9]+test[90%:10%]", {}, "Received: 'test[90%:10%]'"),
        ("sklearn_digits:9.9.9", "train", {}, "sklearn_digits:9.9.9"),
        (
            "sklearn_digits",
            "train",
            {"treatment": rk.data.Treatment(examples_per_class=500)},
            "Expected examples_per_class to be at most",
        ),
        ("mnist", "train", {}, "Expected mnist in"),
        ("coco/2017", "train", {}, "no (input, label) pair"),
        (
            "diamonds",
            "train",
            {"input": "features/carat", "label": "features"},
            "as label. Received: 'features'",
        ),
        ("coco/2017", "train", {"input": "image", "label": "objects/bbox"}, "Choose another label"),
        ("coco/2017", "train", {"input": "image", "label": []}, "Expected label to be"),
        ("titanic", "train", {"input": "age", "label": ["sex", "name"]}, "several features"),
        ("glue/sst2", "train", {"input": "sentence", "label": "lable"}, "Did you mean 'label'"),
        ("titanic", "train", {"label": "survived"}, "of its own: age, boat"),
        ("./photos", "train", {}, "Received: './photos'"),
        ("a b", "train", {}, "Received: 'a b'"),
        ("", "train", {}, "Received: ''"),
        ("sklearn_digits", "train", {"data_dir": "photos"}, "Received: 'photos'"),
    ],
)
def test_bad_input_gets_one_clear_error(name, split, options, says):
    with pytest.raises(rk.DataError) as caught:
        rk.data.load(name, split, **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
