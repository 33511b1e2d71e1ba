"""A cut search over a small BERT on tokenised text; what is filling never changes a prediction."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from reusekit.data import DataSplit, Task
from reusekit.features import FeatureStore, Padding
from reusekit.search import CutSearch, SearchConfig, SearchSpace
from reusekit.training import heads as rk_heads

keras_hub = pytest.importorskip("keras_hub")

WORDS = [
    "the",
    "a",
    "is",
    "was",
    "and",
    "it",
    "very",
    "boat",
    "river",
    "rain",
    "wave",
    "ship",
    "swim",
    "lake",
    "sea",
    "bread",
    "oven",
    "salt",
    "cake",
    "soup",
    "plate",
    "cook",
    "spoon",
    "taste",
]
TOPICS = (WORDS[7:15], WORDS[15:])
BLOCKS = ["transformer_layer_0", "transformer_layer_1", "transformer_layer_2"]


def sentences(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Sentences of three to nine words about water or about food, and which it is."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count)
    texts = []
    for label in labels:
        length = generator.integers(3, 10)
        words = np.where(
            generator.random(length) < 0.4,
            generator.choice(TOPICS[label], length),
            generator.choice(WORDS[:7], length),
        )
        texts.append(" ".join([*words, generator.choice(TOPICS[label])]))
    return texts, labels


def tokenized(texts: list[str]) -> list[dict[str, np.ndarray]]:
    """As BERT takes text: [CLS], the words, [SEP]; each example as long as it is."""
    tokenizer = keras_hub.tokenizers.BertTokenizer(
        vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS], lowercase=True
    )
    examples = []
    for text in texts:
        ids = np.array([2, *np.asarray(tokenizer(text)), 3], "int32")
        ones = np.ones_like(ids)
        examples.append({"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": ones})
    return examples


def text_split(name: str, count: int, seed: int) -> DataSplit:
    texts, labels = sentences(count, seed)
    examples = tokenized(texts)
    spec = dict.fromkeys(examples[0], tf.TensorSpec((None,), tf.int32))

    def pairs():
        yield from zip(examples, labels, strict=True)

    data = tf.data.Dataset.from_generator(
        pairs, output_signature=(spec, tf.TensorSpec((), tf.int64))
    )
    return DataSplit(
        "made:1.0.0",
        name,
        data,
        count,
        Task("classification", ("water", "food")),
        f"{name}{count}{seed}",
    )


@pytest.fixture(scope="module")
def bert():
    keras.utils.set_random_seed(0)
    return keras_hub.models.BertBackbone(
        vocabulary_size=5 + len(WORDS), num_layers=3, num_heads=2, hidden_dim=16,
        intermediate_dim=32, max_sequence_length=32,
    )  # fmt: skip


def search(
    bert, folder, cuts=BLOCKS, frozen_up_to=(BLOCKS[0], BLOCKS[2]), heads=None, **options
) -> CutSearch:
    space = SearchSpace(
        cuts,
        heads=heads,
        frozen_up_to=frozen_up_to,
        units=[0],
        dropout=[0.0],
        learning_rates=[3e-3],
        batch_sizes=[16],
    )
    given = {"pooling": "token", "padding": Padding(16), "epochs": 6, "patience": 6, "keep": 9}
    return CutSearch(
        bert,
        text_split("train", 160, 0),
        text_split("validation", 60, 1),
        space,
        SearchConfig(**given | options),
        folder=folder / "trials",
        store=FeatureStore(folder / "features"),
    )


@pytest.fixture(scope="module")
def searched(bert, tmp_path_factory):
    found = search(bert, tmp_path_factory.mktemp("text"))
    found.run()
    return found


def test_every_block_is_searched_frozen_and_trained(searched):
    frame = searched.results()
    assert set(frame["status"]) == {"completed"}
    assert list(zip(frame["cut"], frame["frozen_up_to"], strict=True)) == [
        (BLOCKS[0], BLOCKS[0]),  # once, though the other choice comes to the same
        (BLOCKS[1], BLOCKS[0]),
        (BLOCKS[1], BLOCKS[1]),
        (BLOCKS[2], BLOCKS[0]),
        (BLOCKS[2], BLOCKS[2]),
    ]
    assert frame["val_accuracy"].max() > 0.8


def test_what_crosses_is_stored_with_its_mask(searched):
    stored = {tuple(entry.arrays) for entry in searched.store.entries()}
    whole = next(names for names in stored if BLOCKS[0] in names and len(names) > 2)
    assert "padding_mask" in " ".join(whole)


def test_pooled_by_a_head_filling_changes_nothing(bert, tmp_path):
    heads = {"attention": rk_heads.Classifier(2, pooling="attention")}
    found = search(bert, tmp_path, BLOCKS[1:], (BLOCKS[1],), pooling=None, epochs=1, heads=heads)
    found.run()
    assert any(
        "a mask leaves out" in note and "'padding_mask'" in note for note in found.plan.notes
    )
    frame = found.results()
    assert set(frame["status"]) == {"completed"}
    texts, labels = sentences(60, seed=1)
    for position in range(len(frame)):
        model, record = found.best_model(position), found.result.completed[position]
        predicted = []
        for length in (16, 24):
            padding = Padding(length, value=7)
            examples = text_split("validation", 60, 1).examples
            inputs, _ = next(iter(padding.batch(examples, 60)))
            kept = np.arange(length) < [[len(text.split()) + 2] for text in texts]
            inputs = {**inputs, "segment_ids": 0 * kept, "padding_mask": kept.astype("int32")}
            predicted.append(model.predict_on_batch(inputs))
        np.testing.assert_allclose(*predicted, atol=1e-5)
        accuracy = np.mean(predicted[0].argmax(axis=1) == labels)
        assert accuracy == pytest.approx(record.accuracy, abs=1e-6)


@pytest.mark.parametrize("position", range(3))
def test_filling_never_changes_a_prediction(searched, position):
    model = searched.best_model(position)
    texts, _ = sentences(12, seed=5)
    for example in tokenized(texts):
        alone = {name: values[None] for name, values in example.items()}
        filled = {
            name: np.pad(values, (0, 20 - len(values)))[None] for name, values in example.items()
        }
        filled["token_ids"][0, len(example["token_ids"]) :] = 7  # whatever the filling is
        np.testing.assert_allclose(
            model.predict_on_batch(filled), model.predict_on_batch(alone), atol=1e-4
        )


def test_the_whole_model_reaches_what_its_trial_reached(searched):
    best = searched.result.best
    model = searched.best_model()
    examples = Padding(16).batch(text_split("validation", 60, 1).examples, 60)
    inputs, labels = next(iter(examples))
    accuracy = np.mean(model.predict_on_batch(inputs).argmax(axis=1) == labels)
    assert accuracy == pytest.approx(best.accuracy, abs=1e-6)


def test_the_plain_way_finds_the_same(bert, searched, tmp_path):
    plain = search(bert, tmp_path, cuts=BLOCKS[:2], frozen_up_to=BLOCKS[:1], plain=True)
    plain.run()
    theirs, ours = plain.results(), searched.results()[:2]
    assert theirs[["cut", "frozen_up_to"]].equals(ours[["cut", "frozen_up_to"]])
    np.testing.assert_allclose(ours["val_accuracy"], theirs["val_accuracy"], atol=1.01 / 60)
