"""Checks of an examination: each is a function that finds one kind of fault in a model."""

from collections.abc import Callable, Iterator

from reusekit.stages.checks.finding import Finding, Mend
from reusekit.stages.checks.freezing import batch_norm, frozen_and_trained, training_mode
from reusekit.stages.checks.inputs import augmentation, input_range, scaling
from reusekit.stages.checks.losses import labels, outputs
from reusekit.stages.checks.patient import Patient
from reusekit.stages.checks.weights import classes, optimizer, rates, ties

__all__ = ["Finding", "Mend", "Patient", "checks_of"]

Check = Callable[[Patient], Iterator[Finding]]


def checks_of(patient: Patient) -> dict[str, Check]:
    """Return the checks that can be made of a model, by name."""
    found: dict[str, Check] = {"ties": ties, "optimizer": optimizer, "rates": rates}
    if patient.complaints is not None:
        found["classes"] = classes
    if patient.graphs:
        found |= {"freezing": frozen_and_trained}
        found |= {"batch-norm": batch_norm, "training-mode": training_mode}
    if patient.graph is not None:
        found |= {"augmentation": augmentation, "scaling": scaling, "outputs": outputs}
        if patient.data is not None:
            found |= {"input-range": input_range, "labels": labels}
    return found
