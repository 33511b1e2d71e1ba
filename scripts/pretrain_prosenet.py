r"""Pretrain prosenet to guess words that were left out, and write what ships inside the package.

    python scripts/pretrain_prosenet.py    # about 13 minutes of one core

To see how it works in a minute, with few texts and a place of its own for the result:

    python scripts/pretrain_prosenet.py --packages keras rich --steps 20 \
        --out build/tiny.weights.h5

The texts are the docstrings of what this package requires, which every installation has; they are
read, not imported. What the modules of the data set `python_topics` say, too, is left out, so that
its texts and labels are new to the network. A word is one of those that occur most often. The
embedding starts from counts of which words stand near which, the first attention from looking at
the words before and after, the rest from random weights, and all of it learns to guess words that
were left out or replaced, by the head `MaskedLanguageModel`, whose last layer is the embedding
itself. Beside the weights lie the words, and a JSON file with the
share of words that are guessed in texts held out, and the digest of the texts.
"""

import reusekit  # isort: skip  # noqa: F401  (first: it starts Keras quietly)

import argparse
import hashlib
import json
import math
import os
import platform
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import distribution, version
from pathlib import Path

import keras
import numpy as np
from keras import ops
from scipy.sparse import csr_array
from sklearn.utils.extmath import randomized_svd

import reusekit as rk
from reusekit.backbones import prosenet
from reusekit.data.builders.python_topics import (
    OTHERS,
    SEEN,
    docstrings,
    python_files,
)

PACKAGES = (
    *("filelock", "jsonargparse", "keras", "keras-tuner", "matplotlib", "mlflow", "numpy"),
    *("pandas", "psutil", "pydantic", "requests", "rich", "scikit-learn", "scipy", "tensorboard"),
    *("tensorflow", "tensorflow-datasets"),
)
"""Distributions that pyproject.toml requires, and that have much to say."""

BATCH = 32
PEAK_RATE = 3e-3
WARMUP = 0.06  # share of the steps
LEFT_OUT = 0.2  # share of the words to guess
SHOWN = 0.2  # share of those that are not left out while training
HELD_OUT = 50  # one text in so many
EVALUATED = 64  # batches of held out texts, at most
SHORTEST = 8  # words of a text
COMMON = 1e-3  # share of all words from which on a word is common
NEAR = 20  # words before and after a word that count as near it
WAVES = 8  # of which a place is made, each a cosine and a sine
LOOKING = "block1", "block2"
OFFSETS = (-1, 1, -2, 2)  # where each of their heads looks, at first

# What the layer TextVectorization does to a text, for characters of ASCII.
_AS_WORDS = {ord(mark): None for mark in "!\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~'"}
_AS_WORDS |= {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def words_of(text: str) -> list[str]:
    """Return the words of a text, as the tokenizer has them."""
    return text.translate(_AS_WORDS).split()


def prose(docstring: str) -> str:
    """Return the paragraphs of a docstring that are no code and no tables, ASCII alone."""
    paragraphs = re.split(r"\n\s*\n", docstring.encode("ascii", "ignore").decode())
    kept = [
        paragraph
        for paragraph in paragraphs
        if ">>>" not in paragraph
        and "```" not in paragraph
        and sum(c.isalpha() or c.isspace() for c in paragraph) > 0.8 * len(paragraph)
    ]
    return " ".join(" ".join(kept).split())


def corpus(packages: list[str]) -> list[str]:
    """Return what packages say in their docstrings, no text twice, none of `python_topics`."""
    modules = [module for topics in (SEEN, OTHERS) for topic in topics.values() for module in topic]
    known = {text for name in modules for file in python_files(name) for text in _readable(file)}
    found: dict[str, None] = {}
    for package in packages:
        for path in sorted(distribution(package).files or (), key=str):
            parts = set(path.parts)
            if path.suffix == ".py" and not parts & {"test", "tests", "testing"}:
                found.update(dict.fromkeys(_readable(Path(str(path.locate())))))
    return [text for text in found if text not in known and len(text.split()) >= SHORTEST]


def _readable(file: Path) -> Iterator[str]:
    """Yield the prose of each docstring of a file; none where it is not written for this Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Python thinks of their escapes
        try:
            yield from map(prose, docstrings(file.read_bytes()))
        except (SyntaxError, ValueError, OSError):
            return


def numbered(texts: list[list[str]], vocabulary: list[str]) -> np.ndarray:
    """Return texts as numbers of words, one after another, in rows of the network's length."""
    numbers = {word: number for number, word in enumerate(vocabulary, start=prosenet.MASK)}
    ids = [numbers.get(word, prosenet.UNKNOWN) for words in texts for word in words]
    rows = max(1, len(ids) // prosenet.LENGTH)  # the words of a very small corpus are repeated
    return np.resize(np.array(ids, "int32"), (rows, prosenet.LENGTH))


def embedding_of(pieces: np.ndarray, seed: int) -> np.ndarray:
    """Return a vector for each word, by the words it stands near more often than by chance.

    Args:
        pieces: Texts as numbers of words.
        seed: Of the factorisation, which is randomised.

    Returns:
        Shape (words, width). The dimensions of the places are 0.
    """
    joined = pieces.ravel()
    shape = prosenet.WORDS, prosenet.WORDS
    near = csr_array(shape, dtype="float32")
    for distance in range(1, NEAR + 1):
        one, other = joined[:-distance], joined[distance:]
        both = (one > prosenet.MASK) & (other > prosenet.MASK)
        weight = np.ones(both.sum(), "float32")
        near += csr_array((weight, (one[both], other[both])), shape)
    near = (near + near.T).tocoo()
    often = near.sum(axis=1)
    usual = often**0.75 / (often**0.75).sum()  # rare words are near anything by chance
    row, column = near.coords
    gained = np.log(near.data / (often[row] * usual[column]))
    more = gained > 0
    chances = csr_array((gained[more], (row[more], column[more])), shape)
    width = prosenet.WIDTH - 2 * WAVES
    left, sizes, _ = randomized_svd(chances, width, n_iter=3, random_state=seed)
    vectors = left * np.sqrt(sizes)
    unseen = ~vectors.any(axis=1)
    vectors[unseen] = np.random.default_rng(seed).normal(size=(unseen.sum(), width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    share = np.bincount(joined, minlength=prosenet.WORDS) / len(joined)
    vectors *= (COMMON / (COMMON + share[:, None])) ** 0.5  # what every text has tells little
    return np.pad(vectors, ((0, 0), (2 * WAVES, 0)))


def look_around(backbone: keras.Model) -> None:
    """Let attention begin with the words before and after, as it takes long to find them.

    Places are waves in dimensions that words leave free. A query is the place turned by an offset,
    so that the key of the place at that offset fits it best.
    """
    waves = np.pi * 16 ** -np.linspace(0, 1, WAVES)
    angles = np.outer(np.arange(prosenet.LENGTH + 1), waves)
    places = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / np.sqrt(WAVES)
    of_words = prosenet.WIDTH - 2 * WAVES
    backbone.get_layer("positions").set_weights([np.pad(places, ((0, 0), (0, of_words)))])
    for block in LOOKING:
        attention = backbone.get_layer(f"{block}_attention")
        query, key = attention.query_dense.kernel, attention.key_dense.kernel
        turned, same = np.array(query), np.array(key)
        for head, offset in enumerate(OFFSETS):
            cos, sin = np.diag(np.cos(waves * offset)), np.diag(np.sin(waves * offset))
            turned[: 2 * WAVES, head, : 2 * WAVES] = np.block([[cos, sin], [-sin, cos]])
            same[: 2 * WAVES, head, : 2 * WAVES] = np.eye(2 * WAVES)
        query.assign(turned)
        key.assign(same)
        value = attention.value_dense.kernel
        value.assign(value * np.sqrt(1 / prosenet.WIDTH) / np.std(value))


class Gaps(keras.utils.PyDataset):
    """Batches of texts with words to guess, others in each epoch.

    Of the words to guess most are left out; half of the others are another word, and half stay.
    Each batch has its own seed.

    Args:
        pieces: Texts as numbers of words.
        steps: Batches, in one epoch.
        seed: The same seed gives the same batches.
        shown: The share of the words to guess that are not left out.
    """

    def __init__(self, pieces: np.ndarray, steps: int, seed: int, shown: float = 0.0) -> None:
        super().__init__(workers=1)
        self._pieces, self._steps, self._seed, self._shown = pieces, steps, seed, shown
        passes = -(-steps * BATCH // len(pieces))
        generator = np.random.default_rng(seed)
        rows = np.concatenate([generator.permutation(len(pieces)) for _ in range(passes)])
        self._rows = rows[: steps * BATCH].reshape(steps, BATCH)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Return tokens and the places of the gaps, the words to guess, and which of them count."""
        generator = np.random.default_rng((self._seed, step))
        tokens = self._pieces[self._rows[step]]
        count = round(LEFT_OUT * prosenet.LENGTH)
        places = np.argsort(generator.random(tokens.shape), axis=1)[:, :count].astype("int32")
        wanted = np.take_along_axis(tokens, places, 1)
        counts = wanted > prosenet.MASK
        chance = generator.random(wanted.shape)
        other = generator.integers(prosenet.MASK + 1, prosenet.WORDS, wanted.shape)
        kept = np.where(chance < self._shown / 2, other, wanted)
        given = np.where(chance < self._shown, kept, prosenet.MASK)
        np.put_along_axis(tokens, places, np.where(counts, given, wanted).astype("int32"), 1)
        return {"token_ids": tokens, "gaps": places}, wanted, counts.astype("float32")


def language_model(backbone: keras.Model) -> keras.Model:
    """Return the backbone with the tied head on the places of the gaps."""
    gaps = keras.Input((None,), dtype="int32", name="gaps")
    features = ops.take_along_axis(backbone.output, ops.expand_dims(gaps, -1), axis=1)
    features = keras.layers.LayerNormalization(name="last_norm")(features)
    guessing = keras.Model({"token_ids": backbone.input, "gaps": gaps}, features, name="guessing")
    head = rk.heads.MaskedLanguageModel(embedding="words", transform=False)
    return rk.attach(guessing, head, mask=None)


def compile_for(model: keras.Model, steps: int) -> None:
    """Adam with a rate that warms up, then falls to nothing over the given number of steps."""
    warmup = max(1, round(WARMUP * steps))
    rate = keras.optimizers.schedules.CosineDecay(
        PEAK_RATE / 20, max(1, steps - warmup), warmup_target=PEAK_RATE, warmup_steps=warmup
    )
    head = rk.heads.MaskedLanguageModel()
    adam = keras.optimizers.Adam(rate, global_clipnorm=1.0)
    # The embedding, which knows something from the start, at a twentieth of the rate.
    slower = rk.layerwise_optimizer(model, adam, decay=0.05, blocks=["embedding_out"])
    # Compiled by XLA, a step takes half the time; to compile takes as long as some hundred steps.
    model.compile(slower, jit_compile=steps > 100, **head.compile_args)


def write(backbone: keras.Model, vocabulary: list[str], report: dict, out: Path) -> None:
    """Write weights, words and report beside their places, then move them there whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    stem = out.name.removesuffix(".weights.h5")
    drafts = {
        name: out.with_name(f".{os.getpid()}.{name}")
        for name in (out.name, f"{stem}.txt", f"{stem}.json")
    }
    try:
        backbone.save_weights(drafts[out.name])
        drafts[f"{stem}.txt"].write_text("\n".join(vocabulary) + "\n", "utf-8")
        drafts[f"{stem}.json"].write_text(json.dumps(report, indent=2) + "\n")
        for name, draft in drafts.items():
            os.replace(draft, out.with_name(name))
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def halved(backbone: keras.Model) -> keras.Model:
    """Round the weights to half precision, and return a model of the same that holds them so."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float16")
    try:
        half = prosenet.build(weights=None)
    finally:
        keras.config.set_dtype_policy(policy)
    half.set_weights(backbone.get_weights())
    backbone.set_weights(half.get_weights())
    return half


def pretrain(args: argparse.Namespace) -> dict:
    """Train, measure and write; returns the report that was written."""
    start = time.perf_counter()
    keras.utils.set_random_seed(args.seed)
    texts = corpus(args.packages)
    split = [words_of(text) for text in texts]
    counts = Counter(word for words in split for word in words)
    common = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = [prosenet.LEFT_OUT, *common[: prosenet.WORDS - prosenet.MASK - 1]]
    seen = numbered([words for row, words in enumerate(split) if row % HELD_OUT], vocabulary)
    unseen = numbered(split[::HELD_OUT], vocabulary)
    if args.verbose:
        print(
            f"{len(texts):,} texts of {sum(counts.values()):,} words; {args.steps:,} steps of "
            f"{BATCH} pieces, {time.perf_counter() - start:.0f} s so far.",
            flush=True,
        )

    backbone = prosenet.build(weights=None)
    backbone.get_layer("words").set_weights([embedding_of(seen, args.seed)])
    look_around(backbone)
    model = language_model(backbone)
    shares = np.bincount(seen.ravel(), minlength=prosenet.WORDS) / seen.size
    # From how often each word is, so that no step goes into learning that.
    model.get_layer("head_logits").bias.assign(np.log(shares + 1e-6))
    compile_for(model, args.steps)
    model.fit(Gaps(seen, args.steps, args.seed, SHOWN), verbose=args.verbose)
    half = halved(backbone)

    few = max(1, min(EVALUATED, len(unseen) // BATCH))
    measured = model.evaluate(Gaps(unseen, few, args.seed + 1), verbose=0, return_dict=True)
    report = {
        "network": prosenet.SOURCE,
        "accuracy_on_new_texts": round(float(measured["accuracy"]), 4),
        "perplexity_on_new_texts": round(math.exp(measured["loss"]), 1),
        "share_of_the_commonest_word": round(counts[common[0]] / sum(counts.values()), 4),
        "share_of_known_words": round(
            sum(counts[word] for word in vocabulary[1:]) / sum(counts.values()), 4
        ),
        "texts": len(texts),
        "words": sum(counts.values()),
        "sha256_of_texts": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "steps": args.steps,
        "batch": BATCH,
        "seed": args.seed,
        "seconds": round(time.perf_counter() - start),
        "parameters": backbone.count_params(),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in args.packages},
    }
    write(half, vocabulary, report, args.out)
    return report


def arguments() -> argparse.Namespace:
    """Return the command line, checked before anything is trained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--packages", nargs="+", default=list(PACKAGES), choices=PACKAGES)
    parser.add_argument("--out", type=Path, default=prosenet.WEIGHTS, help="a .weights.h5 file")
    parser.add_argument("--verbose", type=int, choices=(0, 1, 2), default=1)
    args = parser.parse_args()
    if not args.out.name.endswith(".weights.h5"):
        parser.error(f"--out must end in .weights.h5; received {str(args.out)!r}")
    if args.steps < 1 or args.seed < 0:
        parser.error("--steps must be at least 1, --seed at least 0")
    return args


if __name__ == "__main__":
    report = pretrain(options := arguments())
    if options.verbose:
        print(json.dumps(report, indent=2))
