"""Files of examples: pictures, sounds and texts, told apart by their content."""

import functools
import hashlib
import math
import os
import shutil
import stat
import struct
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from typing import NamedTuple

import numpy as np
import psutil
import tensorflow as tf
from PIL import Image

from reusekit.data.pictures import FORMATS, GREY, ORIENTATION, RESIZER, Jpeg, pixels_of
from reusekit.data.treatment import Treatment
from reusekit.errors import DataError
from reusekit.progress import say

_FAST = ("JPEG", "MPO")
"""Formats that simplejpeg decodes as Pillow does, and faster."""
_BLOCK, _BLOCK_BYTES = 64, 32 * 2**20
"""Pictures that are decoded at a time, and the bytes that they may take."""
_MOST_NAMED = 5
_SHARE = 0.25
"""Share of the free memory, or else of the free disk, that decoded examples may take."""


class Stamp(NamedTuple):
    """A file as it lies on the disk: another size or time means another content."""

    path: str
    size: int
    modified: int


def stamp(path: str | os.PathLike) -> Stamp:
    """Return the stamp of a file.

    Raises:
        DataError: It is not there, may not be read, or is a folder, a pipe or a device.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(
            f"Expected a file that can be read. Received: {os.fspath(path)!r}: {error.strerror}. "
            "Check its path."
        ) from error
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for who writes into it
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise DataError(f"Expected a file that can be read. Received: {os.fspath(path)!r}: {kind}.")
    return Stamp(os.fspath(path), found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class ExampleFile:
    """A file, known by its content.

    Attributes:
        path: Where it lies.
        digest: Of its content, 16 bytes.
        kind: `picture`, `sound` or `text`; empty for none of them.
        trouble: Why it is none of them.
        fast: Whether simplejpeg decodes it as it should be.
        grey: Whether it is a picture without colours.
        shape: Height and width of a picture as it is seen, samples and channels of a sound.
        rate: Samples a second of a sound.
    """

    path: str
    digest: bytes
    kind: str = ""
    trouble: str = ""
    fast: bool = True
    grey: bool = False
    shape: tuple[int, ...] = ()
    rate: int = 0

    @property
    def key(self) -> int:
        """A number of 64 bits that follows from the content."""
        return int.from_bytes(self.digest[:8])


@functools.lru_cache(maxsize=8)
def look_at(stamps: tuple[Stamp, ...]) -> tuple[ExampleFile, ...]:
    """Read files once, and tell what they are; nothing is decoded.

    Args:
        stamps: The files. While they stay as they are, the answer is remembered.
    """
    with ThreadPoolExecutor() as pool:
        return tuple(pool.map(_look, stamps))


def _look(stamp: Stamp) -> ExampleFile:
    try:
        with open(stamp.path, "rb") as file:
            data = file.read()
    except OSError as error:
        return ExampleFile(stamp.path, b"", trouble=str(error.strerror))
    found = ExampleFile(stamp.path, hashlib.blake2b(data, digest_size=16).digest())
    return _text(found, data) or _picture(found, data) or _sound(found, data)


def _text(found: ExampleFile, data: bytes) -> ExampleFile | None:
    if not data:
        return replace(found, trouble="empty")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if b"\0" in data else replace(found, kind="text")


def _picture(found: ExampleFile, data: bytes) -> ExampleFile | None:
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            # Pillow decodes a whole PNG to find that it has none.
            exif = {} if image.format == "PNG" and b"eXIf" not in data else image.getexif()
            # Pillow turns a TIFF by itself, and says the size of what it turned.
            turned = 1 if image.format == "TIFF" else exif.get(ORIENTATION, 1)
            width, height = image.size
            return replace(
                found,
                kind="picture",
                fast=image.format in _FAST and image.mode in ("L", "RGB") and turned == 1,
                grey=image.mode in GREY,
                shape=(width, height) if turned in (5, 6, 7, 8) else (height, width),
            )
    except Image.UnidentifiedImageError:
        return None
    except Exception as error:  # Pillow raises whatever a broken file leads it to
        return replace(found, trouble=_said(error))


def _sound(found: ExampleFile, data: bytes) -> ExampleFile:
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return replace(found, trouble="no picture, no sound (WAV), no text in UTF-8")
    chunks = {}
    at = 12
    while at + 8 <= len(data) and b"data" not in chunks:
        name, size = struct.unpack_from("<4sI", data, at)
        chunks[name] = at + 8, size
        at += 8 + size + size % 2
    try:
        _, channels, rate, _, width, bits = struct.unpack_from("<HHIIHH", data, chunks[b"fmt "][0])
    except (KeyError, struct.error):
        return replace(found, trouble="a WAV file that does not say what it holds")
    if not (rate and width and chunks.get(b"data", (0, 0))[1] >= width):
        return replace(found, trouble="a WAV file without a sound")
    start, size = chunks[b"data"]
    if bits != 16:
        return replace(found, trouble=f"a WAV file of {bits} bits; 16 are read")
    if start + size > len(data):
        return replace(found, trouble="a WAV file that ends too early")
    return replace(found, kind="sound", shape=(size // width, channels), rate=rate)


def reading_of(files: Sequence[ExampleFile], treatment: Treatment) -> list[str]:
    """Return what brings JPEGs to their size, where that decides their pixels, for fingerprints."""
    stretched = treatment.image_size and treatment.resize == "stretch"
    return (
        [RESIZER]
        if stretched and any(file.fast for file in files if file.kind == "picture")
        else []
    )


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
        inputs = _KINDS[of_all](list(good.values()), treatment, where)
        held = _held(inputs, list(good.values())) if hold else inputs
        try:
            held.reduce(np.int64(0), lambda count, _: count + 1)
            if held.element_spec.dtype == tf.uint8:
                held = held.map(lambda image: tf.cast(image, tf.float32), tf.data.AUTOTUNE)
            return Opened(held, np.array(list(good), np.int64))
        except tf.errors.OpError:
            broken = _broken(inputs, good, treatment)
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
    inputs: tf.data.Dataset, files: Mapping[int, ExampleFile], treatment: Treatment
) -> dict[int, str]:
    """Find the files that cannot be decoded, and say why; nothing for those that Pillow reads."""
    if all(file.kind == "picture" for file in files.values()):
        with ThreadPoolExecutor() as pool:
            found = pool.map(partial(_picture_trouble, treatment=treatment), files.values())
            return {place: why for place, why in zip(files, found, strict=True) if why is not None}
    broken = {}
    examples = iter(inputs)
    for place in files:
        try:
            next(examples)
        except tf.errors.OpError as error:
            broken[place] = _said(error)
    return broken


def _picture_trouble(file: ExampleFile, treatment: Treatment) -> str | None:
    """Say why a picture cannot be decoded; nothing where Pillow reads it, None where it can be."""
    try:
        _decoded(file, treatment.channels or 3, treatment)
        return None
    except Exception as error:  # as above
        if not file.fast:
            return _said(error)
    try:
        _decoded(replace(file, fast=False), 3, treatment)
        return ""
    except Exception as error:
        return _said(error)


def _said(error: Exception) -> str:
    text = str(error).replace("cannot identify image file", "no known picture")
    return " ".join(text.split())[:150].rstrip(".") or type(error).__name__


def _held(inputs: tf.data.Dataset, files: Sequence[ExampleFile]) -> tf.data.Dataset:
    """Keep decoded examples in memory, or else on the disk, where there is room for them."""
    spec = inputs.element_spec
    if spec.dtype == tf.string:
        needed = sum(os.path.getsize(file.path) for file in files)
    else:
        known, channels = spec.shape[:-1].num_elements(), int(spec.shape[-1])
        each = spec.dtype.size * channels
        needed = sum(each * (known or math.prod(file.shape)) for file in files)
    if needed <= _SHARE * psutil.virtual_memory().available:
        return inputs.cache()
    if needed > _SHARE * shutil.disk_usage(tempfile.gettempdir()).free:
        return inputs
    folder = tempfile.mkdtemp(prefix="reusekit-")
    held = inputs.cache(os.path.join(folder, "examples"))
    weakref.finalize(held, shutil.rmtree, folder, ignore_errors=True)
    return held


def _pictures(files: Sequence[ExampleFile], treatment: Treatment, where: str) -> tf.data.Dataset:
    channels = treatment.channels or 3
    shapes = {file.shape for file in files} if treatment.image_size is None else set()
    height, width = shapes.pop() if len(shapes) == 1 else (None, None)
    fasts = {file.fast for file in files}
    small, size = fasts == {True}, _stretched_to(treatment)
    places = tf.data.Dataset.range(len(files))

    def read(place: int) -> np.ndarray:
        return _decoded(files[place], channels, treatment)

    if small and size:
        return _in_blocks(places, read, (*size, channels))
    finish = treatment.resizing()
    of_bytes = small and (channels == 3 or all(file.grey for file in files))
    dtype = tf.uint8 if of_bytes else tf.float32

    def read_as(place: int) -> np.ndarray:
        return np.asarray(read(place), dtype.as_numpy_dtype)

    def decode(place: tf.Tensor, fast: tf.Tensor) -> tf.Tensor:
        image = tf.numpy_function(read_as, [place], dtype)
        image = finish(tf.cast(tf.ensure_shape(image, (height, width, channels)), tf.float32))
        # A JPEG has 8 bits, and whole numbers of these take a quarter of the memory.
        image = _where(fast, fasts, lambda: tf.round(image), lambda: image)
        return tf.cast(image, tf.uint8) if small else image

    fast = tf.data.Dataset.from_tensor_slices([file.fast for file in files])
    return tf.data.Dataset.zip(places, fast).map(decode, tf.data.AUTOTUNE)


def _in_blocks(
    places: tf.data.Dataset, read: Callable[[int], np.ndarray], shape: tuple[int, ...]
) -> tf.data.Dataset:
    """Return pictures of one shape, decoded in threads.

    TensorFlow's own threads would take turns for each, which costs as much as to resize it.
    """

    def read_all(block: np.ndarray) -> np.ndarray:
        found = np.empty((len(block), *shape), np.uint8)

        def put(row: int, place: int) -> None:
            found[row] = read(place)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(put, range(len(block)), block):
                pass
        return found

    def decode(block: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(read_all, [block], tf.uint8), (None, *shape))

    each = max(1, min(_BLOCK, _BLOCK_BYTES // math.prod(shape)))
    found = places.batch(each).map(decode).prefetch(1).unbatch()
    return found.apply(tf.data.experimental.assert_cardinality(int(places.cardinality())))


def _stretched_to(treatment: Treatment) -> tuple[int, int] | None:
    return treatment.image_size if treatment.resize == "stretch" else None


def _decoded(file: ExampleFile, channels: int, treatment: Treatment) -> np.ndarray:
    """Decode a picture: a JPEG as `Jpeg.decoded` does, stretched if at all; others to float32."""
    with open(file.path, "rb") as opened:
        data = opened.read()
    if not file.fast:
        return pixels_of(data, channels)
    jpeg = Jpeg(file.shape, file.grey, channels)
    return jpeg.decoded(data, treatment.image_size, stretch=treatment.resize == "stretch")


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
