"""Which weights there are, whose they are, and how many; layers that share one."""

from reusekit.sharing import layers
from reusekit.sharing.counts import ParameterCounts, count_params

__all__ = ["ParameterCounts", "count_params", "layers"]
