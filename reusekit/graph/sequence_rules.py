"""The FLOPs of layers over sequences: attention, recurrence, embeddings."""

import math
from types import SimpleNamespace
from typing import Any

from reusekit.graph.operation_rules import Shapes, size_of


def attention_scores(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    """Attention without weights: scores, softmax, and the weighted sum."""
    query, value = inputs[0], inputs[1] if len(inputs) > 1 else inputs[0]
    scores = query[-2] * value[-2]
    return 2 * scores * (query[-1] + value[-1]) + 5 * scores


def multi_head_attention(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    """Count the four projections, the scores, softmax, and the weighted sum."""
    query = inputs[0]
    value = inputs[1] if len(inputs) > 1 and len(inputs[1]) == len(query) else query
    reads, looks_at = math.prod(query[:-1]), math.prod(value[:-1])
    heads, key = layer.num_heads, layer.key_dim
    value_size = getattr(layer, "value_dim", None) or key
    key_heads = getattr(layer, "num_key_value_heads", heads)
    project = reads * query[-1] * heads * key
    project += looks_at * value[-1] * key_heads * (key + value_size)
    project += reads * heads * value_size * outputs[0][-1]
    attend = heads * reads * looks_at * (key + value_size)
    softmax = 5 * heads * reads * looks_at
    return 2 * (project + attend) + softmax


def grouped_query_attention(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    """Count as `multi_head_attention` does, with fewer heads of keys and values."""
    sizes = SimpleNamespace(
        num_heads=layer.num_query_heads,
        num_key_value_heads=layer.num_key_value_heads,
        key_dim=layer.head_dim,
    )
    return multi_head_attention(sizes, inputs, outputs)


def recurrent(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    """Count one step of the cell for each step of the sequence."""
    return inputs[0][0] * _step(layer.cell)


def _step(cell: Any) -> float:
    """Count one step of a recurrent cell: every kernel once, and the gates' own arithmetic."""
    matrices = [weight for weight in cell.weights if len(weight.shape) >= 2]
    units = getattr(cell, "units", None) or 0
    return sum(2 * math.prod(weight.shape) for weight in matrices) + 10 * units


def convolutional_recurrent(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    """Count the cell's kernels at each place of each step."""
    frame = inputs[0][1:]
    spatial = frame[1:] if layer.data_format == "channels_first" else frame[:-1]
    kernels = sum(math.prod(w.shape) for w in layer.cell.weights if len(w.shape) > 2)
    return 2 * inputs[0][0] * kernels * math.prod(spatial)


def reversible_embedding(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    """Looking up is free; multiplying back by the table is not."""
    looks_up = len(inputs[0]) < len(outputs[0])
    return 0 if looks_up else 2 * inputs[0][-1] * size_of(outputs)
