"""Data sets as people bring them: other file formats, labels and pictures, and broken ones."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_builders import F, prepare
from PIL import Image

import reusekit as rk
from reusekit.data import Task

RNG = np.random.default_rng(0)
PICTURE = F.Image(shape=(None, None, 3))
TWO = F.ClassLabel(num_classes=2)


def picture(channels: int = 3, dtype: str = "uint8") -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, (6, 6, channels)).astype(dtype)


def rows(count: int) -> list[dict]:
    return [{"image": picture(), "label": n % 2, "more": "text"} for n in range(count)]


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
def test_other_file_formats_give_the_same_examples(file_format, tmp_path):
    # pipeline E: `as_dataset` is not there for ArrayRecord
    stored, test = rows(40), rows(4)
    features = {"image": F.Image(shape=(6, 6, 3)), "label": TWO, "more": F.Text()}
    if file_format == "array_record":  # a sequence that nobody asks for could not be passed over
        features["tags"] = F.Sequence(TWO)
        for row in stored + test:
            row["tags"] = [0, 1]
    name = prepare(
        tmp_path,
        f"as_{file_format}",
        features,
        {"train": stored, "test": test},
        file_format=file_format,
    )
    part = rk.data.load(name, "train[10:]", data_dir=tmp_path)
    images, labels = part.arrays()
    truth = {bytes(row["image"]): row["label"] for row in stored}
    assert part.size == len(set(map(bytes, images.astype("uint8")))) == 30
    assert [truth[bytes(one)] for one in images.astype("uint8")] == labels.tolist()
    few = rk.data.load(
        name, "train[10:]", data_dir=tmp_path, treatment=rk.data.Treatment(examples_per_class=3)
    )
    at = [part.keys.tolist().index(key) for key in few.keys]
    np.testing.assert_array_equal(few.arrays()[0], images[at])
    assert few.arrays()[1].tolist() == labels[at].tolist()
    assert not part.overlaps(rk.data.load(name, "test", data_dir=tmp_path))
    part.check()


def test_files_with_fewer_rows_than_they_say_are_refused(tmp_path):
    # pipeline E, a Parquet set is miscounted: TFDS's writer drops every other hundred
    examples = [{"label": n % 2, "x": np.float32(n)} for n in range(150)]
    features = {"x": np.float32, "label": TWO}
    name = prepare(tmp_path, "torn", features, examples, ("x", "label"), "parquet")
    with pytest.raises(rk.DataError, match=r"expected to contain 150 elements.* only 100"):
        rk.data.load(name, "train", data_dir=tmp_path)


def test_a_label_that_is_missing_is_found_before_any_work(tmp_path):
    # pipeline E: labels of -1, in any split
    examples = [{"image": picture(), "label": -1 if n in (3, 5) else n % 2} for n in range(8)]
    splits = {"train": rows(4), "test": examples}
    for row in splits["train"]:
        row.pop("more")
    name = prepare(tmp_path, "unlabelled", {"image": PICTURE, "label": TWO}, splits)
    rk.data.load(name, "train", data_dir=tmp_path)
    with pytest.raises(
        rk.DataError, match=r"split 'test'.*2 of 8 without a class, the first at position \d"
    ):
        rk.data.load(name, "test", data_dir=tmp_path)


# pipeline E: one broken JPEG, a WEBP, a GIF
@pytest.mark.parametrize("kind", ["jpg", "webp", "gif", "png"])
def test_a_picture_that_cannot_be_read_is_found_before_any_work(kind, tmp_path):
    files = [tmp_path / f"{n}.{kind if n == 4 else 'jpg'}" for n in range(6)]
    for file in files:
        Image.fromarray(picture()).save(file)
    if kind in ("jpg", "png"):
        files[4].write_bytes(files[4].read_bytes()[:90])
    examples = [{"image": str(file), "label": int(file == files[4])} for file in files]
    name = prepare(tmp_path, f"broken_{kind}", {"image": PICTURE, "label": TWO}, examples)
    part = rk.data.load(
        name, "train", data_dir=tmp_path, treatment=rk.data.Treatment(image_size=(4, 4))
    )
    with pytest.raises(
        rk.DataError, match=r"1 of 6 that cannot be read, the first at position \d: \w+"
    ) as caught:
        part.check()
    assert "{{" not in str(caught.value)


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, "uint8"), (4, "uint8"), (1, "uint16"), (3, "uint16")]
)
def test_pictures_of_every_kind_become_colour(channels, dtype, tmp_path):
    # pipeline, "Refused, and should work": RGBA, 16 bits and grey in a builder
    image = picture(channels, dtype)
    feature = F.Image(shape=(None, None, channels), dtype=getattr(np, dtype), encoding_format="png")
    name = prepare(
        tmp_path,
        "of" + "abcd"[channels - 1] + dtype.replace("16", "teen").replace("8", ""),
        {"image": feature, "label": TWO},
        [{"image": image, "label": 1}],
    )
    found = rk.data.load(
        name, "train", data_dir=tmp_path, treatment=rk.data.Treatment(image_size=(6, 6), channels=3)
    ).arrays()[0][0]
    expected = image.astype("float64") * (255 / np.iinfo(dtype).max)
    if channels == 4:
        alpha = expected[..., -1:] / 255
        expected = expected[..., :-1] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(found, np.broadcast_to(expected, (6, 6, 3)), atol=1e-2)


def test_palette_and_transparent_files_become_colour(tmp_path):
    opaque = np.concatenate([picture(), np.full((6, 6, 1), 255, "uint8")], axis=-1)
    Image.fromarray(opaque).save(tmp_path / "rgba.png")
    palette = Image.fromarray(picture()).convert("P")
    palette.save(tmp_path / "palette.png")
    examples = [
        {"image": str(tmp_path / "rgba.png"), "label": 0},
        {"image": str(tmp_path / "palette.png"), "label": 1},
    ]
    name = prepare(tmp_path, "files", {"image": PICTURE, "label": TWO}, examples)
    with pytest.raises(rk.DataError, match="image_size"):
        rk.data.load(name, "train", data_dir=tmp_path).arrays()
    images, labels = rk.data.load(
        name, "train", data_dir=tmp_path, treatment=rk.data.Treatment(image_size=(6, 6))
    ).arrays()
    expected = [opaque[..., :3], np.asarray(palette.convert("RGB"))]
    for image, label in zip(images, labels, strict=True):
        np.testing.assert_allclose(image, expected[label], atol=1e-3)


def test_whole_numbers_of_few_values_are_classes_alike_in_every_split(tmp_path):
    # pipeline, "Refused, and should work": labels that are no classes
    def graded(grades):
        return [{"x": np.float32(g), "grade": g, "old": g > 5, "price": 0.5} for g in grades]

    features = {"x": np.float32, "grade": np.int32, "old": np.bool_, "price": np.float32}
    splits = {"train": graded([3, 5, 8, 5]), "test": graded([9, 5])}
    name = prepare(tmp_path, "graded", features, splits, supervised=("x", "grade"))
    train, test = (rk.data.load(name, split, data_dir=tmp_path) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("3", "5", "8", "9")
    assert sorted(train.arrays()[1]) == [0, 1, 1, 2]
    assert sorted(test.arrays()[1]) == [1, 3]
    old = rk.data.load(name, "test", data_dir=tmp_path, label="old")
    assert (old.class_names, sorted(old.arrays()[1])) == (("False", "True"), [0, 1])
    assert old.fingerprint != test.fingerprint
    again = rk.data.load(name, "test", data_dir=tmp_path, label="old", treatment=old.treatment)
    assert again.fingerprint == old.fingerprint
    price = rk.data.load(name, "test", data_dir=tmp_path, label="price")
    assert (price.task, price.arrays()[1].tolist()) == (Task("regression", ("price",)), [0.5, 0.5])
    numbers = rk.data.Treatment(task="regression")
    grades = rk.data.load(name, "test", data_dir=tmp_path, treatment=numbers)
    assert (grades.task.kind, sorted(grades.arrays()[1])) == ("regression", [5.0, 9.0])
    assert grades.fingerprint != test.fingerprint
    with pytest.raises(rk.DataError, match=r"'price' of graded .*classification.*float32"):
        rk.data.load(
            name,
            "test",
            data_dir=tmp_path,
            label="price",
            treatment=rk.data.Treatment(task="classification"),
        )


@pytest.mark.parametrize(
    ("name", "input", "label", "task", "expected"),
    [
        ("voc/2007", "image", None, "multilabel", 20),
        ("voc/2007", "image", "objects/label", "multilabel", 20),
        ("celeb_a", "image", ["attributes/Smiling", "attributes/Young"], "multilabel", 2),
        ("wine_quality", "features/alcohol", None, "classification", None),
        ("diamonds", "features/carat", None, "regression", 1),
        ("diamonds", ["features/carat", "features/depth"], ["price"], "regression", 1),
        ("civil_comments", None, None, "regression", 1),
        ("glue/mrpc", ["sentence1", "sentence2"], "label", "classification", 2),
        ("titanic", ["age", "fare"], ["survived"], "classification", 2),
    ],
)
def test_labels_of_any_kind_are_a_task(name, input, label, task, expected):
    # pipeline, "Refused, and should work": labels that are no classes, several labels and inputs
    with tfds.testing.mock_data(num_examples=4):
        part = rk.data.load(name, "train", input=input, label=label or _own_label(name))
        inputs, labels = next(part.examples.batch(1).as_numpy_iterator())
        counts = part.check()
    assert part.task.kind == task
    assert expected in (None, part.task.size)
    assert counts.shape == (part.task.size,)
    if isinstance(input, list):
        assert list(inputs) == [one.rpartition("/")[2] for one in input]
    shapes = {"classification": (1,), "multilabel": (1, part.task.size)}
    assert labels.shape == shapes.get(task, labels.shape)
    assert labels.dtype == (np.int64 if task == "classification" else np.float32)


def _own_label(name):
    return {"voc/2007": "labels"}.get(name)


def test_several_classes_an_example_are_a_vector_and_a_wrong_one_is_found(tmp_path):
    sets = F.Sequence(F.ClassLabel(names=["cat", "dog", "owl"]))
    examples = [{"x": np.float32(n), "told": told} for n, told in enumerate([[0, 2], [], [1]])]
    name = prepare(tmp_path, "sets", {"x": np.float32, "told": sets}, examples, ("x", "told"))
    part = rk.data.load(name, "train", data_dir=tmp_path)
    x, labels = part.arrays()
    expected = {0: [1, 0, 1], 1: [0, 0, 0], 2: [0, 1, 0]}
    assert {int(n): label.tolist() for n, label in zip(x, labels, strict=True)} == expected
    assert part.task == Task("multilabel", ("cat", "dog", "owl"))
    with pytest.raises(rk.DataError, match="one class an example"):
        rk.data.load(
            name,
            "train",
            data_dir=tmp_path,
            treatment=rk.data.Treatment(examples_per_class=1),
        )
    examples[1]["told"] = [-1]
    name = prepare(tmp_path, "unset", {"x": np.float32, "told": sets}, examples, ("x", "told"))
    with pytest.raises(rk.DataError, match="1 of 3 without a label"):
        rk.data.load(name, "train", data_dir=tmp_path)


def test_words_are_classes_where_that_is_asked_for_and_missing_numbers_are_found(tmp_path):
    examples = [
        {"x": np.float32(n), "word": "ham" if n else "spam", "y": np.float32(np.nan if n else 1)}
        for n in range(3)
    ]
    features = {"x": np.float32, "word": F.Text(), "y": np.float32}
    name = prepare(tmp_path, "words", features, examples, ("x", "word"))
    with pytest.raises(rk.DataError, match="words are classes where task is 'classification'"):
        rk.data.load(name, "train", data_dir=tmp_path)
    asked = rk.data.Treatment(task="classification")
    words = rk.data.load(name, "train", data_dir=tmp_path, treatment=asked)
    x, labels = words.arrays()
    assert {float(n): words.task.names[y] for n, y in zip(x, labels, strict=True)} == {
        0.0: "spam",
        1.0: "ham",
        2.0: "ham",
    }
    with pytest.raises(rk.DataError, match="2 of 3 without a label"):
        rk.data.load(name, "train", data_dir=tmp_path, label="y")


@pytest.mark.parametrize(
    ("name", "input", "label", "classes"),
    [
        ("glue/sst2", "sentence", "label", 2),
        ("celeb_a", "image", "attributes/Smiling", 2),
        ("titanic", "age", "survived", 2),
        ("titanic", "fare", "embarked", 4),
    ],
)
def test_data_sets_without_a_pair_of_their_own_take_the_features_that_are_named(
    name, input, label, classes
):
    with tfds.testing.mock_data(num_examples=6):
        part = rk.data.load(name, "train", input=input, label=label)
        values, labels = part.arrays()
    assert part.classes == classes
    assert len(values) == len(labels) == 6
    assert labels.max() < classes


def test_several_processes_prepare_the_same_data_at_once(tmp_path):
    # pipeline A3: two of three ended with "already exists"
    import multiprocessing

    context = multiprocessing.get_context("fork")
    barrier, sizes = context.Barrier(3), context.Queue()

    def first_job():
        tfds.core.constants.DATA_DIR = str(tmp_path)
        barrier.wait()
        try:
            builder = tfds.builder("sklearn_digits", data_dir=str(tmp_path))
            from reusekit.data.catalogue import _prepare

            _prepare(builder, False, None)
            sizes.put(builder.info.splits["train"].num_examples)
        except Exception as error:
            sizes.put(str(error))

    rk.data.load("sklearn_digits", "test")
    jobs = [context.Process(target=first_job) for _ in range(3)]
    for job in jobs:
        job.start()
    assert [sizes.get(timeout=120) for _ in jobs] == [897] * 3
    for job in jobs:
        job.join()


def test_nothing_is_downloaded_between_files_of_the_user(tmp_path):
    # pipeline W2
    (tmp_path / "cat.jpg").write_bytes(b"")
    with pytest.raises(rk.DataError, match="Expected data_dir to be TFDS's folder"):
        rk.data.load("mnist", "train", data_dir=tmp_path, download=True)
    assert [file.name for file in tmp_path.iterdir()] == ["cat.jpg"]
