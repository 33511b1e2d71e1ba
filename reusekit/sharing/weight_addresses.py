"""The weight of a model that an address means."""

from dataclasses import dataclass
from typing import Any

import keras

from reusekit.errors import TieError, nearest
from reusekit.graph import Graph, keras_internals
from reusekit.graph.addresses import without_call_number
from reusekit.sharing import tied_source
from reusekit.sharing.tied_dense import TiedDense


@dataclass(frozen=True)
class Weight:
    """One weight of one layer.

    Attributes:
        address: The address of the layer and the name of the weight, `outer/layer/kernel`.
        layer: The layer; that which a `TiedDense` is tied to, where the weight is of that one.
        variable: The weight.
    """

    address: str
    layer: keras.Layer
    variable: keras.Variable

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape; a convolution's of size 1 without the axes of the image."""
        shape = tuple(self.variable.shape)
        return shape[-2:] if set(shape[:-2]) == {1} else shape

    @property
    def is_matrix(self) -> bool:
        """Return whether it is what the layer multiplies with."""
        return self.variable is tied_source.matrix(self.layer)


def find_weight(graph: Graph, at: Any) -> Weight:
    """Find a weight by the layer's address and its name, or as a variable.

    Args:
        graph: A model that was read.
        at: `layer/weight`, just `layer` for its kernel, its embeddings or its only weight, or a
            variable.

    Raises:
        TieError: There is no such weight, or several are meant.
    """
    found = _weights(graph)
    if isinstance(at, keras.Variable):
        for weight in found.values():
            if weight.variable is at:
                return weight
        raise TieError(f"Expected a weight of model {graph.model.name!r}, received {at!r}.")
    if at in found:
        return found[at]
    of_layer = [weight for name, weight in found.items() if name.rpartition("/")[0] == at]
    meant = [weight for weight in of_layer if weight.is_matrix] or of_layer
    if len(meant) == 1:
        return meant[0]
    choices = [weight.address for weight in meant] or found
    raise TieError(
        f"Expected the address of a weight of model {graph.model.name!r}, received {at!r}. "
        f"{nearest(str(at), choices)}"
    )


def _weights(graph: Graph) -> dict[str, Weight]:
    found: dict[str, Weight] = {}
    for call in graph.calls:
        layer = without_call_number(call.address)
        for variable in call.variables:
            address = f"{layer}/{variable.name}"
            found.setdefault(address, Weight(address, _owner(call.operation, variable), variable))
    return found


def _owner(layer: keras.Layer, variable: keras.Variable) -> keras.Layer:
    if not isinstance(layer, TiedDense):
        return layer
    own = {id(each) for each in keras_internals.own_variables(layer)}
    return layer if id(variable) in own else layer.source
