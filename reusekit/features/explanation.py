"""The reasons for a plan, in words."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from reusekit.features.choice import TRAIN
from reusekit.features.plan import readable_bytes
from reusekit.features.supply import Name

if TYPE_CHECKING:
    from reusekit.features.decisions import Decisions


def reason(made: "Decisions", place: int) -> str:
    """Explain why a cut's training features are stored or computed."""
    how, use, problem = made.how(place, TRAIN), made.uses[place], made.problem
    passes = sum(one.passes for one in made.schedules[place])
    if how == "stored":
        return f"found in the store; read {passes} times"
    if how == "views":
        return f"pass number e reads view e modulo {made.survey.views}"
    if how == "recompute" and made.unsteady(place):
        return "random in inference too, so never stored"
    if how == "recompute" and problem.candidates[place].augmented:
        return "augmented anew in each pass; validation examples are not"
    if how == "recompute" and not has_room(made, place):
        return f"no room for {readable_bytes(problem.bytes(place))} on the disk"
    compared = f"{passes} passes at {_milliseconds(use.train)} ms an example, "
    if how == "recompute":
        stored = _milliseconds(problem.read(place))
        return f"{compared}{stored} if it were made once and stored"
    computed, _ = problem.compute(place, made.stored - {place})
    compared += f"{_milliseconds(computed)} if computed each time"
    if how == "derive":
        return f"quicker than from the inputs; {compared}"
    return f"in one pass; {compared}"


def has_room(made: "Decisions", place: int) -> bool:
    """Return whether the disk would hold what is at a place beside what is stored."""
    used = sum(made.problem.bytes(one) for one in made.stored | {place})
    return used <= made.problem.disk


def _about_masks(made: "Decisions") -> Iterator[str]:
    """Explain which mask marks the filling of each cut."""
    masks: dict[str, list] = {}
    for name, one in made.survey.frontiers.items():
        yield from one.doubts
        if one.mask is not None:
            masks.setdefault(one.mask.address, []).append(name)
    for address, names in masks.items():
        yield f"Pooling passes over what {address!r} leaves out, at {_cuts(names)}."


def notes(made: "Decisions") -> Iterator[str]:
    """Yield the notes that a reader needs beside the tables."""
    yield from _about_masks(made)
    yield from _about_augmentation(made)
    survey, candidates = made.survey, made.problem.candidates
    unsteady = [name for name, place in made.names.items() if made.unsteady(place)]
    if unsteady:
        yield (
            f"What crosses {_cuts(unsteady)} is random in inference too: it is never stored, and "
            "the bottom runs on every batch."
        )
    silenced = [name for name in made.names if survey.randomness[name].silenced]
    if silenced:
        layers = _listed(each for name in silenced for each in survey.randomness[name].silenced)
        yield (
            f"The frozen bottom runs in inference mode, where {layers} drop nothing and add no "
            "noise."
        )
    left_out = [
        name
        for name, place in made.names.items()
        if candidates[place].kept and place not in made.stored and not has_room(made, place)
    ]
    if left_out:
        budget = readable_bytes(made.problem.disk)
        yield f"The budget of {budget} on the disk does not hold {_cuts(left_out)} as well."
    if made.from_inputs and made.inputs == "held":
        yield "The inputs are read once and held in memory."
    if made.from_inputs and made.inputs == "read":
        yield (
            "The inputs fit neither on the disk nor into memory: each pass reads the data set "
            f"itself, shuffled within a window of {made.window:,} examples, so that batches come "
            "in another order than those of stored features."
        )


def _about_augmentation(made: "Decisions") -> Iterator[str]:
    survey, candidates = made.survey, made.problem.candidates
    augmented = [name for name, place in made.names.items() if candidates[place].augmented]
    if not augmented and survey.views:
        yield "No random augmentation lies before a cut, so no augmented views are stored."
    viewed = [n for n in augmented if made.how(made.names[n], TRAIN) == "views"]
    if viewed:
        yield (
            f"Random augmentation ({_augmenting(made, viewed)}) lies before {_cuts(viewed)}: "
            f"{survey.views} augmented views of the training examples are stored, and each pass "
            "reads the next. Validation examples are not augmented."
        )
    others = [name for name in augmented if name not in viewed]
    if others:
        yield (
            f"Random augmentation ({_augmenting(made, others)}) lies before {_cuts(others)}: the "
            "training examples' features are not stored, the bottom runs on every batch and "
            "augments it anew. Validation examples are not augmented."
            + ("" if survey.views else " augmented_views=k would store k views instead.")
        )
    unseeded = [n for n in others if survey.randomness[n].unseeded] if survey.views else []
    if unseeded:
        layers = _listed(each for name in unseeded for each in survey.randomness[name].unseeded)
        yield f"No views are stored of {_cuts(unseeded)}: what {layers} draw cannot be drawn again."


def _augmenting(made: "Decisions", names: Iterable[Name]) -> str:
    return _listed(each for name in names for each in made.survey.randomness[name].augmenting)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in dict.fromkeys(names))


def _cuts(names: Iterable[Name]) -> str:
    return ", ".join(repr(at) + (f" ({pooling})" if pooling else "") for at, pooling in names)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"
