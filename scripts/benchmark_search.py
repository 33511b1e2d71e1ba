"""Times cut searches beside plain keras-tuner: same seeds, initial weights and batches.

python scripts/benchmark_search.py --workload all     # everything: half an hour on two cores
python scripts/benchmark_search.py --workload frozen  # or several, again, grow, ftu, lora ...
python scripts/benchmark_search.py --workload all --quick   # a small network: does it work?

The plain side runs a sample of the trials, which is stated, and is scaled to those of the other
side; of the 24 trials of ftu both sides take 6, for 2 epochs of 5, unless --full runs all of it.
Prints a table, then one JSON line a workload.
"""

import reusekit as rk  # isort: skip  (first: it starts Keras quietly)

import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import Any

import keras
import keras_tuner
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from reusekit.backbones import Backbone
from reusekit.data import DataSplit
from reusekit.data.builders.python_topics import (
    FEWEST_WORDS,
    OTHERS,
    SEEN,
    docstrings,
    python_files,
)
from reusekit.features import FeatureStore, stored_features
from reusekit.progress import console, tracked
from reusekit.search import CutHyperModel, SearchSpace, TrialData, TrialSpec
from reusekit.search.trial_data import ArrayFeatures
from reusekit.stages import candidate_cuts
from reusekit.training import Fit

BLOCKS = [
    f"conv{stage}_block{block}_out"
    for stage, count in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True)
    for block in range(1, count + 1)
]
SEVERAL = ["ResNet50", "MobileNetV2", "DenseNet121"]
FTU_CUTS = ["conv5_block2_out", "conv5_block1_out", "conv4_block6_out", "conv4_block5_out"]


@dataclass
class Report:
    """The figures of one workload: the fields that all have, and the rest.

    Attributes:
        workload: Its name.
        plain_s: Seconds of plain keras-tuner; None where there is no such side.
        reusekit_s: Seconds of reusekit.
        ratio: What it is judged by.
        limit: What was asked for, in words.
        equal: Whether both sides found the same; None where there is nothing to compare.
        pass_s: Seconds of one pass of the backbone over all examples, which is the physical limit
            of a frozen search; of texts at their own lengths.
        more: What else was measured.
    """

    workload: str
    plain_s: float | None
    reusekit_s: float | None
    ratio: float
    limit: str
    equal: bool | None
    pass_s: float | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Return the report as one line of JSON."""
        values = vars(self) | self.more
        del values["more"]
        return json.dumps(
            {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
        )


@dataclass
class Bench:
    """The settings that all workloads share.

    Attributes:
        quick: Whether to do little on a small network, to see that everything works.
        full: Whether the plain side runs every trial.
        folder: A scratch folder.
    """

    quick: bool
    full: bool
    folder: Path

    def __post_init__(self) -> None:
        keras.utils.set_random_seed(0)
        if self.quick:
            self.blocks, self.ftu_cuts = (
                ["early", "middle", "late"],
                ["middle", "late", "late", "early"],
            )
            self.model = self.small(8)
            train, validation, size, channels = "train[:96]", "validation[:48]", (8, 8), 1
            before, new = "train[:87]", "train[87:96]"
        else:
            size, channels = (64, 64), 3
            self.model = rk.load_backbone(
                "keras.applications/ResNet50", weights=None, input_shape=(*size, channels)
            ).model
            self.blocks, self.ftu_cuts = BLOCKS, FTU_CUTS
            train, validation = "train+test[:540]", "validation+test[-60:]"
            before, new = "train+test[:410]", "test[410:540]"
        treatment = rk.data.Treatment(image_size=size, channels=channels)
        self.train, self.validation, self.before, self.new = (
            rk.data.load("sklearn_digits", split, treatment=treatment)
            for split in (train, validation, before, new)
        )
        self.epochs = {"frozen": 2 if self.quick else 10, "ftu": 5 if self.full else 2, "lora": 2}

    def small(self, side: int) -> keras.Model:
        """Return a network of three convolutions."""
        x = y = keras.Input((side, side, 1))
        for name in self.blocks:
            y = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name=name)(y)
        return keras.Model(x, y, name=f"small{side}")

    def several(self) -> dict[str, Backbone]:
        """Return three backbones, each with an input of its own."""
        if self.quick:
            models = [self.small(side) for side in (8, 12)]
            return {one.name: Backbone(one, None, one.name, None) for one in models}
        return {
            name: rk.load_backbone(
                f"keras.applications/{name}", weights=None, input_shape=(side, side, 3)
            )
            for name, side in zip(SEVERAL, (64, 96, 64), strict=True)
        }

    def frozen_space(self) -> SearchSpace:
        """Return the space of 16 cuts, each with 3 heads; quickly, of 3 with 2."""
        return SearchSpace(
            self.blocks,
            heads={
                "linear": rk.heads.Classifier(10),
                "hidden": rk.heads.Classifier(10, units=64),
                **({} if self.quick else {"dropout": rk.heads.Classifier(10, dropout=0.5)}),
            },
            learning_rates=[1e-3],
        )

    def ftu_space(self) -> SearchSpace:
        """Return Nautilus's FTU space: 4 depths of freezing, 2 batch sizes, 3 rates.

        Without `full`, a quarter of it: the least and the most that is trained, in batches of 16.
        """
        return SearchSpace(
            [self.blocks[-1]],
            frozen_up_to=self.ftu_cuts if self.full else self.ftu_cuts[::3],
            units=[0],
            dropout=[0.0],
            learning_rates=[5e-5] if self.quick else [5e-5, 3e-5, 2e-5],
            batch_sizes=[16, 32] if self.full else [16],
            standardize=False,
            batch_norm="train",
        )

    def with_texts(self) -> "Bench":
        """Return the same on a small BERT, with numbers for words: which class they stand for."""
        from keras_hub.models import BertBackbone

        length, words, sizes = (8, 40, (96, 48)) if self.quick else (64, 2000, (1024, 256))
        keras.utils.set_random_seed(0)
        bench = copy(self)
        bench.model = BertBackbone(
            vocabulary_size=words,
            num_layers=2 if self.quick else 6,
            num_heads=2,
            hidden_dim=32 if self.quick else 128,
            intermediate_dim=64 if self.quick else 512,
            max_sequence_length=length,
        )
        bench.blocks = [f"transformer_layer_{number}" for number in range(bench.model.num_layers)]
        bench.train, bench.validation = (
            _texts(name, size, length, words, seed)
            for seed, (name, size) in enumerate(zip(("train", "validation"), sizes, strict=True))
        )
        return bench

    def with_docstrings(self) -> "Bench":
        """Return the same on a transformer and on what Python's modules say, by topic."""
        from keras_hub.models import BertBackbone

        length, words, size, layers = (16, 60, 96, 2) if self.quick else (32, 8000, 3000, 6)
        keras.utils.set_random_seed(0)
        bench = copy(self)
        bench.model = BertBackbone(
            vocabulary_size=words,
            num_layers=layers,
            num_heads=2 if self.quick else 12,
            hidden_dim=16 if self.quick else 384,
            intermediate_dim=32 if self.quick else 1536,
            max_sequence_length=length,
        )
        bench.blocks = [f"transformer_layer_{number}" for number in range(layers)]
        bench.train, bench.validation = _docstrings(size, length, words)
        bench.epochs = self.epochs | {"text": 2 if self.quick else 5}
        return bench

    def text_space(self, heads: int) -> SearchSpace:
        """Return the space of a cut after each block, with the masked mean and 1 or 4 heads."""
        kinds = {
            "linear": rk.heads.Classifier(8),
            "hidden": rk.heads.Classifier(8, units=64),
            "dropout": rk.heads.Classifier(8, dropout=0.5),
            "wide": rk.heads.Classifier(8, units=256),
        }
        chosen = dict(list(kinds.items())[:heads])
        return SearchSpace(self.blocks, heads=chosen, learning_rates=[1e-3])

    def pass_seconds(self) -> float:
        """Return the seconds of one pass of the backbone over all examples, compiled before.

        Those of texts are sorted, and each batch is as long as its longest.
        """
        model = keras.Model(self.model.input, self.model.get_layer(self.blocks[-1]).output)
        batches = []
        for data in (self.train, self.validation):
            inputs = keras.tree.map_structure(
                lambda *parts: np.concatenate(parts),
                *(x for x, _ in data.examples.batch(256).as_numpy_iterator()),
            )
            lengths = inputs["padding_mask"].sum(1) if isinstance(inputs, dict) else None
            order = np.arange(data.size) if lengths is None else np.argsort(lengths, kind="stable")
            for rows in (order[low : low + 64] for low in range(0, data.size, 64)):
                if lengths is None:
                    batches.append(inputs[rows])
                else:
                    stop = max(1, lengths[rows].max())
                    batches.append({name: part[rows, :stop] for name, part in inputs.items()})
        run = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
        for one in (batches[0], batches[-1], batches[len(batches) // 2]):  # traces each shape
            run(one)
        return timed(lambda: [np.asarray(run(one)).shape for one in batches])[0]

    def lora_space(self) -> SearchSpace:
        """Return LoRA of four ranks on the last third of a network, at one cut."""
        last = len(self.blocks) // 3
        return SearchSpace(
            [self.blocks[-1]],
            frozen_up_to=[self.blocks[-1 - max(last, 1)]],
            adaptation=[f"lora:{rank}" for rank in ((2, 4) if self.quick else (2, 4, 8, 16))],
            units=[0],
            dropout=[0.0],
            learning_rates=[1e-3],
            standardize=False,
        )

    def search(self, space: SearchSpace, name: str, workload: str, **options: Any) -> rk.CutSearch:
        """Return a search of every combination, in a folder of its own."""
        return rk.CutSearch(
            self.model,
            self.train,
            self.validation,
            space,
            rk.SearchConfig(
                epochs=self.epochs[workload], patience=self.epochs[workload], **options
            ),
            folder=self.folder / name / "trials",
            store=FeatureStore(self.folder / name / "features"),
        )


def _texts(name: str, size: int, length: int, words: int, seed: int) -> DataSplit:
    """Return made-up texts of two classes, each with a word that is frequent in it."""
    numbers = np.random.default_rng(seed)
    labels = np.arange(size) % 2
    tokens = numbers.integers(1, words, (size, length))
    tokens = np.where(numbers.random((size, length)) < 0.1, 1 + labels[:, None], tokens)
    ones = np.ones_like(tokens)
    inputs = {"token_ids": tokens, "segment_ids": 0 * ones, "padding_mask": ones}
    inputs = {key: value.astype("int32") for key, value in inputs.items()}
    return rk.data.from_arrays(inputs, labels, name)


def _docstrings(size: int, length: int, words: int) -> tuple[DataSplit, DataSplit]:
    """Return what Python's modules say, by topic, as numbers of words; a fifth to validate.

    Texts are first paragraphs of docstrings, of which most have some ten words.
    """
    found: dict[str, int] = {}
    for topics in (SEEN, OTHERS):
        for label, modules in enumerate(topics.values()):
            files = (file for module in modules for file in python_files(module))
            for text in (text for file in files for text in docstrings(file.read_bytes())):
                words_of = text.split("\n\n")[0].split()
                if len(words_of) >= FEWEST_WORDS:
                    found.setdefault(" ".join(words_of), label)
    chosen = np.random.default_rng(0).permutation(len(found))[:size]
    texts, labels = np.array(list(found))[chosen], np.array(list(found.values()))[chosen]
    vectorized = keras.layers.TextVectorization(words, output_sequence_length=length)
    vectorized.adapt(texts)
    tokens = np.asarray(vectorized(texts)).astype("int32")
    inputs = {
        "token_ids": tokens,
        "segment_ids": 0 * tokens,
        "padding_mask": (tokens > 0).astype("int32"),
    }
    held = size // 5

    def part(name: str, rows: slice) -> DataSplit:
        taken = {n: v[rows] for n, v in inputs.items()}
        return rk.data.from_arrays(taken, labels[rows], name, names=list(SEEN))

    return part("train", slice(held, None)), part("validation", slice(held))


class Recorded(CutHyperModel):
    """Keeps what happened in the last trial, of which keras-tuner keeps the best epoch only."""

    last: Fit

    def train(self, *args: Any, **kwargs: Any) -> Fit:
        """Train alone with Keras's `fit`."""
        self.last = super().train(*args, **kwargs)
        return self.last


class Alone(Recorded):
    """Trains with Keras's own Adam, whatever its features are."""

    joint = False


@dataclass(frozen=True)
class Plain:
    """One trial of plain keras-tuner.

    Attributes:
        spec: The trial.
        seconds: What it took, all that keras-tuner does included.
        bytes: What it left on the disk.
        fit: What happened in it.
    """

    spec: TrialSpec
    seconds: float
    bytes: int
    fit: Fit


def plain_trials(
    bench: Bench, data: TrialData, space: SearchSpace, specs: Sequence[TrialSpec], epochs: int
) -> list[Plain]:
    """Run trials with keras-tuner's own tuner on whole models, one at a time."""
    found = []
    for spec in tracked(specs, "Plain keras-tuner"):
        narrow = space.changed(
            cuts=[spec.cut],
            frozen_up_to=[spec.frozen_up_to],
            adaptation=spec.adaptation and [spec.adaptation],
            heads=space.heads and {spec.head: space.heads[spec.head]},
            learning_rates=[spec.learning_rate],
            batch_sizes=[spec.batch_size],
        )
        folder = Path(tempfile.mkdtemp(dir=bench.folder))
        began = perf_counter()
        config = rk.SearchConfig(epochs=epochs, patience=epochs)
        hypermodel = Recorded(data, narrow, config)
        tuner = keras_tuner.GridSearch(hypermodel, objective="val_accuracy", directory=folder)
        tuner.search(verbose=0)
        seconds = perf_counter() - began
        found.append(Plain(spec, seconds, size_of(folder), hypermodel.last))
        shutil.rmtree(folder)
        keras.utils.clear_session(free_memory=True)
    return found


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Time some work; returns the seconds and the result."""
    began = perf_counter()
    result = work()
    return perf_counter() - began, result


PLANNED = ("planning_s", "estimate_s", "estimated_s")
"""Seconds of making a plan, those that it tells, and those of the search after it."""


def searched(search: rk.CutSearch) -> tuple[float, Any, dict[str, float]]:
    """Run a search; returns the seconds, the result, and the plan's estimate beside the truth."""
    planning, plan = timed(lambda: search.plan)
    seconds, result = timed(search.run)
    told = dict(zip(PLANNED, (planning, plan.seconds, seconds), strict=True))
    return planning + seconds, result, told


def frozen(bench: Bench) -> Report:
    """Benchmark 16 block cuts of a frozen ResNet50, 3 heads on each."""
    space = bench.frozen_space()
    search = bench.search(space, "frozen", "frozen")
    ours, result, told = searched(search)
    data = bench.search(space, "frozen", "frozen", plain=True).extract()
    seconds, plain = one_by_one(bench, data, space, result.depths, 5)
    reached = {trial.spec: trial.accuracy for trial in result.trials}
    apart = [
        abs(reached[one.spec] - one.fit.metrics["val_accuracy"]) * bench.validation.size
        for one in plain
    ]
    return Report(
        "frozen", seconds, ours, seconds / ours, "at least 50",
        equal=max(apart) <= 1 + 1e-6, pass_s=bench.pass_seconds(),
        more={
            "trials": len(result.trials), "plain_trials_run": len(plain),
            "validation_examples": bench.validation.size, "examples_apart_at_most": max(apart),
            **told,
        },
    )  # fmt: skip


def one_by_one(
    bench: Bench,
    data: TrialData,
    space: SearchSpace,
    depths: Mapping[str, float],
    every: int,
    workload: str = "frozen",
) -> tuple[float, list[Plain]]:
    """Return the seconds of all trials by plain keras-tuner, and the trials that were run.

    Unless all are run, one in so many cuts is, with one head: a trial takes longer the deeper its
    cut, by the FLOPs before it, and the others are interpolated.
    """
    heads, rate = list(space.heads), space.learning_rates[0]
    cuts, run = (space.cuts, heads) if bench.full else (space.cuts[::every], heads[:1])
    sample = [TrialSpec(at, at, head, learning_rate=rate) for at in cuts for head in run]
    plain = plain_trials(bench, data, space, sample, bench.epochs[workload])
    if bench.full:
        return sum(one.seconds for one in plain), plain
    each = np.interp(
        [depths[at] for at in space.cuts],
        [depths[one.spec.cut] for one in plain],
        [one.seconds for one in plain],
    )
    return float(each.sum()) * len(heads), plain


def text(bench: Bench) -> Report:
    """Benchmark 6 cuts of a frozen transformer on docstrings, 1 head and 4 heads on each."""
    bench = bench.with_docstrings()
    # Each in a process of its own: the second one would find much prepared by the first.
    one, four = (child(bench, "text", heads) for heads in (1, 4))
    space = bench.text_space(1)
    data = bench.search(space, "text1", "text", plain=True).extract()
    seconds, plain = one_by_one(bench, data, space, one["depths"], 3, "text")
    apart = max(
        abs(one["accuracies"][each.spec.cut] - each.fit.metrics["val_accuracy"]) for each in plain
    )
    apart *= bench.validation.size
    return Report(
        "text", seconds, one["seconds"], seconds / one["seconds"], "at least 25; 80 with 4 heads",
        equal=apart <= 1 + 1e-6, pass_s=bench.pass_seconds(),
        more={
            "trials": len(space.cuts), "plain_trials_run": len(plain),
            "examples_apart_at_most": apart, **{name: one[name] for name in PLANNED},
            "four_heads_s": four["seconds"],
            **{f"four_heads_{name}": four[name] for name in PLANNED},
            "four_heads_ratio": 4 * seconds / four["seconds"], "notes": one["notes"],
        },
    )  # fmt: skip


def text_child(bench: Bench, heads: int) -> dict[str, Any]:
    """Return the search of so many heads on each cut, from nothing."""
    bench = bench.with_docstrings()
    search = bench.search(bench.text_space(heads), f"text{heads}", "text")
    seconds, result, told = searched(search)
    return {
        "seconds": seconds,
        **told,
        "depths": dict(result.depths),
        "accuracies": {t.cut: t.accuracy for t in result.trials if t.spec.head == "linear"},
        "notes": [note for note in search.plan.notes if "sorted by length" in note],
    }


def several(bench: Bench) -> Report:
    """Benchmark 3 frozen backbones in one search, 8 cuts of each, 4 heads on each."""
    backbones, epochs = bench.several(), bench.epochs["frozen"]
    space = bench.frozen_space()
    space = space.changed(
        cuts={
            name: [point.at for point in candidate_cuts(one, most=1 if bench.quick else 8)]
            for name, one in backbones.items()
        },
        heads=space.heads | ({} if bench.quick else {"wide": rk.heads.Classifier(10, units=256)}),
    )
    config = rk.SearchConfig(epochs=epochs, patience=epochs)
    folder = bench.folder / "several"
    store = FeatureStore(folder / "features")
    given = backbones, bench.train, bench.validation, space, config, folder / "trials", store
    search = rk.CutSearch(*given)
    ours, result, told = searched(search)
    seconds, apart, run = 0.0, [0.0], 0
    for name, one in search.backbones.items():
        own = space.of(name)
        alone = rk.CutSearch(
            one.graph, one.train, one.validation, own, config.changed(plain=True), folder / name
        )
        depths = {at: result.depths[name, at] for at in own.cuts}
        took, plain = one_by_one(bench, alone.extract(), own, depths, 3)
        reached = {
            (t.cut, t.spec.head): t.accuracy for t in result.trials if t.named_cut[0] == name
        }
        seconds, run = seconds + took, run + len(plain)
        apart += [
            abs(reached[each.spec.cut, each.spec.head] - each.fit.metrics["val_accuracy"])
            * bench.validation.size
            for each in plain
        ]
    return Report(
        "several", seconds, ours, seconds / ours, "at least 50",
        equal=max(apart) <= 1 + 1e-6,
        more={
            "trials": len(result.trials), "plain_trials_run": run,
            "validation_examples": bench.validation.size, "examples_apart_at_most": max(apart),
            **told,
        },
    )  # fmt: skip


def ftu(bench: Bench) -> Report:
    """Benchmark Nautilus's FTU: the top of ResNet50 trained from four depths on."""
    space, epochs = bench.ftu_space(), bench.epochs["ftu"]
    search = bench.search(space, "ftu", "ftu")
    ours, result, told = searched(search)
    specs = [trial.spec for trial in result.trials]
    sample = specs if bench.full else [s for s in specs if s.learning_rate == 5e-5]
    sample = sample[:1] if bench.quick else sample
    scale = len(specs) / len(sample)
    data = bench.search(space, "ftu", "ftu", plain=True).extract()
    plain = plain_trials(bench, data, space, sample, epochs)
    plain_s = scale * sum(one.seconds for one in plain)
    tops_s = scale * sum(tops_alone(search, spec, epochs) for spec in tracked(sample, "Tops alone"))
    fits = {trial.spec: trial.fit for trial in result.trials}
    apart = max(
        relative(fits[one.spec].history[name], one.fit.history[name])
        for one in plain
        for name in ("loss", "val_loss")
    )
    limit = plain_s / tops_s
    return Report(
        "ftu", plain_s, ours, plain_s / ours, f"0.95 of {limit:.2f}; aim 2.83",
        equal=apart <= 1e-4,
        more={
            "trials": len(specs), "plain_trials_run": len(plain), "sharing_limit": limit,
            "share_of_limit": plain_s / ours / limit, "losses_apart_at_most": apart,
            **told, **bytes_of(bench, plain, search),
        },
    )  # fmt: skip


def lora(bench: Bench) -> Report:
    """Benchmark LoRA of ranks 2, 4, 8 and 16 at one cut of a small BERT, beside one by one."""
    bench = bench.with_texts()
    space, epochs = bench.lora_space(), bench.epochs["lora"]
    search = bench.search(space, "lora", "lora")
    ours, result, told = searched(search)
    specs = [trial.spec for trial in result.trials]
    sample = specs[:1] if bench.quick else specs
    scale = len(specs) / len(sample)
    data = bench.search(space, "lora", "lora", plain=True).extract()
    plain = plain_trials(bench, data, space, sample, epochs)
    plain_s = scale * sum(one.seconds for one in plain)
    tops_s = scale * sum(tops_alone(search, spec, epochs) for spec in tracked(sample, "Tops alone"))
    limit = plain_s / tops_s
    fits = {trial.spec: trial.fit for trial in result.trials}
    apart = max(
        relative(fits[one.spec].history[name], one.fit.history[name])
        for one in plain
        for name in ("loss", "val_loss")
    )
    return Report(
        "lora", plain_s, ours, plain_s / ours, f"above {limit:.2f}",
        equal=apart <= 1e-4,
        more={
            "trials": len(specs), "sharing_limit": limit,
            "share_of_limit": plain_s / ours / limit, "losses_apart_at_most": apart,
            "together": max(group.together for group in search.plan.groups),
            **told, **bytes_of(bench, plain, search),
        },
    )  # fmt: skip


def tops_alone(search: rk.CutSearch, spec: TrialSpec, epochs: int) -> float:
    """Return the seconds of training one top with Keras alone on features in memory."""
    held = {}
    data = search.extract()
    for name in ("train", "validation"):
        source = getattr(data, name)[data.begin(spec)]
        batches = [x for x, _ in source.batches(256).as_numpy_iterator()]
        values = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *batches)
        held[name] = {data.begin(spec): ArrayFeatures(values, source.labels)}
    config = rk.SearchConfig(epochs=epochs, patience=epochs)
    hypermodel = Alone(replace(data, **held), search.space, config)
    seconds, _ = timed(lambda: hypermodel.train(spec, hypermodel.build_for(spec)))
    keras.utils.clear_session(free_memory=True)
    return seconds


def relative(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the largest difference of two rows of numbers, relative to the second."""
    return float(np.max(np.abs(np.subtract(one, other)) / np.abs(other)))


def bytes_of(bench: Bench, plain: Sequence[Plain], search: rk.CutSearch) -> dict[str, float]:
    """Return the bytes of both ways on the disk, the plain sample scaled to all trials."""
    trials = len(search.result.trials)
    plain_bytes = sum(one.bytes for one in plain) * trials // len(plain)
    ours, features = size_of(search.folder), size_of(search.folder.parent / "features")
    return {
        "plain_bytes": plain_bytes,
        "reusekit_bytes": ours,
        "feature_bytes": features,
        "less_bytes": plain_bytes / ours,
        "less_bytes_with_features": plain_bytes / (ours + features),
    }


def again(bench: Bench) -> Report:
    """Return the same search once more in a new process, whose data set cannot be read."""
    if not (bench.folder / "frozen" / "features").exists():
        bench.search(bench.frozen_space(), "frozen", "frozen").run()
    first = bench.search(bench.frozen_space(), "frozen", "frozen").result
    out = child(bench, "again")
    seconds = {"first": sum(trial.fit.seconds for trial in first.trials)}
    same = {str(t.number): t.accuracy for t in first.trials} == out["accuracies"]
    return Report(
        "again", None, out["seconds"], float(out["how"] == ["stored"]), "no bottom pass",
        equal=same, more={"bottom_passes": out["passes"], "first_training_s": seconds["first"]},
    )  # fmt: skip


def again_child(bench: Bench) -> dict[str, Any]:
    """Return the search with data that raise when they are read."""
    passes = []

    def unreadable() -> Any:
        passes.append(1)
        raise RuntimeError("Expected the bottom not to run again. Received: a batch for it.")
        yield

    def closed(data: DataSplit) -> DataSplit:
        spec = data.examples.element_spec
        examples = tf.data.Dataset.from_generator(unreadable, output_signature=spec)
        return replace(data, examples=examples)

    bench.train, bench.validation = closed(bench.train), closed(bench.validation)
    search = rk.CutSearch(
        bench.model,
        bench.train,
        bench.validation,
        bench.frozen_space(),
        rk.SearchConfig(epochs=bench.epochs["frozen"], patience=bench.epochs["frozen"]),
        folder=bench.folder / "again",
        store=FeatureStore(bench.folder / "frozen" / "features"),
    )
    seconds, result = timed(search.run)
    return {
        "seconds": seconds,
        "how": sorted({planned.how for planned in search.plan.features}),
        "passes": len(passes),
        "accuracies": {t.number: t.accuracy for t in result.trials},
    }


def grow(bench: Bench) -> Report:
    """Search 10 % more examples than the store knows, beside the new ones alone."""

    def on(train: DataSplit, name: str) -> rk.CutSearch:
        one = copy(bench)
        one.train = train
        return one.search(bench.frozen_space(), name, "frozen")

    on(bench.before, "before").extract()
    took: dict[str, list[float]] = {"new": [], "grown": []}
    for turn in range(1 if bench.quick else 3):
        for side, train in (("new", bench.new), ("grown", bench.train)):
            name = f"{side}{turn}"
            # The validation examples are known there, too, and none of the new ones.
            shutil.copytree(bench.folder / "before" / "features", bench.folder / name / "features")
            search = on(train, name)
            seconds, _ = timed(search.extract)
            took[side].append(seconds)
    alone, ours = (min(took[side]) for side in ("new", "grown"))
    trained, grown = timed(search.run)
    whole_s = ours + trained
    first = bench.search(bench.frozen_space(), "frozen", "frozen")
    nothing_s = None
    if not first.store.entries():
        nothing_s, _ = timed(first.run)
    reached = {trial.spec: trial.accuracy for trial in first.result.trials}
    apart = max(
        abs(reached[trial.spec] - trial.accuracy) * bench.validation.size for trial in grown.trials
    )
    return Report(
        "grow", alone, ours, ours / alone, "at most 1.3",
        equal=apart <= 1 + 1e-6,
        more={
            "examples": bench.train.size, "new_examples": bench.new.size,
            "known": max(one.known for one in search.plan.features),
            "examples_apart_at_most": apart, "search_s": whole_s,
            **({} if nothing_s is None else {"search_from_nothing_s": nothing_s}),
        },
    )  # fmt: skip


def feeding(bench: Bench) -> Report:
    """Shuffled epochs over stored maps, beside gathering from one file that is mapped."""
    cut = bench.blocks[-1 if bench.quick else 2]
    store = FeatureStore(bench.folder / "feed")
    (features,) = stored_features(store, bench.model, [cut], bench.train)
    file = bench.folder / "whole.npy"
    np.save(file, np.asarray(features.stored[cut]))
    mapped = np.load(file, mmap_mode="r")
    rates = {"feed": [], "gather": []}
    for seed in range(4):
        batches = features.batches(32, seed)
        order = np.random.default_rng(seed).permutation(len(mapped)).reshape(-1)
        seconds, _ = timed(lambda batches=batches: [x for x, _ in batches] and None)
        rates["feed"].append(mapped.nbytes / seconds)
        seconds, _ = timed(
            lambda order=order: (
                [mapped[order[at : at + 32]] for at in range(0, len(order), 32)] and None
            )
        )
        rates["gather"].append(mapped.nbytes / seconds)
    feed_rate, gather_rate = (max(rates[name]) for name in ("feed", "gather"))
    return Report(
        "feed", mapped.nbytes / gather_rate, mapped.nbytes / feed_rate,
        feed_rate / min(2e9, 0.8 * gather_rate), "at least 1",
        equal=None,
        more={
            "feed_gb_per_s": feed_rate / 1e9, "gather_gb_per_s": gather_rate / 1e9,
            "bytes": mapped.nbytes,
        },
    )  # fmt: skip


def memory(bench: Bench) -> Report:
    """Extraction and training of a top with 1 and with 10 times the examples."""
    base = 100 if bench.quick else 500
    one, ten = (child(bench, "memory", examples) for examples in (base, 10 * base))
    return Report(
        "memory", None, None, ten["peak_bytes"] / one["peak_bytes"], "at most 1.10", equal=None,
        more={
            "examples": [base, 10 * base],
            "peak_bytes": [one["peak_bytes"], ten["peak_bytes"]],
            "peak_with_mapped_files": [one["peak_with_files"], ten["peak_with_files"]],
        },
    )  # fmt: skip


def memory_child(bench: Bench, examples: int) -> dict[str, Any]:
    """Run one search over so many made-up images, watched from within.

    What is counted is memory of the process's own: pages of mapped files count to a process as long
    as nobody else wants the memory, and are given back then.
    """
    spec = bench.train.examples.element_spec

    def made() -> Any:
        for number in range(examples):
            image = np.random.default_rng(number).uniform(0, 255, spec[0].shape)
            yield image.astype("float32"), number % 10

    data = DataSplit(
        "made:1.0.0",
        "train",
        tf.data.Dataset.from_generator(made, output_signature=spec).apply(
            tf.data.experimental.assert_cardinality(examples)
        ),
        examples,
        bench.train.task,
        str(examples),
    )
    bench.train = data
    space = bench.ftu_space().changed(
        frozen_up_to=[bench.ftu_cuts[-2]],
        learning_rates=[5e-5],
        batch_sizes=[32],
    )
    bench.epochs["memory"] = 1
    watch = Watch()
    watch.start()
    bench.search(space, f"memory{examples}", "memory", memory=64 << 20).run()
    return watch.stop()


class Watch(Thread):
    """Looks at this process's memory fifty times a second (Linux)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._over = 0, Event()

    def run(self) -> None:
        """Look until told to stop."""
        while not self._over.wait(0.02):
            self.peak = max(self.peak, status("RssAnon"))

    def stop(self) -> dict[str, int]:
        """Return the peaks in bytes: without and with mapped files."""
        self._over.set()
        self.join()
        return {"peak_bytes": self.peak, "peak_with_files": status("VmHWM")}


def status(name: str) -> int:
    """Return a number of bytes that the kernel knows of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def child(bench: Bench, part: str, *examples: int) -> dict[str, Any]:
    """Run a part in a process of its own; returns what it found."""
    command = [sys.executable, __file__, "--child", part, "--folder", str(bench.folder)]
    command += ["--quick"] * bench.quick + ["--examples", *map(str, examples)] * bool(examples)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


RUN = {
    "frozen": frozen,
    "text": text,
    "several": several,
    "again": again,
    "grow": grow,
    "ftu": ftu,
    "lora": lora,
    "feed": feeding,
    "memory": memory,
}


CHILDREN: dict[str, Callable] = {
    "again": again_child,
    "memory": memory_child,
    "text": text_child,
}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workload", choices=["all", *RUN], default="all")
    parser.add_argument("--full", action="store_true", help="run every plain trial")
    parser.add_argument("--quick", action="store_true", help="little of everything")
    parser.add_argument("--folder", type=Path, help="scratch folder; a temporary one by default")
    parser.add_argument("--child", choices=list(CHILDREN), help=argparse.SUPPRESS)
    parser.add_argument("--examples", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # It takes the many models of one process for one that is traced again and again.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = options.folder if options.child else Path(scratch)
        bench = Bench(options.quick, options.full, folder)
        if options.child:
            run = CHILDREN[options.child]
            print(json.dumps(run(bench, *[options.examples] * (options.examples is not None))))
            return
        names = list(RUN) if options.workload == "all" else [options.workload]
        reports = []
        for name in names:
            console.print(f"[bold]{name}[/bold]: {RUN[name].__doc__} ...")
            reports.append(RUN[name](bench))
            console.print(f"  {reports[-1].line()}", soft_wrap=True)
        show(reports)


def show(reports: Sequence[Report]) -> None:
    """Print the table, and the lines."""
    table = Table("workload", "plain s", "reusekit s", "one pass s", "ratio", "asked for", "equal")
    for report in reports:
        seconds = (report.plain_s, report.reusekit_s, report.pass_s)
        table.add_row(
            report.workload,
            *("" if one is None else f"{one:.1f}" for one in seconds),
            f"{report.ratio:.2f}",
            report.limit,
            {True: "yes", False: "no", None: ""}[report.equal],
        )
    Console(width=100 if not sys.stdout.isatty() else None).print(table)
    for report in reports:
        print(report.line())


if __name__ == "__main__":
    main()
