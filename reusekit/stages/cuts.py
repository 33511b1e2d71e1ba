"""Which cuts are worth trying."""

from collections.abc import Sequence

from reusekit.backbones import Backbone
from reusekit.errors import ConfigError, nearest
from reusekit.graph import CutPoint, cut_points
from reusekit.search.oracle import evenly

# Cuts closer than this share of the backbone's FLOPs are one choice, not two: it parts a
# convolution from the next, and not from its own normalisation and activation.
_APART = 0.01


def candidate_cuts(
    backbone: Backbone,
    wanted: Sequence[str] | None = None,
    most: int | None = None,
    including: Sequence[str] = (),
) -> list[CutPoint]:
    """The clean cuts of a backbone that are real choices.

    Of neighbouring cuts that lie within one hundredth of the backbone's FLOPs of each other, the
    deepest stands for all. Cuts in the first hundredth reuse next to nothing and are left out, and
    so are those in a head that the backbone brings along.

    Args:
        backbone: Where to cut.
        wanted: Addresses to use instead; each must be a clean cut.
        most: At most that many of the automatic ones, spread evenly over the depth; None for all.
        including: Clean cuts that must be among them.

    Returns:
        Cut points, shallow to deep.

    Raises:
        ConfigError: An address is no clean cut, or there is none.

    Example:
        >>> import reusekit as rk
        >>> backbone = rk.load_backbone("keras.applications/ResNet50", weights=None,
        ...                             input_shape=(32, 32, 3))
        >>> [point.at for point in candidate_cuts(backbone, most=3)]
        ['pool1_pool', 'conv4_block1_out', 'conv5_block3_out']
    """
    clean = _clean(backbone)
    chosen = {_known(clean, at, backbone).at for at in [*(wanted or []), *including]}
    if wanted is None:
        # What follows the last feature map is a head: a registered model brings its own.
        maps = [point for point in clean.values() if len(point.shape) == 3]
        chosen.update(evenly(_apart(maps or list(clean.values())), most))
    return [point for at, point in clean.items() if at in chosen]


def clean_cut(backbone: Backbone, at: str) -> CutPoint:
    """The clean cut at an address.

    Args:
        backbone: Where to cut.
        at: An address.

    Raises:
        ConfigError: It is no clean cut; the message names the nearest.
    """
    return _known(_clean(backbone), at, backbone)


def _clean(backbone: Backbone) -> dict[str, CutPoint]:
    """Every clean cut with a weight before it, shallow to deep."""
    # All tensors, since `cut_points` leaves out the model's output, and the output of a backbone
    # without its classifier is the deepest cut there is.
    every = cut_points(backbone.model, max_width=None)
    clean = {point.at: point for point in every if point.width == 1 and point.params_before}
    if not clean:
        raise ConfigError(f"{backbone.source} has no clean cut.")
    return clean


def _known(clean: dict[str, CutPoint], at: str, backbone: Backbone) -> CutPoint:
    if at not in clean:
        raise ConfigError(f"{backbone.source} has no clean cut {at!r}. {nearest(at, clean)}")
    return clean[at]


def _apart(points: Sequence[CutPoint]) -> list[str]:
    """The deepest of each group of cuts that lie close together."""
    chosen: list[str] = []
    group_begins = -1.0
    for point in points:
        if point.depth < _APART:
            continue
        if chosen and point.depth - group_begins < _APART:
            chosen[-1] = point.at
        else:
            chosen.append(point.at)
            group_begins = point.depth
    return chosen
