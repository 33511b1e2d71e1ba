"""Every private attribute of Keras that reusekit reads, in one place.

A Keras release that moves one of them breaks this file and no other; `missing()` names what moved.
"""

import inspect
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
from keras.src.applications.convnext import StochasticDepth
from keras.src.backend import compute_output_spec
from keras.src.backend.common.global_state import get_global_attribute, set_global_attribute
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.layers.convolutional.base_conv import BaseConv
from keras.src.layers.convolutional.base_conv_transpose import BaseConvTranspose
from keras.src.layers.convolutional.base_depthwise_conv import BaseDepthwiseConv
from keras.src.layers.convolutional.base_separable_conv import BaseSeparableConv
from keras.src.layers.preprocessing.image_preprocessing.base_image_preprocessing_layer import (
    BaseImagePreprocessingLayer,
)
from keras.src.layers.rnn.dropout_rnn_cell import DropoutRNNCell
from keras.src.models.functional import Functional
from keras.src.models.model import Trainer
from keras.src.ops.core import Cast
from keras.src.ops.nn import DotProductAttention, LogSoftmax, Sigmoid, Softmax
from keras.src.ops.node import Node
from keras.src.ops.numpy import (
    Add,
    BroadcastTo,
    Divide,
    ExpandDims,
    Flip,
    GetItem,
    LogicalAnd,
    Minimum,
    Multiply,
    Repeat,
    Reshape,
    Squeeze,
    Stack,
    Subtract,
    Take,
    Tile,
    Transpose,
    TrueDivide,
)
from keras.src.random.seed_generator import global_seed_generator
from keras.src.saving.serialization_lib import ObjectSharingScope
from keras.src.utils.tracking import DotNotTrackScope, Tracker

from reusekit.errors import TieError


class Record(NamedTuple):
    """One recorded symbolic call, as Keras keeps it.

    Its key tells it apart from every other: the operation, and which of its calls this is.
    """

    key: tuple[int, int]
    operation: Any
    args: tuple
    kwargs: dict
    inputs: list
    outputs: list
    is_input: bool


def producer(tensor: keras.KerasTensor) -> Record:
    """Return the call that made a symbolic tensor."""
    operation, number, _ = tensor._keras_history
    node = operation._inbound_nodes[number]
    arguments = node.arguments
    return Record(
        (id(operation), number),
        operation,
        arguments.args,
        arguments.kwargs,
        arguments.keras_tensors,
        node.outputs,
        node.is_input,
    )


def producer_key(tensor: keras.KerasTensor) -> tuple[int, int]:
    """Return `producer(tensor).key` without building the record."""
    operation, number, _ = tensor._keras_history
    return id(operation), number


def has_history(tensor: keras.KerasTensor) -> bool:
    """Return whether the tensor was made by a recorded call."""
    history = getattr(tensor, "_keras_history", None)
    return history is not None and history.operation is not None


def dtype_when_run(tensor: keras.KerasTensor) -> str:
    """Return the dtype of a symbolic tensor's values.

    Keras records the words that a `StringLookup` gives back for numbers as int64.
    """
    history = getattr(tensor, "_keras_history", None)
    maker = history.operation if history is not None else None
    looked_up = isinstance(maker, keras.layers.StringLookup) and maker.invert
    return "string" if looked_up else tensor.dtype


@contextmanager
def keeping_makers(tensors: Iterable[keras.KerasTensor]) -> Iterator[None]:
    """Raise ValueError if a call inside records itself as what made one of its own inputs.

    Keras does so where a nested model that returns an input is called on other shapes than it was
    built for; the input then is part of a cycle.
    """
    before = [(tensor, tensor._keras_history) for tensor in tensors]
    yield
    taken = [(tensor, history) for tensor, history in before if tensor._keras_history != history]
    for tensor, history in taken:
        tensor._keras_history = history
    if taken:
        raise ValueError(
            "a nested model that returns one of its inputs takes only the shapes that it was built "
            "for. Use copies of the layers, as of weights='copy', or rk.flatten the model first."
        )


def is_optional(tensor: keras.KerasTensor) -> bool:
    """Return whether the tensor is a model input that may be left out."""
    return has_history(tensor) and getattr(tensor._keras_history.operation, "optional", False)


def functional(model: Any) -> Any:
    """Return the functional graph of a model (a Sequential keeps one inside), or None."""
    if isinstance(model, Functional):
        return model
    if isinstance(model, keras.Sequential):
        return model._functional
    return None


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """Return the model and every layer in it, nested ones included, each once."""
    return model._flatten_layers()


def direct_layers(layer: keras.Layer) -> list[keras.Layer]:
    """Return the layers that a layer holds itself."""
    return layer._flatten_layers(include_self=False, recursive=False)


def is_plain_functional(model: Any) -> bool:
    """Return whether the model is of Keras's own functional class and not of a subclass."""
    return type(model) is Functional


def sharing_scope() -> Any:
    """Return a context in which an object that is serialised twice comes back as one object."""
    return ObjectSharingScope()


def scoped_objects() -> dict[str, Any]:
    """Return the custom objects of the scope that the caller has opened around this call."""
    return get_global_attribute("custom_objects_scope_dict", {})


# Traces of symbolic and eager calls on a layer.
_OF_CALLS = {
    "_inbound_nodes": list,
    "_outbound_nodes": list,
    "_losses": list,
    "_losses_override": list,
    "_loss_ids": set,
}
# Attributes of a compiled and trained model, besides those that a trainer begins with.
_COMPILED_STEPS = {"train_function", "test_function", "predict_function"}
_OF_TRAINING = ("optimizer", "history", "loss", "_loss_tracker", "_compile")


def attributes(operation: Any) -> dict[str, Any]:
    """Return all that a layer holds, without its calls, compilation and training."""
    held = {n: _OF_CALLS[n]() if n in _OF_CALLS else part for n, part in vars(operation).items()}
    if isinstance(operation, Trainer):
        held = {n: part for n, part in held.items() if not n.startswith(_OF_TRAINING)}
        held |= dict.fromkeys(held.keys() & _COMPILED_STEPS)  # none is made yet
    return held


def graph_attributes(model: keras.Model, built: keras.Model) -> dict[str, Any]:
    """Return the attributes that give a model, functional or a Sequential, the graph of another."""
    graph = functional(built)
    if isinstance(model, keras.Sequential):
        return {"_functional": graph}
    names: tuple[str, ...] = ("_inputs_struct", "_outputs_struct", "_inputs", "_outputs")
    names += ("_nodes", "_nodes_by_depth", "_operations", "_operations_by_depth")
    return {name: vars(graph)[name] for name in names}


def only_graph(model: keras.Model) -> keras.Model:
    """Return a model that only runs the graph of another, or the model itself if it does."""
    return model if runs_its_graph(model) else _of_graph(model)


def plain(model: keras.Model) -> keras.Model:
    """Return a model of Keras's own class with a model's layers, or the model if it is one."""
    known = is_plain_functional(model) or isinstance(model, keras.Sequential)
    return model if known else _of_graph(model)


def _of_graph(model: keras.Model) -> keras.Model:
    graph = functional(model)
    inputs, outputs = input_structure(graph), output_structure(graph)
    return keras.Model(inputs, outputs, name=model.name, trainable=model.trainable)


def settle_copy(copy: Any) -> None:
    """Set right, in a copy of an object of Keras's, what depends on the identity of its parts."""
    if isinstance(copy, Trainer):
        with DotNotTrackScope():
            Trainer.__init__(copy)
    tracker = vars(copy).get("_tracker") if hasattr(copy, "__dict__") else None
    if isinstance(tracker, Tracker):
        tracker.stored_ids = {
            name: {id(part) for part in store} for name, (_, store) in tracker.config.items()
        }


def copy_variable(variable: keras.Variable, policy: Any = None) -> keras.Variable:
    """Make a variable of the same value, name, flags and settings.

    Args:
        variable: The variable.
        policy: The dtype policy that decides the dtype of a variable in floating point; None keeps
            its own.
    """
    dtype = variable._dtype
    if policy is not None and dtype in ("float16", "bfloat16", "float32", "float64"):
        dtype = policy.variable_dtype
    copy = type(variable)(
        # JAX would hand the very array over, and a training step gives its arrays away.
        keras.ops.copy(keras.ops.cast(variable._value, dtype)),
        dtype=dtype,
        # TensorFlow never differentiates by what was made untrainable, whatever its flag is later.
        trainable=getattr(variable._value, "trainable", variable.trainable),
        autocast=variable._autocast,
        aggregation=variable.aggregation,
        synchronization=variable.synchronization,
        name=variable.name,
        layout=variable._layout,
    )
    copy.trainable = variable.trainable
    copy._path = variable._path
    copy._regularizer, copy._constraint = variable._regularizer, variable._constraint
    copy._overwrite_with_gradient = variable._overwrite_with_gradient
    return copy


def is_backend_variable(value: Any) -> bool:
    """Return whether an object is a backend variable that no Keras variable wraps."""
    # First what takes no time: TensorFlow's own answer takes long for what is no tensor.
    return hasattr(type(value), "assign") and keras.ops.is_tensor(value)


def in_sharing_scope() -> bool:
    """Return whether objects are being loaded together, so that a shared one comes back as one."""
    return get_global_attribute("shared_objects/id_to_obj_map") is not None


def serialized_as_shared(layer: keras.Layer) -> dict:
    """Return a layer's configuration, marked so that all uses of the layer are loaded as one.

    Keras marks a layer as shared when it meets it for the second time, in the configuration that it
    made the first time. Where that was in a nested model or in another layer, a copy of it has been
    made by then, and that copy is what is saved: unmarked, it comes back as a layer of its own. So
    the copies are marked here, too.

    Raises:
        TieError: Another layer has the very same configuration, name included, and a copy may be
            of either.
    """
    config = keras.saving.serialize_keras_object(layer)
    met = get_global_attribute("shared_objects/id_to_config_map")
    if met is None:
        return config
    mark, parts = "shared_object_id", ("class_name", "registered_name", "config", "build_config")

    def is_equal(other: dict) -> bool:  # A model adds to its layers' configurations.
        return all(without(other.get(p), mark) == without(config.get(p), mark) for p in parts)

    config[mark] = id(layer)
    twins = [known for key, known in met.items() if key != id(layer) and is_equal(known)]
    copies = [
        part
        for known in met.values()
        for part in _dicts(known)
        if mark not in part and is_equal(part) and all(part is not twin for twin in twins)
    ]
    if copies and twins:
        raise TieError(
            f"Expected the tied layer {layer.name!r} to differ from all others in name or "
            "configuration, to be told apart when it is saved. Received: another one equal in both "
            "in a nested model. Make one of them with another name=."
        )
    for part in copies:
        part[mark] = id(layer)
    return config


def _dicts(structure: Any) -> Iterator[dict]:
    """Yield the dicts in a structure, however deep they are."""
    waiting = [structure]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list | tuple):
            waiting.extend(part)


def without(configuration: Any, left_out: str) -> Any:
    """Return a configuration without one key, however deep it is there."""
    if isinstance(configuration, dict):
        kept = {key: part for key, part in configuration.items() if key != left_out}
        return {key: without(part, left_out) for key, part in kept.items()}
    if type(configuration) in (list, tuple):
        return type(configuration)(without(part, left_out) for part in configuration)
    return configuration


def runs_its_graph(model: Any) -> bool:
    """Return whether calling the model only runs its graph, so that it may be inlined."""
    if functional(model) is None:
        return False
    plain = keras.Sequential if isinstance(model, keras.Sequential) else Functional
    kind = type(model)
    if "call" in vars(model) or kind.call is not plain.call:
        return False
    return kind.__call__ is plain.__call__ or _hands_over(model)


def _hands_over(model: keras.Model) -> bool:
    """Return whether a model's own `__call__` just calls the model on its arguments."""
    given = keras.tree.map_structure(
        lambda x: keras.KerasTensor(x.shape, x.dtype, sparse=x.sparse, ragged=x.ragged),
        input_structure(functional(model)),
    )
    with forgetting([model]):
        try:
            made = keras.tree.flatten(model(given))
            calls = {producer_key(output): producer(output) for output in made}
        except Exception:
            # Code that expects values may raise anything on symbols.
            return False
    return all(
        call.operation is model
        and list(map(id, call.inputs)) == list(map(id, keras.tree.flatten(given)))
        for call in calls.values()
    )


def input_structure(model: Functional) -> Any:
    """Return the model's inputs in the structure it was built with."""
    return model._inputs_struct


def output_structure(model: Functional) -> Any:
    """Return the model's outputs in the structure it was built with."""
    return model._outputs_struct


def mask_of(tensor: keras.KerasTensor) -> keras.KerasTensor | None:
    """Return the mask that Keras attached to a symbolic tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


def attach_mask(tensor: keras.KerasTensor, mask: keras.KerasTensor | None) -> None:
    """Attach a mask to a symbolic tensor, as a layer's call would."""
    set_keras_mask(tensor, mask)


def call_arguments(operation: Any) -> tuple[str, ...]:
    """Return the names of the arguments that the operation's `call` takes, in order."""
    return tuple(getattr(operation, "call_signature_parameters", ()))


def takes(operation: Any, context_argument: str) -> bool:
    """Return whether the operation takes an argument that an outer call hands down (`training`)."""
    return getattr(operation, "_call_has_context_arg", {}).get(context_argument, False)


def calls_of(operation: Any) -> int:
    """Return the number of symbolic calls the operation has recorded."""
    return len(operation._inbound_nodes)


def record(operation: Any, args: tuple, kwargs: dict, outputs: Iterable) -> None:
    """Record a symbolic call whose outputs are known already, without running the operation."""
    Node(operation=operation, call_args=args, call_kwargs=kwargs, outputs=list(outputs))


def forget_calls(model: keras.Model) -> None:
    """Drop the records of a model's calls from its layers, as if it had never been made.

    Neither it nor any other model that was made of its layers is to be used afterwards: the tensors
    of these are right, and a model of them is to be made anew.
    """
    graph = functional(model)
    gone = {id(node) for nodes in graph._nodes_by_depth.values() for node in nodes}
    for operation in graph.operations:
        for nodes in (operation._inbound_nodes, operation._outbound_nodes):
            nodes[:] = [node for node in nodes if id(node) not in gone]
        for number, node in enumerate(operation._inbound_nodes):
            for tensor in node.outputs:
                if tensor._keras_history.operation is operation:
                    tensor._keras_history = tensor._keras_history._replace(node_index=number)


@contextmanager
def forgetting(operations: Iterable[Any], only_after_an_error: bool = False) -> Iterator[None]:
    """Drop the records that Keras keeps of symbolic calls made inside.

    Args:
        operations: The operations that may be called or called upon.
        only_after_an_error: Whether to keep the records where all goes well.
    """
    marks = [(each, len(each._inbound_nodes), len(each._outbound_nodes)) for each in operations]
    failed = True
    try:
        yield
        failed = False
    finally:
        if failed or not only_after_an_error:
            for operation, made, read in marks:
                del operation._inbound_nodes[made:]
                del operation._outbound_nodes[read:]


@contextmanager
def naming_afresh(names: Iterable[str], again: bool = False) -> Iterator[None]:
    """Give what Keras names inside the same names each time, without effect outside.

    Args:
        names: Names that are not to be given.
        again: Whether they are to be given once more instead, in the order of their numbers.
    """
    numbers: dict[str, list[int]] = {}
    for name in names:
        stem, _, number = name.rpartition("_")
        numbered = bool(stem) and number.isdecimal()
        numbers.setdefault(stem if numbered else name, []).append(int(number) if numbered else 0)
    counts = defaultdict(int)
    for stem, used in numbers.items():
        following = min(used) if again else max(used) + 1
        if following:
            counts[stem] = following
    before = get_global_attribute("object_name_uids")
    set_global_attribute("object_name_uids", counts)
    try:
        yield
    finally:
        set_global_attribute("object_name_uids", before)


@contextmanager
def without_initialising() -> Iterator[None]:
    """Build layers inside without values for their weights; they are not to be used."""
    waiting = get_global_attribute("uninitialized_variables", [])
    set_global_attribute("uninitialized_variables", [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        set_global_attribute("uninitialized_variables", waiting)


def check_first_argument(layer: keras.Layer, argument: Any) -> None:
    """Raise ValueError where a built layer would refuse the shape of its first argument."""
    layer._assert_input_compatibility(argument)


def traced_outputs(operation: Any, args: tuple, kwargs: dict) -> Any:
    """Return the result of the operation's `call`, traced on symbolic tensors.

    Unlike a symbolic call, this records nothing, and finds out where shapes do not fit weights.
    """
    if isinstance(operation, keras.Layer):
        return compute_output_spec(operation.call, *args, **kwargs)
    return operation.compute_output_spec(*args, **kwargs)


def traced_mask_ranks(layer: keras.Layer, args: tuple, kwargs: dict) -> list[int]:
    """Return the rank of the mask that a layer's `call` sets on each output; 0 for none.

    Its `call` is traced on symbolic tensors, which records nothing.
    """
    ranks: list[int] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        outputs = layer.call(*args, **kwargs)
        masks = (get_keras_mask(output) for output in keras.tree.flatten(outputs))
        ranks[:] = [0 if mask is None else len(mask.shape) for mask in masks]
        return outputs

    compute_output_spec(call, *args, **kwargs)
    return ranks


def cast(dtype: str) -> Any:
    """Return the operation by which a nested model converts what it is fed to its input's dtype."""
    return Cast(dtype)


def stored_value(variable: keras.Variable) -> Any:
    """Return the backend's own variable: on TensorFlow and PyTorch, a mutable one."""
    return variable._value


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Return the variables that a layer holds itself, not in a layer inside it."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def take(tensor: keras.KerasTensor, indices: Any, axis: int, name: str) -> keras.KerasTensor:
    """Apply `keras.ops.take` under a name of its own, so that its address stays the same."""
    return Take(axis=axis, name=name)(tensor, indices)


_KEEPING_TRUTH = (
    BroadcastTo, Cast, ExpandDims, GetItem, LogicalAnd, Minimum, Multiply, Repeat, Reshape, Squeeze,
    Tile, Transpose,
)  # fmt: skip


def keeps_truth(operation: Any) -> bool:
    """Return whether what an operation makes of masks is nowhere true where one of them is not."""
    return isinstance(operation, _KEEPING_TRUTH)


def named(tensor: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Return a tensor made by `keras.ops`, its operation under a name of its own."""
    tensor._keras_history.operation.name = name
    return tensor


def state_variables(model: keras.Model) -> list[keras.Variable]:
    """Return the variables that an optimizer never changes, whatever `trainable` says."""
    return [v for layer in model._flatten_layers() for v in layer._non_trainable_variables]


def to_be_trained(layer: keras.Layer) -> list[keras.Variable]:
    """Return a layer's trainable variables, without the ones that LoRA replaces."""
    base = lora_base(layer) if getattr(layer, "lora_enabled", False) else None
    return [variable for variable in layer._trainable_variables if variable is not base]


LORA_LAYERS: tuple[type[keras.layers.Layer], ...] = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    BaseConv,
    keras.layers.Embedding,
)
"""The layers of Keras that take LoRA."""


BIASED_LAYERS: tuple[type[keras.layers.Layer], ...] = (
    *LORA_LAYERS[:-1],
    BaseConvTranspose,
    BaseDepthwiseConv,
    BaseSeparableConv,
    keras.layers.SimpleRNNCell,
    keras.layers.GRUCell,
    keras.layers.LSTMCell,
)
"""The layers of Keras whose `bias` is a bias."""


def lora_base(layer: Any) -> keras.Variable:
    """Return the weight of a layer that LoRA adds to."""
    return layer._embeddings if isinstance(layer, keras.layers.Embedding) else layer._kernel


def lora_layers(model: keras.Model) -> list[Any]:
    """Return the layers of a model that have LoRA, those inside others among them."""
    return [part for part in all_layers(model) if getattr(part, "lora_enabled", False)]


def lora_weights(layer: Any) -> tuple[keras.Variable, keras.Variable]:
    """Return the two weights whose product LoRA adds to a layer's own."""
    if isinstance(layer, keras.layers.Embedding):
        return layer.lora_embeddings_a, layer.lora_embeddings_b
    return layer.lora_kernel_a, layer.lora_kernel_b


def lora_constraint(layer: Any) -> Any:
    """Return the constraint on the weight that LoRA would add to, or None."""
    embedding = isinstance(layer, keras.layers.Embedding)
    return layer.embeddings_constraint if embedding else layer.kernel_constraint


def remove_lora(layer: Any) -> None:
    """Make a layer what it was before `enable_lora`, but for the flag of its weight."""
    gone = lora_weights(layer)
    for variable in gone:
        layer._untrack_variable(variable)
    for name, held in list(vars(layer).items()):
        if any(held is variable for variable in gone):
            del vars(layer)[name]
    layer.lora_enabled = False
    layer.lora_rank = layer.lora_alpha = None


def trainable_kind(layer: keras.Layer) -> list[keras.Variable]:
    """Return the layer's own variables that an optimizer could train, frozen or not."""
    return layer._trainable_variables


def flag_variables(layer: keras.Layer, trainable: bool) -> None:
    """Set the flags of the layer's own variables; what LoRA stands for is never trained."""
    chosen = {id(variable) for variable in to_be_trained(layer)}
    for variable in layer._trainable_variables:
        variable.trainable = trainable and id(variable) in chosen


def has_generator(layer: keras.Layer) -> bool:
    """Return whether the layer itself draws random numbers."""
    return bool(layer._seed_generators)


def generators(layer: keras.Layer) -> list[keras.random.SeedGenerator]:
    """Return the random generators of a layer and of those in it, each once, in a fixed order."""
    held = (each for part in all_layers(layer) for each in part._seed_generators)
    return list({id(each): each for each in held}.values())


IMAGE_LAYER: type[keras.layers.Layer] = BaseImagePreprocessingLayer
"""The base of Keras's layers that vary or prepare pictures."""

ENDING_OPERATIONS = (Softmax, LogSoftmax, Sigmoid)
"""The operations by which scores become probabilities."""

ARITHMETIC = (Add, Subtract, Multiply, Divide, TrueDivide)
"""The operations by which inputs are scaled and shifted."""

REORDERING = (Cast, Flip, GetItem, Stack)
"""The operations that select, turn or cast numbers, which stay what they are."""

CONVOLUTIONS: tuple[type[keras.layers.Layer], ...] = (BaseConv, BaseConvTranspose)
"""The convolutions that have a bias and an activation."""

ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
"""The layers of Keras that attend, their projections included."""

WEIGHING = (keras.layers.Attention, keras.layers.AdditiveAttention, DotProductAttention)
"""The layers and operations of Keras that attend to what was projected before."""

SOFTMAX = (keras.layers.Softmax, Softmax)
"""The layer and the operation that make shares of scores."""

# Keras's layers that drop values or add noise in training, with the attributes that say how much.
_RATES: dict[type, tuple[str, ...]] = {
    keras.layers.Dropout: ("rate",),  # SpatialDropout among them
    keras.layers.AlphaDropout: ("rate",),
    keras.layers.GaussianDropout: ("rate",),
    keras.layers.GaussianNoise: ("stddev",),
    keras.layers.Attention: ("dropout",),
    keras.layers.MultiHeadAttention: ("_dropout",),
    keras.layers.GroupQueryAttention: ("dropout",),
    DropoutRNNCell: ("dropout", "recurrent_dropout"),
    StochasticDepth: ("drop_path_rate",),
}


def rate_attributes(layer: keras.Layer) -> tuple[str, ...]:
    """Return the attributes that hold the drop rates of one of Keras's own layers."""
    found = (names for kind, names in _RATES.items() if isinstance(layer, kind))
    return tuple(dict.fromkeys(name for names in found for name in names))


def give_generator(layer: keras.Layer) -> None:
    """Give a layer that was made with a rate of 0 the random generator that others are made with.

    Args:
        layer: One that `rate_attributes` knows.
    """
    in_a_layer = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
    if has_generator(layer) or isinstance(layer, in_a_layer) or not hasattr(layer, "seed"):
        return
    locked = layer._tracker.locked
    layer._tracker.unlock()
    layer.seed_generator = keras.random.SeedGenerator(layer.seed)
    if locked:
        layer._tracker.lock()


def all_generators(layer: keras.Layer) -> list[keras.random.SeedGenerator]:
    """Return the random generators a layer's call may draw from, the global one included."""
    return [*generators(layer), global_seed_generator()]


def global_state() -> keras.Variable:
    """Return the state of the generator that draws for whatever has no seed of its own."""
    return global_seed_generator().state


def is_governed_by_lora(layer: keras.Layer) -> bool:
    """Return whether a layer is governed by a backbone's `enable_lora`.

    It freezes all layers, then trains a few inside them.
    """
    return bool(getattr(layer, "_lora_enabled_layers", None)) or any(
        getattr(part, "lora_enabled", False) and part.trainable and not layer.trainable
        for part in all_layers(layer)
    )


def variables_of(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the model's variables that the optimizer was built for."""
    return optimizer._trainable_variables


def patterns_of(optimizer: keras.optimizers.Optimizer) -> list[str]:
    """Return the patterns by which a `MultiOptimizer` chooses an optimizer for a variable."""
    chosen = getattr(optimizer, "_optimizer_map", None)
    return list(chosen) if isinstance(chosen, keras.optimizers.OptimizerMap) else []


def with_scaled_rate(
    optimizer: keras.optimizers.Optimizer, multiplier: Callable[[int], float]
) -> Any:
    """Return an optimizer that changes each variable at a multiple of another one's learning rate.

    It has all its state in common with the other, which itself stays as it is, and does what the
    other's class does. An optimizer meets its rate twice: `update_step` is passed it, and
    weight decay asks for it.

    Args:
        optimizer: An optimizer.
        multiplier: From a variable's index among those that the optimizer is built for to the
            multiple, asked at each step that is traced.
    """
    kind: Any = type(optimizer)
    decaying: list[Any] = []

    def scaled(rate: Any, variable: Any) -> Any:
        return rate * multiplier(optimizer._get_variable_index(variable))

    class Scaled(kind):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            super().update_step(gradient, variable, scaled(learning_rate, variable))

        def _apply_weight_decay(self, variables: Iterable) -> None:
            for variable in variables:
                decaying.append(variable)
                try:
                    super()._apply_weight_decay([variable])
                finally:
                    decaying.pop()

        def _get_current_learning_rate(self) -> Any:
            rate = super()._get_current_learning_rate()
            return scaled(rate, decaying[-1]) if decaying else rate

    view = object.__new__(Scaled)
    object.__setattr__(view, "__dict__", vars(optimizer))
    return view


def logits(outputs: Any) -> Any:
    """Return the logits of eager outputs of softmax or sigmoid; other outputs as they are."""
    return getattr(outputs, "_keras_logits", outputs)


def untold(model: keras.Model) -> list:
    """Return what the step of a compiled model follows from, and its configuration leaves out.

    Those are arguments of losses and metrics, and what was set at single variables.
    """
    measures = [*keras.tree.flatten(model.loss), *model.metrics]
    said = [
        [str(getattr(one, "dtype", None)), repr(getattr(one, "_fn_kwargs", None))]
        for one in measures
    ]
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    serialize = keras.saving.serialize_keras_object
    return said + [
        [
            bool(optimizer._use_weight_decay(variable)),
            serialize(variable.regularizer),
            serialize(variable.constraint),
        ]
        for variable in model.trainable_variables
    ]


def _module_of(one: Any) -> str:
    return getattr(one, "__module__", None) or ""


def missing() -> list[str]:
    """Return the private names used here that the installed Keras does not have.

    Example:
        >>> missing()
        []
    """
    inputs = keras.Input((2,), name="probe_input")
    layer = keras.layers.Dropout(0.5, name="probe")
    model = keras.Model(inputs, layer(inputs), name="probe_model")
    model.compile(loss="mse")
    stack = keras.Sequential([keras.Input((2,)), keras.layers.Identity()])
    masked = keras.Input((2,), name="probe_masked")
    attach_mask(masked, inputs)
    dense, embedding = keras.layers.Dense(1), keras.layers.Embedding(1, 1)
    for one in (dense, embedding):
        one.build((None, 1))
    ending = keras.activations.softmax(keras.ops.ones((1, 2)))
    probes = (
        ("KerasTensor", model.outputs[0], "_keras_history"),
        ("KerasTensor", masked, "_keras_mask"),
        ("softmax()", ending, "_keras_logits"),
        ("Operation", layer, "_inbound_nodes _outbound_nodes"),
        (
            "Layer",
            layer,
            "_call_has_context_arg call_signature_parameters _flatten_layers _tracker",
        ),
        ("Layer", layer, "_trainable_variables _non_trainable_variables _untrack_variable"),
        ("Layer", layer, "_seed_generators _assert_input_compatibility"),
        ("Layer", layer, "_losses _losses_override _loss_ids"),
        ("Variable", keras.Variable(0.0), "_value _dtype _autocast _layout _path _regularizer"),
        ("Variable", keras.Variable(0.0), "_constraint _overwrite_with_gradient"),
        ("Functional", model, "_inputs_struct _outputs_struct _inputs _outputs"),
        ("Functional", model, "_nodes _nodes_by_depth _operations _operations_by_depth"),
        ("Sequential", stack, "_functional"),
        ("Model", model, "_loss_tracker _compile_loss _compile_metrics"),
        ("Huber", keras.losses.Huber(), "_fn_kwargs"),
        ("MultiHeadAttention", keras.layers.MultiHeadAttention(1, 1), "_dropout"),
        ("Dense", dense, "_kernel"),
        ("Embedding", embedding, "_embeddings"),
        ("Optimizer", keras.optimizers.SGD(), "_trainable_variables _apply_weight_decay"),
        ("Optimizer", keras.optimizers.SGD(), "_use_weight_decay _get_current_learning_rate"),
        ("Optimizer", keras.optimizers.SGD(), "_get_variable_index"),
        (
            "MultiOptimizer",
            keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.SGD())),
            "_optimizer_map",
        ),
    )
    lost = [
        f"{name}.{part}"
        for name, owner, parts in probes
        for part in parts.split()
        if not hasattr(owner, part)
    ]
    imported = [one for one in globals().values() if _module_of(one).startswith("keras.src")]
    lost += [
        f"{_module_of(one)}.{one.__name__}"
        for one in imported
        if not hasattr(sys.modules[_module_of(one)], one.__name__)
    ]
    if get_global_attribute("object_name_uids") is None:
        lost.append("global attribute object_name_uids")
    with sharing_scope():
        names = ("shared_objects/id_to_obj_map", "shared_objects/id_to_config_map")
        lost += [f"global attribute {n}" for n in names if get_global_attribute(n) is None]
    if not lost:
        node = layer._inbound_nodes[0]
        taken = inspect.signature(Node).parameters
        lost += [f"Node.{p}" for p in ("arguments", "outputs", "is_input") if not hasattr(node, p)]
        held = ("args", "kwargs", "keras_tensors")
        lost += [f"Node.arguments.{p}" for p in held if not hasattr(node.arguments, p)]
        given = ("operation", "call_args", "call_kwargs", "outputs")
        lost += [f"Node({p}=)" for p in given if p not in taken]
    return lost
