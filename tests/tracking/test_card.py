"""The model card says all of it, in tables that hold, and never more than a description takes."""

from dataclasses import replace

import pytest
import tensorflow as tf

from reusekit.data import DataSplit, Task
from reusekit.sharing import ParameterCounts
from reusekit.tracking import CardScore, Ledger, ModelCard, model_card
from reusekit.tracking.card import DESCRIPTION_LIMIT


def split_of_pets(split: str, size: int, fingerprint: str) -> DataSplit:
    examples, task = tf.data.Dataset.range(size), Task("classification", ("cat", "dog"))
    return DataSplit("oxford_iiit_pet:4.0.0", split, examples, size, task, fingerprint)


CARD = ModelCard(
    name="pets",
    alias="champion",
    task="Classifies images into 37 classes.",
    source="keras.applications/ResNet50",
    cut="conv4_block6_out",
    frozen_up_to="conv4_block2_out",
    train=split_of_pets("train[:80%]", 2944, "f" * 32),
    test=split_of_pets("test", 3669, "e" * 32),
    costs=Ledger(
        ParameterCounts(8_627_109, 5_000_000, 3_600_000, 27_109, 12),
        flops=3_200_000_000,
        bytes=34_508_436,
        latency=0.0213,
        conditions="2 processor cores, float32, batch of 1",
    ),
    scores=(
        CardScore("this model", 0.912, 0.921),
        CardScore("same network from scratch", 0.312, 0.305, "learning rate 0.001"),
        CardScore("logistic regression on pixels", 0.101, 0.112),
        CardScore("runner-up: cut conv5_block1_out", None, 0.917, "dropout 0.5"),
    ),
    input_shape=(224, 224, 3),
    input_range="pixels from 0 to 255",
    bottom="models:/pets-bottom/1",
    top="models:/pets-top/4",
    requirements=("keras==3.15.1", "tensorflow==2.21.0"),
)


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table, without its header."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = (line.replace("&emsp;", "").strip("|").split("|") for line in lines[2:])
    return [[cell.strip() for cell in row] for row in cells]


def test_it_says_what_the_model_is_and_how_to_load_it():
    text = model_card(CARD)
    assert text.startswith("Classifies images into 37 classes. Made from")
    assert "`keras.applications/ResNet50`, cut at `conv4_block6_out`" in text
    loading = section(text, "How to load it")
    assert 'mlflow.keras.load_model("models:/pets@champion")' in loading
    assert 'rk.load_backbone("models:/pets@champion")' in loading
    assert "keras==3.15.1, tensorflow==2.21.0" in loading


def test_its_tables_hold_the_numbers():
    text = model_card(CARD)
    assert rows(section(text, "Results")) == [
        ["this model", "0.912", "0.921", ""],
        ["same network from scratch", "0.312", "0.305", "learning rate 0.001"],
        ["logistic regression on pixels", "0.101", "0.112", ""],
        ["runner-up: cut conv5_block1_out", "-", "0.917", "dropout 0.5"],
    ]
    assert rows(section(text, "Size")) == [
        ["8,627,109", "5,000,000", "3,600,000", "27,109", "12", "3,200,000,000", "34,508,436"]
    ]
    assert "21.3 ms for one example (2 processor cores, float32, batch of 1)" in text
    assert rows(section(text, "Data")) == [
        ["training", "oxford_iiit_pet:4.0.0", "train[:80%]", "2,944", f"`{'f' * 32}`"],
        ["test", "oxford_iiit_pet:4.0.0", "test", "3,669", f"`{'e' * 32}`"],
    ]
    assert rows(section(text, "Lineage")) == [
        ["bottom", "models:/pets-bottom/1"],
        ["top", "models:/pets-top/4"],
        ["made from", "keras.applications/ResNet50"],
    ]


def test_it_says_what_the_model_is_not_for():
    limits = section(model_card(CARD), "Limits")
    assert "pixels from 0 to 255, shape 224 x 224 x 3" in limits
    assert "the split test of oxford_iiit_pet:4.0.0 alone" in limits


@pytest.mark.parametrize(
    ("frozen_up_to", "says"),
    [
        ("conv4_block2_out", "Frozen up to `conv4_block2_out`; what lies between"),
        ("conv4_block6_out", "Frozen up to the cut: the head alone was trained."),
    ],
)
def test_it_says_what_was_trained(frozen_up_to, says):
    assert says in model_card(replace(CARD, frozen_up_to=frozen_up_to))


def test_registered_parts_are_links_to_their_pages():
    found = rows(section(model_card(replace(CARD, bottom="my bottom")), "Lineage"))
    assert ["bottom", "[my bottom](#/models/my%20bottom)"] in found


def test_it_lists_the_names_that_it_answers_with():
    many = tuple(f"kind {number}" for number in range(22))
    train = replace(CARD.train, task=Task("classification", ("a `b`", *many)))
    text = model_card(replace(CARD, train=train))
    assert "It answers with `a 'b'`, `kind 0`, " in text
    assert "`kind 18` and 3 more." in text


def test_a_part_of_another_registered_model_names_it():
    text = model_card(replace(CARD, parent="models:/animals/3"))
    assert ["made from", "models:/animals/3"] in rows(section(text, "Lineage"))


def test_whatever_a_cell_holds_stays_in_it():
    scores = (CardScore("a | b\nc", 0.5, 0.5),)
    text = model_card(replace(CARD, scores=scores))
    assert "| a \\| b c&emsp; | 0.500&emsp; | 0.500&emsp; |  |" in text.split("\n")


def test_one_that_is_too_long_for_a_description_is_shortened_and_says_so():
    short = model_card(replace(CARD, scores=[CardScore("x" * 100, 0.5, 0.5)] * 100))
    assert DESCRIPTION_LIMIT / 2 < len(short) <= DESCRIPTION_LIMIT
    last = "&emsp; | ".join(["x" * 100, "0.500", "0.500", ""])
    assert short.partition("\n\n*Shortened")[0].endswith(f"| {last} |")


def test_mlflow_keeps_it_as_the_description_of_a_version(tracking):
    tracking.create_registered_model("pets")
    text = model_card(CARD)
    made = tracking.create_model_version("pets", "file:///nowhere", description=text)
    assert tracking.get_model_version("pets", made.version).description == text
