"""The first stages: a backbone, and data in the shape it takes."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import keras
import numpy as np
import psutil
import tensorflow as tf
from matplotlib.figure import Figure
from rich.markup import escape

from reusekit.backbones import Backbone, hub, sources
from reusekit.backbones import load_backbone as load_pretrained
from reusekit.backbones.backbone import Tokenizer
from reusekit.backbones.preprocessing import IMAGENET, RANGES, range_ratio
from reusekit.data import DataSplit, Shares, Task, Treatment, from_folder, load
from reusekit.data.table import table_splits
from reusekit.data.task import joined
from reusekit.data.texts import names_of_texts, tokenized
from reusekit.data.treatment import treatment_for
from reusekit.errors import ConfigError
from reusekit.features.stored import check_examples
from reusekit.graph import keras_internals, read
from reusekit.progress import console, say
from reusekit.settings import BackboneSettings, DataSettings
from reusekit.tasks import rules_of

INFERENCE_BATCH = 64
"""Examples a batch where nothing is trained: it decides speed and memory, never numbers."""
_LOOKED_AT = 1000  # texts, to see how many are cut short
_MANY = 0.05  # share of these
_DRAWN, _DRAWN_FROM = 16, 256  # augmented examples, and those at the beginning that are shuffled
_UNLIKELY = 10.0
"""Times as much variation as in training, beyond what other pictures would explain."""


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set.

    Attributes:
        train: To train on.
        validation: To choose by.
        test: To look at once.
        tokenizer: From texts to the tokens that the parts hold; None where they hold none.
    """

    train: DataSplit
    validation: DataSplit
    test: DataSplit
    tokenizer: keras.Model | None = None

    @property
    def raw(self) -> "Splits":
        """The same parts before their texts became tokens."""
        return Splits(*(part.raw or part for part in (self.train, self.validation, self.test)))


def load_backbone(settings: BackboneSettings) -> Backbone:
    """Load the pretrained model that the settings name.

    Raises:
        BackboneError: It cannot be had.
        ConfigError: An option is a setting of its own.
    """
    taken = settings.options.keys() & {"weights", "input_shape", "scale"}
    if taken:
        raise ConfigError(
            f"Expected backbone.options without {min(taken)}, which is a setting of its own. "
            f"Received: {settings.options[min(taken)]!r}. Set backbone.{min(taken)} instead."
        )
    return load_pretrained(
        settings.source,
        settings.weights,
        settings.input_shape,
        settings.scale,
        **settings.options,
    )


def load_data(
    settings: DataSettings, backbone: Backbone, seed: int, opened: Splits | None = None
) -> Splits:
    """Load the three splits as the backbone takes them.

    Images come in its size and channels, series of open length in its length, texts as the tokens
    of its tokenizer. Every example is read once, so that a broken file is found before any work. Of
    a saved model of images it is said in which range pixels reach it, with a warning where that is
    not the range that it was trained on.

    Args:
        settings: The data.
        backbone: What they are for.
        seed: Decides which examples are kept.
        opened: The same data as another backbone takes them, which are looked at already; None
            reads them.

    Raises:
        ConfigError: The backbone takes several inputs of numbers, or images of any size; the data
            are no texts where it takes texts, or these become more tokens than it can take or fewer
            than tell them apart; or two splits share examples.
        DataError: The data cannot be read, or are of another shape than the backbone takes; or the
            training examples cannot be augmented as they are to be.
    """
    decided = _decided_by(backbone)
    if backbone.tokenizer is not None:
        _check_length(backbone, settings.sequence_length)
    if opened is None:
        splits = _read_once(settings, settings.treatment(**decided, seed=seed))
    else:
        parts = (opened.train, opened.validation, opened.test)
        splits = Splits(*(part.treated(part.treatment.changed(**decided)) for part in parts))
    if backbone.tokenizer is not None:
        _check_texts(backbone, splits.train)
    graph = read(backbone.model)
    for name in () if backbone.tokenizer else ("train", "validation", "test"):
        check_examples(graph, getattr(splits, name), f"data.{name}", None)
    if opened is None:
        splits = _looked_at(settings, splits)
    if splits.train.treatment.image_size is not None:
        _say_range(backbone, splits.train)
    if backbone.tokenizer is None:
        return splits
    return _as_tokens(splits, backbone.tokenizer, settings.sequence_length)


def _read_once(settings: DataSettings, chosen: Treatment) -> Splits:
    """Open the three splits; of the training examples some may be chosen."""
    every = chosen.changed(examples_per_class=None)
    taken = _opened(settings, [settings.train, settings.validation, settings.test], chosen)
    return Splits(
        train=taken(settings.train, chosen),
        validation=taken(settings.validation, every),
        test=taken(settings.test, every),
    )


def _looked_at(settings: DataSettings, splits: Splits) -> Splits:
    """Read every example, look for shared ones, and weight and augment those to train on."""
    pairs = (("train", "validation"), ("train", "test"), ("validation", "test"))
    for one, other in pairs:
        named = (f"data.{split}={getattr(settings, split)!r}" for split in (one, other))
        both = " and ".join(named)
        if getattr(splits, one).overlaps(getattr(splits, other)):
            raise ConfigError(
                f"Expected splits that share no examples. Received: {both}, which do. Choose parts "
                "that do not overlap, such as train[:80%] and train[80%:]."
            )
        equal = getattr(splits, other).equal_examples(getattr(splits, one))
        if equal:
            say(
                f"warning: {both} have equal examples: the content of {equal:,} of the latter's "
                f"{getattr(splits, other).size:,} is in the former, too."
            )
    counts = {name: counts_of(getattr(splits, name)) for name in ("train", "validation", "test")}
    few = settings.examples_per_class == 1
    laid_out = settings.name is None and splits.train.origin["shares"] is None
    whole = laid_out and "[" not in settings.train
    for remark in rules_of(splits.train.task).remarks(counts, settings.train, few, whole):
        say(f"warning: {remark}")
    if settings.class_weights is not None:
        splits = replace(splits, train=splits.train.balanced(counts["train"]))
    if settings.augment is not None:
        splits = replace(splits, train=splits.train.augmented(settings.augment))
    return splits


def _decided_by(backbone: Backbone) -> dict[str, Any]:
    """Return the settings of a treatment that a backbone decides.

    Raises:
        ConfigError: It takes several inputs of numbers, or images of any size.
    """
    inputs = backbone.model.inputs
    if backbone.tokenizer is not None or all(tensor.dtype == "string" for tensor in inputs):
        return {}
    if len(inputs) != 1:
        taken = ", ".join(f"{tensor.name!r} of shape {tensor.shape}" for tensor in inputs)
        raise ConfigError(
            "Expected a backbone with one input, such as images of shape (batch, height, width, "
            "channels), or of texts; several inputs go through rk.CutSearch. Received: "
            f"{backbone.source}, which takes {taken}."
        )
    shape = inputs[0].shape[1:]
    if len(shape) == 3 and None in shape[:2]:
        raise ConfigError(
            f"Expected a size of images for {backbone.source}, which takes any. Received: none. "
            "Choose one with --backbone.input_shape."
        )
    return treatment_for(shape)


def _check_texts(backbone: Backbone, split: DataSplit) -> None:
    """Refuse examples that are no texts.

    Raises:
        ConfigError: Some input is none.
    """
    if not names_of_texts(split):
        raise ConfigError(
            f"Expected data.input to name a text, or several that belong together, since "
            f"{backbone.source} takes texts. Received: {split.name}, whose input is "
            f"{split.examples.element_spec[0]}."
        )


def _check_length(backbone: Backbone, length: int) -> None:
    """Refuse more tokens than a backbone has positions for, or than memory holds attention over.

    Raises:
        ConfigError: There are more.
    """
    layers = keras_internals.all_layers(backbone.model)
    positions = [
        part.sequence_length
        for part in layers
        if hasattr(part, "position_embeddings") and hasattr(part, "sequence_length")
    ]
    heads = [part.num_heads for part in layers if isinstance(part, keras.layers.MultiHeadAttention)]
    limits = {"it has positions for no more": min(positions, default=length)}
    if heads and not tf.config.list_physical_devices("GPU"):
        # Each head weighs each pair of tokens of a text, in 4 bytes.
        pairs = psutil.virtual_memory().total // (4 * INFERENCE_BATCH * max(heads))
        limits[f"attention over more of {INFERENCE_BATCH} texts exceeds memory"] = math.isqrt(pairs)
    reason, most = min(limits.items(), key=lambda limit: limit[1])
    if length > most:
        raise ConfigError(
            f"Expected data.sequence_length to be at most {most} for {backbone.source}, since "
            f"{reason}. Received: {length}."
        )


def _as_tokens(splits: Splits, tokenizer: Tokenizer, length: int) -> Splits:
    """Return the parts with their texts as tokens; say where many texts are cut short."""
    names = names_of_texts(splits.train)
    own, longer = (tokenizer(tokens, names) for tokens in (length, 2 * length))
    texts = next(iter(splits.train.examples.batch(_LOOKED_AT)))[0]
    tokens = own(texts)
    parts = [np.asarray(part) for part in keras.tree.flatten(tokens)]
    count = len(parts[0])
    if count > 1 and all((part == part[:1]).all() for part in parts):
        raise ConfigError(
            "Expected data.sequence_length to leave room for words. Received: "
            f"{length}, with which the first {count:,} training texts become the same tokens."
        )
    short = float(np.mean(_told(tokens) < _told(longer(texts))))
    if short > _MANY:
        say(
            f"warning: {short:.0%} of the training texts have more than {length} tokens, and lose "
            "their end. --data.sequence_length allows more."
        )
    of_all = (splits.train, splits.validation, splits.test)
    train, validation, test = (tokenized(part, own) for part in of_all)
    return Splits(train, validation, test, own)


def _told(tokens: Any) -> np.ndarray:
    """Return how many tokens of each text are no filling."""
    if isinstance(tokens, dict):
        tokens = tokens.get("padding_mask", tokens["token_ids"])
    return np.count_nonzero(tokens, axis=1)


def open_split(settings: DataSettings, split: str, treatment: Treatment) -> DataSplit:
    """Open one split of the data that the settings name.

    Raises:
        DataError: It cannot be read.
    """
    return _opened(settings, [split], treatment)(split, treatment)


def counts_of(split: DataSplit) -> np.ndarray:
    """Return how many examples each class has; those that were not read yet are read.

    Raises:
        DataError: Some cannot be read, or have no label.
    """
    return split.check() if split.counts is None else split.counts


def _opened(
    settings: DataSettings, splits: Sequence[str], treatment: Treatment
) -> Callable[[str, Treatment], DataSplit]:
    """Open the data that the settings name, for several splits with a treatment like this one."""
    if settings.folder is not None:
        return partial(_of_folder, settings)
    if settings.table is not None:
        assert settings.input is not None and settings.label is not None  # checked with the rest
        return table_splits(
            settings.table,
            splits,
            input=settings.input,
            label=settings.label,
            weight=settings.weight,
            parts=settings.part or settings.shares or Shares(),
            treatment=treatment,
        )
    return partial(_of_catalogue, settings)


def _of_folder(settings: DataSettings, split: str, treatment: Treatment) -> DataSplit:
    return from_folder(settings.source, split, shares=settings.shares, treatment=treatment)


def _of_catalogue(settings: DataSettings, split: str, treatment: Treatment) -> DataSplit:
    named = settings.input
    assert not isinstance(named, Mapping)  # checked with the rest
    return load(
        settings.source,
        split,
        input=named,
        label=settings.label,
        data_dir=settings.data_dir,
        download=settings.download,
        treatment=treatment,
    )


def draw_augmented(split: DataSplit, seed: int) -> Figure:
    """Draw some training examples as they are trained on, with what their labels say.

    Args:
        split: Augmented examples, of which some are drawn at random.
        seed: Decides which, and what is done to them.

    Returns:
        A figure of its own, which belongs to no window.
    """
    assert split.augmentation is not None
    batch = next(iter(split.examples.shuffle(_DRAWN_FROM, seed).batch(_DRAWN)))
    varied, labels, *_ = split.augmentation((seed, 0, 0), *batch)
    inputs, told = np.asarray(varied), joined(keras.tree.map_structure(np.asarray, labels))
    side = math.isqrt(_DRAWN)
    figure = Figure(figsize=(2 * side, 2.2 * side), layout="constrained")
    figure.suptitle(textwrap.fill(str(split.augmentation), 70), fontsize=9, parse_math=False)
    places = figure.subplots(side, side).flat
    for axes in places:
        axes.set_axis_off()
    for place, (axes, example) in enumerate(zip(places, inputs, strict=False)):
        if example.ndim == 3:
            axes.imshow(np.clip(example / 255, 0, 1), cmap="gray", vmin=0, vmax=1)
        else:
            axes.plot(example.reshape(len(example), -1), linewidth=0.8)
        axes.set_title(_in_words(told[place], split.task), fontsize=8, parse_math=False)
    return figure


def _in_words(label: Any, task: Task) -> str:
    """Return a label's names, with their shares where they are shared."""
    if task.parts:
        return "\n".join(_in_words(label[name], part) for name, part in task.by_name.items())
    if task.kind == "regression":
        return ", ".join(f"{number:.3g}" for number in label.ravel())
    shares = label if label.ndim else np.eye(task.size)[label]
    largest = [place for place in np.argsort(-shares, kind="stable")[:3] if shares[place] > 0.005]
    named = ((shares[place], task.names[place][:20]) for place in largest)
    return "\n".join(name if share > 0.995 else f"{share:.2f} {name}" for share, name in named)


def _say_range(backbone: Backbone, split: DataSplit) -> None:
    """Print the range in which pixels reach a saved model, whose own range is not on record.

    Warns where its first normalisation shows that it was another one.
    """
    brings_its_own = backbone.source in sources() or backbone.source.startswith(hub.PREFIX)
    if brings_its_own or backbone.weights is None:
        return
    name = escape(backbone.name)
    if backbone.preprocessing is None:
        fed = next(c for c in read(backbone.model).calls if not c.is_input).operation
        by_itself = isinstance(fed, keras.layers.Rescaling | keras.layers.Normalization)
        console.print(
            f"Pixels reach {name} as 0..255"
            + (
                f" and are scaled by its own layer {escape(fed.name)!r}."
                if by_itself
                else "; if it was trained on another range, say so with --backbone.scale."
            ),
            soft_wrap=True,
        )
    images = next(iter(split.batches(INFERENCE_BATCH)))[0]
    ratio = range_ratio(backbone.model, np.asarray(images))
    if ratio is not None and not 1 / _UNLIKELY < ratio < _UNLIKELY:
        console.print(
            f"warning: pixels do not reach {name} in the range that it was trained on: in front of "
            f"its first normalisation they vary {ratio:.3g} times as much as then. Expected "
            f"--backbone.scale to be one of {', '.join([*RANGES, *IMAGENET])}, or two numbers: a "
            "factor, and what is added then.",
            soft_wrap=True,
        )
