"""A model built again, nested models included, with other layers in the place of some or all."""

from collections.abc import Mapping
from typing import Any

import keras

from reusekit.graph import Graph, Tensor, keras_internals, read
from reusekit.graph.variables import Variables
from reusekit.surgery.assembling import assemble, placeholder
from reusekit.surgery.names import Names
from reusekit.surgery.rebuild import Rebuild, surface


class Builder:
    """Builds a model again out of copies of its layers, nested models first.

    Args:
        copies: From the id of each layer and operation to what takes its place. A nested model that
            is not in it is built again of what takes the place of its own layers.
        shared: Whether to make new calls of the same layers instead.
        shapes: Other shapes for inputs, batch included, by the id of the Keras tensor.
    """

    def __init__(
        self,
        copies: dict[int, Any],
        shared: bool = False,
        shapes: Mapping[int, tuple[int | None, ...]] | None = None,
    ):
        self._copies = copies
        self._shared = shared
        self._shapes = shapes or {}
        self._variables: Variables | None = None
        self._graphs: list[Graph] = []  # kept, as copies are known by the ids of their sources

    def build(self, model: keras.Model) -> keras.Model:
        """Return the model again, a Sequential for a Sequential."""
        self._variables = self._variables or Variables(model)
        if isinstance(model, keras.Sequential):
            return self._sequential(model)
        graph = read(model)
        steps = surface(graph)
        engine = Rebuild(copies=None if self._shared else self._copies, variables=self._variables)
        for step in steps:
            if not self._shared:
                self._of(step.operation)
            engine.names.claim(step.operation)
        engine.values.update((t, self._input(t, engine.names)) for t in graph.inputs)
        engine.run(graph, steps)
        if not self._shared:
            # What else holds a tensor of the model, or one of its inputs, is to find it.
            self._graphs.append(graph)
            for tensor, value in engine.values.items():
                self._copies.setdefault(id(tensor.source), value)
            for tensor in graph.inputs:
                self._note_input(tensor, engine.values[tensor])
        return assembled(graph, engine)

    def _input(self, tensor: Tensor, names: Names) -> keras.KerasTensor:
        return placeholder(tensor, names, self._shapes.get(id(tensor.source)))

    def _note_input(self, tensor: Tensor, value: keras.KerasTensor) -> None:
        old, new = (keras_internals.producer(each) for each in (tensor.source, value))
        self._copies.setdefault(id(old.operation), new.operation)
        new.operation.trainable = old.operation.trainable

    def _sequential(self, model: keras.Sequential) -> keras.Sequential:
        inputs = keras_internals.functional(model).inputs[0]
        name = keras_internals.producer(inputs).operation.name
        tensor = Tensor(name, inputs)
        start = self._input(tensor, Names())
        if not self._shared:
            self._note_input(tensor, start)
        layers = [layer if self._shared else self._of(layer) for layer in model.layers]
        # Set at once, the flag is the model's own; set later, it would be handed to its layers.
        return keras.Sequential([start, *layers], trainable=model.trainable, name=model.name)

    def _of(self, operation: Any) -> Any:
        """Return the copy of an operation; that of a nested model is built when it is first met."""
        if id(operation) not in self._copies:
            self._copies[id(operation)] = self.build(operation)
        return self._copies[id(operation)]


def assembled(graph: Graph, engine: Rebuild) -> keras.Model:
    """Return an engine's calls as a model of the graph's structure and flags."""
    inputs = keras.tree.map_structure(engine.values.get, graph.input_structure)
    outputs = engine.outputs(graph)
    model = assemble(inputs, outputs, graph.model.name, len(graph.calls), graph.model.trainable)
    model.supports_masking = graph.model.supports_masking
    return model


def is_rebuilt(operation: Any) -> bool:
    """Return whether a model is built again from its parts, rather than copied as one layer."""
    return keras_internals.is_plain_functional(operation) or (
        type(operation) is keras.Sequential and keras_internals.functional(operation) is not None
    )


def leaves(model: keras.Model) -> list[Any]:
    """Return every layer and operation that is copied as it is: what nested models are made of."""
    found: dict[int, Any] = {}
    waiting = [model]
    seen = {id(model)}
    while waiting:
        whole = waiting.pop()
        parts = [step.operation for step in surface(read(whole))]
        if isinstance(whole, keras.Sequential):
            parts = whole.layers
        for part in parts:
            if not is_rebuilt(part):
                found[id(part)] = part
            elif id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)
    return list(found.values())
