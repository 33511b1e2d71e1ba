"""Heads and fitting: what is trained on top of a bottom, and how."""

from reusekit.training import heads
from reusekit.training.attach import attach
from reusekit.training.fit import Fit, fit_classifier

__all__ = ["Fit", "attach", "fit_classifier", "heads"]
