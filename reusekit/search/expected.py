"""The trials that a search will come to, as far as a plan needs to know."""

from collections.abc import Mapping, Sequence

from reusekit.graph import CutPoint
from reusekit.planning import Trials
from reusekit.search.sizes import SizeCounter, Sizes
from reusekit.search.space import SearchSpace
from reusekit.search.spec import TrialSpec
from reusekit.search.trial_data import Place, TrialData


def expected_trials(
    space: SearchSpace,
    data: TrialData,
    points: Mapping[str, CutPoint],
    epochs: int,
    trials: int | None = None,
    ranked: Sequence[Place] = (),
) -> list[Trials]:
    """Return the number of trials at each place, spread evenly over the space.

    Args:
        space: What is searched.
        data: Knows the backbone and where trials begin; needs no features.
        points: The cut points of the backbone by address.
        epochs: Of each trial, at most.
        trials: How many there will be; None for every combination of the choices.
        ranked: Where features are wanted to rank cuts by, whether a trial begins there or not.
    """
    counter = SizeCounter(data)
    trained: dict[tuple[Place, int], list[Sizes]] = {}
    for cut in space.cuts:
        for freeze in space.freeze or [cut]:
            spec = TrialSpec(cut, freeze if data.is_before(freeze, cut) else cut)
            size = Sizes()
            if spec.trains_backbone:
                size = counter.bottom(cut) - counter.bottom(spec.freeze)
            for batch_size in space.batch_sizes:
                trained.setdefault((data.begin(spec), batch_size), []).append(size)
    cells = len(space.cuts) * len(space.freeze or [None]) * len(space.batch_sizes)
    total = trials or cells * _combinations(space)
    expected = [
        Trials(
            *place,
            count=max(1, round(total * len(sizes) / cells)),
            epochs=epochs,
            batch_size=batch_size,
            parameters=max(size.parameters for size in sizes)
            + _channels(points, place) * data.classes,
            flops=max(size.flops for size in sizes),
        )
        for (place, batch_size), sizes in trained.items()
    ]
    there = {(one.at, one.pooling) for one in expected}
    return expected + [Trials(*place, epochs=1) for place in ranked if place not in there]


def _channels(points: Mapping[str, CutPoint], place: Place) -> int:
    return (place[0] in points and points[place[0]].shape[-1]) or 1


def _combinations(space: SearchSpace) -> int:
    """Return the number of combinations there are beside cuts, freezing and batch sizes."""
    heads = len(space.heads) if space.heads else len(space.units) * len(space.dropout)
    return heads * len(space.optimizers) * len(space.learning_rates or [None])
