"""Which cuts are worth trying."""

from collections.abc import Sequence

from reusekit.backbones import Backbone
from reusekit.errors import ConfigError, nearest
from reusekit.graph import CutPoint, cut_points
from reusekit.search.oracle import evenly

# Cuts closer than this share of the backbone's FLOPs are one choice, not two.
_APART = 0.01


def candidate_cuts(
    backbone: Backbone,
    wanted: Sequence[str] | None = None,
    most: int | None = None,
    including: Sequence[str | None] = (),
) -> list[CutPoint]:
    """The clean cuts of a backbone that are real choices.

    Of neighbouring cuts that lie within one hundredth of the backbone's FLOPs of each other (a
    convolution's output before and after its normalisation and activation), the deepest stands for
    all. Cuts before the first hundredth reuse next to nothing and are left out.

    Args:
        backbone: Where to cut.
        wanted: Addresses to use instead; each must be a clean cut.
        most: At most that many, spread evenly over the depth; None for all.
        including: Clean cuts that must be among them; None is passed over.

    Returns:
        Cut points, shallow to deep.

    Raises:
        ConfigError: A wanted address is no clean cut, or there is none.

    Example:
        >>> import reusekit as rk
        >>> backbone = rk.load_backbone("keras.applications/ResNet50", weights=None,
        ...                             input_shape=(32, 32, 3))
        >>> [point.at for point in candidate_cuts(backbone, most=3)]
        ['pool1_pool', 'conv4_block1_out', 'conv5_block3_out']
    """
    # All tensors, since `cut_points` leaves out the model's output, and the output of a backbone
    # without its classifier is the deepest cut there is.
    every = cut_points(backbone.model, max_width=None)
    clean = {point.at: point for point in every if point.width == 1 and point.depth >= _APART}
    if not clean:
        raise ConfigError(f"{backbone.source} has no clean cut.")
    including = [at for at in including if at is not None]
    for at in [*(wanted or []), *including]:
        if at not in clean:
            raise ConfigError(f"{backbone.source} has no clean cut {at!r}. {nearest(at, clean)}")
    chosen = list(wanted) if wanted else evenly(_apart(list(clean.values())), most)
    return [point for at, point in clean.items() if at in {*chosen, *including}]


def _apart(points: Sequence[CutPoint]) -> list[str]:
    """The deepest of each group of cuts that lie close together."""
    chosen: list[str] = []
    group_begins = -1.0
    for point in points:
        if chosen and point.depth - group_begins < _APART:
            chosen[-1] = point.at
        else:
            chosen.append(point.at)
            group_begins = point.depth
    return chosen
