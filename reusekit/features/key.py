"""Keys of features: all that makes two of them the same, down to each tensor's computation."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import keras
import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from reusekit.arguments import Seed, checked
from reusekit.backbones.digest import described_operation
from reusekit.data import DataSplit
from reusekit.digests import array_digest, digest
from reusekit.errors import CacheError
from reusekit.features.batches import Padding
from reusekit.features.frontiers import Frontier
from reusekit.graph import Graph, Tensor, ancestors, read
from reusekit.graph.padding_mask import AUTO

LABELS, WEIGHTS, EXAMPLES = ":labels", ":weights", ":examples"
"""The names of arrays of an entry that hold no features; no address starts with a colon.

Labels, weights, and for each example a number that follows from its content.
"""

EXAMPLE_BYTES = 8
"""The bytes of such a number."""


@checked(CacheError)
@dataclass(frozen=True)
class Extraction:
    """The settings under which features are computed and named.

    Attributes:
        dtype: What features are stored as; None for what the model computes. Integers, masks among
            them, stay what they are.
        padding: How examples of different lengths are brought to one.
        preprocessing: What is done to the examples that neither the model nor the data set's
            fingerprint says: a Keras model, or anything that serialises to JSON.
        compute_dtype: "bfloat16" has the bottom compute in that, which is quicker and less exact;
            None in the model's own precision.
        mask: Which positions pooling passes over, as for `rk.extract`.
        carries_mask: Whether the mask is stored after whole maps, for a head that pools them; in a
            plan it is.
        batch_size: Examples a batch of the pass: it decides speed and memory.
        seed: Augmentation follows from this.
        augmented_views: How many augmented views of the training examples a plan stores where
            random augmentation lies before a cut; with 0 the bottom runs on every batch instead.

    Example:
        >>> Extraction(dtype="float15")
        Traceback (most recent call last):
        reusekit.errors.CacheError: Expected dtype to be None or 'float32', 'float16' or 'bfloat16'.
        Received: 'float15'. Did you mean 'float16' or 'bfloat16' or 'float32'?
    """

    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    padding: Padding | None = None
    preprocessing: Any = None
    compute_dtype: Literal["bfloat16"] | None = None
    mask: Any = AUTO
    carries_mask: bool = False
    batch_size: PositiveInt = 64
    seed: Seed = 0
    augmented_views: NonNegativeInt = 0


@checked(CacheError)
@dataclass(frozen=True)
class FeatureKey:
    """The name of an entry of the store.

    Attributes:
        digest: Equal where the features are: letters and digits.
        arrays: The caller's names of the entry's arrays, of which only their order counts.
        size: The number of examples.
        about: What a person would want to know of the entry; must serialise to JSON.
        alike: Equal where an example of equal content has equal features, whatever other examples
            there are; None where that is not known.
        examples: A number for each example that follows from its content; the entry keeps them as
            its last array. None where they are not known.
    """

    digest: str
    arrays: tuple[str, ...]
    size: PositiveInt
    about: Mapping[str, Any] = field(default_factory=dict, compare=False)
    alike: str | None = field(default=None, compare=False)
    examples: np.ndarray | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not (self.digest.isalnum() and self.digest.isascii()) or not self.arrays:
            raise CacheError(
                "Expected a key of letters and digits and at least one array. "
                f"Received: {self.digest!r} and {self.arrays!r}."
            )
        shape = None if self.examples is None else self.examples.shape
        known = self.alike is not None and shape == (self.size,)
        if known != (self.arrays[-1] == EXAMPLES):
            raise CacheError(
                f"Expected {EXAMPLES!r} as the last array where `alike` and a number for each of "
                f"the {self.size:,} examples are given. Received: {self.arrays!r} and examples of "
                f"shape {shape}."
            )


@checked(CacheError)
def feature_keys(
    frontiers: Sequence[Frontier],
    data: DataSplit,
    extraction: Extraction = Extraction(),
    view: NonNegativeInt | None = None,
) -> list[FeatureKey]:
    """Return the keys under which the features of a data set at some cuts of a model are stored.

    Two keys are equal where all of this is: the layers below the cut with their configurations,
    connections and weights to the last bit; pooling, dtypes, padding and preprocessing; the view;
    the name, version, split and content of the data set. Layer names, what the model computes
    elsewhere, whether it is frozen or compiled, the process and the day do not count. Where the
    data set knows its examples one by one, all of this but the data set makes keys `alike`.

    Args:
        frontiers: Cuts of one model. Each weight is read once for all of them.
        data: What the model is fed.
        extraction: How features are computed.
        view: The number of an augmented view, by the data's own augmentation as well; None where
            nothing varies.

    Raises:
        CacheError: A layer or the preprocessing does not say what it is.

    Example:
        >>> import reusekit as rk
        >>> from reusekit.features import frontier
        >>> data = rk.data.load("sklearn_digits", "test",
        ...                     treatment=rk.data.Treatment(image_size=(32, 32)))
        >>> deep = frontier(rk.load_backbone("reusekit/glyphnet").model, "block7_out", "avg")
        >>> half = feature_keys([deep], data, Extraction(dtype="float16"))
        >>> feature_keys([deep], data) == feature_keys([deep], data) != half
        True
    """
    if not frontiers:
        return []
    graph = frontiers[0].graph
    if any(one.graph is not graph for one in frontiers):
        raise CacheError("Expected cuts of one model, read once. Received: cuts of several.")
    pooled = {one: one.mask for one in frontiers if one.pooling and one.mask is not None}
    crossing = [tensor for one in frontiers for tensor in one.crossing]
    digests = tensor_digests(graph, [*crossing, *pooled.values()])
    of_data = {"data": [data.name, data.split, data.fingerprint, data.size]}
    common: dict[str, Any] = {
        "format": 1,
        "dtype": extraction.dtype,
        "padding": extraction.padding and asdict(extraction.padding),
        "preprocessing": described(extraction.preprocessing),
    }
    if extraction.compute_dtype is not None:
        common["compute_dtype"] = extraction.compute_dtype
    if view is not None:
        common["view"] = [view, extraction.seed, extraction.batch_size]
        if data.augmentation is not None:
            common["augmentation"] = data.augmentation.digest
    labels, *weights = data.examples.element_spec[1:]
    told = [label_array(name) for name in labels] if isinstance(labels, dict) else [LABELS]
    told += [WEIGHTS] * len(weights)
    contents = data.contents if view is None else None  # what a view draws follows from positions
    told += [EXAMPLES] * (contents is not None)
    keys = []
    for one in frontiers:
        same = {**common, "pooling": one.pooling, "tensors": [digests[t] for t in one.crossing]}
        if one in pooled:
            same["mask"] = digests[pooled[one]]
        elif one.pooling and one.masked_by is None and graph.is_masked:
            same["mask"] = None  # what Keras masks counts
        about = {"model": graph.model.name, "cut": one.crossing[0].address, "pooling": one.pooling}
        about |= {"data": data.name, "split": data.split} | ({} if view is None else {"view": view})
        known: tuple = ()
        if contents is not None:
            known = digest(same | {"treatment": contents.treatment}), contents.keys
        found, arrays = digest(same | of_data), (*one.names, *told)
        keys.append(FeatureKey(found, arrays, data.size, about, *known))
    return keys


def label_array(task: str) -> str:
    """Return the name of the array of one task's labels, where there are several."""
    return f"{LABELS}/{task}"


def described(preprocessing: Any) -> Any:
    """Return preprocessing as JSON: for a model the digests of its outputs."""
    if isinstance(preprocessing, keras.Model):
        before = read(preprocessing)
        return list(tensor_digests(before, before.outputs).values())
    try:
        return json.loads(json.dumps(preprocessing))
    except (TypeError, ValueError) as error:
        raise CacheError(
            "Expected preprocessing as a Keras model, or as data that serialises to JSON. "
            f"Received: a {type(preprocessing).__name__}: {error}."
        ) from error


_read_once: WeakKeyDictionary[keras.Model, dict[int, str]] = WeakKeyDictionary()


@contextmanager
def weights_read_once(*models: keras.Model) -> Iterator[None]:
    """Have each weight of some models be read for its digest once in the block.

    Nobody may change a weight there.
    """
    _read_once.update({model: {} for model in models})
    try:
        yield
    finally:
        for model in models:
            _read_once.pop(model, None)


def tensor_digests(graph: Graph, tensors: Iterable[Tensor]) -> dict[Tensor, str]:
    """Return a digest for each tensor of all that its values follow from, given the model's inputs.

    It is made from the configuration and weight bytes of the layer that makes the tensor and from
    the digests of what that layer reads, down to the model's inputs (a Merkle tree): the same in
    every process, whatever the layers are called and whatever else the model computes. Each weight
    is read once.

    Raises:
        CacheError: A layer has no `get_config`, or a call an argument that cannot be written down.
    """
    tensors = list(tensors)
    paths = {
        tensor: list(path) for path, tensor in keras.tree.flatten_with_path(graph.input_structure)
    }
    digests: dict[Tensor, str] = {}
    weights = _read_once.get(graph.model, {})
    described: dict[int, Any] = {}
    for call in ancestors(graph, tensors):
        if call.is_input:
            (tensor,) = call.outputs
            digests[tensor] = digest(["input", paths[tensor], tensor.shape[1:], tensor.dtype])
            continue
        key = id(call.operation)
        if key not in described:  # a layer may be called many times
            described[key] = described_operation(call.operation, call.address)
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
        for position, tensor in enumerate(call.outputs):
            digests[tensor] = digest([made_by, position])
    return {tensor: digests[tensor] for tensor in tensors}


def _written(value: Any, digests: Mapping[Tensor, str], address: str) -> Any:
    """Return a recorded call argument as JSON, with digests in the place of tensors."""
    if isinstance(value, Tensor):
        return ["tensor", digests[value]]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): _written(item, digests, address) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_written(item, digests, address) for item in value]
    if isinstance(value, slice):
        parts = [value.start, value.stop, value.step]
        return ["slice", *_written(parts, digests, address)]
    if value is Ellipsis:
        return ["..."]
    if isinstance(value, np.ndarray | np.generic | keras.Variable) or keras.ops.is_tensor(value):
        return ["array", array_digest(value)]
    try:
        return json.loads(json.dumps(keras.saving.serialize_keras_object(value)))
    except (TypeError, ValueError) as error:
        raise CacheError(
            f"Expected call arguments that can be saved. Received: {value!r} in the call "
            f"{address!r}."
        ) from error
