"""Pixels from the content of picture files."""

from collections.abc import Sequence
from dataclasses import dataclass
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
_SCALES = (1, 2, 4, 8)
"""By how much libjpeg makes a picture smaller while it decodes it, for less work."""
_ROOM = 2
"""Times the wanted size that a picture keeps at least, for the filter that follows."""


@dataclass(frozen=True)
class Jpeg:
    """A JPEG of 8 bits, upright, grey or RGB.

    Attributes:
        shape: Height and width.
        grey: Whether it has no colours.
        channels: 1 or 3, to which it is converted.
    """

    shape: tuple[int, ...]
    grey: bool
    channels: int

    def decoded(self, data: bytes, wanted: tuple[int, int] | None, stretch: bool) -> np.ndarray:
        """Return its pixels, of shape (height, width, channels).

        They are uint8, but float32 where colours become grey and it keeps its own shape.

        Args:
            data: The content of the file.
            wanted: The size that it is brought to in the end; None for its own. What is much larger
                is made smaller while it is decoded.
            stretch: Whether it is brought to that size here.

        Raises:
            tf.errors.OpError: It is cut off, or no JPEG.
        """
        scale = _scale(self.shape, wanted)
        height, width = (-(-size // scale) for size in self.shape)
        as_grey = self.grey and self.channels == 1
        try:
            pixels = simplejpeg.decode_jpeg(
                data,
                "GRAY" if as_grey else "RGB",
                fastdct=True,  # as TensorFlow decodes it, to the last bit
                min_height=height,
                min_width=width,
                min_factor=scale,
            )
        except ValueError:  # TensorFlow reads some that have wrong bytes
            pixels = tf.io.decode_jpeg(data, channels=1 if as_grey else 3, ratio=scale).numpy()
        if pixels.shape[-1] > self.channels:
            pixels = pixels @ _LUMINANCE[:, None]
        if wanted is None or not stretch:
            return pixels
        return np.round(resized(pixels, wanted)).astype("uint8", copy=False)


def _scale(shape: Sequence[int], wanted: Sequence[int] | None) -> int:
    """Return by how much a picture is made smaller while it is decoded."""
    if wanted is None:
        return 1
    room = min(size // (_ROOM * least) for size, least in zip(shape, wanted, strict=True))
    return max(scale for scale in _SCALES if scale <= max(room, 1))


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a picture with antialiasing, at most a grey level off the same in float32.

    Args:
        pixels: uint8 of shape (height, width, 1 or 3), or float32 of shape (height, width, 1).
        size: Height and width.
    """
    (height, width, channels), (rows, columns) = pixels.shape, size
    if cykooz_resizer is None:
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        found = np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR))
        return found.reshape(rows, columns, channels)
    kinds = cykooz_resizer.PixelType
    kind = kinds.F32 if pixels.dtype == np.float32 else kinds.U8x3 if channels == 3 else kinds.U8
    source = cykooz_resizer.ImageData(width, height, kind, pixels.tobytes())
    target = cykooz_resizer.ImageData(columns, rows, kind)
    triangle = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)
    cykooz_resizer.Resizer().resize(source, target, cykooz_resizer.ResizeOptions(triangle))
    return np.frombuffer(target.get_buffer(), pixels.dtype).reshape(rows, columns, channels)


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
