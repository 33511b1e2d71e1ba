"""The one engine: calls of a graph made again, on other tensors.

Every operation of this room has `steps` choose what to call, which refuses before anything is
touched, and `Rebuild.run` call it. Where a call's tensors are the original's own, the original's
result serves and nothing is called. Where they have the same shapes, the call is recorded without
running the layer. Only where shapes differ is the layer really called.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from reusekit.errors import ShapeError, reason
from reusekit.graph import Call, Graph, Scope, Step, Tensor, keras_internals, tensors_in
from reusekit.graph.masks import with_found_mask
from reusekit.graph.outline import HandedOn
from reusekit.graph.reader import Variables

_RESERVED = object()


class Rebuild:
    """Makes a graph's calls on new tensors. One object for each model that is built.

    Args:
        values: The tensors that are fed, to begin with.
        copies: From the id of an operation or variable to the one to use in its place, for a model
            that is to have layers of its own. Copies of further variables are added to it.
        variables: Those of the whole model, where this is a nested one of it.
        changed: Steps of an edited graph that are fed other tensors than in the original. Where
            masks are involved, they and what comes after them are really called, so that the masks
            are where Keras would have put them.

    Attributes:
        values: From each tensor of the original to what stands for it in the new model.
        names: The names taken in the new model.
        opened: The nested models whose outputs are to keep their names though they are not called
            whole.
    """

    def __init__(
        self,
        values: Mapping[Tensor, keras.KerasTensor] | None = None,
        copies: dict[int, Any] | None = None,
        variables: Variables | None = None,
        changed: Iterable[Step] = (),
    ):
        self.values: dict[Tensor, keras.KerasTensor] = dict(values or {})
        self.names = Names()
        self.opened: set[Scope] = set()
        self._copies = copies
        self._variables = variables
        self._carriers: dict[Tensor, Tensor] = {}
        self._changed = set(changed)
        self._remasked: set[Tensor] = set()

    def add_inputs(
        self, tensors: Iterable[Tensor], shapes: Mapping[int, tuple] | None = None
    ) -> list[keras.KerasTensor]:
        """Feed inputs of the new model in the place of tensors, named by their addresses.

        Args:
            tensors: The tensors.
            shapes: Other shapes for some, batch included, by the id of the Keras tensor.

        Returns:
            The inputs.
        """
        made = {
            tensor: keras.Input(
                batch_shape=(shapes or {}).get(id(tensor.keras_tensor), tensor.shape),
                dtype=tensor.dtype,
                sparse=tensor.keras_tensor.sparse,
                ragged=tensor.keras_tensor.ragged,
                optional=keras_internals.is_optional(tensor.keras_tensor),
                name=self.names.unique(tensor.address),
            )
            for tensor in tensors
        }
        self.values.update(made)
        return list(made.values())

    def claim(self, steps: Iterable[Step]) -> None:
        """Take the names of layers at the top level; layers out of nested models give way."""
        for step in steps:
            if "/" not in step.address:
                self.names.claim(step.operation)

    def run(self, graph: Graph, steps: Iterable[Step]) -> None:
        """Make the calls of some steps; `values` then has every tensor they make.

        Raises:
            ShapeError: A layer cannot take the shapes that it is now fed.
        """
        steps = list(steps)
        self.claim(steps)
        for step in steps:
            remasked = self._is_remasked(step)
            self._attach_masks(graph, step, remasked)
            made = self._outputs(graph, step, remasked)
            for tensor, value in zip(step.outputs, made, strict=True):
                self.values.setdefault(tensor, value)
            if remasked:
                self._remasked.update(t for t in step.outputs if self._had_mask(graph, t))
            else:
                self._note_masks(graph, step)

    def _outputs(self, graph: Graph, step: Step, remasked: bool) -> list[keras.KerasTensor]:
        given = (
            step.keras_tensors
            if isinstance(step, Scope)
            else [t.keras_tensor for t in step.outputs]
        )
        tensors = [tensor for tensor in step.reads if tensor in self.values]
        if self._copies is not None:
            if isinstance(step.operation, HandedOn):
                return [self.values[tensors[0]]]
            operation = self._copies[id(step.operation)]
            arguments = keras.tree.map_structure(self._copied, fill(step, self.values))
            return call_step(step, operation, *arguments)
        if self._is_original(graph, step):
            return list(given)
        if isinstance(step.operation, HandedOn):
            return [self.values[tensors[0]]]
        if not self.names.claim(step.operation):
            return self._call_wrapped(step, tensors)
        args, kwargs = fill(step, self.values)
        built = getattr(step.operation, "built", True)
        if built and not remasked and all(alike(t, self.values[t]) for t in tensors):
            pairs = zip(step.outputs, given, strict=True)
            outputs = [fresh(one, tensor.shape) for tensor, one in pairs]
            keras_internals.record(step.operation, args, kwargs, outputs)
            return outputs
        if remasked:
            kwargs = with_found_mask(step.operation, args, kwargs)
        return call_step(step, step.operation, args, kwargs)

    def _copied(self, leaf: Any) -> Any:
        """Return the copy of an argument that is a variable; any other argument as it is."""
        leaf = leaf if self._variables is None else self._variables.of(leaf)
        if not isinstance(leaf, keras.Variable):
            return leaf
        assert self._copies is not None  # else nothing is copied
        if id(leaf) not in self._copies:
            # One that belongs to no layer of the model.
            self._copies[id(leaf)] = keras_internals.copy_variable(leaf)
        return self._copies[id(leaf)]

    def _is_original(self, graph: Graph, step: Step) -> bool:
        """Return whether a step is one of the model's own, on the model's own tensors."""
        # A mask that it reads off one of these is there whenever the tensor is.
        tensors = step.inputs if isinstance(step, Call) else step.reads
        return step in graph.own_steps and all(
            self.values.get(tensor) is graph.surface.get(tensor) for tensor in tensors
        )

    def _call_wrapped(self, step: Step, tensors: list[Tensor]) -> list[keras.KerasTensor]:
        """Call an operation whose name another one has by a nested model around it."""
        wrapper = self.names.wrapper(step, {tensor: self.values[tensor] for tensor in tensors})
        given = [self.values[tensor] for tensor in tensors]
        return call_step(step, wrapper, (singleton(given),), {})

    # --- outputs --------------------------------------------------------------------------------

    def reserve(self, graph: Graph, steps: Iterable[Step]) -> None:
        """Keep the names of a model's outputs from the layers that come out of nested models.

        Args:
            graph: The model.
            steps: The steps that will be called; nested models among it keep their outputs' names
                themselves.
        """
        self.opened = {graph.maker[t].scopes[0] for t in graph.outputs if graph.maker[t].scopes}
        self.opened.difference_update(steps)
        for tensor, name in zip(graph.outputs, _output_names(graph), strict=True):
            call = graph.maker[tensor]
            if not self.opened.isdisjoint(call.scopes):
                self.names.reserve(name, call.operation if call.operation.name == name else None)

    def outputs(self, graph: Graph, now: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
        """Return the model's outputs in its own structure and under its own names.

        Keras names an output by the layer that makes it. Where a nested model made it and its
        layers are called one by one, a layer that does nothing takes the nested model's name.

        Args:
            graph: The model. Names are kept where `reserve` was called before the first call.
            now: From each tensor of the model to what stands in its place.
        """
        named: dict[Tensor, keras.KerasTensor] = {}
        layers: dict[tuple[str, str], keras.Layer] = {}
        for tensor, name in zip(graph.outputs, _output_names(graph), strict=True):
            value, scopes = self.values[now(tensor)], graph.maker[tensor].scopes
            maker = keras_internals.producer(value).operation
            if self.opened.isdisjoint(scopes) or tensor in named or maker.name == name:
                continue
            # All that the nested model's call returned, so that `outer:1` is still `outer:1`.
            together = [t for t in scopes[0].outputs if now(t) in self.values]
            if len({self.values[now(t)].dtype for t in together}) != 1:
                together = [tensor]
            values = [self.values[now(t)] for t in together]
            key = (name, values[0].dtype)
            if key not in layers:
                layers[key] = keras.layers.Identity(name=self.names.redeem(name), dtype=key[1])
            made = keras.tree.flatten(layers[key](singleton(values)))
            named.update(zip(together, made, strict=True))
        return keras.tree.map_structure(
            lambda tensor: named.get(tensor, self.values.get(now(tensor))), graph.output_structure
        )

    # --- masks ----------------------------------------------------------------------------------

    def feed_masked(self, values: Mapping[Tensor, keras.KerasTensor]) -> None:
        """Feed tensors that may carry masks which those of the original do not."""
        self.values.update(values)
        masked = (t for t, value in values.items() if keras_internals.mask_of(value) is not None)
        self._remasked.update(masked)

    def _is_remasked(self, step: Step) -> bool:
        """Return whether a step must be called for Keras to set the masks of its outputs."""
        if not isinstance(step.operation, keras.Layer):
            return False
        if isinstance(step, Call) and step.is_new:
            return True
        tensors = tensors_in((step.args, step.kwargs))
        is_changed, is_fed_anew = step in self._changed, not self._remasked.isdisjoint(tensors)
        # Outputs of a nested model were recorded there without masks from outside.
        inlined = isinstance(step, Call) and bool(step.scopes) and bool(self._changed)
        if not is_changed and (is_fed_anew or not inlined):
            return is_fed_anew
        values = [self.values.get(tensor) for tensor in tensors]
        if is_changed:
            # A layer that makes the mask.
            values += [tensor.keras_tensor for tensor in step.outputs]
        return any(keras_internals.mask_of(v) is not None for v in values if v is not None)

    def _had_mask(self, graph: Graph, tensor: Tensor) -> bool:
        """Return whether a tensor has a mask, or had one where it comes from."""
        masks = (keras_internals.mask_of(x) for x in (self.values[tensor], tensor.keras_tensor))
        return tensor in graph.masks or any(mask is not None for mask in masks)

    def _attach_masks(self, graph: Graph, step: Step, remasked: bool) -> None:
        """See to it that a tensor carries its mask where the step reads the mask off it."""
        if isinstance(step, Scope):
            return
        for tensor, mask in step.masks:
            if remasked and mask in graph.maker:
                continue  # Keras finds the mask that is there now; an edited one is not
            # A hidden mask has no value; the layer that sets it is in this model as well.
            if self._carriers.get(tensor) is not mask and mask in self.values:
                carrying = with_mask(
                    self.values[tensor], self.values[mask], self.names, tensor.address
                )
                self.values[tensor] = carrying
                self._carriers[tensor] = mask

    def _note_masks(self, graph: Graph, step: Step) -> None:
        """Keep account of which tensors of the new model carry their mask when it runs."""
        if not graph.masks or not isinstance(step.operation, keras.Layer):
            return
        inputs = [tensor for tensor in tensors_in(step.args) if tensor in graph.masks]
        given = any(
            tensor in self.values
            for name, value in step.kwargs.items()
            if name.endswith("mask")
            for tensor in tensors_in(value)
        )
        # A layer makes its output's mask of its inputs' masks, or is the origin of the mask.
        carries = given or all(tensor in self._carriers for tensor in inputs)
        for tensor in step.outputs:
            if tensor in graph.masks and carries:
                self._carriers[tensor] = graph.masks[tensor]
                mask, value = self.values.get(graph.masks[tensor]), self.values[tensor]
                own = value is graph.surface.get(tensor)
                if mask is not None and not own and keras_internals.mask_of(value) is None:
                    keras_internals.attach_mask(value, mask)


def _output_names(graph: Graph) -> list[str]:
    return keras_internals.functional(graph.model).output_names


def alike(one: Tensor, other: Any) -> bool:
    """Return whether two tensors, of graphs or Keras's, have one shape and dtype."""
    return one.shape == tuple(other.shape) and one.dtype == other.dtype


def fresh(like: keras.KerasTensor, shape: tuple) -> keras.KerasTensor:
    """Return a Keras tensor like another one that no call has made yet."""
    return keras.KerasTensor(
        shape, like.dtype, sparse=like.sparse, ragged=like.ragged, name=like.name
    )


# --- names --------------------------------------------------------------------------------------


class Names:
    """The names taken in one model, and the wrappers made where a name was taken twice."""

    def __init__(self):
        self._owners: dict[str, Any] = {}
        self._wrappers: dict[tuple, keras.Model] = {}

    def claim(self, operation: Any) -> bool:
        """Take an operation's name for it, unless another operation has it."""
        return self._owners.setdefault(operation.name, operation) is operation

    def reserve(self, name: str, operation: Any) -> None:
        """Keep a name that is free for an operation, or with None for whoever redeems it."""
        if name not in self._owners:
            self._owners[name] = operation or _RESERVED

    def redeem(self, name: str) -> str:
        """Return the reserved name once, and a similar one afterwards or where it was taken."""
        if self._owners.get(name) is not _RESERVED:
            return self.unique(name)
        self._owners[name] = None
        return name

    def unique(self, wanted: str) -> str:
        """Return a name like an address that no operation has, and take it.

        Example:
            >>> names = Names()
            >>> names.unique("outer/layer@1:0"), names.unique("outer/layer@1:0")
            ('outer.layer_1_0', 'outer.layer_1_0_1')
        """
        stem = wanted.replace("/", ".").replace("@", "_").replace(":", "_")
        name, number = stem, 0
        while name in self._owners:
            number += 1
            name = f"{stem}_{number}"
        self._owners[name] = None
        return name

    def wrapper(self, step: Step, values: Mapping[Tensor, keras.KerasTensor]) -> keras.Model:
        """Return a nested model of stock layers that makes one step's call.

        Calls of one layer that differ in nothing but their tensors get the same wrapper, since
        Keras cannot load a layer that is shared between two nested models.
        """
        numbers = {tensor: number for number, tensor in enumerate(values)}
        shape = keras.tree.map_structure(
            lambda leaf: ("tensor", numbers.get(leaf)) if isinstance(leaf, Tensor) else repr(leaf),
            (step.args, step.kwargs),
        )
        specs = [(tuple(value.shape), value.dtype) for value in values.values()]
        key = (id(step.operation), repr(shape), repr(specs))
        if key not in self._wrappers:
            inputs = {
                tensor: keras.Input(batch_shape=value.shape, dtype=value.dtype, name=f"input_{n}")
                for n, (tensor, value) in enumerate(values.items())
            }
            args, kwargs = fill(step, inputs)
            outputs = call_step(step, step.operation, args, kwargs)
            name = self.unique(step.address.partition("@")[0])
            given = singleton(list(inputs.values()))
            self._wrappers[key] = keras.Model(given, singleton(outputs), name=name)
        return self._wrappers[key]


# --- one call -----------------------------------------------------------------------------------


def fill(step: Step, values: Mapping[Tensor, keras.KerasTensor]) -> tuple[tuple, dict]:
    """Return a step's recorded arguments with each tensor's value in its place.

    A tensor without a value becomes None: that is how a nested model is called without the mask
    that it does not need.
    """
    if not step.kwargs and len(step.args) == 1 and isinstance(step.args[0], Tensor):
        return (values.get(step.args[0]),), {}

    def put(leaf: Any) -> Any:
        return values.get(leaf) if isinstance(leaf, Tensor) else leaf

    return keras.tree.map_structure(put, (step.args, step.kwargs))


def call_step(step: Step, operation: Any, args: tuple, kwargs: dict) -> list[keras.KerasTensor]:
    """Call an operation, and turn an objection of Keras's into one clear error.

    Args:
        step: The step of the original that the call stands for.
        operation: The operation to call: the step's, or another in its place.
        args: Positional arguments, with Keras tensors.
        kwargs: Keyword arguments, likewise.

    Returns:
        The call's outputs, flat.

    Raises:
        ShapeError: The operation cannot take the shapes that it is fed.
    """
    leaves = keras.tree.flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
    try:
        with keras_internals.keeping_makers(tensors):
            return keras.tree.flatten(operation(*args, **kwargs))
    except Exception as error:
        expected = ", ".join(str(t.shape) for t in tensors_in((step.args, step.kwargs)))
        received = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ShapeError(
            f"Expected {step.address!r} to take what it is fed, which was {expected}. Received: "
            f"{received}, of which Keras says: {reason(error)}"
        ) from error


def with_mask(
    tensor: keras.KerasTensor, mask: keras.KerasTensor, names: Names, address: str
) -> keras.KerasTensor:
    """Return a tensor that carries a mask when the model runs.

    Some layers read their mask off the tensor they are called on and take no argument for it. The
    one thing in Keras that puts a mask onto a tensor it is given is a nested model called with
    `mask=`; so this is a nested model that does nothing else, made of stock layers.

    Args:
        tensor: The tensor.
        mask: Its mask, of dtype bool.
        names: The names taken in the model being built.
        address: The address of the tensor in the original, to name the nested model by.

    Returns:
        A tensor equal to the first, with the mask attached.
    """
    inputs = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name="input")
    same = keras.layers.Identity(dtype=tensor.dtype, name="identity")(inputs)
    carrier = keras.Model(inputs, same, name=names.unique(f"{address}_mask"))
    # Without this, Keras warns that the mask is lost; it is set inside, and is not.
    carrier.supports_masking = True
    carrying = carrier(tensor, mask=mask)
    keras_internals.attach_mask(carrying, mask)
    return carrying


def without_mask(tensor: keras.KerasTensor, names: Names, address: str) -> keras.KerasTensor:
    """Return a tensor equal to another that carries no mask when the model runs.

    Operations hand no mask on, as layers do.
    """
    wide = keras.ops.expand_dims(tensor, -1)
    keras_internals.named(wide, names.unique(f"{address}_wide"))
    return keras_internals.named(
        keras.ops.squeeze(wide, -1), names.unique(f"{address}_without_mask")
    )


# --- inputs and models --------------------------------------------------------------------------


def assemble(
    inputs: Any, outputs: Any, name: str, calls: int, trainable: bool | None = None
) -> keras.Model:
    """Return a functional model, however deep.

    Args:
        inputs: Keras tensors in the structure the model is to be called on.
        outputs: Keras tensors in the structure it is to return.
        name: Its name.
        calls: About how many calls it has.
        trainable: The model's own flag; those of its layers stay as they are.

    Returns:
        The model. Its weights are those of the layers it is made of.
    """
    before = sys.getrecursionlimit()
    # Keras sorts a graph with a frame for each call on a path.
    sys.setrecursionlimit(max(before, 2 * calls + 1000))
    try:
        return keras.Model(inputs, outputs, name=name, trainable=trainable)
    finally:
        sys.setrecursionlimit(before)


def singleton(values: list) -> Any:
    """Return the value itself where there is one, else the list."""
    return values[0] if len(values) == 1 else values
