"""Distance maps of drawn letters, from which a stroke of any thickness is one comparison away."""

import numpy as np
from scipy import ndimage

STEPS_PER_PIXEL = 6
"""Distances are stored as whole steps in uint8; a step is a sixth of a pixel."""
EDGE = 128
"""The value of `edge_distance` on the outline itself."""

# The eight neighbours of a pixel as (row, column) offsets, clockwise from the one above.
_NEIGHBOURS = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def edge_distance(ink: np.ndarray) -> np.ndarray:
    """Signed distance to the outline: how a printed letter is made thinner or thicker.

    Args:
        ink: Where there is ink, bool (n, height, width).

    Returns:
        uint8 (n, height, width): 128 on the outline, 6 more for each pixel inwards, 6 less for
        each pixel outwards, clipped to [0, 255].

    Example:
        >>> ink = np.zeros((1, 5, 5), bool)
        >>> ink[:, 1:4, 1:4] = True
        >>> edge_distance(ink)[0, 2].tolist()
        [122, 134, 140, 134, 122]
    """
    distance = ndimage.distance_transform_edt
    maps = (EDGE + STEPS_PER_PIXEL * (distance(page) - distance(~page)) for page in ink)
    return np.stack([np.clip(one, 0, 255).astype("uint8") for one in maps])


def spine_distance(ink: np.ndarray) -> np.ndarray:
    """Distance to the middle line of the strokes: how a pen would draw the letter.

    Args:
        ink: Where there is ink, bool (n, height, width).

    Returns:
        uint8 (n, height, width): 0 on the middle line, 6 more for each pixel away from it, clipped
        to 255, which is also the value everywhere where there is no ink.

    Example:
        >>> ink = np.zeros((1, 5, 5), bool)
        >>> ink[:, 1:4, :] = True
        >>> spine_distance(ink)[0, :, 2].tolist()
        [12, 6, 0, 6, 12]
    """
    maps = []
    for page in thin(ink):
        away = ndimage.distance_transform_edt(~page) if page.any() else np.full(page.shape, 255)
        maps.append(np.clip(STEPS_PER_PIXEL * away, 0, 255).astype("uint8"))
    return np.stack(maps)


def thin(ink: np.ndarray, batch: int = 1000) -> np.ndarray:
    """Peel strokes from both sides until one pixel is left, keeping what is joined joined.

    Source: T. Y. Zhang and C. Y. Suen, "A fast parallel algorithm for thinning digital patterns",
    Communications of the ACM 27(3), 1984. Images must have an empty margin of one pixel where
    strokes are not to be joined across the border.

    Args:
        ink: Where there is ink, bool (n, height, width).
        batch: Images peeled at once, which bounds the memory.

    Returns:
        The middle lines, bool (n, height, width).

    Example:
        >>> ink = np.zeros((1, 5, 9), bool)
        >>> ink[:, 1:4, 1:8] = True
        >>> np.argwhere(thin(ink)[0]).tolist()
        [[2, 2], [2, 3], [2, 4], [2, 5]]
    """
    return np.concatenate([_thin(ink[i : i + batch]) for i in range(0, len(ink), batch)])


def _thin(ink: np.ndarray) -> np.ndarray:
    lines = ink.copy()
    busy = np.arange(len(lines))
    while len(busy):
        pages = lines[busy]
        changed = np.zeros(len(busy), bool)
        for removable in _REMOVABLE:
            codes = np.zeros(pages.shape, "uint8")
            for bit, (row, column) in enumerate(_NEIGHBOURS):
                codes |= np.roll(pages, (-row, -column), axis=(1, 2)).astype("uint8") << bit
            peeled = removable[codes] & pages
            pages &= ~peeled
            changed |= peeled.any(axis=(1, 2))
        lines[busy] = pages
        busy = busy[changed]
    return lines


def _removable() -> np.ndarray:
    """Return which of 256 neighbourhoods may lose their middle pixel, for both passes."""
    table = np.zeros((2, 256), bool)
    for code in range(256):
        ring = [(code >> bit) & 1 for bit in range(8)]
        runs = sum(ring[i] < ring[(i + 1) % 8] for i in range(8))
        if runs == 1 and 2 <= sum(ring) <= 6:
            north, east, south, west = ring[0::2]
            table[0, code] = not (north and east and south) and not (east and south and west)
            table[1, code] = not (north and east and west) and not (north and south and west)
    return table


_REMOVABLE = _removable()
