"""The FLOPs of layers: one rule for each family.

A rule takes the layer and the shapes of its inputs and outputs, without the batch dimension, and
returns multiply-adds times two plus one for each other arithmetic operation on an element.
"""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import keras

from reusekit.graph import keras_internals

Shapes = Sequence[tuple[int, ...]]
Rule = Callable[[Any, Shapes, Shapes], float]


def size_of(shapes: Shapes) -> int:
    """Return the elements of several tensors together."""
    return sum(math.prod(shape) for shape in shapes)


layers = keras.layers


def rule_for(operation: Any) -> Rule | None:
    """Return the rule for a layer or operation, or None where none is known."""
    if isinstance(operation, keras.Layer):
        if isinstance(operation, layers.Wrapper) and rule_for(operation.layer) is None:
            return None
        for family, rule in _LAYERS:
            if isinstance(operation, family):
                return rule
        return _ELSEWHERE.get(type(operation).__name__)
    return BY_NAME.get(type(operation).__name__)


# --- operations of `keras.ops` ------------------------------------------------------------------
#
# Their classes are not public, so that a name is all there is to go by. Those that move, compare or
# reshape count as zero.


def _one_per_output(operation: Any, inputs: Shapes, outputs: Shapes) -> float:
    return size_of(outputs)


def _five_per_output(operation: Any, inputs: Shapes, outputs: Shapes) -> float:
    return 5 * size_of(outputs)


def _one_per_input(operation: Any, inputs: Shapes, outputs: Shapes) -> float:
    return size_of(inputs)


def _none(operation: Any, inputs: Shapes, outputs: Shapes) -> float:
    return 0


def _matmul(operation: Any, inputs: Shapes, outputs: Shapes) -> float:
    return 2 * inputs[0][-1] * size_of(outputs)


def _einsum(operation: Any, inputs: Shapes, outputs: Shapes) -> float:
    """Return twice the product of all the letters of the equation, the batch's left out."""
    terms = operation.subscripts.replace(" ", "").replace("...", "").split("->")[0].split(",")
    sizes = {}
    for term, shape in zip(terms, inputs, strict=False):
        # Shapes lack the batch dimension and letters may lack what `...` stands for.
        for letter, size in zip(reversed(term), reversed(shape), strict=False):
            sizes[letter] = size
    return 2 * math.prod(sizes.values())


def _attention(operation: Any, inputs: Shapes, outputs: Shapes) -> float:
    query, key = inputs[0], inputs[1] if len(inputs) > 1 else inputs[0]
    scores = query[-2] * query[-3] * key[-3]
    return 4 * scores * query[-1] + 5 * scores


def _named(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


BY_NAME: dict[str, Rule] = {
    **_named(
        """
        Absolute Add Subtract Multiply Divide TrueDivide FloorDivide Mod Negative Power Square Sqrt
        Rsqrt Exp Expm1 Log Log1p Log2 Log10 Sin Cos Tan Tanh Sinh Cosh Arctan Reciprocal Sign
        Floor Ceil Round Clip Maximum Minimum Where Relu Relu6 Sigmoid HardSigmoid Softplus
        Softsign Silu HardSilu Gelu Elu Selu Celu LeakyRelu LogSigmoid Mish Erf Erfinv Hypot
        """,
        _one_per_output,
    ),
    **_named("Softmax LogSoftmax Sparsemax Normalize LayerNorm RMSNorm", _five_per_output),
    **_named(
        "Sum Mean Prod Max Min Amax Amin Any All Var Std Logsumexp Norm Cumsum Cumprod Average",
        _one_per_input,
    ),
    **_named(
        """
        Cast Reshape Transpose ExpandDims Squeeze Concatenate Stack Split Tile Repeat Flip Roll
        BroadcastTo Pad Take TakeAlongAxis GetItem Slice SliceUpdate Scatter ScatterUpdate Shape
        OnesLike ZerosLike FullLike Arange Identity Copy Equal NotEqual Greater GreaterEqual Less
        LessEqual LogicalAnd LogicalOr LogicalNot LogicalXor Isnan Isfinite Isinf OneHot Argmax
        Argmin Argsort Sort TopK Nonzero CountNonzero Ravel Moveaxis Swapaxes StopGradient
        Diagonal Tril Triu Meshgrid Unstack Vstack Hstack Searchsorted DepthToSpace SpaceToDepth
        Flatten HandedOn
        """,
        _none,
    ),
    "Matmul": _matmul,
    "Dot": _matmul,
    "Einsum": _einsum,
    "DotProductAttention": _attention,
}


# --- layers over sequences ----------------------------------------------------------------------


def attention_scores(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    """Count attention without weights: scores, softmax, and the weighted sum."""
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
    """Count the cell's kernels at each position of each step."""
    frame = inputs[0][1:]
    spatial = frame[1:] if layer.data_format == "channels_first" else frame[:-1]
    kernels = sum(math.prod(w.shape) for w in layer.cell.weights if len(w.shape) > 2)
    return 2 * inputs[0][0] * kernels * math.prod(spatial)


def reversible_embedding(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    """Count the product with the table; looking up is free."""
    looks_up = len(inputs[0]) < len(outputs[0])
    return 0 if looks_up else 2 * inputs[0][-1] * size_of(outputs)


# --- other layers -------------------------------------------------------------------------------


def _nothing(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    return 0


def _per_output(cost: float) -> Rule:
    return lambda layer, inputs, outputs: cost * size_of(outputs)


def _per_input(cost: float) -> Rule:
    return lambda layer, inputs, outputs: cost * size_of(inputs)


def _activation(layer: Any, outputs: Shapes) -> int:
    """Count one for each element, where the layer ends in an activation that is not linear."""
    activation = getattr(layer, "activation", None)
    return 0 if activation in (None, keras.activations.linear) else size_of(outputs)


def _bias(layer: Any, outputs: Shapes) -> int:
    return size_of(outputs) if getattr(layer, "use_bias", False) else 0


def _channels(layer: Any, shape: tuple[int, ...]) -> int:
    return shape[0] if getattr(layer, "data_format", None) == "channels_first" else shape[-1]


def _conv(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    taps = math.prod(layer.kernel_size) * _channels(layer, inputs[0]) / layer.groups
    products = 2 * taps * size_of(outputs)
    return products + _bias(layer, outputs) + _activation(layer, outputs)


def _conv_transpose(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    products = 2 * math.prod(layer.kernel_size) * size_of(inputs) * layer.filters
    return products + _bias(layer, outputs) + _activation(layer, outputs)


def _depthwise(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    products = 2 * math.prod(layer.kernel_size) * size_of(outputs)
    return products + _bias(layer, outputs) + _activation(layer, outputs)


def _separable(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    positions = size_of(outputs) / _channels(layer, outputs[0])
    deep = _channels(layer, inputs[0]) * layer.depth_multiplier
    products = 2 * positions * deep * (math.prod(layer.kernel_size) + layer.filters)
    return products + _bias(layer, outputs) + _activation(layer, outputs)


def _dense(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    products = 2 * inputs[0][-1] * size_of(outputs)
    return products + _bias(layer, outputs) + _activation(layer, outputs)


def _einsum_dense(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    terms, result = layer.equation.replace(" ", "").split("->")
    kernel = terms.split(",")[1]
    contracted = [
        size
        for letter, size in zip(kernel, layer.kernel.shape, strict=True)
        if letter not in result
    ]
    products = 2 * math.prod(contracted) * size_of(outputs)
    bias = size_of(outputs) if layer.bias_axes else 0
    return products + bias + _activation(layer, outputs)


def _normalization(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    # In inference a batch normalization is one multiply-add; the others first take their moments.
    moments = not isinstance(layer, layers.BatchNormalization | layers.Normalization)
    return (7 if moments else 2) * size_of(outputs)


def _pool(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    window = layer.pool_size
    taps = math.prod(window) if isinstance(window, tuple | list) else window
    return taps * size_of(outputs)


def _merge(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    return max(len(inputs) - 1, 1) * size_of(outputs)


def _dot(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    axes = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    axis = axes - 1 if axes > 0 else axes
    return 2 * inputs[0][axis] * size_of(outputs)


def _inner(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    """Return the FLOPs of a wrapped layer; a wrapper has no rule where its layer has none."""
    rule = rule_for(layer)
    assert rule is not None
    return rule(layer, inputs, outputs)


def _bidirectional(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    return 2 * _inner(layer.forward_layer, inputs, outputs)


def _time_distributed(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    steps = inputs[0][0]
    return steps * _inner(layer.layer, [inputs[0][1:]], [outputs[0][1:]])


def _wrapped(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    return _inner(layer.layer, inputs, outputs)


def _decoder_block(layer: Any, inputs: Shapes, outputs: Shapes) -> float:
    """Return the FLOPs of the block's parts, and of the sum past each sublayer.

    The block's own code does not run on symbolic tensors, as that of an encoder block does.
    """
    sequence = inputs[0]
    flops: float = size_of([sequence])
    wide = [sequence]
    attended = [sequence, *inputs[1:2]]
    for part in keras_internals.direct_layers(layer):
        if isinstance(part, layers.MultiHeadAttention):
            # The first attention looks at the sequence itself, a second one at the encoder's.
            flops += multi_head_attention(part, [sequence, attended.pop(0)], [sequence])
            flops += size_of([sequence])
        elif isinstance(part, layers.Dense):
            read, wide = wide, [(*sequence[:-1], part.units)]
            flops += _dense(part, read, wide)
        elif isinstance(part, layers.LayerNormalization):
            flops += _normalization(part, [sequence], [sequence])
    return flops


_MOVES = (
    layers.InputLayer,
    layers.Embedding,
    layers.Flatten,
    layers.Reshape,
    layers.Permute,
    layers.RepeatVector,
    layers.Concatenate,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.UpSampling1D,
    layers.UpSampling3D,
    layers.Identity,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.AlphaDropout,
    layers.Masking,
    layers.RandomFlip,
    layers.RandomCrop,
    layers.CenterCrop,
    layers.ActivityRegularization,
)

# The first family that fits decides, so that a subclass stands before what it derives from.
_LAYERS: list[tuple[Any, Rule]] = [
    (layers.ReversibleEmbedding, reversible_embedding),
    (_MOVES, _nothing),
    ((layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), _conv_transpose),
    ((layers.SeparableConv1D, layers.SeparableConv2D), _separable),
    ((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _depthwise),
    ((layers.Conv1D, layers.Conv2D, layers.Conv3D), _conv),
    (layers.Dense, _dense),
    (layers.EinsumDense, _einsum_dense),
    (
        (
            layers.BatchNormalization,
            layers.LayerNormalization,
            layers.GroupNormalization,
            layers.RMSNormalization,
            layers.UnitNormalization,
            layers.Normalization,
            layers.SpectralNormalization,
        ),
        _normalization,
    ),
    (
        (
            layers.MaxPooling1D,
            layers.MaxPooling2D,
            layers.MaxPooling3D,
            layers.AveragePooling1D,
            layers.AveragePooling2D,
            layers.AveragePooling3D,
        ),
        _pool,
    ),
    (
        (
            layers.GlobalMaxPooling1D,
            layers.GlobalMaxPooling2D,
            layers.GlobalMaxPooling3D,
            layers.GlobalAveragePooling1D,
            layers.GlobalAveragePooling2D,
            layers.GlobalAveragePooling3D,
        ),
        _per_input(1),
    ),
    (layers.Dot, _dot),
    (
        (
            layers.Add,
            layers.Subtract,
            layers.Multiply,
            layers.Average,
            layers.Maximum,
            layers.Minimum,
        ),
        _merge,
    ),
    (layers.MultiHeadAttention, multi_head_attention),
    (layers.GroupQueryAttention, grouped_query_attention),
    ((layers.Attention, layers.AdditiveAttention), attention_scores),
    (layers.Bidirectional, _bidirectional),
    (layers.TimeDistributed, _time_distributed),
    ((layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D), convolutional_recurrent),
    (layers.RNN, recurrent),
    (layers.Wrapper, _wrapped),
    (layers.Softmax, _per_output(5)),
    (layers.Rescaling, _per_output(2)),
    ((layers.Resizing, layers.UpSampling2D), _per_output(8)),
    (
        (
            layers.Activation,
            layers.ReLU,
            layers.LeakyReLU,
            layers.PReLU,
            layers.ELU,
        ),
        _per_output(1),
    ),
]


# Layers of `keras.applications` and KerasHub that Keras does not have, by the name of their class.
_ELSEWHERE: dict[str, Rule] = {
    "LayerScale": _per_output(1),
    "StochasticDepth": _per_output(1),
    "PositionEmbedding": _nothing,
    "TokenAndPositionEmbedding": _per_output(1),
    "TransformerDecoder": _decoder_block,
}
