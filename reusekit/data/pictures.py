"""Pixels from the content of picture files."""

import math
import struct
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import simplejpeg
import tensorflow as tf
from PIL import Image, ImageOps

try:
    import cykooz_resizer
except ImportError:  # no wheel for this machine: Pillow does the same, but for single grey levels
    cykooz_resizer = None

RESIZER = "pillow" if cykooz_resizer is None else "cykooz_resizer"
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "JPEG2000", "ICO")
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")
ORIENTATION = 0x0112
_LUMINANCE = np.array([0.2989, 0.5870, 0.1140], "float32")  # as tf.image.rgb_to_grayscale has it
_PNG = b"\x89PNG\r\n\x1a\n"
_FRAMES, _SCAN = (0xC0, 0xC1, 0xC2), 0xDA
"""Markers of a JPEG before its size, and before its pixels."""
_TOLD_BY_PILLOW = (0xE1, 0xEE)
"""Markers of EXIF and XMP, and of Adobe's own."""
_SCALES = (1, 2, 4, 8)
"""By how much libjpeg makes a picture smaller while it decodes it, for less work."""
_ROOM = 2
"""Times the wanted size that a picture keeps at least, for the filter that follows."""


def plain_jpeg(data: bytes) -> tuple[tuple[int, int], bool] | None:
    """Return height and width of a JPEG, and whether it is grey; None where Pillow is to tell.

    That is so where it may be turned (by EXIF or XMP), is written by Adobe's programs, which store
    colours in several ways, or is no JPEG of 8 bits.

    Args:
        data: The content of a file.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, found = 2, None
    while at + 9 < len(data):
        start, marker, size = struct.unpack_from(">BBH", data, at)
        if start != 0xFF or marker in _TOLD_BY_PILLOW:
            return None
        if marker == _SCAN:
            return found
        if marker in _FRAMES:
            bits, height, width, parts = struct.unpack_from(">BHHB", data, at + 4)
            most = Image.MAX_IMAGE_PIXELS or math.inf
            if bits != 8 or parts not in (1, 3) or not 0 < height * width <= most:
                return None
            found = (height, width), parts == 1
        at += 2 + size
    return None


class JpegReader:
    """A reader of JPEGs of 8 bits that are upright, grey or RGB.

    It uses its memory again for the next one, so it is for one thread.

    Args:
        channels: 1 or 3, to which they are converted; colours become grey as libjpeg has it.
        wanted: The size that they are brought to in the end; None for their own. What is much
            larger is made smaller while it is decoded.
        stretch: Whether they are brought to that size here.
    """

    def __init__(self, channels: int, wanted: tuple[int, int] | None, stretch: bool) -> None:
        self._channels, self._wanted = channels, wanted
        self._resize = Resizer(wanted, channels) if wanted is not None and stretch else None
        self._room = np.empty(0, np.uint8)

    def __call__(self, data: bytes, shape: Sequence[int]) -> np.ndarray:
        """Return the pixels of one as uint8, of shape (height, width, channels).

        Args:
            data: The content of the file.
            shape: Height and width.

        Raises:
            tf.errors.OpError: It is cut off, or no JPEG.
        """
        scale = _scale(shape, self._wanted)
        height, width = (-(-size // scale) for size in shape)
        smaller = {"min_height": height, "min_width": width, "min_factor": scale}
        if self._resize is not None and self._room.size < height * width * self._channels:
            self._room = np.empty(height * width * self._channels, np.uint8)
        try:
            pixels = simplejpeg.decode_jpeg(
                data,
                "GRAY" if self._channels == 1 else "RGB",
                fastdct=True,  # as TensorFlow decodes it, to the last bit
                buffer=None if self._resize is None else self._room,
                **(smaller if scale > 1 else {}),
            )
        except ValueError:  # TensorFlow reads some that have wrong bytes
            pixels = tf.io.decode_jpeg(data, channels=self._channels, ratio=scale).numpy()
        return pixels if self._resize is None else self._resize(pixels)


def _scale(shape: Sequence[int], wanted: Sequence[int] | None) -> int:
    """Return by how much a picture is made smaller while it is decoded."""
    if wanted is None:
        return 1
    room = min(size // (_ROOM * least) for size, least in zip(shape, wanted, strict=True))
    return max(scale for scale in _SCALES if scale <= max(room, 1))


class Resizer:
    """Resizing with antialiasing in whole numbers, at most a grey level off the same in float32.

    Args:
        size: Height and width.
        channels: 1 or 3.
    """

    def __init__(self, size: tuple[int, int], channels: int) -> None:
        self._shape = (*size, channels)
        if cykooz_resizer is not None:
            triangle = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)
            kinds = cykooz_resizer.PixelType
            self._kind = kinds.U8x3 if channels == 3 else kinds.U8
            self._options = cykooz_resizer.ResizeOptions(triangle)
            self._target = cykooz_resizer.ImageData(*size[::-1], self._kind)
            self._resizer = cykooz_resizer.Resizer()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Resize a picture of shape (height, width, channels), uint8."""
        height, width, channels = pixels.shape
        if cykooz_resizer is None:
            image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
            found = image.resize(self._shape[1::-1], Image.Resampling.BILINEAR)
            return np.asarray(found).reshape(self._shape)
        source = cykooz_resizer.ImageData(width, height, self._kind, pixels.tobytes())
        self._resizer.resize(source, self._target, self._options)
        return np.frombuffer(self._target.get_buffer(), np.uint8).reshape(self._shape)


def pixels_of(data: bytes, channels: int) -> np.ndarray:
    """Decode a picture with Pillow: the first frame, upright, on white, float32 in [0, 255].

    Args:
        data: The content of a file.
        channels: 1 or 3.

    Raises:
        ValueError: Pixels of 32 bits; Pillow raises other errors for files that are broken.
    """
    with Image.open(BytesIO(data), formats=FORMATS) as opened:
        if data[:8] == _PNG and data[24] == 16:  # which Pillow brings to 8 bits
            return _on_white(_of_16_bits(data, opened), channels)
        image: Any = ImageOps.exif_transpose(opened)
        if image.mode in ("I", "F"):
            raise ValueError(f"pixels of 32 bits ({image.mode}), whose range is not known")
        if image.mode.startswith("I;16"):
            return _on_white(np.asarray(image)[..., None] * np.float32(255 / 65535), channels)
        clear = image.has_transparency_data
        mode = ("LA" if clear else "L") if image.mode in GREY else ("RGBA" if clear else "RGB")
        pixels = np.asarray(image.convert(mode), "float32")
    return _on_white(pixels[..., None] if pixels.ndim == 2 else pixels, channels)


def _of_16_bits(data: bytes, opened: Image.Image) -> np.ndarray:
    """Decode a PNG of 16 bits with TensorFlow: upright, float32 in [0, 255]."""
    pixels = tf.io.decode_png(data, dtype=tf.uint16).numpy()
    clear = opened.info.get("transparency")
    if clear is not None and pixels.shape[-1] in (1, 3):
        alpha = np.where((pixels == clear).all(axis=-1, keepdims=True), 0, 65535)
        pixels = np.concatenate([pixels, alpha], axis=-1)
    turned = opened.getexif().get(ORIENTATION, 1) if b"eXIf" in data else 1
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
