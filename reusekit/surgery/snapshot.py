"""A snapshot of a model's flags and weights, to find changes."""

from dataclasses import dataclass

import keras

from reusekit.graph import keras_internals


@dataclass(frozen=True)
class Snapshot:
    """A model's weights by identity and its flags, as they were at one moment.

    Attributes:
        weights: The ids of its weights, in order.
        trainable: The trainable flag of each of its weights.
        flags: The name and trainable flag of each layer, nested ones included.
    """

    weights: tuple[int, ...]
    trainable: tuple[bool, ...]
    flags: tuple[tuple[str, bool], ...]

    @classmethod
    def of(cls, model: keras.Model) -> "Snapshot":
        """Return the model as it is now."""
        layers = keras_internals.all_layers(model)
        # As `model.weights` has them, which takes severalfold the time: it asks each layer in turn
        # for all that is inside it.
        weights = {
            id(variable): variable.trainable
            for layer in layers
            for variable in keras_internals.own_variables(layer)
        }
        flags = [(layer.name, layer.trainable) for layer in layers]
        return cls(tuple(weights), tuple(weights.values()), tuple(flags))

    def changes(self, model: keras.Model) -> list[str]:
        """Describe what has changed about the model; empty if nothing has."""
        now = Snapshot.of(model)
        changed = []
        if now.weights != self.weights:
            changed.append("its list of weights")
        if now.trainable != self.trainable:
            changed.append("the trainable flags of its weights")
        if now.flags != self.flags:
            changed.append("the layers or their trainable flags")
        return changed
