"""The table of docs/data.md, cell by cell: each source, task and kind of backbone together."""

from functools import cache
from itertools import product

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from data_builders import F, prepare
from keras import layers
from PIL import Image
from repository import ROOT
from scipy.io import wavfile

import reusekit as rk

SIZE = 16
INPUTS = ("pictures", "text", "series, sound", "numbers")
SOURCES = ("TFDS", "a folder", "a table", "arrays", "a Keras data set")
TASKS = {"classes": "classification", "several labels": "multilabel", "numbers": "regression"}
BACKBONES = {
    "A": "keras.applications",
    "H": "KerasHub",
    "F": "a `.keras` file",
    "R": "a registered model",
}
CELLS = [*product(INPUTS, SOURCES, TASKS, BACKBONES)]
NOTES = {
    1: "A folder's classes are its folders; a table names files with other labels.",
    2: "A folder holds pictures, sounds or texts; a table holds numbers.",
    3: "`keras.applications` takes pictures alone.",
    4: "KerasHub's backbones take pictures or text.",
}
SAYS = {1: "whose folders are classes", 2: "cannot be read", 3: "which the model takes"}

NUMBERS = np.random.default_rng(0)
WORDS = np.array(["good", "bad", "film", "book", "old", "new", "long", "short"])
RAW = {
    "pictures": NUMBERS.integers(0, 256, (SIZE, 32, 32, 3), "uint8"),
    "text": np.array([" ".join(NUMBERS.choice(WORDS, 5)) for _ in range(SIZE)]),
    "series, sound": NUMBERS.normal(size=(SIZE, 64, 1)).astype("float32"),
    "numbers": NUMBERS.normal(size=(SIZE, 4)).astype("float32"),
}
LABELS = pd.DataFrame(
    {
        "kind": np.array(["cat", "dog"])[np.arange(SIZE) % 2],
        "red": np.arange(SIZE) % 3 == 0,
        "round": np.arange(SIZE) % 4 == 1,
        "price": np.arange(SIZE) / 3,
    }
)
NAMES = {"classes": ("cat", "dog"), "several labels": ("red", "round"), "numbers": ("price",)}
COLUMNS = {"classes": "kind", "several labels": ["red", "round"], "numbers": "price"}


def refusal(inputs, source, task, backbone):
    """The note that says why a cell is refused; None for one that works."""
    if source == "a folder" and task != "classes":
        return 1
    if source == "a folder" and inputs == "numbers":
        return 2
    return refused_backbone(backbone, inputs)


def refused_backbone(backbone, inputs):
    """The note that says why a kind of backbone takes no such inputs; None where it does."""
    if backbone == "A" and inputs != "pictures":
        return 3
    if backbone == "H" and inputs in ("series, sound", "numbers"):
        return 4
    return None


def table():
    """The table and its notes, as the docs have them."""
    said = [f"| input | source | {' | '.join(TASKS)} |", "|---" * (2 + len(TASKS)) + "|"]
    for inputs, source in product(INPUTS, SOURCES):
        cells = []
        for task in TASKS:
            notes = {kind: refusal(inputs, source, task, kind) for kind in BACKBONES}
            works = " ".join(kind for kind, note in notes.items() if note is None)
            cells.append(
                " ".join([works or "no", *(f"({n})" for n in sorted({*notes.values()} - {None}))])
            )
        said.append(
            f"| {inputs if source == SOURCES[0] else ''} | {source} | {' | '.join(cells)} |"
        )
    letters = "; ".join(f"**{letter}** {kind}" for letter, kind in BACKBONES.items())
    notes = [f"{number}. {text}" for number, text in NOTES.items()]
    return "\n".join([*said, "", letters + ".", "", *notes])


def test_the_table_of_the_docs_is_that_of_the_cells():
    assert table() in (ROOT / "docs" / "data.md").read_text(), table()


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Opens a source, as a user does."""
    folder = tmp_path_factory.mktemp("sources")

    @cache
    def kept(inputs):
        """Write the examples as a folder and as a table; return the table's path."""
        raw, frame = RAW[inputs], LABELS.copy()
        base = folder / inputs.split(",")[0]
        if inputs == "text":
            frame["x"] = raw
        elif inputs != "pictures":
            frame["x"] = [one.tolist() for one in raw]
        for number, one in enumerate(raw):
            path = base / LABELS.kind[number] / f"{number}.any"
            path.parent.mkdir(parents=True, exist_ok=True)
            if inputs == "pictures":
                Image.fromarray(one).save(path, "png")
                frame.loc[number, "x"] = str(path)
            elif inputs == "text":
                path.write_text(one)
            elif inputs == "numbers":
                path.write_bytes(one.tobytes())
            else:
                wavfile.write(path, 8_000, (one * 5_000).astype("int16"))
        frame.to_parquet(base.with_suffix(".parquet"))
        return base

    @cache
    def catalogue(inputs):
        raw = RAW[inputs]
        feature = {
            "pictures": F.Image(shape=(32, 32, 3)),
            "text": F.Text(),
            "series, sound": F.Tensor(shape=(64, 1), dtype=np.float32),
            "numbers": F.Tensor(shape=(4,), dtype=np.float32),
        }[inputs]
        features = {
            "x": feature, "kind": F.ClassLabel(names=["cat", "dog"]), "red": np.bool_,
            "round": np.bool_, "price": np.float32,
        }  # fmt: skip
        rows = [{"x": x, **said} for x, said in zip(raw, LABELS.to_dict("records"), strict=True)]
        return prepare(folder, f"combined_{inputs.split(',')[0]}", features, rows, None)

    @cache
    def split(inputs, source, task):
        treatment = rk.data.Treatment(task=TASKS[task])
        if inputs == "pictures":
            treatment = treatment.changed(image_size=(32, 32), channels=3)
        options, label = {"treatment": treatment}, COLUMNS[task]
        if source == "TFDS":
            name = catalogue(inputs)
            return rk.data.load(name, "train", input="x", label=label, data_dir=folder, **options)
        if source == "a folder":
            shares = rk.data.Shares(train=0.5, validation=0.25, test=0.25)
            return rk.data.from_folder(kept(inputs), "train", shares=shares, **options)
        if source == "a table":
            path = kept(inputs).with_suffix(".parquet")
            return rk.data.from_table(path, "train", input="x", label=label, parts=None, **options)
        raw, told, names = RAW[inputs], LABELS[label].to_numpy(), list(NAMES[task])
        if source == "arrays":
            return rk.data.from_arrays(raw, told, names=names, **options)
        if task == "classes":
            told = np.searchsorted(names, told)
        dataset = tf.data.Dataset.from_tensor_slices((raw, told)).batch(6)
        return rk.data.from_dataset(dataset, names=names, **options)

    return split


def small(inputs):
    """A small backbone of one's own."""
    words = layers.TextVectorization(vocabulary=WORDS.tolist(), output_sequence_length=8)
    start, body = {
        "pictures": (
            keras.Input((32, 32, 3)), [layers.Rescaling(1 / 255), layers.Conv2D(4, 3, 2, name="a")]
        ),
        "text": (
            keras.Input((), dtype="string"),
            [words, layers.Embedding(10, 4, mask_zero=True, name="a")],
        ),
        "series, sound": (keras.Input((64, 1)), [layers.Conv1D(4, 3, 2, name="a")]),
        "numbers": (keras.Input((4,)), [layers.Dense(8, "relu", name="a")]),
    }[inputs]  # fmt: skip
    x = start
    for layer in body:
        x = layer(x)
    return keras.Model(start, x)


@pytest.fixture(scope="module")
def backbone(module_tracking, tmp_path_factory):
    """Loads a backbone of each kind, as a user does, and says where to cut it."""
    folder = tmp_path_factory.mktemp("backbones")

    @cache
    def load(kind, inputs):
        if refused_backbone(kind, inputs):  # it takes other inputs, whatever is fed
            inputs = "pictures"
        if kind == "A":
            found = rk.load_backbone(
                "keras.applications/VGG16", weights=None, input_shape=(32, 32, 3)
            )
            return found, "block1_pool"
        if kind == "H":
            hub, preset = pytest.importorskip("keras_hub"), folder / inputs
            if inputs == "text":
                known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.tolist()]
                made = hub.models.BertBackbone(
                    vocabulary_size=len(known), num_layers=1, num_heads=1, hidden_dim=4,
                    intermediate_dim=4, max_sequence_length=64,
                )  # fmt: skip
                tokenizer = hub.tokenizers.BertTokenizer(vocabulary=known, lowercase=True)
                tokenizer.save_to_preset(preset)
            else:
                made = hub.models.ResNetBackbone(
                    input_conv_filters=[64], input_conv_kernel_sizes=[3],
                    stackwise_num_filters=[64], stackwise_num_blocks=[1],
                    stackwise_num_strides=[1], block_type="basic_block", image_shape=(32, 32, 3),
                )  # fmt: skip
                converter = hub.layers.ImageConverter(image_size=(32, 32), scale=1 / 255)
                converter.save_to_preset(preset)
            made.save_to_preset(preset)
            at = "transformer_layer_0" if inputs == "text" else "stack0_block0_out"
            return rk.load_backbone(preset), at
        path = folder / f"{INPUTS.index(inputs)}.keras"
        if not path.exists():
            small(inputs).save(path)
        if kind == "F":
            return rk.load_backbone(path), "a"
        name = f"backbone-{INPUTS.index(inputs)}"
        with mlflow.start_run():
            mlflow.keras.log_model(
                keras.saving.load_model(path), name=name, registered_model_name=name,
                signature=mlflow.models.infer_signature(np.zeros(2), np.zeros(2)),
                pip_requirements=["keras"],
            )  # fmt: skip
        return rk.load_backbone(f"models:/{name}/1"), "a"

    return load


@pytest.fixture(scope="module")
def trained(backbone, tmp_path_factory):
    """Sets up a search, and trains a head for one epoch, once for inputs and labels of one kind.

    The head for labels or numbers does not know the kind of its backbone: it is trained on one.
    """
    known = {}

    def train(kind, inputs, split):
        loaded, at = backbone(kind, inputs)
        space = rk.SearchSpace([at], units=[0], dropout=[0.0], learning_rates=[0.01])
        search = rk.CutSearch(
            loaded, split, split, space, rk.SearchConfig(epochs=1, plain=True),
            folder=tmp_path_factory.mktemp("search"),
        )  # fmt: skip
        like = (kind, split.task.kind, str(split.examples.element_spec[0]))
        shown = kind != "R" or inputs == "numbers"  # what is registered is a file, too
        if like not in known and (kind == "F" or (shown and split.task.kind == "classification")):
            search.run()
            known[like] = search.best_model()
        return known.get(like)

    return train


@pytest.mark.parametrize(("inputs", "source", "task", "kind"), CELLS)
def test_cell(opened, trained, inputs, source, task, kind):
    note = refusal(inputs, source, task, kind)
    if note is not None:
        with pytest.raises(rk.DataError, match=SAYS.get(note, SAYS[3])):
            trained(kind, inputs, opened(inputs, source, task))
        return
    split = opened(inputs, source, task)
    model = trained(kind, inputs, split)
    if model is None:
        return
    answers = rk.predict(model, RAW[inputs][:4], data=split)
    assert len(answers) == 4
    if task == "numbers":
        assert tuple(answers) == NAMES[task]
    elif task == "classes":
        assert {*answers["label"]} <= {*NAMES[task]}
    else:
        assert {one for row in answers["labels"] for one in row} <= {*NAMES[task]}
