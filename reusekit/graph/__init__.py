"""A model read as a graph: addresses, cut points, costs. Reads, never builds."""

from reusekit.graph.addresses import find_layers, resolve, resolve_one
from reusekit.graph.cut_table import CutPoint, CutPoints, cut_points
from reusekit.graph.flops import Flops, count_flops
from reusekit.graph.frontier import Cut, ancestors, cut
from reusekit.graph.graph import Call, Graph, Scope, Step, Tensor, may_agree, tensors_in
from reusekit.graph.reader import read

__all__ = [
    "Call",
    "Cut",
    "CutPoint",
    "CutPoints",
    "Flops",
    "Graph",
    "Scope",
    "Step",
    "Tensor",
    "ancestors",
    "count_flops",
    "cut",
    "cut_points",
    "find_layers",
    "may_agree",
    "read",
    "resolve",
    "resolve_one",
    "tensors_in",
]
