"""A model as an immutable graph: tensors, the calls that make them, and the models they sit in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import keras

from reusekit.graph import keras_internals


@dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """One tensor of a model. Two are equal only if they are the same tensor.

    Attributes:
        address: Its name: `layer`, `outer/inner`, `layer@2` (third call), `layer:1` (second
            output).
        keras_tensor: The Keras tensor it was read from. A model that is called twice inside another
            gives two tensors here for one Keras tensor.
        shape: Its shape with the batch dimension first; None where a dimension is not known. In a
            nested model it is the shape in this call, which may be known better than that of the
            Keras tensor.
    """

    address: str
    keras_tensor: keras.KerasTensor = field(repr=False)
    shape: tuple[int | None, ...] = field(default=None, repr=False)  # type: ignore[arg-type]  # see below

    def __post_init__(self):
        if self.shape is None:
            object.__setattr__(self, "shape", self.keras_tensor.shape)

    @property
    def dtype(self) -> str:
        """Its dtype's name."""
        return keras_internals.dtype_when_run(self.keras_tensor)


@dataclass(frozen=True, eq=False, slots=True)
class Scope:
    """One call of a nested model, whose own calls the graph lists in its place.

    Attributes:
        address: The address of the call, `outer` or `outer@1`.
        operation: The nested model.
        args: Positional arguments as recorded, with `Tensor` in the place of Keras tensors.
        kwargs: Keyword arguments, likewise.
        outputs: The nested model's outputs, flat, as tensors of the graph.
        keras_tensors: The Keras tensors that the call returned, in the same order.
    """

    address: str
    operation: Any
    args: tuple
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...] = ()
    keras_tensors: tuple[keras.KerasTensor, ...] = field(default=(), repr=False)

    def close(
        self, outputs: tuple[Tensor, ...], keras_tensors: tuple[keras.KerasTensor, ...]
    ) -> None:
        """Record, once, what the call returned: its own calls refer to it before that is read."""
        object.__setattr__(self, "outputs", outputs)
        object.__setattr__(self, "keras_tensors", keras_tensors)

    @property
    def reads(self) -> tuple[Tensor, ...]:
        """The tensors that the nested model is called on."""
        return tuple(dict.fromkeys(tensors_in(self.args)))


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """One call of a layer or operation.

    Attributes:
        index: Its position in `Graph.calls`, a topological order.
        address: The address of the call.
        operation: The layer or operation that is called.
        args: Positional arguments as recorded, with `Tensor` in the place of Keras tensors.
        kwargs: Keyword arguments, likewise: constants, `training=False`, masks.
        inputs: The tensors among its arguments, each once, in order.
        masks: Pairs of a tensor and the mask that the call reads off it when it runs, though the
            mask is not among the recorded arguments.
        outputs: The tensors it makes.
        scopes: The nested models it sits in, outermost first.
        is_input: Whether it is the placeholder of a model input.
        given: The variables among its arguments, such as an embedding that an operation multiplies
            by.
    """

    index: int
    address: str
    operation: Any
    args: tuple
    kwargs: dict[str, Any]
    inputs: tuple[Tensor, ...]
    masks: tuple[tuple[Tensor, Tensor], ...]
    outputs: tuple[Tensor, ...]
    scopes: tuple[Scope, ...]
    is_input: bool
    given: tuple[keras.Variable, ...] = ()

    @property
    def path(self) -> "tuple[Scope | Call, ...]":
        """The nested models it sits in, outermost first, and the call itself."""
        return (*self.scopes, self)

    @property
    def reads(self) -> tuple[Tensor, ...]:
        """Every tensor the call depends on: its arguments and the masks it reads off them."""
        if not self.masks:
            return self.inputs
        return tuple(dict.fromkeys((*self.inputs, *(mask for _, mask in self.masks))))

    @property
    def is_new(self) -> bool:
        """Return whether it was put in by an edit and is in no model yet."""
        return self.index < 0

    @property
    def is_recorded(self) -> bool:
        """Return whether Keras recorded the call.

        It does not record how a nested model converts what it is fed, nor every mask that is
        computed on the way.
        """
        return keras_internals.has_history(self.outputs[0].keras_tensor)

    @property
    def variables(self) -> list[keras.Variable]:
        """The weights the call uses; the states of metrics and random generators do not count."""
        own = getattr(self.operation, "weights", [])
        if not self.given:
            return own
        return list({id(variable): variable for variable in (*own, *self.given)}.values())


Step = Call | Scope
"""One step of a model: a single call, or a nested model called whole."""


def tensors_in(structure: Any) -> list[Tensor]:
    """Return the tensors in a structure, in order; one that is there twice, twice."""
    return [leaf for leaf in keras.tree.flatten(structure) if isinstance(leaf, Tensor)]


def may_agree(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    """Return whether two shapes may be the same, where None is a size that is left open."""
    return len(one) == len(other) and all(
        None in sizes or sizes[0] == sizes[1] for sizes in zip(one, other, strict=True)
    )


@dataclass(frozen=True, eq=False)
class Graph:
    """A model read into calls and tensors. It holds no copy of a weight and changes nothing.

    Attributes:
        model: The model it was read from.
        calls: Every call that an output depends on, and the model's inputs, in a stable
            topological order. Nested models are inlined.
        inputs: The model's inputs, flat.
        input_structure: The inputs in the model's own structure, with `Tensor` leaves.
        output_structure: The outputs, likewise.
        names: From each address to its tensor. A nested model's own address, `outer`, names its
            output; `outer/input` names what it was fed; `layer/mask` names a mask that is computed
            only when the model runs.
        ambiguous: From a name that several tensors answer to, to their addresses.
        masks: From a tensor to the mask that it carries when the model runs, where the graph has
            both.
        is_masked: Whether any tensor has a mask.
        keeps_masks: Whether it was read with `keep_masks`.
        known_masks: From a tensor to its mask, where the graph was read with `keep_masks`: the one
            that it carries when the model runs, or the one that Keras attached to it, though
            MultiHeadAttention has taken it off by then.
        kept: What was made of the graph, and is kept for as long as it is, by its maker.
    """

    model: keras.Model
    calls: tuple[Call, ...]
    inputs: tuple[Tensor, ...]
    input_structure: Any
    output_structure: Any
    names: Mapping[str, Tensor] = field(repr=False)
    ambiguous: Mapping[str, Sequence[str]] = field(repr=False)
    masks: Mapping[Tensor, Tensor] = field(repr=False)
    is_masked: bool = False
    keeps_masks: bool = False
    known_masks: Mapping[Tensor, Tensor] = field(default_factory=dict, repr=False)
    kept: dict[Any, Any] = field(default_factory=dict, repr=False, init=False)

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        """The model's outputs, flat; one tensor may be there twice."""
        return tuple(keras.tree.flatten(self.output_structure))

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor, in the order of the calls that make them."""
        return tuple(tensor for call in self.calls for tensor in call.outputs)

    @cached_property
    def maker(self) -> Mapping[Tensor, Call]:
        """From each tensor to the call that makes it."""
        return {tensor: call for call in self.calls for tensor in call.outputs}

    @cached_property
    def readers(self) -> Mapping[Tensor, tuple[Call, ...]]:
        """From each tensor to the calls that read it, masks included."""
        readers: dict[Tensor, list[Call]] = {tensor: [] for tensor in self.tensors}
        for call in self.calls:
            for tensor in call.reads:
                readers[tensor].append(call)
        return {tensor: tuple(calls) for tensor, calls in readers.items()}

    @cached_property
    def free(self) -> frozenset[Tensor]:
        """The model inputs, and tensors that are computed from inputs without any weight."""
        free: set[Tensor] = set()
        for call in self.calls:
            if all(tensor in free for tensor in call.reads) and not call.variables:
                free.update(call.outputs)
        return frozenset(free)

    @cached_property
    def surface(self) -> Mapping[Tensor, keras.KerasTensor]:
        """From each tensor that the model itself sees to the Keras tensor by which it sees it.

        Tensors inside a nested model are not among them, unless they are outputs of it.
        """
        found: dict[Tensor, keras.KerasTensor] = {}
        for call in self.calls:
            if call.scopes:
                outermost = call.scopes[0]
                for tensor, seen in zip(outermost.outputs, outermost.keras_tensors, strict=True):
                    found.setdefault(tensor, seen)
            else:
                for tensor in call.outputs:
                    found[tensor] = tensor.keras_tensor
        return found

    @cached_property
    def own_steps(self) -> frozenset[Call | Scope]:
        """The calls that the model itself makes, those of nested models whole."""
        return frozenset(
            call.scopes[0] if call.scopes else call
            for call in self.calls
            if call.scopes or call.is_recorded
        )

    @cached_property
    def leaking(self) -> frozenset[Scope]:
        """Nested models in which a mask is made that is read outside, though it is no output."""
        return frozenset(
            scope
            for call in self.calls
            for tensor in call.reads
            for scope in self.maker[tensor].scopes
            if scope not in call.scopes and tensor not in scope.outputs
        )

    @cached_property
    def by_keras_tensor(self) -> Mapping[int, tuple[Tensor, ...]]:
        """From the id of a Keras tensor to the tensors it stands for.

        A nested model's output is known by the tensor inside it and by the one its call returned.
        """
        found: dict[int, dict[Tensor, None]] = {}
        for tensor in self.tensors:
            found.setdefault(id(tensor.keras_tensor), {})[tensor] = None
        for scope in dict.fromkeys(scope for call in self.calls for scope in call.scopes):
            for tensor, seen in zip(scope.outputs, scope.keras_tensors, strict=True):
                if tensor in self.maker:
                    found.setdefault(id(seen), {})[tensor] = None
        return {key: tuple(tensors) for key, tensors in found.items()}

    def __repr__(self) -> str:
        return (
            f"Graph(model={self.model.name!r}, calls={len(self.calls)}, "
            f"tensors={len(self.tensors)})"
        )
