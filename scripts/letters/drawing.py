"""The letters that glyphnet learns from: cased letters in the fonts that matplotlib ships.

Never a digit: a letter that some font draws like one (O, l, S and the Cyrillic Ze among them) is
left out of every font. Letters that look alike, such as Latin A and Greek Alpha, are one class.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from letters.strokes import edge_distance, spine_distance

SIDE = 64
"""Pixels along each side of a letter's canvas."""
BODY = 48
"""Pixels along the longer side of the letter on it; the rest is margin for its distance maps."""

# Cosine similarity of two drawings, stretched to one size, above which they count as one shape.
# Digits get a wider berth than letters give each other.
_LIKE_A_DIGIT = 0.93
_LIKE_A_LETTER = 0.975
# The fonts whose drawings decide which letters look alike: upright, of different designs.
_REFERENCES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")
# TeX's fonts hold letters at the code points of ASCII letters only, the symbol font only capitals;
# its other code points hold other glyphs, digits among them.
_TEX = ("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10")
_TEX_SYMBOLS = "cmsy10"


@dataclass(frozen=True)
class Letters:
    """Drawn letters; entry i of each array is one character in one font.

    Attributes:
        edges: Distance to the outline, uint8 (n, 64, 64), as `strokes.edge_distance`.
        spines: Distance to the middle line, uint8 (n, 64, 64), as `strokes.spine_distance`.
        sizes: Width and height of the letter on its canvas in pixels, int64 (n, 2).
        labels: The class, str (n,): one character stands for all that look like it.
        characters: The character itself, str (n,).
        fonts: The font's file name without its ending, str (n,).
    """

    edges: np.ndarray
    spines: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    characters: np.ndarray
    fonts: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: np.ndarray) -> "Letters":
        """Return the letters that a boolean mask or an array of positions picks."""
        return Letters(**{name: values[which] for name, values in vars(self).items()})


def load_letters(fonts: Iterable[str] | None = None) -> Letters:
    """Draw every letter of the fonts once.

    Args:
        fonts: Names from `font_files`; None for all of them, some 13,000 letters in 15 seconds.

    Returns:
        The letters, ordered by font and code point; the same in every run.

    Example:
        >>> letters = load_letters(["cmr10"])
        >>> "A" in letters.characters, "O" in letters.characters
        (True, False)
        >>> letters.edges.shape[1:]
        (64, 64)
    """
    files = [file for file in font_files() if fonts is None or file.stem in set(fonts)]
    drawn = [
        (file.stem, character, plain, draw(font, character))
        for file in files
        for font in [ImageFont.truetype(str(file), 2 * BODY)]
        for character, plain in letters_in(file).items()
    ]
    names, characters, plains, images = (np.array(column) for column in zip(*drawn, strict=True))
    shapes = np.stack([_shape(image) for image in images])

    banned = np.unique(plains[(shapes @ _digit_shapes().T).max(axis=1) > _LIKE_A_DIGIT])
    kept = ~np.isin(plains, banned)
    names, characters, plains = names[kept], characters[kept], plains[kept]
    labels = _merged(plains, shapes[kept], names)

    ink = images[kept] > 127
    sizes = np.stack([ink.any(axis=1).sum(axis=1), ink.any(axis=2).sum(axis=1)], axis=1)
    return Letters(edge_distance(ink), spine_distance(ink), sizes, labels, characters, names)


def font_files() -> list[Path]:
    """Return the fonts of matplotlib that hold letters, in a fixed order.

    Example:
        >>> "DejaVuSans" in [file.stem for file in font_files()]
        True
    """
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [
        file
        for file in sorted(folder.glob("*.ttf"))
        if (file.stem.startswith(("DejaVu", "STIXGeneral")) and not file.stem.endswith("Display"))
        or file.stem in (*_TEX, _TEX_SYMBOLS)
    ]


def letters_in(file: Path) -> dict[str, str]:
    """Return the cased letters that a font really has, each with the plain letter it is a style of.

    Accented letters are left out: the accent is the first thing that low resolution loses.

    Args:
        file: A TrueType font.

    Returns:
        Each letter and what it is a style of: A for A, and A for the mathematical script A.

    Example:
        >>> roman = next(file for file in font_files() if file.stem == "cmr10")
        >>> len(letters_in(roman)), "7" in letters_in(roman)
        (52, False)
    """
    characters = map(chr, sorted(FT2Font(str(file)).get_charmap()))
    if file.stem in (*_TEX, _TEX_SYMBOLS):
        characters = filter(str.isascii, characters)
    if file.stem == _TEX_SYMBOLS:
        characters = filter(str.isupper, characters)
    styled = ((character, unicodedata.normalize("NFKC", character)) for character in characters)
    return {
        character: plain
        for character, plain in styled
        if _is_cased(character) and _is_cased(plain) and _is_bare(plain)
    }


def _is_cased(text: str) -> bool:
    return len(text) == 1 and unicodedata.category(text) in ("Lu", "Ll")


def _is_bare(letter: str) -> bool:
    """Return whether a letter has no accent and is no tone letter made from a digit."""
    accented = len(unicodedata.normalize("NFD", letter)) > 1
    return not accented and " TONE " not in unicodedata.name(letter)


def draw(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """Return one character, its longer side 48 pixels, in the middle of a uint8 (64, 64) canvas.

    Example:
        >>> canvas = draw(ImageFont.truetype(str(font_files()[0]), 96), "I")
        >>> int(canvas.any(axis=1).sum())
        48
    """
    left, top, right, bottom = font.getbbox(character)
    page = Image.new("L", (max(right - left, 1), max(bottom - top, 1)))
    ImageDraw.Draw(page).text((-left, -top), character, font=font, fill=255)
    page = page.crop(page.getbbox() or (0, 0, 1, 1))
    scale = BODY / max(page.size)
    page = page.resize(
        [max(1, round(side * scale)) for side in page.size], Image.Resampling.BILINEAR
    )
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(page, ((SIDE - page.width) // 2, (SIDE - page.height) // 2))
    return np.asarray(canvas)


def _shape(image: np.ndarray) -> np.ndarray:
    """Return a unit vector that says what a drawing looks like whatever its size and proportions.

    A bare stroke keeps its proportions: stretched, it would be as good as a filled square.
    """
    page = Image.fromarray(image)
    page = page.crop(page.getbbox() or (0, 0, 1, 1))
    tall, wide = page.height >= 3 * page.width, page.width >= 3 * page.height
    page = page.resize((8 if tall else 24, 8 if wide else 24), Image.Resampling.BILINEAR)
    square = Image.new("L", (24, 24))
    square.paste(page, ((24 - page.width) // 2, (24 - page.height) // 2))
    vector = np.asarray(square, "float32").ravel()
    return vector / max(np.linalg.norm(vector), 1.0)


def _digit_shapes() -> np.ndarray:
    """Return the shapes of every font's digits, which are never drawn for training."""
    fonts = [ImageFont.truetype(str(f), 2 * BODY) for f in font_files() if f.stem != _TEX_SYMBOLS]
    return np.stack([_shape(draw(font, digit)) for font in fonts for digit in "0123456789"])


def _merged(plains: np.ndarray, shapes: np.ndarray, fonts: np.ndarray) -> np.ndarray:
    """Map each letter to the first of those it is joined to by looking alike."""
    parent = {str(plain): str(plain) for plain in np.unique(plains)}

    def root(letter: str) -> str:
        while parent[letter] != letter:
            letter = parent[letter]
        return letter

    for reference in _REFERENCES:
        (members,) = np.nonzero(fonts == reference)
        alike = np.triu(shapes[members] @ shapes[members].T > _LIKE_A_LETTER, k=1)
        for one, other in zip(*np.nonzero(alike), strict=True):
            first, second = sorted((root(plains[members[one]]), root(plains[members[other]])))
            parent[second] = first
    return np.array([root(plain) for plain in plains])
