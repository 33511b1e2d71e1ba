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
from typing import Any, NamedTuple

import numpy as np
import psutil
import tensorflow as tf
from PIL import Image, ImageOps

from reusekit.data.treatment import Treatment
from reusekit.errors import DataError
from reusekit.progress import say

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "JPEG2000", "ICO")
_FAST = ("JPEG", "MPO")
"""Formats that TensorFlow decodes as Pillow does, and faster."""
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")
_LUMINANCE = np.array([0.2989, 0.5870, 0.1140], "float32")  # as tf.image.rgb_to_grayscale has it
_ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
_SCALES = (1, 2, 4, 8)
"""By how much libjpeg makes a picture smaller while it decodes it, for less work."""
_ROOM = 2
"""Times the wanted size that a picture keeps at least, for the filter that follows."""
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
        fast: Whether TensorFlow decodes it as it should be.
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
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            # Pillow decodes a whole PNG to find that it has none.
            exif = {} if image.format == "PNG" and b"eXIf" not in data else image.getexif()
            # Pillow turns a TIFF by itself, and says the size of what it turned.
            turned = 1 if image.format == "TIFF" else exif.get(_ORIENTATION, 1)
            width, height = image.size
            return replace(
                found,
                kind="picture",
                fast=image.format in _FAST and image.mode in ("L", "RGB") and turned == 1,
                grey=image.mode in _GREY,
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
    broken = {}
    examples = iter(inputs)
    for place, file in files.items():
        try:
            next(examples)
        except tf.errors.OpError as error:
            broken[place] = _said(error)
            if file.kind == "picture":
                try:
                    with open(file.path, "rb") as opened:
                        _pixels(3, opened.read())
                    broken[place] = "" if file.fast else broken[place]
                except Exception as found:  # as above
                    broken[place] = _said(found)
    return broken


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
    scales = [_scale(file.shape, treatment.image_size) for file in files]
    fasts, greys = ({getattr(file, name) for file in files} for name in ("fast", "grey"))
    small, to_grey = fasts == {True}, tf.image.rgb_to_grayscale
    quick = small and (channels == 3 or greys == {True}) and treatment.resize == "stretch"
    size = treatment.image_size if quick else None
    finish = treatment.resizing() if size is None else partial(_stretched, size)

    def decode(path: tf.Tensor, fast: tf.Tensor, grey: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        data = tf.io.read_file(path)

        def jpeg(of: int, scale: int) -> tf.Tensor:
            image = tf.io.decode_jpeg(data, channels=of, ratio=scale)
            return tf.cast(image, tf.float32) if size is None else image

        def scaled(of: int) -> tf.Tensor:
            if len(set(scales)) == 1:
                return jpeg(of, _SCALES[scales[0]])
            return tf.switch_case(scale, [partial(jpeg, of, one) for one in _SCALES])

        def by_tensorflow() -> tf.Tensor:
            if channels == 3:
                return scaled(3)
            return _where(grey, greys, lambda: scaled(1), lambda: to_grey(scaled(3)))

        def by_pillow() -> tf.Tensor:
            return tf.numpy_function(partial(_pixels, channels), [data], tf.float32)

        image = _where(fast, fasts, by_tensorflow, by_pillow)
        image = finish(tf.ensure_shape(image, (height, width, channels)))
        # A JPEG has 8 bits, and whole numbers of these take a quarter of the memory.
        image = _where(fast, fasts, lambda: tf.round(image), lambda: image)
        return tf.cast(image, tf.uint8) if small else image

    return _each(files, decode, "path", "fast", "grey", scale=scales)


def _stretched(size: tuple[int, int], image: tf.Tensor) -> tf.Tensor:
    """Return what `Treatment.resizing` does, to the last bit, of a picture of 8 bits.

    Rows and columns are resized as rows of numbers, which TensorFlow does faster than pixels.
    """
    height, width = size
    shape, channels = tf.shape(image), image.shape[-1]
    found = _rows(tf.reshape(image, (shape[0], -1)), height)
    found = _rows(tf.reshape(tf.transpose(found), (shape[1], -1)), width)
    found = tf.transpose(tf.reshape(found, (width * channels, height)))
    return tf.reshape(found, (height, width, channels))


def _rows(matrix: tf.Tensor, count: int) -> tf.Tensor:
    """Bring a matrix to a number of rows, as `tf.image.resize` with antialiasing does."""
    scale = tf.cast(count / tf.shape(matrix)[0], tf.float32)
    found = tf.raw_ops.ScaleAndTranslate(
        images=matrix[None, :, None],
        size=(count, 1),
        scale=tf.stack([scale, 1.0]),
        translation=(0.0, 0.0),
        kernel_type="triangle",
        antialias=True,
    )
    return found[0, :, 0]


def _where(
    holds: tf.Tensor, ever: set[bool], one: Callable[[], tf.Tensor], other: Callable[[], tf.Tensor]
) -> tf.Tensor:
    """Return one of two values; where all files agree without a branch, which would cost time."""
    if len(ever) == 1:
        return one() if True in ever else other()
    return tf.cond(holds, one, other)


def _scale(shape: Sequence[int], wanted: Sequence[int] | None) -> int:
    """Return the position of the scale at which a picture is decoded."""
    if wanted is None:
        return 0
    room = min(size // (_ROOM * least) for size, least in zip(shape, wanted, strict=True))
    return max(place for place, scale in enumerate(_SCALES) if scale <= max(room, 1))


def _pixels(channels: int, data: bytes) -> np.ndarray:
    """Decode a picture with Pillow: the first frame, upright, on white, float32 in [0, 255]."""
    with Image.open(BytesIO(data), formats=_FORMATS) as opened:
        if data[:8] == _PNG and data[24] == 16:  # which Pillow brings to 8 bits
            return _on_white(_of_16_bits(data, opened), channels)
        image: Any = ImageOps.exif_transpose(opened)
        if image.mode in ("I", "F"):
            raise ValueError(f"pixels of 32 bits ({image.mode}), whose range is not known")
        if image.mode.startswith("I;16"):
            return _on_white(np.asarray(image)[..., None] * np.float32(255 / 65535), channels)
        clear = image.has_transparency_data
        mode = ("LA" if clear else "L") if image.mode in _GREY else ("RGBA" if clear else "RGB")
        pixels = np.asarray(image.convert(mode), "float32")
    return _on_white(pixels[..., None] if pixels.ndim == 2 else pixels, channels)


def _of_16_bits(data: bytes, opened: Image.Image) -> np.ndarray:
    """Decode a PNG of 16 bits with TensorFlow: upright, float32 in [0, 255]."""
    pixels = tf.io.decode_png(data, dtype=tf.uint16).numpy()
    clear = opened.info.get("transparency")
    if clear is not None and pixels.shape[-1] in (1, 3):
        alpha = np.where((pixels == clear).all(axis=-1, keepdims=True), 0, 65535)
        pixels = np.concatenate([pixels, alpha], axis=-1)
    turned = opened.getexif().get(_ORIENTATION, 1) if b"eXIf" in data else 1
    if turned in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if turned in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turned in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels.astype("float32") * np.float32(255 / 65535)


def _on_white(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Lay transparent pixels on white, and convert between grey and colour."""
    if pixels.shape[-1] in (2, 4):
        alpha = pixels[..., -1:] / np.float32(255)
        pixels = pixels[..., :-1] * alpha + 255 * (1 - alpha)
    if channels == 1 and pixels.shape[-1] == 3:
        pixels = pixels @ _LUMINANCE[:, None]
    elif channels == 3 and pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    return np.ascontiguousarray(pixels, "float32")


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
