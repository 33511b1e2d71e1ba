"""Speeds of this machine: bottoms, transfers of features, training steps."""

import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import IO, Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import NonNegativeFloat, NonNegativeInt

from reusekit.arguments import checked
from reusekit.data.task import joined
from reusekit.errors import CacheError, DataError
from reusekit.features.entry import ArraySpec
from reusekit.features.layout import store_errors_explained
from reusekit.features.lengths import Lengths
from reusekit.features.store import FeatureStore
from reusekit.training.fit import make_variables
from reusekit.training.heads import Classifier

REHEARSED_BATCHES = 4
"""How many batches of a data set are read to time that; the first one also sets reading up."""

_FEW = 8
"""Examples on which bottoms run twice, before a whole batch is timed."""

_LONG = 0.5  # seconds of these, beyond which they tell as much as a batch

_PROBE_BYTES = 16 << 20
_ROW_BYTES = 64 << 10  # about a deep feature map
_CLASSES, _BATCH = 10, 32  # of the heads whose steps are timed
_SMALL, _LARGE, _LARGEST = 1 << 3, 1 << 14, 1 << 18  # their channels
_STEPS = 10
_ROUNDING = 1e-4  # of the largest number, between two runs that are meant to give the same


@dataclass(frozen=True)
class Costs:
    """Seconds that a plan is made of.

    Attributes:
        bottom_seconds: To run one example through the deepest bottom that is needed, in inference;
            a shallower cut costs its share of the FLOPs. None where no bottom has to run.
        input_seconds: To read one example of the data set.
        read_bytes_per_second: From the disk.
        write_bytes_per_second: To the disk, until they are safe.
        gather_bytes_per_second: From memory, in random order.
        step_overhead: Of a training step of one small head.
        seconds_per_parameter: Of a training step for each parameter that is trained: mostly the
            optimizer's work.
        seconds_per_flop: Of what is trained.
        cores: Processor cores.
        augment_seconds: To augment one training example.
        trace_seconds: To trace the bottom, for each pass and for what is computed for every batch.
        trial_seconds: To build the model of a trial, and to trace its steps.
    """

    bottom_seconds: float | None
    input_seconds: float = 0.0
    read_bytes_per_second: float = 1e9
    write_bytes_per_second: float = 5e8
    gather_bytes_per_second: float = 5e9
    step_overhead: float = 2e-3
    seconds_per_parameter: float = 2e-9
    seconds_per_flop: float = 2e-11
    cores: int = 1
    augment_seconds: float = 0.0
    trace_seconds: float = 0.0
    trial_seconds: float = 0.0

    def __str__(self) -> str:
        ran = self.bottom_seconds
        traced = f"{self.trace_seconds:.2f} s to trace and "
        bottom = "not run" if ran is None else f"{traced}{1e3 * ran:.2f} ms an example"
        augmented = self.augment_seconds
        bottom += f", augmentation {1e3 * augmented:.2f} ms" if augmented else ""
        return (
            f"Speeds: bottom {bottom}, inputs {1e3 * self.input_seconds:.2f} ms an example, disk "
            f"{self.read_bytes_per_second / 1e9:.2f} GB/s read and "
            f"{self.write_bytes_per_second / 1e9:.2f} written, memory "
            f"{self.gather_bytes_per_second / 1e9:.2f} GB/s, {1e3 * self.trial_seconds:.0f} ms to "
            f"build a trial, {1e3 * self.step_overhead:.2f} ms a training step and "
            f"{1e9 * self.seconds_per_parameter:.2f} ns for each parameter, "
            f"{1e-9 / self.seconds_per_flop:.1f} GFLOP/s."
        )


@dataclass(frozen=True)
class Rehearsal:
    """The measurements of running bottoms on one batch: those of one example.

    Attributes:
        bottom_seconds, input_seconds: To run all bottoms, and to read the data set.
        trace_seconds: To trace all bottoms, whatever the number of examples.
        input_bytes, label_bytes: The bytes of what is read.
        outputs: The outputs of each bottom, by name.
        unsteady: Whether each came out differently: something random acts in inference too.
        augment_seconds: To augment the data set, where that is done.
        length_share: The share of all positions of texts that the one pass computes.
    """

    bottom_seconds: float
    trace_seconds: float
    input_seconds: float
    input_bytes: int
    label_bytes: int
    outputs: Sequence[Mapping[str, ArraySpec]]
    unsteady: Sequence[bool]
    augment_seconds: float = 0.0
    length_share: float = 1.0


def rehearse(
    run: Callable[[Any], Sequence[Mapping[str, Any]]],
    batches: Iterable[tuple[Any, ...]],
    augment: Callable[..., Any] | None = None,
    lengths: Lengths | None = None,
) -> Rehearsal:
    """Run bottoms, which give their outputs by name, on the first batch of a data set.

    A few of its examples come first, twice, for tracing and to see that both runs give the same;
    where they take little, the whole batch is timed. What augments a batch runs on it, too, and its
    outputs are dropped. Texts of several batches are measured where their lengths can be told.
    """
    examples, times = [], [perf_counter()]
    for batch in islice(batches, REHEARSED_BATCHES):
        examples.append(batch)
        times.append(perf_counter())
    if not examples:
        raise DataError("Expected a data set with examples. Received: an empty one.")
    inputs, told, *_ = examples[0]
    labels = joined(told)
    few = keras.tree.map_structure(lambda part: part[:_FEW], inputs)

    def timed(given: Any) -> tuple[float, list[dict[str, np.ndarray]]]:
        start = perf_counter()
        made = [
            {name: keras.ops.convert_to_numpy(values) for name, values in one.items()}
            for one in run(given)
        ]
        return perf_counter() - start, made

    (first, before), (second, after) = timed(few), timed(few)
    seconds, made = second / min(_FEW, len(labels)), after
    if len(labels) > _FEW and second < _LONG:
        # The first run of a size prepares, and something else may have the processor meanwhile.
        (prepared, made), (again, _) = timed(inputs), timed(inputs)
        seconds = min(prepared, again) / len(labels)
    augmented = 0.0
    for vary in (augment, augment) if augment else ():  # the first time prepares
        start = perf_counter()
        keras.tree.map_structure(np.asarray, vary((0, 0, 0), *examples[0]))
        augmented = perf_counter() - start
    return Rehearsal(
        bottom_seconds=seconds,
        trace_seconds=max(0.0, first - second),
        input_seconds=float(np.diff(times)[-(len(examples) - 1) :].mean()) / len(labels),
        input_bytes=sum(part.numpy().nbytes for part in keras.tree.flatten(inputs)) // len(labels),
        label_bytes=labels.nbytes // len(labels),
        outputs=[
            {n: ArraySpec(n, v.dtype.name, v.shape[1:]) for n, v in one.items()} for one in made
        ],
        unsteady=[
            not all(_steady(one[name], other[name]) for name in one)
            for one, other in zip(before, after, strict=True)
        ],
        augment_seconds=augmented / len(labels),
        length_share=lengths.share([one for one, *_ in examples]) if lengths else 1.0,
    )


def _steady(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two runs gave the same but for the order in which sums were made."""
    if not keras.backend.is_float_dtype(first.dtype.name):
        return bool((first == second).all())
    first, second = first.astype("float32"), second.astype("float32")
    largest = np.abs(first).max(initial=0, where=np.isfinite(first))
    return np.allclose(first, second, rtol=0, atol=_ROUNDING * largest, equal_nan=True)


@checked(CacheError)
def measure(
    store: FeatureStore,
    rehearsal: Rehearsal | None = None,
    flops: NonNegativeFloat = 0,
    parameters: NonNegativeInt = 0,
) -> Costs:
    """Return the speeds of this machine, found in a few tenths of a second.

    Args:
        store: Its disk is measured.
        rehearsal: What running the bottom told; None where it need not run.
        flops: FLOPs of one example in the rehearsal.
        parameters: How many parameters a trial trains; a step of about as many is timed.

    Raises:
        CacheError: The store's folder cannot be written, or its disk is full.
    """
    with store_errors_explained(store.path):
        write, read, gather = _disk(store.path)
    # A power of two, so that few sizes are timed in a process.
    large = 1 << (min(_LARGEST, max(_LARGE, parameters // _CLASSES)).bit_length() - 1)
    built, overhead, seconds = _head_seconds(large)
    ran = rehearsal.bottom_seconds if rehearsal else None
    return Costs(
        bottom_seconds=ran,
        input_seconds=rehearsal.input_seconds if rehearsal else 0.0,
        read_bytes_per_second=read,
        write_bytes_per_second=write,
        gather_bytes_per_second=gather,
        step_overhead=overhead,
        seconds_per_parameter=max(0.0, seconds - overhead) / (_CLASSES * (large - _SMALL)),
        seconds_per_flop=ran / flops if ran and flops else _seconds_per_flop(),
        cores=os.cpu_count() or 1,
        augment_seconds=rehearsal.augment_seconds if rehearsal else 0.0,
        trace_seconds=rehearsal.trace_seconds if rehearsal else 0.0,
        trial_seconds=built,
    )


def _disk(folder: Path) -> tuple[float, float, float]:
    """Return the bytes a second written, read and gathered from memory, by the store's ways.

    Timed once a process for each disk.
    """
    with tempfile.TemporaryFile(dir=folder) as file:  # it has no name, so a kill leaves nothing
        disk = os.fstat(file.fileno()).st_dev
        if disk not in _speeds:
            _speeds[disk] = _timed(file)
    return _speeds[disk]


_speeds: dict[int, tuple[float, float, float]] = {}


def _timed(file: IO[bytes]) -> tuple[float, float, float]:
    rows = _PROBE_BYTES // _ROW_BYTES
    content = np.random.default_rng(0).bytes(_PROBE_BYTES)
    start = perf_counter()
    zlib.crc32(content)
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
    write = perf_counter() - start
    if hasattr(os, "posix_fadvise"):  # else what is read comes from the system's cache
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file.seek(0)
    start = perf_counter()
    zlib.crc32(file.read())
    read = perf_counter() - start
    held = np.frombuffer(content, np.uint8).reshape(rows, _ROW_BYTES)
    order = np.random.default_rng(0).permutation(rows)
    start = perf_counter()
    for batch in np.split(order, rows // 32):
        held[batch]
    gather = perf_counter() - start
    return _PROBE_BYTES / write, _PROBE_BYTES / read, _PROBE_BYTES / gather


@cache
def _head_seconds(large: int) -> tuple[float, float, float]:
    """Return the seconds to build a head, and of a training step of a small and of a large one.

    Timed once a process: the machine stays the same, and TensorFlow never frees a step.

    Args:
        large: The channels that the large one takes.
    """
    steps, built = [], 0.0
    for channels in (large, _SMALL):
        began = perf_counter()
        steps.append(_head_step(channels))
        built = perf_counter() - began  # the first one with what Keras does once in a process
    seconds: list[list[float]] = [[], []]
    for _ in range(_STEPS):  # in turns, since others may have the processor for a while
        for step, found in zip(steps, seconds, strict=True):
            began = perf_counter()
            step()
            found.append(perf_counter() - began)
    return built, min(seconds[1]), min(seconds[0])


def _head_step(channels: int) -> Callable[[], Any]:
    """Return a training step of a head by Adam, as trials make it, once it has run."""
    batch = tf.zeros((_BATCH, channels)), tf.zeros((_BATCH,), "int64")
    head = Classifier(_CLASSES)
    model = head.build((channels,))
    model.compile("adam", **head.compile_args)
    make_variables(model, batch)

    @partial(tf.function, autograph=False)
    def step(*given: tf.Tensor) -> None:
        model.train_step(given)

    step(*batch)
    return partial(step, *batch)


def _seconds_per_flop() -> float:
    """Return the seconds of a floating-point operation in a product of matrices."""
    matrix = keras.ops.ones((1024, 1024))
    run = perf_counter()
    for turn in range(3):
        if turn == 1:  # the first one prepares
            run = perf_counter()
        keras.ops.convert_to_numpy(keras.ops.matmul(matrix, matrix))
    return (perf_counter() - run) / 2 / (2 * 1024**3)


def median_seconds(calls: Sequence[Callable[[], Any]], runs: int) -> list[float]:
    """Return the median seconds of each call, which take turns; the first of each is not counted.

    Example:
        >>> quick, slow = median_seconds([lambda: None, lambda: sum(range(100_000))], runs=5)
        >>> quick < slow
        True
    """
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(runs + 1):
        for call, found in zip(calls, seconds, strict=True):
            began = perf_counter()
            call()
            found.append(perf_counter() - began)
    return [float(np.median(found[1:])) for found in seconds]
