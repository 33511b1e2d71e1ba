"""Notes on a plan: the sentences that a reader needs beside its tables."""

from collections.abc import Sequence
from typing import Any

from rich.filesize import decimal

from reusekit.features.key import Extraction
from reusekit.planning.rule import TRAIN, VALIDATION, VIEWS, CutFacts, Decision


def notes_of(
    decision: Decision, extraction: Extraction, window: int | None, may_be_views: bool
) -> list[str]:
    """Return the notes on one backbone's plan."""
    cuts, views = decision.cuts, extraction.augmented_views

    def listed(those: Sequence[CutFacts]) -> str:
        return ", ".join(map(str, those))

    def layers(those: Sequence[CutFacts], kind: str = "augmenting") -> str:
        named = dict.fromkeys(name for one in those for name in getattr(one.randomness, kind))
        return ", ".join(map(repr, named))

    masks: dict[str, list[CutFacts]] = {}
    for one in cuts:
        if one.frontier.mask is not None:
            masks.setdefault(one.frontier.mask.address, []).append(one)
    augmented = [one for one in cuts if one.randomness.augmenting]
    viewed = [one for one in augmented if VIEWS in one.kept and one in decision.stored]
    others = [one for one in augmented if one not in viewed]
    unseeded = [one for one in others if views and one.randomness.unseeded]
    unsteady = [one for one in cuts if one.unsteady]
    copied: dict[str, list[CutFacts]] = {}
    for one in cuts:
        if one.known and one in decision.stored:
            told = (
                f"{one.known.get(part, 0):,} of {decision.rows[part]:,} {kind} examples"
                for part, kind in ((TRAIN, "training"), (VALIDATION, "validation"))
                if part in one.missing
            )
            copied.setdefault(" and ".join(told), []).append(one)
    notes: list[tuple[Any, str]] = [
        *((True, doubt) for one in cuts for doubt in one.frontier.doubts),
        (
            masks,
            "Pooling passes over positions that a mask leaves out, such as the filling of short "
            f"texts: {', '.join(f'{mask!r} at {listed(those)}' for mask, those in masks.items())}.",
        ),
        *(
            (
                True,
                f"{told} are known at {listed(those)}: "
                f"{decimal(sum(one.example_bytes * sum(one.known.values()) for one in those))} of "
                "features are copied in the store, and the bottom runs on the other examples "
                "alone.",
            )
            for told, those in copied.items()
        ),
        (
            views and not augmented,
            "No random augmentation lies before a cut, so no augmented views are stored.",
        ),
        (
            viewed,
            f"Random augmentation ({layers(viewed)}) lies before {listed(viewed)}: {views} "
            "augmented views of the training examples are stored, and each pass reads the next. "
            "Validation examples are not augmented.",
        ),
        (
            others,
            f"Random augmentation ({layers(others)}) lies before {listed(others)}: the training "
            "examples' features are not stored, the bottom runs on every batch and augments it "
            "anew. Validation examples are not augmented."
            + " augmented_views=k would store k views instead."
            * (not views and may_be_views),
        ),
        (
            unseeded,
            f"No views are stored of {listed(unseeded)}: what {layers(unseeded, 'unseeded')} draw "
            "cannot be drawn again.",
        ),
        (
            unsteady,
            f"What crosses {listed(unsteady)} is random in inference too: it is never stored, and "
            "the bottom runs on every batch.",
        ),
        (
            layers(cuts, "silenced"),
            f"The frozen bottom runs in inference mode, where {layers(cuts, 'silenced')} drop "
            "nothing and add no noise.",
        ),
        (
            decision.crowded,
            f"The budget of {decimal(int(decision.disk))} on the disk does not hold "
            f"{listed(decision.crowded)} as well.",
        ),
        (
            decision.making and decision.length_share < 1,
            f"Texts are run sorted by length: {1 - decision.length_share:.0%} of their positions "
            "are filled up and not computed.",
        ),
        (decision.held_inputs, "The inputs are read once and held in memory."),
        (
            decision.running and window is not None,
            "The inputs do not fit into memory: each pass reads the data set itself, shuffled "
            f"within a window of {window or 0:,} examples, so that batches come in another order "
            "than those of stored features.",
        ),
    ]
    return [text for applies, text in notes if applies]
