"""Findings of an examination."""

from collections.abc import Callable
from dataclasses import dataclass, field

import keras

Mend = Callable[[keras.Model], keras.Model]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a model.

    Attributes:
        address: The address of the layer, or "" for the model.
        what: What is wrong, and what follows from it.
        remedy: What to do.
        reported: A public report of it.
        mend: Makes a model without it; None where nobody but the user can tell how.
        check: The check that found it.
    """

    address: str
    what: str
    remedy: str
    reported: str = ""
    mend: Mend | None = field(default=None, repr=False, compare=False)
    check: str = ""
