"""Heads: new layers on a bottom, built of stock Keras layers.

A head is a specification. `rk.attach(bottom, head)` builds it on a bottom, `head.build(shape)` by
itself; `model.compile("adam", **head.compile_args)` takes the loss and metrics that go with it.
"""

import warnings
from typing import Any

from reusekit.training.heads.dense import Classifier, Multilabel, Regression
from reusekit.training.heads.head import Head
from reusekit.training.heads.language import MaskedLanguageModel
from reusekit.training.heads.pairs import Siamese
from reusekit.training.heads.taps import Multitap
from reusekit.training.heads.tasks import Multitask

__all__ = [
    "Classifier",
    "Head",
    "MaskedLanguageModel",
    "Multilabel",
    "Multitap",
    "Multitask",
    "Regression",
    "Siamese",
]

_RENAMED = {
    "classifier": Classifier,
    "masked_language_model": MaskedLanguageModel,
    "multilabel": Multilabel,
    "multitap": Multitap,
    "multitask": Multitask,
    "regression": Regression,
    "siamese": Siamese,
}


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = _RENAMED[name]
    warnings.warn(f"heads.{name} is heads.{new.__name__} now.", DeprecationWarning, stacklevel=2)
    return new
