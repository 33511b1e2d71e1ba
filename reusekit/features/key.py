"""Keys of features: all that makes two of them the same, down to each tensor's computation."""

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import keras
import numpy as np
from annotated_types import MinLen
from pydantic import PositiveInt

from reusekit.arguments import checked
from reusekit.backbones.digest import without_names
from reusekit.data import DataSplit
from reusekit.digests import array_digest, digest
from reusekit.errors import CacheError
from reusekit.features.frontiers import Frontier
from reusekit.features.padding import Padding
from reusekit.graph import Graph, Tensor, ancestors, read

LABELS = ":labels"
"""The name of the labels among an entry's arrays; no address starts with a colon."""

# Their code changes with their version only, so configurations say enough about their classes.
_LIBRARIES = {"abc", "builtins", "keras", "keras_hub", "tensorflow", "torch"}


@checked(CacheError)
@dataclass(frozen=True)
class FeatureKey:
    """Names an entry of the store.

    Attributes:
        digest: Equal where the features are: 64 hexadecimal digits.
        arrays: The names by which the caller knows the entry's arrays. Their order counts and the
            names do not, so that a renamed layer finds what was stored under its old name.
        size: The number of examples.
        about: What a person would want to know of the entry; must serialise to JSON.
    """

    digest: str
    arrays: tuple[str, ...]
    size: PositiveInt
    about: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not (self.digest.isalnum() and self.digest.isascii()) or not self.arrays:
            raise CacheError(
                "Expected a key of letters and digits and at least one array. "
                f"Received: {self.digest!r} and {self.arrays!r}."
            )


@checked(CacheError)
def feature_keys(
    frontiers: Sequence[Frontier],
    data: DataSplit,
    dtype: str | None = None,
    padding: Padding | None = None,
    preprocessing: Any = None,
    compute_dtype: str | None = None,
    view: Annotated[Sequence[int], MinLen(1)] | None = None,
) -> list[FeatureKey]:
    """Return the keys under which the features of a data set at some cuts of a model are stored.

    Two keys are equal where all of this is: the layers below the cut with their configurations,
    connections and weights to the last bit; pooling, dtypes, padding and preprocessing; the view;
    the name, version, split and content of the data set. Layer names, what the model computes
    elsewhere, whether it is frozen or compiled, the process and the day do not count.

    Args:
        frontiers: Cuts of one model. Each weight is read once for all of them.
        data: What the model is fed.
        dtype: What features are stored as; None for what the model computes.
        padding: How examples of different lengths are brought to one.
        preprocessing: What is done to the examples that neither the model nor
            `data.fingerprint` says: a Keras model, or anything that serialises to JSON.
        compute_dtype: What the bottom computes in; None for the model's own precision.
        view: What the random numbers of an augmented view follow from; None where there are none.

    Raises:
        CacheError: A layer or the preprocessing does not say what it is.

    Example:
        >>> import reusekit as rk
        >>> from reusekit.features import frontier
        >>> data = rk.data.load("sklearn_digits", "test",
        ...                     treatment=rk.data.Treatment(image_size=(32, 32)))
        >>> model = rk.load_backbone("reusekit/glyphnet").model
        >>> deep = frontier(model, "block7_out", pooling="avg")
        >>> feature_keys([deep], data) == feature_keys([deep], data)
        True
        >>> feature_keys([deep], data) == feature_keys([deep], data, dtype="float16")
        False
    """
    if not frontiers:
        return []
    graph = frontiers[0].graph
    if any(one.graph is not graph for one in frontiers):
        raise CacheError("Expected cuts of one model, read once. Received cuts of several.")
    pooled = {one: one.mask for one in frontiers if one.pooling and one.mask is not None}
    digests = tensor_digests(
        graph, [*(tensor for one in frontiers for tensor in one.stored), *pooled.values()]
    )
    common = {
        "format": 1,
        "data": [data.name, data.split, data.fingerprint, data.size],
        "dtype": dtype,
        "padding": padding and asdict(padding),
        "preprocessing": described(preprocessing),
    }
    if compute_dtype is not None:
        common["compute_dtype"] = compute_dtype
    if view is not None:
        common["view"] = list(view)
    keys = []
    for one in frontiers:
        same = {**common, "pooling": one.pooling, "tensors": [digests[t] for t in one.stored]}
        if one in pooled:
            same["mask"] = digests[pooled[one]]
        elif one.pooling and one.masked_by is None and graph.is_masked:
            same["mask"] = None  # what Keras masks counts
        about = {
            "model": graph.model.name,
            "cut": one.crossing[0].address,
            "pooling": one.pooling,
            "data": data.name,
            "split": data.split,
        }
        if view is not None:
            about["view"] = view[0]
        keys.append(FeatureKey(digest(same), (*one.names, LABELS), data.size, about))
    return keys


def described(preprocessing: Any) -> Any:
    """Return preprocessing as JSON: for a model the digests of its outputs.

    Raises:
        CacheError: It does not serialise to JSON, or a layer of it does not say what it is.
    """
    if isinstance(preprocessing, keras.Model):
        before = read(preprocessing)
        return list(tensor_digests(before, before.outputs).values())
    try:
        return json.loads(json.dumps(preprocessing))
    except (TypeError, ValueError) as error:
        raise CacheError(f"Expected preprocessing that serialises to JSON: {error}.") from error


def tensor_digests(graph: Graph, tensors: Iterable[Tensor]) -> dict[Tensor, str]:
    """Return a digest for each tensor of all that its values follow from, given the model's inputs.

    The digest of a tensor is made from the configuration and weight bytes of the layer that makes
    it and from the digests of the tensors which that layer reads, down to the model's inputs (a
    Merkle tree). So it is the same in every process, whatever the layers are called and whatever
    else the model computes, and each weight is read once however many tensors are asked for.

    Args:
        graph: A model that was read.
        tensors: Tensors of it.

    Returns:
        64 hexadecimal digits (SHA-256) for each of the tensors.

    Raises:
        CacheError: A layer does not say what it is: it has no `get_config`, or was called with an
            argument that cannot be written down.

    Example:
        >>> from reusekit.graph import read
        >>> def build(name):
        ...     keras.utils.set_random_seed(0)
        ...     x = keras.Input((4,), name=f"{name}_in")
        ...     return read(keras.Model(x, keras.layers.Dense(3, name=name)(x)))
        >>> one, other = build("one"), build("other")
        >>> digest = tensor_digests(one, one.outputs)[one.outputs[0]]
        >>> digest == tensor_digests(other, other.outputs)[other.outputs[0]]
        True
    """
    tensors = list(tensors)
    paths = {
        tensor: list(path) for path, tensor in keras.tree.flatten_with_path(graph.input_structure)
    }
    digests: dict[Tensor, str] = {}
    weights: dict[int, str] = {}
    described: dict[int, Any] = {}
    for call in ancestors(graph, tensors):
        if call.is_input:
            (tensor,) = call.outputs
            digests[tensor] = digest(["input", paths[tensor], tensor.shape[1:], tensor.dtype])
            continue
        key = id(call.operation)
        if key not in described:  # a layer may be called many times
            described[key] = _described(call.operation, call.address)
        for variable in call.variables:
            if id(variable) not in weights:
                weights[id(variable)] = array_digest(variable)
        made_by = [
            described[key],
            [weights[id(variable)] for variable in call.variables],
            _written(call.args, digests, call.address),
            _written(call.kwargs, digests, call.address),
            [[digests[tensor], digests[mask]] for tensor, mask in call.masks],
        ]
        for place, tensor in enumerate(call.outputs):
            digests[tensor] = digest([made_by, place])
    return {tensor: digests[tensor] for tensor in tensors}


def _described(operation: Any, address: str) -> list:
    """Return the class and the configuration of an operation, without names."""
    kind = type(operation)
    try:
        config = keras.saving.serialize_keras_object(operation)
        config = without_names(json.loads(json.dumps(config)))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise CacheError(
            f"Expected layers whose configuration can be saved, received {address!r} of class "
            f"{kind.__name__}. Give it a `get_config`, as saving the model needs too."
        ) from error
    described = [f"{kind.__module__}.{kind.__qualname__}", config, _own_code(kind)]
    # What preprocessing layers learn by `adapt` is neither among their weights nor configured.
    if hasattr(operation, "get_vocabulary"):
        described.append([str(word) for word in operation.get_vocabulary()])
    return described


def _own_code(kind: type) -> list[str]:
    """Return the source of a user's own layer, whose configuration does not tell its `call`."""
    classes = [c for c in kind.__mro__ if c.__module__.partition(".")[0] not in _LIBRARIES]
    try:
        return [inspect.getsource(c) for c in classes]
    except (OSError, TypeError):  # typed into an interpreter that keeps no source
        return []


def _written(value: Any, digests: Mapping[Tensor, str], address: str) -> Any:
    """Return a recorded call argument as JSON, with digests in the place of tensors."""

    def write(part: Any) -> Any:
        if isinstance(part, Tensor):
            return ["tensor", digests[part]]
        if part is None or isinstance(part, bool | int | float | str):
            return part
        if isinstance(part, dict):
            return {str(key): write(item) for key, item in part.items()}
        if isinstance(part, list | tuple):
            return [write(item) for item in part]
        if isinstance(part, slice):
            return ["slice", write(part.start), write(part.stop), write(part.step)]
        if part is Ellipsis:
            return ["..."]
        if isinstance(part, np.ndarray | np.generic | keras.Variable) or keras.ops.is_tensor(part):
            return ["array", array_digest(part)]
        try:
            written = keras.saving.serialize_keras_object(part)
            return json.loads(json.dumps(written))
        except (TypeError, ValueError) as error:
            raise CacheError(
                f"Expected call arguments that can be saved, received {part!r} in the call "
                f"{address!r}."
            ) from error

    return write(value)
