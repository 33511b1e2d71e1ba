"""The FLOPs of `keras.ops` operations, by the name of their class.

The classes are not public, so that a name is all there is to go by. Operations that move, compare
or reshape count as zero.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

Shapes = Sequence[tuple[int, ...]]
Rule = Callable[[Any, Shapes, Shapes], float]


def size_of(shapes: Shapes) -> int:
    """Return the elements of several tensors together."""
    return sum(math.prod(shape) for shape in shapes)


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
    """Twice the product of all the letters of the equation, the batch's left out."""
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
