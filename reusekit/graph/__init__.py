"""A model read as a graph: addresses, cut points, costs. Reads, never builds."""

from reusekit.graph.addresses import find_layers, resolve, resolve_one
from reusekit.graph.cut_points import CutPoint, CutPoints, cut_points
from reusekit.graph.errors import (
    AddressError,
    AmbiguousAddressError,
    CutOrderError,
    DisconnectedError,
    ForeignTensorError,
    NoGraphError,
    UnknownAddressError,
    WideCutError,
)
from reusekit.graph.flops import Flops, count_flops
from reusekit.graph.frontier import Cut, ancestors, cut
from reusekit.graph.graph import Call, Graph, Scope, Tensor
from reusekit.graph.reader import read

__all__ = [
    "AddressError",
    "AmbiguousAddressError",
    "Call",
    "Cut",
    "CutOrderError",
    "CutPoint",
    "CutPoints",
    "DisconnectedError",
    "Flops",
    "ForeignTensorError",
    "Graph",
    "NoGraphError",
    "Scope",
    "Tensor",
    "UnknownAddressError",
    "WideCutError",
    "ancestors",
    "count_flops",
    "cut",
    "cut_points",
    "find_layers",
    "read",
    "resolve",
    "resolve_one",
]
