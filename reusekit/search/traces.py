"""Traces of training and evaluation steps, each made once for models of one structure."""

import json
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import keras
import tensorflow as tf

from reusekit.graph.keras_internals import all_layers, stored_value, untold


class _Alone(tf.distribute.ReplicaContext):
    """The one replica that a step runs on, so that no gradients are summed over several.

    For that sum TensorFlow registers a gradient of its own, and with it keeps the graph of every
    step that was ever compiled.
    """

    def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:
        """Return the value itself."""
        return value


class Trace:
    """The step of one model as a graph, which runs on the variables of any model like it.

    It holds Keras's own step, so that each model computes what it would compute alone.

    Args:
        model: A compiled model whose variables are all made.
        name: The step: "train_step" or "test_step".
        spec: The specifications of inputs, labels and perhaps weights.

    Attributes:
        shared: Whether the step reads nothing but its arguments and the variables, so that it holds
            for other models.
    """

    def __init__(self, model: keras.Model, name: str, spec: tuple[Any, ...]) -> None:
        def step(*batch: Any) -> None:
            with _Alone(tf.distribute.get_strategy(), 0):
                getattr(model, name)(batch)

        traced = tf.function(step, input_signature=spec, autograph=False)
        self._graph = traced.get_concrete_function()
        places = {id(handle): n for n, handle in enumerate(_handles(model))}
        self._captures = self._graph.captured_inputs
        self._places = [places.get(id(handle)) for handle in self._captures]
        self.shared = None not in self._places

    def call_of(self, model: keras.Model) -> Callable[..., tf.Tensor]:
        """Return the step of a model, which is the one that was traced or, if shared, like it."""
        if self.shared:
            handles = _handles(model)
            captures = [handles[place] for place in self._places if place is not None]
        else:
            captures = self._captures

        def call(*batch: Any) -> tf.Tensor:
            args = [*tf.nest.flatten(batch, expand_composites=True), *captures]
            tf.raw_ops.StatefulPartitionedCall(args=args, Tout=[], f=self._graph)
            return tf.constant(True)

        return call


def structure(model: keras.Model) -> str | None:
    """Return a text that is the same for models whose steps differ by values of variables alone.

    None where a model has parts of other packages than Keras, since a configuration may not tell
    everything of them, or another optimizer than it was compiled with.
    """
    if type(model).__module__.split(".")[0] != "keras":
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # of lambdas, which are never loaded here
            parts = {"model": model.get_config(), "compiled": model.get_compile_config()}
            used = keras.saving.serialize_keras_object(model.optimizer)
            scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        others = used != parts["compiled"]["optimizer"] and not scaled  # by Keras, while compiling
        if others or not _of_keras(parts) or any(map(_has_function, all_layers(model))):
            return None
        optimizer = parts["compiled"]["optimizer"]["config"]
        optimizer.pop("name", None)
        if isinstance(optimizer.get("learning_rate"), float):  # else a schedule
            del optimizer["learning_rate"]  # which is a variable
        variables = [[*v.shape, v.dtype, v.trainable] for v in _variables(model)]
        return json.dumps([parts, variables, untold(model)])
    except (KeyError, NotImplementedError, TypeError, ValueError):  # no plain data
        return None


def _of_keras(node: Any) -> bool:
    """Return whether all objects that a configuration names are Keras's own."""
    if isinstance(node, dict):
        kind, module = node.get("class_name"), node.get("module")
        if node.get("registered_name") is not None or (module is None and kind == "__lambda__"):
            return False
        if kind is not None and module is not None and module.split(".")[0] != "keras":
            return False
        return all(map(_of_keras, node.values()))
    return all(map(_of_keras, node)) if isinstance(node, list | tuple) else True


def _has_function(layer: keras.Layer) -> bool:
    """Return whether a layer holds a function that is not Keras's, of which a name may be all."""
    functions = (one for one in vars(layer).values() if isinstance(one, FunctionType))
    return any(one.__module__.split(".")[0] != "keras" for one in functions)


def _variables(model: keras.Model) -> list[keras.Variable]:
    return [*model.variables, *model.metrics_variables, *model.optimizer.variables]


def _handles(model: keras.Model) -> list[tf.Tensor]:
    return [stored_value(variable).handle for variable in _variables(model)]
