"""Pools a transformer's features of real text at each block, with more and less filling.

The texts are docstrings of Python's own modules, which are the classes; they are read, not
imported. Whatever length they are filled up to, features and accuracies must be the same. Features
are compared in float32 and in float64, where the limit leaves no room for a position that should
not count. Heads are trained on features in float64, since sums over more positions round otherwise.

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

from reusekit.data import DataSplit, Task
from reusekit.features import Extraction, Padding, stored_features
from reusekit.graph.padding_mask import AUTO

WORDS = 14  # of a text; with a token before and one after, all fit into 16
FEWEST = 40  # texts of a module that counts
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LIMITS = {"float32": 1e-5, "float64": 1e-9}
# Few and small steps: heads give float32, and attention that is trained on and on makes of a
# difference in the last bit another model.
TRAINING = {"learning_rates": [0.003]}
EPOCHS = 5
STORED, IN_HEADS, UNMASKED = ("avg", "max", "token"), ("attention", "concatenated"), "avg, no mask"


@dataclass
class Row:
    """Features and accuracies at one cut with one pooling.

    Attributes:
        features: Vectors of the validation texts, by precision and length.
        accuracies: Of the frozen head on the validation texts, by length.
    """

    features: dict[str, dict[int, np.ndarray]]
    accuracies: dict[int, float]

    def difference(self, precision: str) -> float:
        """Return the largest difference of another length's features from the first's."""
        first, *others = self.features[precision].values()
        return max((float(np.abs(other - first).max()) for other in others), default=0.0)

    @property
    def same(self) -> bool:
        """Return whether neither features nor accuracies follow the length."""
        near = all(self.difference(precision) <= limit for precision, limit in LIMITS.items())
        return near and len(set(self.accuracies.values())) == 1


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
    labels = [int(label) for _, label in validation.examples.as_numpy_iterator()]
    print(
        f"{train.size} texts to train on, {validation.size} to validate, {train.classes} modules; "
        f"the most frequent alone: {max(Counter(labels).values()) / len(labels):.4f}"
    )
    size = words, options.blocks, max(options.lengths)
    rows = verify(size, train, validation, options.lengths, options.poolings)
    titles = "".join(f"{f'length {length}':>12}" for length in options.lengths)
    print(f"{'cut':22}{'pooling':16}{''.join(f'{name:>10}' for name in LIMITS)}{titles}  same")
    for (cut, pooling), row in rows.items():
        reached = "".join(f"{value:12.4f}" for value in row.accuracies.values())
        reached = reached or f"{'-':>12}" * len(options.lengths)
        same = "yes" if row.same else "no"
        differences = "".join(f"{row.difference(precision):10.1e}" for precision in LIMITS)
        print(f"{cut:22}{pooling:16}{differences}{reached}  {same}")
    judged = [row for (_, pooling), row in rows.items() if pooling != UNMASKED]
    right = sum(row.same for row in judged)
    print(
        f"{right} of {len(judged)}: features at most "
        f"{' and '.join(f'{limit} ({name})' for name, limit in LIMITS.items())} apart, the same "
        f"accuracies; {UNMASKED!r} is there to compare"
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
    return DataSplit(
        "docstrings:1.0.0", name, data, len(texts), Task("classification", class_names), said
    )


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
    size: tuple[int, int, int],
    train: DataSplit,
    validation: DataSplit,
    lengths: list[int],
    poolings: list[str],
) -> dict[tuple[str, str], Row]:
    """Return the figures of each block of a transformer of some size, by cut and pooling."""
    rows: dict[tuple[str, str], Row] = {}
    for precision in LIMITS:
        keras.config.set_floatx(precision)
        keras.config.set_dtype_policy(precision)
        model = transformer(*size)
        for length in lengths:
            with tempfile.TemporaryDirectory() as folder:
                store = rk.FeatureStore(folder)
                pooled = pooled_features(store, model, validation, length, poolings)
                for key, vectors in pooled.items():
                    row = rows.setdefault(key, Row({each: {} for each in LIMITS}, {}))
                    row.features[precision][length] = vectors
                if precision == "float64":
                    found = accuracies(store, model, train, validation, length, poolings)
                    for key, accuracy in found.items():
                        rows[key].accuracies[length] = accuracy
    return rows


def blocks(model: keras.Model) -> list[str]:
    """Return the address of each block, all of them clean cuts."""
    clean = {point.at for point in rk.cut_points(model)}
    encoder = keras_hub.layers.TransformerEncoder
    cuts = [layer.name for layer in model.layers if isinstance(layer, encoder)]
    if not clean.issuperset(cuts[:-1]):  # the last is an output, with nothing to cut off
        raise SystemExit(f"Expected every block to be a clean cut. Received: {sorted(clean)}.")
    return cuts


def pooled_features(
    store: rk.FeatureStore, model: keras.Model, data: DataSplit, length: int, poolings: list[str]
) -> dict[tuple[str, str], np.ndarray]:
    """Return the vectors of each block and pooling, as they are stored or a head pools them."""
    cuts, stored, inputs = blocks(model), [p for p in poolings if p in STORED], filled(data, length)
    found = {}
    for ways, mask in ((stored, AUTO), (["avg"], None)):
        pairs = [(cut, way) for cut in cuts for way in ways]
        entries = stored_features(
            store,
            model,
            [cut for cut, _ in pairs],
            data,
            pooling=[way for _, way in pairs],
            extraction=Extraction(padding=Padding(length), mask=mask),
        )
        for (cut, way), entry in zip(pairs, entries, strict=True):
            found[cut, way if mask else UNMASKED] = np.array(entry.stored[cut])
    for cut in cuts:
        bottom = rk.extract(model, cut)
        for way in (way for way in poolings if way in IN_HEADS):
            found[cut, way] = head_features(bottom, way, inputs)
    return {(cut, way): found[cut, way] for cut in cuts for way in (*poolings, UNMASKED)}


def accuracies(
    store: rk.FeatureStore,
    model: keras.Model,
    train: DataSplit,
    validation: DataSplit,
    length: int,
    poolings: list[str],
) -> dict[tuple[str, str], float]:
    """Return the accuracies of frozen heads on each block, which pool for themselves."""
    heads = {way: rk.heads.Classifier(train.classes, pooling=way) for way in poolings}
    with tempfile.TemporaryDirectory() as folder:
        search = rk.CutSearch(
            model,
            train,
            validation,
            rk.SearchSpace(blocks(model), heads=heads, **TRAINING),
            rk.SearchConfig(pooling=None, epochs=EPOCHS, padding=Padding(length), keep=0),
            folder=folder,
            store=store,
        )
        return {(each.cut, each.spec.head): each.accuracy for each in search.run().completed}


def head_features(bottom: keras.Model, pooling: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return a head's pooled features, by attention with weights (a new one gives the mean)."""
    keras.utils.set_random_seed(0)
    whole = rk.attach(bottom, rk.heads.Classifier(2, pooling=pooling))
    if pooling == "attention":
        kernel = whole.get_layer("head_query").kernel
        kernel.assign(keras.initializers.GlorotUniform(seed=1)(kernel.shape, kernel.dtype))
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
