"""Layer-wise learning rates: the nearer to the input, the smaller the rate."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated, Any

import keras
from pydantic import Field

from reusekit.arguments import checked
from reusekit.errors import TrainingError, nearest
from reusekit.graph import Call, Graph, Tensor, cut_points, read, resolve
from reusekit.graph.addresses import At
from reusekit.training.freezing import could_be_trained
from reusekit.training.optimizer import LayerwiseOptimizer


@checked(TrainingError)
def layerwise_optimizer(
    model: keras.Model | Graph,
    optimizer: keras.optimizers.Optimizer | str,
    decay: Annotated[float, Field(gt=0, le=1)] = 0.8,
    blocks: At = None,
) -> "LayerwiseOptimizer":
    """Return an optimizer whose rate shrinks by `decay` for each block nearer the input.

    The last block is trained at the optimizer's own rate, the one before at `decay` times that, and
    so on. Blocks are parted by the clean cuts of the model (`cut_points`), so that a residual or
    transformer block is one, and a layer of a plain chain is one; a stretch with nothing but scales
    and biases (a normalisation) belongs to the block before it. A weight that is used in several
    blocks has the rate of the first. Every weight that can be trained gets one rate, by its
    identity, whether it is frozen now or not.

    Each step is that of the optimizer itself with another learning rate for each variable: weight
    decay is scaled along, as with parameter groups elsewhere, and gradients are clipped before, all
    together. Schedules, callbacks that set the rate, mixed precision and compiled steps work as
    without. A saved model brings back the rates of what is trainable when it is saved, where
    reusekit is imported. (One that was compiled under the policy "mixed_float16" is to be loaded
    under it: Keras looks there whether to scale the loss, and passes over the state of an optimizer
    that it wraps otherwise than before, its own ones too.)

    The idea is that of ULMFiT (Howard and Ruder, 2018, https://arxiv.org/abs/1801.06146) and BEiT.

    Args:
        model: A model with a functional graph.
        optimizer: A Keras optimizer, not used before, or the name of one. It becomes part of the
            result.
        decay: The factor from block to block, above 0 and up to 1.
        blocks: Where a block ends, as addresses, in any order: each layer belongs to the first
            block whose end it leads to. None takes the clean cuts.

    Returns:
        The optimizer. Its `rates` print as a table.

    Raises:
        AddressError: `blocks` names no tensor of the model.
        TrainingError: The decay is out of range, the optimizer is none, used, wrapped or of a kind
            that has no learning rate of its own, a trainable weight belongs to no layer of the
            graph, or no cut parts the model into blocks.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> y = keras.layers.Dense(3, name="a")(x)
        >>> y = keras.layers.BatchNormalization(name="norm")(y)
        >>> model = keras.Model(x, keras.layers.Dense(1, name="head")(y), name="m")
        >>> optimizer = layerwise_optimizer(model, keras.optimizers.SGD(0.125), decay=0.5)
        >>> print(optimizer.rates)
        address        path  depth  multiplier   rate
              a    a/kernel      1         0.5 0.0625
              a      a/bias      1         0.5 0.0625
           norm  norm/gamma      1         0.5 0.0625
           norm   norm/beta      1         0.5 0.0625
           head head/kernel      0         1.0 0.1250
           head   head/bias      0         1.0 0.1250
        >>> model.compile(optimizer, "mse")
    """
    graph = read(model)
    inner = _optimizer(optimizer)
    depths = _depths(graph, blocks)
    loose = [v.path for v in graph.model.trainable_variables if id(v) not in depths]
    if loose:
        raise TrainingError(
            f"Expected every trainable weight of {graph.model.name!r} to belong to a layer of its "
            f"graph. Received: {loose[0]!r}, which does not."
        )
    variables = could_be_trained(graph)
    shares = [
        {"address": address, "depth": depth, "multiplier": float(decay**depth)}
        for address, depth in (depths[id(variable)] for variable in variables)
    ]
    return LayerwiseOptimizer(inner, shares, variables)


def _optimizer(identifier: Any) -> keras.optimizers.Optimizer:
    """Return Keras's optimizer of an identifier."""
    try:
        optimizer = keras.optimizers.get(identifier)
    except Exception:  # whatever Keras raises at a configuration that is none
        optimizer = None
    if optimizer is None:
        kinds = [name for name, kind in vars(keras.optimizers).items() if isinstance(kind, type)]
        raise TrainingError(
            f"Expected a Keras optimizer or the name of one. Received: {identifier!r}. "
            f"{nearest(str(identifier), kinds)}"
        )
    return optimizer


def _depths(graph: Graph, blocks: Any) -> dict[int, tuple[str, int]]:
    """Map the id of each weight to its layer's address and the blocks after it."""
    if blocks is None:
        ends = [graph.names[point.at] for point in cut_points(graph)]
    else:
        ends = sorted(resolve(graph, blocks), key=lambda tensor: graph.maker[tensor].index)
    numbers = _numbers(graph, ends)
    owners: dict[int, Call] = {}
    # Going up, so that the first call that uses a weight has the last word.
    upwards = sorted(graph.calls, key=lambda call: (numbers[call.index], call.index), reverse=True)
    for call in upwards:
        owners.update((id(variable), call) for variable in call.variables)
    # Scales and biases alone make no block, unless the caller says where blocks end.
    least = 2 if blocks is None else 0
    weighty = [owners[id(v)] for v in graph.model.weights if id(v) in owners and v.ndim >= least]
    counted = sorted({numbers[call.index] for call in weighty})
    if len(counted) < 2 and len({id(call.operation) for call in weighty}) > 1:
        raise TrainingError(
            f"Expected cuts that part the weights of {graph.model.name!r} into blocks. Received: "
            f"{'no clean cut that does' if blocks is None else repr(blocks)}. Pass blocks=[...], "
            "the addresses at which blocks end."
        )
    # Calls before the first block that counts belong to it.
    block = [max(1, bisect_right(counted, number)) for number in numbers]
    last = max(block)
    return {key: (call.address, last - block[call.index]) for key, call in owners.items()}


def _numbers(graph: Graph, ends: Sequence[Tensor]) -> list[int]:
    """Return the block number of each call: the first that ends behind it."""
    numbers: dict[int, int] = {}
    for number, end in enumerate(ends):
        waiting = [end]
        while waiting:
            call = graph.maker[waiting.pop()]
            if call.index not in numbers:
                numbers[call.index] = number
                waiting.extend(call.reads)
    return [numbers.get(call.index, len(ends)) for call in graph.calls]
