"""Examples of files: decoded once, and held where there is room for them."""

import math
import os
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import tensorflow as tf

from reusekit.data.files import ExampleFile, in_threads, read_file, said
from reusekit.data.pictures import RESIZER, JpegReader, pixels_of
from reusekit.data.stacks import Stack
from reusekit.data.treatment import Treatment
from reusekit.errors import DataError
from reusekit.progress import say

_BLOCK, _BLOCK_BYTES = 256, 32 * 2**20
"""Pictures that are decoded at a time, and the bytes that they may take."""
_MOST_NAMED = 5
_SHARE = 0.25
"""Share of the free memory, or else of the free disk, that decoded examples may take."""


def reading_of(files: Sequence[ExampleFile], treatment: Treatment) -> list[str]:
    """Return how JPEGs become pixels, where that decides them, for fingerprints.

    Args:
        files: All that are read.
        treatment: How pictures are resized and converted.
    """
    fast = [file for file in files if file.kind == "picture" and file.fast]
    resizer = [RESIZER] if fast and _stretched_to(treatment) else []
    turn_grey = treatment.channels == 1 and not all(file.grey for file in fast)
    return resizer + ["libjpeg's grey"] * turn_grey


class Opened(NamedTuple):
    """The inputs of some files.

    Attributes:
        inputs: What a model is fed, in the order of the files that are kept.
        kept: Positions of these.
    """

    inputs: tf.data.Dataset
    kept: np.ndarray


def open_files(
    files: Sequence[ExampleFile],
    treatment: Treatment,
    where: str,
    among: Sequence[ExampleFile] | None = None,
) -> Opened:
    """Decode each file once, and return what a model is fed.

    Decoded examples stay in memory where they take no more than a quarter of the free one, or else
    in a temporary folder where they take no more than a quarter of the free disk; beyond that each
    pass decodes anew.

    Args:
        files: Files of one kind.
        treatment: How pictures are resized and converted, and whether files that cannot be read
            are left out.
        where: Their name in a message.
        among: All files of the source, which decide the kind, and whether pictures are grey, so
            that each split is treated alike; None for `files`.

    Raises:
        DataError: Files cannot be read, or are of another kind than the most of them; each is
            named.
    """
    among = files if among is None else among
    kind = Counter(file.kind for file in among if file.kind)
    of_all = kind.most_common(1)[0][0] if kind else ""
    if of_all == "picture" and treatment.channels is None:
        grey = all(file.grey for file in among if file.kind == of_all)
        treatment = treatment.model_copy(update={"channels": 1 if grey else 3})
    bad = {
        place: file.trouble or f"{_A[file.kind]}, and no {of_all}"
        for place, file in enumerate(files)
        if not file.kind or file.kind != of_all
    }
    _report(bad, files, treatment, where)
    good = {place: file for place, file in enumerate(files) if place not in bad}
    hold = True
    while True:
        try:
            inputs = _decoded_once(of_all, list(good.values()), treatment, where, hold)
            return Opened(inputs, np.array(list(good), np.int64))
        except (tf.errors.OpError, OSError):
            broken = _broken(of_all, good, treatment, where)
            if not broken and not hold:
                raise
            hold = bool(broken)  # else the disk is full
        _report({place: why for place, why in broken.items() if why}, files, treatment, where)
        for place, why in broken.items():
            if why:
                del good[place]
            else:  # Pillow reads it
                good[place] = replace(good[place], fast=False)
        if not good:
            raise DataError(f"Expected files that can be read in {where}. Received: none.")


def _decoded_once(
    kind: str, files: Sequence[ExampleFile], treatment: Treatment, where: str, hold: bool
) -> tf.data.Dataset:
    """Decode each file, and return what a model is fed; held where there is room, if at all."""
    if kind == "picture" and _stretched_to(treatment) and all(file.fast for file in files):
        stack = _held_stack(_jpegs(files, treatment), hold)
        return stack.examples(_together(stack))
    inputs = _KINDS[kind](files, treatment, where)
    held = _held(inputs, files) if hold else inputs
    held.reduce(np.int64(0), lambda count, _: count + 1)
    if held.element_spec.dtype == tf.uint8:
        held = held.map(lambda image: tf.cast(image, tf.float32), tf.data.AUTOTUNE)
    return held


_A = {"picture": "a picture", "sound": "a sound", "text": "text", "": "nothing known"}


def _report(
    bad: Mapping[int, str], files: Sequence[ExampleFile], treatment: Treatment, where: str
) -> None:
    """Refuse files that cannot be read, or say that they are left out."""
    if not bad:
        return
    named = [f"{files[place].path} ({why})" for place, why in bad.items()]
    more = f" and {len(named) - _MOST_NAMED:,} more" if len(named) > _MOST_NAMED else ""
    listed = f"{len(named):,} of {len(files):,} files that cannot be read: " + (
        ", ".join(named[:_MOST_NAMED]) + more
    )
    if not treatment.skip_unreadable or len(bad) == len(files):
        raise DataError(
            f"Expected files that can be read in {where.rstrip(',')}. Received: {listed}. Remove "
            "them, or leave them out with skip_unreadable (--data.skip_unreadable true)."
        )
    say(f"warning: {where} is read without {listed}.")


def _broken(
    kind: str, files: Mapping[int, ExampleFile], treatment: Treatment, where: str
) -> dict[int, str]:
    """Find the files that cannot be decoded, and say why; nothing for those that Pillow reads."""
    if kind == "picture":
        with ThreadPoolExecutor() as pool:
            found = pool.map(partial(_picture_trouble, treatment=treatment), files.values())
            return {place: why for place, why in zip(files, found, strict=True) if why is not None}
    broken = {}
    examples = iter(_KINDS[kind](list(files.values()), treatment, where))
    for place in files:
        try:
            next(examples)
        except tf.errors.OpError as error:
            broken[place] = said(error)
    return broken


def _picture_trouble(file: ExampleFile, treatment: Treatment) -> str | None:
    """Say why a picture cannot be decoded; nothing where Pillow reads it, None where it can be."""
    try:
        _decoded(file, treatment.channels or 3, treatment)
        return None
    except Exception as error:  # as above
        if not file.fast:
            return said(error)
    try:
        _decoded(replace(file, fast=False), 3, treatment)
        return ""
    except Exception as error:
        return said(error)


def _held(inputs: tf.data.Dataset, files: Sequence[ExampleFile]) -> tf.data.Dataset:
    """Keep decoded examples in memory, or else on the disk, where there is room for them."""
    spec = inputs.element_spec
    if spec.dtype == tf.string:
        needed = sum(os.path.getsize(file.path) for file in files)
    else:
        known, channels = spec.shape[:-1].num_elements(), int(spec.shape[-1])
        each = spec.dtype.size * channels
        needed = sum(each * (known or math.prod(file.shape)) for file in files)
    room = _room_for(needed)
    if room == "memory":
        return inputs.cache()
    if not room:
        return inputs
    folder = tempfile.mkdtemp(prefix="reusekit-")
    held = inputs.cache(os.path.join(folder, "examples"))
    weakref.finalize(held, shutil.rmtree, folder, ignore_errors=True)
    return held


def _room_for(needed: int) -> str:
    """Return where that many bytes may be held: `memory`, `disk`, or nothing for neither."""
    if needed <= _SHARE * psutil.virtual_memory().available:
        return "memory"
    return "disk" if needed <= _SHARE * shutil.disk_usage(tempfile.gettempdir()).free else ""


def _held_stack(stack: Stack, hold: bool) -> Stack:
    """Decode all pictures of a stack, and return one that holds them where there is room."""
    every = np.arange(stack.size)
    room = _room_for(stack.size * stack.bytes_of_one) if hold else ""
    if room == "memory":
        return stack.of(stack.take(every))
    blocks = (every[at : at + _together(stack)] for at in range(0, stack.size, _together(stack)))
    if not room:
        for block in blocks:
            stack.take(block)
        return stack
    folder = tempfile.mkdtemp(prefix="reusekit-")
    try:
        with open(Path(folder, "examples"), "wb") as file:
            for block in blocks:
                file.write(stack.take(block).data)
        shape = stack.size, *stack.shape
        held = stack.of(np.memmap(Path(folder, "examples"), np.uint8, mode="r", shape=shape))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(held, shutil.rmtree, folder, ignore_errors=True)
    return held


def _together(stack: Stack) -> int:
    return max(1, min(_BLOCK, _BLOCK_BYTES // stack.bytes_of_one))


def _jpegs(files: Sequence[ExampleFile], treatment: Treatment) -> Stack:
    """Return JPEGs that are stretched to one size, decoded in threads as they are taken."""
    channels, size = treatment.channels or 3, treatment.image_size
    assert size is not None
    shape = (*size, channels)

    def take(positions: np.ndarray) -> np.ndarray:
        found = np.empty((len(positions), *shape), np.uint8)

        def decode(rows: range) -> None:
            reader = JpegReader(channels, size, stretch=True)
            for row in rows:
                file = files[positions[row]]
                found[row] = reader(read_file(file.path), file.shape)

        in_threads(decode, range(len(positions)))
        return found

    return Stack(take, shape, len(files))


def _pictures(files: Sequence[ExampleFile], treatment: Treatment, where: str) -> tf.data.Dataset:
    channels = treatment.channels or 3
    shapes = {file.shape for file in files} if treatment.image_size is None else set()
    height, width = shapes.pop() if len(shapes) == 1 else (None, None)
    fasts = {file.fast for file in files}
    small = fasts == {True}
    finish = treatment.resizing()
    dtype = tf.uint8 if small else tf.float32

    def read(place: int) -> np.ndarray:
        return np.asarray(_decoded(files[place], channels, treatment), dtype.as_numpy_dtype)

    def decode(place: tf.Tensor, fast: tf.Tensor) -> tf.Tensor:
        image = tf.numpy_function(read, [place], dtype)
        image = finish(tf.cast(tf.ensure_shape(image, (height, width, channels)), tf.float32))
        # A JPEG has 8 bits, and whole numbers of these take a quarter of the memory.
        image = _where(fast, fasts, lambda: tf.round(image), lambda: image)
        return tf.cast(image, tf.uint8) if small else image

    fast = tf.data.Dataset.from_tensor_slices([file.fast for file in files])
    places = tf.data.Dataset.range(len(files))
    return tf.data.Dataset.zip(places, fast).map(decode, tf.data.AUTOTUNE)


def _stretched_to(treatment: Treatment) -> tuple[int, int] | None:
    return treatment.image_size if treatment.resize == "stretch" else None


def _decoded(file: ExampleFile, channels: int, treatment: Treatment) -> np.ndarray:
    """Decode a picture: a JPEG as `JpegReader` does, stretched if at all; others to float32."""
    data = read_file(file.path)
    if not file.fast:
        return pixels_of(data, channels)
    stretch = treatment.resize == "stretch"
    return JpegReader(channels, treatment.image_size, stretch)(data, file.shape)


def _where(
    holds: tf.Tensor, ever: set[bool], one: Callable[[], tf.Tensor], other: Callable[[], tf.Tensor]
) -> tf.Tensor:
    """Return one of two values; where all files agree without a branch, which would cost time."""
    if len(ever) == 1:
        return one() if True in ever else other()
    return tf.cond(holds, one, other)


def _sounds(files: Sequence[ExampleFile], treatment: Treatment, where: str) -> tf.data.Dataset:
    for name, found in (
        ("samples a second", {file.rate for file in files}),
        ("channels", {file.shape[1] for file in files}),
    ):
        if len(found) > 1:
            raise DataError(
                f"Expected sounds with as many {name} in {where}. Received: "
                f"{', '.join(map(str, sorted(found)))}."
            )
    _no_pictures(treatment, where)
    lengths = {file.shape[0] for file in files}
    shape = lengths.pop() if len(lengths) == 1 else None, files[0].shape[1]
    if treatment.length:  # fits them, also where all of this split have one length
        shape = None, shape[1]
    fit = treatment.fitting(tf.TensorSpec(shape))

    def decode(path: tf.Tensor) -> tf.Tensor:
        sound = tf.audio.decode_wav(tf.io.read_file(path)).audio
        return fit(tf.ensure_shape(sound, shape))

    return _each(files, decode, "path")


def _texts(files: Sequence[ExampleFile], treatment: Treatment, where: str) -> tf.data.Dataset:
    _no_pictures(treatment, where)

    def decode(path: tf.Tensor) -> tf.Tensor:
        return tf.strings.regex_replace(tf.io.read_file(path), "^\ufeff", "")

    return _each(files, decode, "path")


def _no_pictures(treatment: Treatment, where: str) -> None:
    if treatment.image_size or treatment.channels:
        raise DataError(
            "Expected no image_size and no channels, which are for pictures. Received: those for "
            f"{where.rstrip(',')}."
        )


def _each(
    files: Sequence[ExampleFile], decode: Callable[..., tf.Tensor], *names: str, **more: Sequence
) -> tf.data.Dataset:
    found = {name: [getattr(file, name) for file in files] for name in names}
    found["path"] = [os.fsencode(path) for path in found["path"]]  # names that are no UTF-8, too
    parts = (*found.values(), *more.values())
    return tf.data.Dataset.from_tensor_slices(parts).map(decode, tf.data.AUTOTUNE)


_KINDS: Mapping[str, Callable[[Sequence[ExampleFile], Treatment, str], tf.data.Dataset]] = {
    "picture": _pictures,
    "sound": _sounds,
    "text": _texts,
}
