"""The base of all heads: a specification, built on the features it is given."""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

import keras
from pydantic import AfterValidator, Field

from reusekit.arguments import Name, Rate, checked
from reusekit.errors import HeadError
from reusekit.graph import keras_internals, read
from reusekit.graph.padding_mask import AUTO, padding_mask, remember_whole
from reusekit.surgery import prepend
from reusekit.surgery.extraction import taps, without_masks


def _symbolic(features: Any) -> Any:
    tensors = keras.tree.flatten(features)
    if not tensors or not all(isinstance(tensor, keras.KerasTensor) for tensor in tensors):
        raise ValueError("no tensors")
    return features


Features = Annotated[
    Any,
    AfterValidator(_symbolic),
    Field(description="a Keras tensor, or a list or dictionary of Keras tensors"),
]
"""What a head is connected to."""


@dataclass(frozen=True, kw_only=True)
class Head(ABC):
    """A head before it is built. One head may go on many bottoms: each has new layers.

    Args:
        name: The name of the model that `build` makes; its layers' names begin with it.
    """

    name: Name = "head"

    @property
    @abstractmethod
    def compile_args(self) -> dict[str, Any]:
        """The loss and the metrics, new ones each time.

        For `model.compile("adam", **head.compile_args)`, or with another loss,
        `**head.compile_args | {"loss": "huber"}`.
        """

    @checked(HeadError)
    def smoothed_loss(self, smoothing: Rate) -> Any:
        """Return the loss with smoothed labels, as Keras's `label_smoothing` has it.

        Raises:
            HeadError: The head's labels are nothing that can be smoothed.
        """
        raise HeadError(
            "Expected a head of classes or of labels for label smoothing. Received: "
            f"{type(self).__name__}."
        )

    @abstractmethod
    def connect(self, features: Features) -> Any:
        """Call the head's layers, new ones each time, on symbolic features.

        Args:
            features: One Keras tensor; some heads take a list or dict of them.

        Returns:
            The outputs, float32 under any precision policy, so that the loss is exact.

        Raises:
            HeadError: The head cannot take such features.
        """

    def build(self, input_shape: Any) -> keras.Model:
        """Make the head as a model of its own, to be trained on features that are there already.

        Args:
            input_shape: The shape of one example's features, without the batch axis; a list or dict
                of shapes for a head that takes several.

        Returns:
            A model from features to outputs, of stock Keras layers.

        Raises:
            HeadError: No shape, or one that the head cannot take.
        """
        try:
            features = keras.tree.map_shape_structure(_features, input_shape)
        except (TypeError, ValueError, NotImplementedError):
            features = None
        if not keras.tree.flatten(features) or None in keras.tree.flatten(features):
            raise HeadError(
                "Expected input_shape as a tuple of axis lengths without the batch axis, such as "
                f"(height, width, channels). Received: {input_shape!r}."
            )
        return self.build_like(features)

    @checked(HeadError)
    def build_like(self, features: Features) -> keras.Model:
        """Make the head as a model for features of the shapes and dtypes that tensors have."""
        inputs, masks = self._inputs(features), self._masks(features)
        fed = list({id(mask): mask for mask in masks if mask is not None}.values())
        booleans = {id(mask): as_booleans(mask, self.name) for mask in fed}
        for each, mask in zip(keras.tree.flatten(inputs), masks, strict=True):
            keras_internals.attach_mask(each, booleans.get(id(mask)))
        return keras.Model([inputs, fed] if fed else inputs, self.connect(inputs), name=self.name)

    def _masks(self, features: Any) -> list[keras.KerasTensor | None]:
        """Return placeholders for the masks that features carry; one for each mask."""
        carried = [keras_internals.mask_of(like) for like in keras.tree.flatten(features)]
        made = {
            id(mask): keras.Input(
                batch_shape=mask.shape, dtype=mask.dtype, name=f"{self.name}_mask_{number}"
            )
            for number, mask in enumerate({id(m): m for m in carried if m is not None}.values())
        }
        return [None if mask is None else made[id(mask)] for mask in carried]

    def _inputs(self, features: Any) -> Any:
        """Return placeholders in the features' structure, each named by its path in it."""
        inputs = [
            keras.Input(batch_shape=like.shape, dtype=like.dtype, name=self._input_name(path))
            for path, like in keras.tree.flatten_with_path(features)
        ]
        return keras.tree.pack_sequence_as(features, inputs)

    def _input_name(self, path: tuple) -> str:
        # Keras wants inputs that come in a dict named by their keys; no name may have a "/".
        if len(path) == 1 and isinstance(path[0], str) and "/" not in path[0]:
            return path[0]
        return "_".join(map(str, (self.name, "input", *path))).replace("/", ".")

    @checked(HeadError)
    def attach_to(self, bottom: keras.Model, mask: Any = AUTO) -> keras.Model:
        """Return the bottom with this head on it; `rk.attach` says more."""
        masked, features = with_masks(bottom, mask)
        head = self.bound_to(bottom).build_like(features)
        whole = prepend(head, masked, name=f"{bottom.name}_{self.name}")
        remember_whole(whole, read(bottom))
        return whole

    @checked(HeadError)
    def bound_to(self, bottom: keras.Model) -> "Head":
        """Return the head bound to what it takes from the bottom; most heads take nothing."""
        return self


def with_masks(bottom: keras.Model, mask: Any) -> tuple[keras.Model, Any]:
    """Return a bottom that gives the masks of its features as well.

    Args:
        bottom: From inputs to features.
        mask: As `rk.extract` takes it.

    Returns:
        The bottom, whose output is [features, masks] where there are masks, and tensors like its
        features that carry tensors like the masks.
    """
    graph = read(bottom, keep_masks=True)
    chosen = {tensor: padding_mask(graph, tensor, mask) for tensor in graph.outputs}
    for _, doubt in chosen.values():
        if doubt:
            warnings.warn(doubt, stacklevel=6)
    masks = list(dict.fromkeys(found for found, _ in chosen.values() if found is not None))
    likes = {tensor: keras.KerasTensor(tensor.shape, tensor.dtype) for tensor in masks}

    def like(tensor: Any) -> keras.KerasTensor:
        made = keras.KerasTensor(tensor.shape, tensor.dtype)
        found, _ = chosen[tensor]
        if found is not None:
            keras_internals.attach_mask(made, likes[found])
        return made

    features = keras.tree.map_structure(like, graph.output_structure)
    if masks:
        bottom = taps(graph, [graph.output_structure, masks], None, {})
    elif mask is None and not graph.known_masks.keys().isdisjoint(graph.outputs):
        bottom = without_masks(graph)
    return bottom, features


def as_booleans(mask: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Return a mask as layers of Keras take it."""
    if mask.dtype == "bool":
        return mask
    return keras_internals.named(keras.ops.cast(mask, "bool"), f"{name}_kept_{mask.name}")


Classes = Annotated[
    int,
    Field(
        ge=2,
        description="a whole number of at least 2; for yes or no, classes=2 or a multilabel head "
        "with labels=1",
    ),
]
"""How many classes there are to tell apart."""


def _features(shape: tuple) -> keras.KerasTensor:
    return keras.KerasTensor((None, *shape), "float32")


def one_tensor(features: Any, head: str) -> Any:
    """Return the features themselves, where they are a single tensor.

    Raises:
        HeadError: They are several.
    """
    tensors = keras.tree.flatten(features)
    if len(tensors) != 1:
        raise HeadError(
            f"Expected one tensor of features for a {head} head. Received: {len(tensors)}: "
            "rk.extract(bottom, ADDRESS) gives one; a multitap head takes several."
        )
    return tensors[0]
