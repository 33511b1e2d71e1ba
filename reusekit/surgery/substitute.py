"""A model with some of its layers exchanged, nested ones included."""

from collections.abc import Mapping

import keras

from reusekit.graph import read
from reusekit.surgery.building import Builder, is_rebuilt, leaves
from reusekit.surgery.rebuild import surface


def substitute(model: keras.Model, exchanged: Mapping[keras.Layer, keras.Layer]) -> keras.Model:
    """Exchange layers at all of their calls and keep nested models nested.

    Everything else is shared with the model, which is not changed.

    Args:
        model: A model with a functional graph.
        exchanged: From a layer to one that takes the same arguments and gives the same shapes.

    Returns:
        The new model.

    Raises:
        ShapeError: A layer cannot take what it would be fed.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> relu = keras.layers.ReLU(name="relu")
        >>> model = keras.Model(x, relu(x), name="m")
        >>> [layer.name for layer in substitute(model, {relu: keras.layers.ELU(name="elu")}).layers]
        ['x', 'elu']
    """
    new = {id(old): layer for old, layer in exchanged.items()}
    kept = {id(layer): layer for layer in [*leaves(model), *_untouched(model, set(new))]}
    return Builder(kept | new).build(model)


def _untouched(model: keras.Model, exchanged: set[int]) -> list[keras.Model]:
    """Return the nested models in which nothing is exchanged."""
    found = []
    for layer in {id(step.operation): step.operation for step in surface(read(model))}.values():
        if is_rebuilt(layer):
            if exchanged.isdisjoint(map(id, leaves(layer))):
                found.append(layer)
            else:
                found.extend(_untouched(layer, exchanged))
    return found
