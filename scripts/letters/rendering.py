"""Letters as no two people write them: warped, drawn thin or thick, scanned badly."""

from dataclasses import dataclass

import numpy as np

from letters.drawing import SIDE as CANVAS
from letters.drawing import Letters
from letters.strokes import EDGE, STEPS_PER_PIXEL

SIDE = 32
"""Pixels along each side of a rendered image; lengths below are in these pixels."""

_KNOTS = 5
_LOWEST = 8


@dataclass(frozen=True)
class Style:
    """The spread of renderings around a font's letter, as standard deviations.

    Attributes:
        rotation: Spread of the angle, in degrees.
        shear: Largest slant to either side, as a ratio.
        aspect: Spread of the logarithm of width over height.
        height: Least and greatest height, as shares of the image.
        shift: Largest shift, as a share of the room that the letter leaves.
        wobble: Spread of how far points move on their own, smoothly, in pixels.
        pen: Share of letters drawn by a pen of one width along the middle of their strokes; the
            others keep the font's own strokes, made thinner or thicker.
        pen_radius: Least and greatest half-width of the pen, in pixels.
        weight: Least and greatest gain of the font's own strokes on each side, in pixels.
        coarse: Share of images scanned at the lowest resolution, 8x8.
        blurred: Share of images scanned at some resolution between that and full.
        noise: Greatest standard deviation of the noise, as a share of full white; half of the
            images have none.
    """

    rotation: float = 12.0
    shear: float = 0.25
    aspect: float = 0.25
    height: tuple[float, float] = (0.65, 1.05)
    shift: float = 0.6
    wobble: float = 2.0
    pen: float = 0.6
    pen_radius: tuple[float, float] = (0.8, 3.2)
    weight: tuple[float, float] = (-0.8, 1.6)
    coarse: float = 0.5
    blurred: float = 0.25
    noise: float = 0.06


def render(
    letters: Letters, which: np.ndarray, rng: np.random.Generator, style: Style | None = None
) -> np.ndarray:
    """Render letters, each with its own random warp, stroke, resolution, contrast and noise.

    Args:
        letters: Drawn letters.
        which: Positions in `letters` to render, int (n,); repeats come out different.
        rng: All the randomness: the same state gives the same images.
        style: How far to stray; None for the style glyphnet is trained with.

    Returns:
        White strokes on black, uint8 (n, 32, 32, 1).

    Example:
        >>> from letters.drawing import load_letters
        >>> letters = load_letters(["cmr10"])
        >>> images = render(letters, np.array([0, 0]), np.random.default_rng(0))
        >>> images.shape, images.dtype, bool((images[0] == images[1]).all())
        ((2, 32, 32, 1), dtype('uint8'), False)
    """
    style = style or Style()
    rows, columns, magnification = _warp(letters.sizes[which], rng, style)
    pen = rng.random(len(which)) < style.pen
    depth = np.empty(rows.shape, "float32")
    depth[pen] = -_sample(letters.spines, which[pen], rows[pen], columns[pen])
    depth[~pen] = _sample(letters.edges, which[~pen], rows[~pen], columns[~pen]) - EDGE
    depth /= STEPS_PER_PIXEL * magnification[:, None, None]

    pen_radius = rng.uniform(*style.pen_radius, len(which))
    radius = np.where(pen, pen_radius, rng.uniform(*style.weight, len(which)))
    softness = rng.uniform(0.7, 1.6, len(which))
    ink = np.clip((depth + _wide(radius)) / _wide(softness) + 0.5, 0.0, 1.0)
    return _scan(ink, rng, style)


def _wide(values: np.ndarray) -> np.ndarray:
    """Return one value for each image, ready to meet (n, height, width)."""
    return values.astype("float32")[:, None, None]


def _warp(
    sizes: np.ndarray, rng: np.random.Generator, style: Style
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where each pixel looks on its canvas, and how many canvas pixels it spans."""
    count = len(sizes)
    wide, high = sizes.T.astype("float32")

    # Proportions drift towards those of a narrow upright letter, as handwriting's do.
    aspect = np.exp(
        0.7 * np.log(wide / high) + 0.3 * np.log(0.72) + rng.normal(0, style.aspect, count)
    )
    height = SIDE * rng.uniform(*style.height, count)
    width = height * aspect
    squeeze = np.minimum(1, SIDE * style.height[1] / width)
    width, height = width * squeeze, height * np.maximum(squeeze, 0.8)
    # A bare stroke stays a stroke however wide its proportions say it should be.
    across, down = np.maximum(wide, 6) / np.maximum(width, 4), high / height

    grid = np.arange(SIDE, dtype="float32") - (SIDE - 1) / 2
    bend = rng.standard_normal((count, 2, _KNOTS, _KNOTS), dtype="float32")
    bend *= np.abs(rng.normal(0, style.wobble, count)).astype("float32")[:, None, None, None]
    bend = _UPSAMPLE @ bend @ _UPSAMPLE.T
    shift_x, shift_y = (
        style.shift * rng.uniform(-1, 1, count) * np.maximum(SIDE - extent, 2) / 2
        for extent in (width, height)
    )
    x = grid[None, None, :] + bend[:, 0] - _wide(shift_x)
    y = grid[None, :, None] + bend[:, 1] - _wide(shift_y)

    angle = np.deg2rad(rng.normal(0, style.rotation, count))
    cosine, sine = _wide(np.cos(angle)), _wide(np.sin(angle))
    turned_x, turned_y = cosine * x + sine * y, cosine * y - sine * x
    turned_x += _wide(rng.uniform(-style.shear, style.shear, count)) * turned_y
    middle = (CANVAS - 1) / 2
    columns, rows = turned_x * _wide(across) + middle, turned_y * _wide(down) + middle
    return rows, columns, np.sqrt(across * down).astype("float32")


def _sample(
    maps: np.ndarray, which: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Read maps (m, 64, 64) between their pixels, bilinearly; beyond the border, the border."""
    # One flat index is several times faster than three.
    flat, last = maps.reshape(-1), CANVAS - 1.001
    rows, columns = np.clip(rows, 0, last), np.clip(columns, 0, last)
    row, column = rows.astype("int32"), columns.astype("int32")
    down, right = rows - row, columns - column
    corner = which[:, None, None] * CANVAS**2 + row * CANVAS + column
    upper = flat[corner] * (1 - right) + flat[corner + 1] * right
    lower = flat[corner + CANVAS] * (1 - right) + flat[corner + CANVAS + 1] * right
    return upper * (1 - down) + lower * down


def _scan(ink: np.ndarray, rng: np.random.Generator, style: Style) -> np.ndarray:
    """Lose resolution, change the contrast, add noise. From [0, 1] to uint8 with a channel."""
    count = len(ink)
    kind = rng.random(count)
    between = rng.integers(0, len(_RESAMPLE), count)
    chosen = np.where(kind < style.coarse + style.blurred, between, len(_RESAMPLE) - 1)
    resample = _RESAMPLE[np.where(kind < style.coarse, 0, chosen)]
    ink = resample @ ink @ resample.transpose(0, 2, 1)

    gamma, white = np.exp(rng.normal(0, 0.25, count)), rng.uniform(0.65, 1.0, count)
    ink = ink ** _wide(gamma) * _wide(white)
    level = style.noise * rng.uniform(0, 1, count) * (rng.random(count) < 0.5)
    ink += _wide(level) * rng.standard_normal(ink.shape, dtype="float32")
    return (np.clip(ink, 0, 1) * 255).astype("uint8")[..., None]


def _enlarge(low: int, high: int) -> np.ndarray:
    """Return the matrix (high, low) of bilinear interpolation, as `tf.image.resize` does it."""
    at = np.clip((np.arange(high) + 0.5) * low / high - 0.5, 0, low - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(low)), 0).astype("float32")


def _reduce(high: int, low: int) -> np.ndarray:
    """Return the matrix (low, high) that averages the area that each coarse pixel covers."""
    edges = np.arange(low + 1) * high / low
    pixels = np.arange(high)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(covered, 0, 1) * low / high).astype("float32")


_UPSAMPLE = _enlarge(_KNOTS, SIDE)
# One matrix for each resolution from 8 to 32: reduced and enlarged again. The last changes nothing.
_RESAMPLE = np.stack([_enlarge(n, SIDE) @ _reduce(SIDE, n) for n in range(_LOWEST, SIDE + 1)])
