"""Every block of docs/examples.md, on small data of the shape that it tells of."""

import re
from contextlib import nullcontext
from pathlib import Path

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds
from keras import layers
from PIL import Image
from repository import ROOT
from scipy.io import wavfile

import reusekit as rk
from reusekit import stages

PAGE = (ROOT / "docs" / "examples.md").read_text()
SECTIONS = {
    title: dict(re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
FORMS = ("jpg", "png", "gif", "bmp", "webp", "tiff")


def photos(folder):
    """Write 200 pictures of stripes, each of another size, kind and colours."""
    numbers = np.random.default_rng(0)
    for number in range(200):
        name = ("across", "upright")[number % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        height, width = numbers.integers(24, 48, 2)
        stripes = np.indices((height, width))[number % 2] // 5 % 2
        grey = (stripes * 160 + numbers.integers(0, 90, (height, width))).astype("uint8")
        image = Image.fromarray(grey).convert(("L", "RGB", "P", "RGBA")[number // 6 % 4])
        form, options = FORMS[number % 6], {}
        if form == "jpg":
            image, options = image.convert("RGB"), {"exif": Image.Exif()}
            image = image.transpose(Image.Transpose.ROTATE_90)
            options["exif"][0x0112] = 6  # to be turned back where it is shown
        elif form in ("gif", "webp"):  # the second frame has the stripes of the other class
            other = Image.fromarray(grey.T).resize(image.size).convert(image.mode)
            options = {"save_all": True, "append_images": [other]}
        elif form == "tiff":
            image = Image.fromarray(grey.astype("uint16") * 257)
        image.save(folder / name / f"{number}.{form}", **options)
    return folder


def saved(path, inputs, *body):
    """Write a small backbone."""
    keras.utils.set_random_seed(0)
    x = inputs
    for layer in body:
        x = layer(x)
    keras.Model(inputs, x).save(path)


def of_numbers(path, count):
    saved(path, keras.Input((count,)), layers.Dense(8, "relu", name="a"), layers.Dense(8, "relu"))


def of_sounds(path):
    conv = [layers.Conv1D(4, 5, strides=2, activation="relu") for _ in range(2)]
    saved(path, keras.Input((64, 1)), layers.Rescaling(1 / 32_768), *conv)


def houses(folder):
    numbers = np.random.default_rng(0)
    frame = pd.DataFrame(numbers.random((80, 3)), columns=["width", "height", "age"])
    frame["price"] = 300 * frame.width * frame.height - 40 * frame.age
    frame.to_parquet(folder / "houses.parquet")
    of_numbers(folder / "numbers.keras", 3)


def reviews(folder):
    numbers = np.random.default_rng(0)
    good = numbers.integers(0, 2, 80)
    words = [["bad", "long", "dull"], ["good", "fine", "clear"]]
    texts = [
        f"A {' '.join(numbers.choice(words[one], 4))} film, {n}." for n, one in enumerate(good)
    ]
    pd.DataFrame({"text": texts, "stars": 1 + 4 * good}).to_csv(folder / "reviews.csv")


def sounds(folder):
    for number in range(40):
        name = ("high", "low")[number % 2]
        (folder / "sounds" / name).mkdir(parents=True, exist_ok=True)
        tone = np.sin(np.arange(50 + number) * (1.5, 0.2)[number % 2] + number)
        wavfile.write(
            folder / "sounds" / name / f"{number}.wav", 8_000, (tone * 30_000).astype("int16")
        )
    of_sounds(folder / "sounds.keras")


DATA = {
    "A folder of pictures": lambda folder: photos(folder / "photos"),
    "A table of numbers": houses,
    "A table of texts": reviews,
    "Pairs of texts, by TFDS": lambda folder: None,
    "Several labels, by TFDS": lambda folder: None,
    "Sounds, by TFDS": lambda folder: of_sounds(folder / "sounds.keras"),
    "Arrays": lambda folder: of_numbers(folder / "wine.keras", 13),
    "A data set of Keras": sounds,
}


@pytest.fixture(scope="module", params=SECTIONS)
def example(request, module_tracking, tmp_path_factory):
    """The blocks of a section, in a folder with its data."""
    folder = tmp_path_factory.mktemp("example")
    DATA[request.param](folder)
    mock = tfds.testing.mock_data(num_examples=20) if "TFDS" in request.param else nullcontext()
    with pytest.MonkeyPatch.context() as patch, mock:
        patch.chdir(folder)
        yield SECTIONS[request.param]


def test_its_python_ends_in_names(example, capsys):
    code = example["python"]
    assert len([line for line in code.splitlines() if line]) <= 14
    fewer = code.replace("max_trials=2", "max_trials=1, epochs=3")
    assert fewer != code
    told = {}
    exec(fewer, told)
    assert capsys.readouterr().out.strip()
    inputs = next(told["validation"].batches(4).as_numpy_iterator())[0]
    if inputs_are_text(inputs):
        inputs = keras.tree.map_structure(lambda part: [text.decode() for text in part], inputs)
    found = rk.predict(told["search"].best_model(), inputs, data=told["train"])
    names = {*told["train"].class_names}
    if "label" in found:
        assert {*found["label"]} <= names
    elif "labels" in found:
        assert {name for row in found["labels"] for name in row} <= names
    else:
        assert {*found} == names


def inputs_are_text(inputs):
    return all(part.dtype == object for part in keras.tree.flatten(inputs))


class Opened(Exception):
    """The end of a run whose data and backbone are open."""


def test_its_configuration_opens(example, run_pipeline, monkeypatch):
    if "yaml" not in example:
        pytest.skip("its data are in memory")

    def stop(**given):
        raise Opened

    monkeypatch.setattr(stages, "plan_search", stop)
    Path("example.yaml").write_text(example["yaml"])
    with pytest.raises(Opened):
        run_pipeline("cut_search", "--config=example.yaml")


def test_a_folder_of_many_kinds_of_pictures_ends_in_a_registered_model(
    run_pipeline, tracking, tmp_path, capsys
):
    folder = photos(tmp_path / "photos")
    (folder / "across" / "notes.txt").write_text("taken in May")
    before = sorted(folder.rglob("*"))
    (tmp_path / "photos.yaml").write_text(SECTIONS["A folder of pictures"]["yaml"])
    quick = ["--search.max_cuts=1", "--search.max_trials=1", "--search.epochs=4"]
    quick += ["--finetune.share=0", "--finetune.epochs=1", "--tracking.model=stripes"]
    run_pipeline("cut_search", "--config=photos.yaml", "--data.skip_unreadable=true", *quick)
    assert sorted(folder.rglob("*")) == before
    said = capsys.readouterr().err
    assert said.splitlines()[0] == "Data set photos"
    assert "notes.txt (text, and no picture)" in said
    assert mlflow.keras.load_model("models:/stripes@champion").output_shape == (None, 2)
    version = tracking.get_model_version_by_alias("stripes", "champion")
    run = tracking.get_run(version.run_id)
    assert run.data.metrics["test_accuracy"] > 0.7
    contexts = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    assert set(contexts) == {"training", "validation", "test"}
    assert {one.source_type for one in contexts.values()} == {"folder"}
    recorded = next(one for one in run.inputs.dataset_inputs if one.tags[0].value == "training")
    again = mlflow.data.get_source(recorded).load_split(path=folder)
    assert again.fingerprint == contexts["training"].digest == version.tags["reusekit.data"]
