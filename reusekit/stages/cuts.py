"""The cuts worth trying."""

from collections.abc import Sequence

from reusekit.backbones import Backbone
from reusekit.errors import ConfigError, nearest
from reusekit.graph import CutPoint
from reusekit.search.default_cuts import clean_cuts, feature_cuts
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
    """Return the clean cuts of a backbone that are real choices.

    Of neighbouring cuts that lie within one hundredth of the backbone's FLOPs of each other, the
    deepest stands for all. Cuts in the first hundredth of FLOPs and of parameters reuse next to
    nothing and are left out, and so is the end of a classifier that the backbone brings along; the
    features before it are not. Of a registered model, all of the head is left out that its tags
    name.

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
        features = list(feature_cuts(backbone.model, head=backbone.head).values())
        maps = [point for point in features if len(point.shape) > 2]
        # What follows the last feature map is that map, pooled, or features made of it by weights.
        made = [p for p in features if maps and p.params_before > maps[-1].params_before]
        apart = [*_apart(maps or features), *(point.at for point in made[-1:])]
        chosen.update(evenly(apart, most))
    return [point for at, point in clean.items() if at in chosen]


def clean_cut(backbone: Backbone, at: str, before: str | None = None) -> CutPoint:
    """Return the clean cut at an address.

    Args:
        backbone: Where to cut.
        at: An address.
        before: A clean cut that it must lie before; None where it may lie anywhere.

    Raises:
        ConfigError: It is no clean cut, or not before that one; the message names the nearest.
    """
    clean = _clean(backbone)
    found = _known(clean, at, backbone)
    if before is not None:
        shallower = list(clean)[: list(clean).index(_known(clean, before, backbone).at)]
        if at not in shallower:
            raise ConfigError(
                f"Expected a cut before {before!r}, from which on the bottom is trained. "
                f"Received: {at!r}. "
                + (f"Choose the nearest before it, {shallower[-1]!r}." if shallower else "")
            )
    return found


def _clean(backbone: Backbone) -> dict[str, CutPoint]:
    """Return every clean cut with a weight before it, shallow to deep."""
    clean = clean_cuts(backbone.model)
    if not clean:
        raise ConfigError(
            f"Expected a backbone with a clean cut. Received: {backbone.source}, which has no "
            "clean cut. Choose another one."
        )
    return clean


def _known(clean: dict[str, CutPoint], at: str, backbone: Backbone) -> CutPoint:
    if at not in clean:
        raise ConfigError(
            f"Expected a clean cut of {backbone.source}. Received: {at!r}. {nearest(at, clean)}"
        )
    return clean[at]


def _reused(point: CutPoint) -> float:
    """Return the share of parameters before a cut: most of a text model's are its embedding's."""
    return point.params_before / max(point.params_before + point.params_after, 1)


def _apart(points: Sequence[CutPoint]) -> list[str]:
    """Return the deepest of each group of cuts that lie close together."""
    chosen: list[str] = []
    group_begins = -1.0
    for point in points:
        if max(point.depth, _reused(point)) < _APART:
            continue
        if chosen and point.depth - group_begins < _APART:
            chosen[-1] = point.at
        else:
            chosen.append(point.at)
            group_begins = point.depth
    return chosen
