"""Heads: what is trained on top of a bottom, built of stock Keras layers.

A head is a specification. `rk.attach(bottom, head)` builds it on a bottom, `head.build(shape)` by
itself; `model.compile("adam", **head.compile_args)` takes the loss and metrics that go with it.
"""

from reusekit.training.heads.classifier import Classifier as classifier
from reusekit.training.heads.head import Head
from reusekit.training.heads.masked_language_model import (
    MaskedLanguageModel as masked_language_model,
)
from reusekit.training.heads.multilabel import Multilabel as multilabel
from reusekit.training.heads.multitap import Multitap as multitap
from reusekit.training.heads.multitask import Multitask as multitask
from reusekit.training.heads.regression import Regression as regression
from reusekit.training.heads.siamese import Siamese as siamese

__all__ = [
    "Head",
    "classifier",
    "masked_language_model",
    "multilabel",
    "multitap",
    "multitask",
    "regression",
    "siamese",
]
