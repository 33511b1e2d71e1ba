"""The calls of a graph after some edits, with the shapes that then come out; nothing is called."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import keras

from reusekit.errors import EditError, ShapeError, reason
from reusekit.graph import Call, Graph, Scope, Step, Tensor, keras_internals, tensors_in
from reusekit.graph.masks import HiddenMask, mask_arguments, passes_mask
from reusekit.surgery.copies import Copier
from reusekit.surgery.edits import Orders
from reusekit.surgery.engine import alike


class Rewiring:
    """Walks a graph's calls once and lays them out anew as some orders say.

    Attributes:
        steps: The new calls, in order.
        stands_in: From each tensor of the graph that is no longer read to what is read instead.
        whole: The graph's own calls before the edits, with nested models whole but where an edit is
            inside.
        changed: The steps that are fed other tensors than before, or others with masks.
    """

    def __init__(self, graph: Graph, orders: Orders):
        self.graph = graph
        self.steps: list[Step] = []
        self.stands_in: dict[Tensor, Tensor] = {}
        self.changed: list[Step] = []
        self._orders = orders
        self._remade: set[Tensor] = set()
        self._edited_masks: set[Tensor] = set()
        opened = orders.opened(graph) | graph.leaking
        self.whole = set(_opened(graph, opened))
        for tensor in graph.inputs:
            self._insert_after(tensor, tensor)
        for step in _opened(graph, opened):
            self._walk(step)
        self.outputs = keras.tree.map_structure(self.now, graph.output_structure)
        self._drop_unread()

    def now(self, leaf: Any) -> Any:
        """Return the replacement of a tensor, and anything else as it is."""
        while leaf in self.stands_in if isinstance(leaf, Tensor) else False:
            leaf = self.stands_in[leaf]
        return leaf

    def _walk(self, step: Step) -> None:
        if step in self._orders.removed:
            self._remove(step)
            return
        args, kwargs = keras.tree.map_structure(self.now, (step.args, self._given(step)))
        on_edges: dict[Tensor, Tensor] = {}
        for layer in self._orders.before.get(step, ()):
            edge = self._orders.edges.get((step, layer))
            if edge is None:
                tensor = self._single_input(step, args, kwargs, "put something before it")
            else:
                tensor = on_edges.get(edge, self.now(edge))
            inserted = self._add(layer, tensor)
            args, kwargs = keras.tree.map_structure(
                lambda leaf, old=tensor, new=inserted: new if leaf is old else leaf, (args, kwargs)
            )
            if edge is not None:
                on_edges[edge] = inserted
        layer = self._orders.replaced.get(step)
        if layer is not None:
            self._replace(step, layer, args, kwargs)
        else:
            self._keep(step, args, kwargs)
        for tensor in step.outputs:
            self._insert_after(tensor, self.now(tensor))

    def _given(self, step: Step) -> dict[str, Any]:
        """Return a step's keyword arguments, without the masks that Keras would find anew.

        A mask that was recorded because a tensor carried it goes where another tensor takes its
        place: Keras then finds the mask of that one. Where the mask itself was edited, it stays.
        """
        tensors = tensors_in((step.args, step.kwargs))
        if all(self.now(t) is t and t not in self._remade for t in tensors):
            return step.kwargs
        carried = {
            id(mask)
            for t in tensors
            for seen in (t.keras_tensor, self.graph.surface.get(t))
            if seen is not None and (mask := keras_internals.mask_of(seen)) is not None
        }

        def is_found(leaf: Any) -> bool:
            if not isinstance(leaf, Tensor):
                return leaf is None
            seen = {id(leaf.keras_tensor), id(self.graph.surface.get(leaf))}
            recorded = not carried.isdisjoint(seen) or leaf in map(self.graph.masks.get, tensors)
            return recorded and self.now(leaf) not in self._edited_masks

        return {
            name: value
            for name, value in step.kwargs.items()
            if not (
                name.endswith("mask")
                and tensors_in(value)
                and all(map(is_found, keras.tree.flatten(value)))
            )
        }

    def _keep(self, step: Step, args: tuple, kwargs: dict) -> None:
        before = tensors_in((step.args, {name: step.kwargs[name] for name in kwargs}))
        after = tensors_in((args, kwargs))
        outputs = step.outputs
        if any(not alike(old, new) for old, new in zip(before, after, strict=True)):
            specs = self._specs(step, step.operation, args, kwargs)
            outputs = tuple(
                old if alike(old, spec) else Tensor(old.address, spec)
                for old, spec in zip(step.outputs, specs, strict=True)
            )
            self._point(step.outputs, outputs)
        same = before == after and len(kwargs) == len(step.kwargs)
        same = same and self._remade.isdisjoint(after)
        fed_as_before = same
        if not same and all(tensor.dtype == "bool" for tensor in outputs):
            # It may be a mask, and now another than the one that a tensor carries by itself.
            outputs = tuple(replace(tensor) for tensor in outputs)
            self._point(step.outputs, outputs)
            if not self._edited_masks.isdisjoint(after):
                self._edited_masks.update(outputs)
        changes: dict[str, Any] = {"args": args, "kwargs": kwargs, "outputs": outputs}
        if isinstance(step, Call):
            pairs = tuple((self.now(tensor), self.now(mask)) for tensor, mask in step.masks)
            if not same:
                # It reads the mask that it then finds, except where the mask itself was edited.
                pairs = tuple(pair for pair in pairs if pair[1] in self._edited_masks)
            same = same and pairs == step.masks
            changes |= {"masks": pairs, "inputs": tuple(dict.fromkeys(after))}
        # A call that no edit reaches stays the original's own, and need not be made again.
        if same:
            self.steps.append(step)
            return
        kept = replace(step, **changes)
        self.steps.append(kept)
        if fed_as_before:  # Only a mask was edited: it is handed over as it was recorded.
            return
        self.changed.append(kept)
        if self.graph.is_masked:
            self._remade.update(kept.outputs)

    def _replace(self, step: Step, layer: keras.Layer, args: tuple, kwargs: dict) -> None:
        taken = keras_internals.call_arguments(layer)
        kwargs = {
            name: value
            for name, value in kwargs.items()
            if name in taken or keras_internals.takes(layer, name)
        }
        specs = self._specs(step, layer, args, kwargs)
        if len(specs) != len(step.outputs):
            raise EditError(
                f"Expected a layer with {len(step.outputs)} output(s) in the place of "
                f"{step.address!r}. Received: {layer.name!r} with {len(specs)}."
            )
        new = self._call(layer, args, kwargs, specs)
        self._point(step.outputs, new.outputs)
        self._edited_masks.update(tensor for tensor in new.outputs if tensor.dtype == "bool")

    def _remove(self, step: Step) -> None:
        args, kwargs = keras.tree.map_structure(self.now, (step.args, step.kwargs))
        tensor = self._single_input(step, args, kwargs, "remove it")
        if len(step.outputs) != 1:
            raise EditError(
                f"Expected a layer with one output to remove. Received: {step.address!r} with "
                f"{len(step.outputs)}."
            )
        self.stands_in[step.outputs[0]] = tensor

    def _insert_after(self, tensor: Tensor, made: Tensor) -> None:
        layers = self._orders.after.get(tensor, ())
        for layer in layers:
            made = self._add(layer, made)
        if layers:
            # Only what comes later is looked up, so that the layer itself reads the tensor.
            self._point([tensor], [made])
            if made.dtype == "bool":
                self._edited_masks.add(made)

    def _add(self, layer: keras.Layer, tensor: Tensor) -> Tensor:
        """Return a new call of a layer on one tensor."""
        args = (tensor,)
        specs = self._specs(None, layer, args, {})
        if len(specs) != 1:
            raise EditError(
                f"Expected a layer with one output to insert. Received: {layer.name!r} with "
                f"{len(specs)}."
            )
        return self._call(layer, args, {}, specs).outputs[0]

    def _call(
        self, layer: keras.Layer, args: tuple, kwargs: dict, specs: list[keras.KerasTensor]
    ) -> Call:
        calls = sum(step.operation is layer for step in self.steps)
        address = f"{layer.name}@{calls}" if calls else layer.name
        outputs = tuple(Tensor(address, spec) for spec in specs)
        inputs = tuple(dict.fromkeys(tensors_in((args, kwargs))))
        call = Call(-1, address, layer, args, kwargs, inputs, (), outputs, (), False)
        self.steps.append(call)
        return call

    def _point(self, old: Any, new: Any) -> None:
        self.stands_in.update((o, n) for o, n in zip(old, new, strict=True) if o is not n)

    def _single_input(self, step: Step, args: tuple, kwargs: dict, why: str) -> Tensor:
        """Return the one tensor that a step is called on, however it was passed; masks are none."""
        order = keras_internals.call_arguments(step.operation)
        masks = mask_arguments(step.operation)
        named = dict(zip(order, args, strict=False))
        named |= dict(enumerate(args[len(order) :])) | kwargs
        data = [value for name, value in named.items() if name not in masks]
        tensors = list(dict.fromkeys(tensors_in(data)))
        if len(tensors) != 1:
            listed = ", ".join(repr(tensor.address) for tensor in tensors)
            raise EditError(
                f"Expected a layer with one input to {why}. Received: {step.address!r} with "
                f"{len(tensors)}: {listed}. Insert after one of these, or replace the layer."
            )
        return tensors[0]

    def _specs(
        self, step: Step | None, operation: Any, args: tuple, kwargs: dict
    ) -> list[keras.KerasTensor]:
        """Return a call's output specs, or raise one error that names the failing layer."""

        def probe(leaf: Any) -> Any:
            return keras.KerasTensor(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf

        try:
            return _outputs_of(operation, *keras.tree.map_structure(probe, (args, kwargs)))
        except Exception as error:
            now = ", ".join(str(tensor.shape) for tensor in tensors_in((args, kwargs)))
            was = ""
            if step is not None and operation is step.operation:
                was_fed = tensors_in((step.args, step.kwargs))
                shapes = ", ".join(str(tensor.shape) for tensor in was_fed)
                was = f", which took {shapes},"
            raise ShapeError(
                f"Expected {operation.name if step is None else step.address!r}{was} to take what "
                f"it would be fed after the edit. Received: {now}, of which Keras says: "
                f"{reason(error)}"
            ) from error

    def _drop_unread(self) -> None:
        read = set(tensors_in(self.outputs))
        kept = []
        for step in reversed(self.steps):
            if not read.isdisjoint(step.outputs):
                kept.append(step)
                read.update(tensors_in((step.args, step.kwargs)))
                read.update(mask for _, mask in getattr(step, "masks", ()))
        kept.reverse()
        self.steps = kept

    def masks(self) -> dict[Tensor, Tensor]:
        """Return the mask of each tensor: as before, and passed on by inserted layers."""
        masks = dict(self.graph.masks)
        for step in self.steps:
            inputs = tensors_in(step.args)
            mask = masks.get(inputs[0]) if inputs else None
            fresh = [tensor for tensor in step.outputs if tensor not in self.graph.maker]
            if (
                mask is not None
                and fresh
                and passes_mask(step.operation, inputs[0].keras_tensor, mask.shape)
            ):
                masks.update(dict.fromkeys(fresh, mask))
        return masks


def _opened(graph: Graph, opened: set[Scope]) -> Iterator[Step]:
    """Yield the calls of a graph, nested models whole unless they are among some."""
    last = None
    for call in graph.calls:
        step = next((scope for scope in call.scopes if scope not in opened), call)
        if not call.is_input and step is not last and not isinstance(step.operation, HiddenMask):
            yield step
        last = step


def _outputs_of(operation: Any, args: tuple, kwargs: dict) -> list[keras.KerasTensor]:
    """Return the outputs that a call would have, flat; nothing is recorded, built or changed.

    Args:
        operation: A layer or operation, built or not.
        args: Positional arguments, with Keras tensors made for the purpose.
        kwargs: Keyword arguments, likewise.

    Returns:
        Keras tensors with the shapes and dtypes that would come out.

    Raises:
        ValueError: The layer cannot take these shapes. (Or whatever else the layer raises.)

    Example:
        >>> layer = keras.layers.Dense(3, name="d")
        >>> [out.shape for out in _outputs_of(layer, (keras.KerasTensor((None, 4)),), {})]
        [(None, 3)]
        >>> layer.built
        False
    """
    if isinstance(operation, keras.Layer) and not operation.built:
        stand_in = Copier().copy(operation)
        with keras_internals.without_initialising():
            return keras.tree.flatten(stand_in(*args, **kwargs))
    if args and isinstance(operation, keras.Layer):
        keras_internals.check_first_argument(operation, args[0])
    return keras.tree.flatten(keras_internals.traced_outputs(operation, args, kwargs))
