"""Weights, their owners and their count; layers that share one, and ties joined."""

from reusekit.sharing import layers
from reusekit.sharing.counts import ParameterCounts, count_params
from reusekit.sharing.halves import join
from reusekit.sharing.ties import Tie, tie, tied_weights

__all__ = ["ParameterCounts", "Tie", "count_params", "join", "layers", "tie", "tied_weights"]
