"""Pools a transformer's features of real text at each block, with more and less filling.

The texts are docstrings of Python's own modules, which are the classes; they are read, not
imported. Whatever length they are filled up to, features and accuracies must be the same.

    python scripts/verify_text.py                           # 4 blocks: a few minutes
    python scripts/verify_text.py --texts 300 --blocks 2 --lengths 16 64
"""

import reusekit as rk  # isort: skip  (first: it starts Keras quietly)

import argparse
import ast
import re
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from reusekit.data import DataSplit
from reusekit.features import Padding, stored_features

WORDS = 14  # of a text; with a token before and one after, all fit into 16
FEWEST = 40  # texts of a module that counts
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LIMIT = 1e-5
STORED, IN_HEADS, UNMASKED = ("avg", "max", "token"), ("attention", "concatenated"), "avg, no mask"
# Not Adam: it divides by gradients near zero, as those of an attention that has just begun, and
# makes a difference in the last bit of a sum one of a whole step.
TRAINING = {"optimizers": ["sgd"], "learning_rates": [0.1]}


@dataclass
class Row:
    """The figures of one cut with one pooling.

    Attributes:
        features: Vectors of the validation texts, by length.
        accuracies: Of the frozen head on the validation texts, by length.
    """

    features: dict[int, np.ndarray]
    accuracies: dict[int, float]

    @property
    def difference(self) -> float:
        """The largest between the features of the first length and those of another."""
        first, *others = self.features.values()
        return max((float(np.abs(other - first).max()) for other in others), default=0.0)

    @property
    def same(self) -> bool:
        """Return whether neither features nor accuracies follow the length."""
        return self.difference <= LIMIT and len(set(self.accuracies.values())) == 1


def main() -> None:
    """Print a row for each cut and pooling, and how many were right."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=1600, metavar="N", help="how many")
    parser.add_argument("--blocks", type=int, default=4, metavar="N", help="of the transformer")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 64], metavar="N")
    parser.add_argument(
        "--poolings", nargs="+", choices=(*STORED, *IN_HEADS), default=[*STORED, *IN_HEADS]
    )
    options = parser.parse_args()
    if min(options.lengths) < WORDS + 2:
        parser.error(f"argument --lengths: expected {WORDS + 2} or more")
    train, validation, words = splits(options.texts)
    model = transformer(words, options.blocks, max(options.lengths))
    labels = [int(label) for _, label in validation.examples.as_numpy_iterator()]
    print(
        f"{train.size} texts to train on, {validation.size} to validate, {train.classes} modules; "
        f"the most frequent alone: {max(Counter(labels).values()) / len(labels):.4f}"
    )
    rows = verify(model, train, validation, options.lengths, options.poolings)
    titles = "".join(f"{f'length {length}':>12}" for length in options.lengths)
    print(f"{'cut':22}{'pooling':16}{'difference':>12}{titles}  same")
    for (cut, pooling), row in rows.items():
        accuracies = "".join(f"{value:12.4f}" for value in row.accuracies.values())
        same = "yes" if row.same else "no"
        print(f"{cut:22}{pooling:16}{row.difference:12.1e}{accuracies}  {same}")
    judged = [row for (_, pooling), row in rows.items() if pooling != UNMASKED]
    right = sum(row.same for row in judged)
    print(
        f"{right} of {len(judged)}: features at most {LIMIT} apart, the same accuracies; "
        f"{UNMASKED!r} is there to compare"
    )
    if right < len(judged):
        raise SystemExit(1)


@cache
def docstrings() -> list[tuple[str, str]]:
    """Return each text of Python's own modules once, with the module that has it first."""
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, str] = {}
    for module in sorted(sys.stdlib_module_names):
        for file in (library / f"{module}.py", library / module / "__init__.py"):
            tree = ast.parse(file.read_bytes()) if file.exists() else ast.Module([], [])
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    words = re.findall(r"[a-z]+", (ast.get_docstring(node) or "").lower())
                    text = " ".join(words[:WORDS])
                    if len(words) > 2:
                        found.setdefault(text, module)
    return list(found.items())


def splits(count: int) -> tuple[DataSplit, DataSplit, int]:
    """Return texts to train on, a quarter as many to validate, and the vocabulary's size."""
    found = docstrings()
    counts = Counter(module for _, module in found)
    names = tuple(sorted(module for module in counts if counts[module] >= FEWEST))
    found = [each for each in found if each[1] in names]
    chosen = np.random.default_rng(0).permutation(len(found))[:count]
    texts = [found[row][0] for row in chosen]
    labels = np.array([names.index(found[row][1]) for row in chosen])
    held = len(texts) // 5
    vocabulary = [*SPECIAL, *sorted({word for text in texts[held:] for word in text.split()})]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    train = split("train", texts[held:], labels[held:], names, numbers)
    validation = split("validation", texts[:held], labels[:held], names, numbers)
    return train, validation, len(vocabulary)


def split(
    name: str,
    texts: list[str],
    labels: np.ndarray,
    class_names: tuple[str, ...],
    numbers: dict[str, int],
) -> DataSplit:
    """Return texts as BERT takes them, each at its own length."""
    start, end, unknown = numbers["[CLS]"], numbers["[SEP]"], numbers["[UNK]"]
    tokens = [[start, *(numbers.get(w, unknown) for w in text.split()), end] for text in texts]

    def examples() -> Iterator[tuple[dict[str, np.ndarray], int]]:
        for ids, label in zip(tokens, labels, strict=True):
            ids = np.array(ids, "int32")
            ones = np.ones_like(ids)
            yield {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": ones}, label

    inputs = ("token_ids", "segment_ids", "padding_mask")
    spec = dict.fromkeys(inputs, tf.TensorSpec((None,), tf.int32)), tf.TensorSpec((), tf.int64)
    data = tf.data.Dataset.from_generator(examples, output_signature=spec)
    said = f"{name}{len(texts)}"
    return DataSplit("docstrings:1.0.0", name, data, len(texts), class_names, said, {}, ())


def transformer(words: int, blocks: int, length: int) -> keras.Model:
    """Return a small BERT with random weights, always the same."""
    keras.utils.set_random_seed(0)
    return keras_hub.models.BertBackbone(
        vocabulary_size=words,
        num_layers=blocks,
        num_heads=4,
        hidden_dim=64,
        intermediate_dim=128,
        max_sequence_length=length,
    )


def verify(
    model: keras.Model,
    train: DataSplit,
    validation: DataSplit,
    lengths: list[int],
    poolings: list[str],
) -> dict[tuple[str, str], Row]:
    """Return the figures of each block, by cut and pooling."""
    clean = {point.at for point in rk.cut_points(model)}
    encoder = keras_hub.layers.TransformerEncoder
    cuts = [layer.name for layer in model.layers if isinstance(layer, encoder)]
    if not clean.issuperset(cuts[:-1]):  # the last is an output, with nothing to cut off
        raise SystemExit(f"Expected every block to be a clean cut. Received: {sorted(clean)}.")
    ways = (*poolings, UNMASKED)
    in_heads = tuple(way for way in poolings if way in IN_HEADS)
    searched = [(way,) for way in ways if way not in IN_HEADS] + [in_heads] * bool(in_heads)
    rows = {(cut, way): Row({}, {}) for cut in cuts for way in ways}
    for length in lengths:
        with tempfile.TemporaryDirectory() as folder:
            store, inputs = rk.FeatureStore(Path(folder) / "features"), filled(validation, length)
            for cut, way in rows:
                features = (
                    head_features(model, cut, way, inputs)
                    if way in IN_HEADS
                    else features_in_store(store, model, cut, validation, way, length)
                )
                rows[cut, way].features[length] = features
            for pooled in searched:
                search = rk.CutSearch(
                    model,
                    train,
                    validation,
                    rk.SearchSpace(cuts, heads=heads(pooled, train.classes), **TRAINING),
                    Path(folder) / pooled[0],
                    store,
                    epochs=10,
                    padding=Padding(length),
                    keep=0,
                    **({"pooling": None} if pooled == in_heads else stored_as(*pooled)),
                )
                for trial in search.run().completed:
                    rows[trial.cut, trial.spec.head].accuracies[length] = trial.accuracy
    return rows


def stored_as(way: str) -> dict[str, str | None]:
    """Return the library's arguments for pooling features before they are stored."""
    return {"pooling": "avg", "mask": None} if way == UNMASKED else {"pooling": way}


def heads(ways: tuple[str, ...], classes: int) -> dict[str, rk.heads.Head]:
    """Return a classifier without a hidden layer for each pooling."""
    return {
        way: rk.heads.classifier(classes, pooling=way if way in IN_HEADS else "average")
        for way in ways
    }


def features_in_store(
    store: rk.FeatureStore, model: keras.Model, cut: str, data: DataSplit, way: str, length: int
) -> np.ndarray:
    """Return the stored features of one cut, pooled."""
    (found,) = stored_features(store, model, [cut], data, padding=Padding(length), **stored_as(way))
    return np.array(found.arrays[cut])


def head_features(
    model: keras.Model, cut: str, pooling: str, inputs: dict[str, np.ndarray]
) -> np.ndarray:
    """Return a head's pooled features, by a new attention that begins with the mean."""
    keras.utils.set_random_seed(0)
    whole = rk.attach(rk.extract(model, cut), rk.heads.classifier(2, pooling=pooling))
    for variable in whole.get_layer("head_query").weights if pooling == "attention" else ():
        variable.assign(keras.random.normal(variable.shape, seed=1))
    return np.asarray(rk.extract(whole, "head_pooling")(inputs))


def filled(data: DataSplit, length: int) -> dict[str, np.ndarray]:
    """Return all texts of a split as one array for each input."""
    examples = [example for example, _ in data.examples.as_numpy_iterator()]
    return {
        name: np.stack([np.pad(each[name], (0, length - len(each[name]))) for each in examples])
        for name in examples[0]
    }


if __name__ == "__main__":
    main()
