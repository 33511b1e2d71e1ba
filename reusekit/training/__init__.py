"""Heads, freezing, adaptation, layer-wise rates and fitting."""

from reusekit.training import heads
from reusekit.training.adaptation import Adaptation, adapt
from reusekit.training.attachment import attach
from reusekit.training.fit import Fit, Monitor, Resumption, fit_model
from reusekit.training.folding import fold_standardization
from reusekit.training.freezing import freeze
from reusekit.training.frozen_state import Freezing, VariableState
from reusekit.training.layerwise import layerwise_optimizer
from reusekit.training.optimizer import LayerwiseOptimizer, Rates, VariableRate
from reusekit.training.unfreezing import GradualUnfreezing

__all__ = [
    "Adaptation",
    "Fit",
    "Freezing",
    "GradualUnfreezing",
    "LayerwiseOptimizer",
    "Monitor",
    "Rates",
    "Resumption",
    "VariableRate",
    "VariableState",
    "adapt",
    "attach",
    "fit_model",
    "fold_standardization",
    "freeze",
    "heads",
    "layerwise_optimizer",
]
