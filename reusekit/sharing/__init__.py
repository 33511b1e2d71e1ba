"""Which weights there are, whose they are, and how many."""

from reusekit.sharing.counts import ParameterCounts, count_params

__all__ = ["ParameterCounts", "count_params"]
