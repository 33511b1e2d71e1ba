"""Cutting a model into a chain of several."""

from collections.abc import Sequence

import keras

from reusekit.arguments import checked
from reusekit.errors import AddressError, SurgeryError
from reusekit.graph import Graph, cut, read, resolve
from reusekit.graph.addresses import At
from reusekit.surgery.split import build_stages
from reusekit.surgery.stages import stages


@checked(SurgeryError)
def segment(model: keras.Model | Graph, at: At) -> list[keras.Model]:
    """Cut a model at several places into a chain that gives its outputs.

    What an early segment makes and a late one reads is handed through by those between. All share
    the model's weights and are plain functional models, as in `split`.

    Args:
        model: A model with a functional graph, or one that was read already.
        at: Cuts from shallow to deep, each whatever `split` takes.

    Returns:
        One model more than there are cuts. Feeding the inputs through them in order gives what the
        model gives.

    Raises:
        AddressError: There are no cuts, or one names no tensor of the model.
        CutOrderError: The cuts are not in order, or one does not depend on the one before it.
        NoGraphError: The model has no functional graph.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> y = keras.layers.Dense(3, name="a")(x)
        >>> y = keras.layers.Dense(2, name="b")(y)
        >>> model = keras.Model(x, keras.layers.Dense(1, name="c")(y), name="m")
        >>> [(part.name, part.output_shape) for part in segment(model, ["a", "b"])]
        [('m_0', (None, 3)), ('m_1', (None, 2)), ('m_2', (None, 1))]
    """
    graph = read(model)
    if isinstance(at, str) or not isinstance(at, Sequence) or not at:
        raise AddressError(f"Expected a list of at least one cut, received {at!r}.")
    cuts = [cut(graph, resolve(graph, one)) for one in at]
    parts = stages(graph, cuts)
    return build_stages(graph, parts, tuple(str(number) for number in range(len(parts))))
