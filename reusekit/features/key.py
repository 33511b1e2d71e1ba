"""The key of features: everything that makes two of them the same."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import keras
from annotated_types import MinLen
from pydantic import PositiveInt

from reusekit.arguments import checked
from reusekit.data import DataSplit
from reusekit.errors import CacheError
from reusekit.features.frontier import Frontier
from reusekit.features.padding import Padding
from reusekit.features.tensor_digests import tensor_digests
from reusekit.graph import read

LABELS = ":labels"
"""The name of the labels among an entry's arrays; no address starts with a colon."""


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
        >>> from reusekit.data import load_split
        >>> from reusekit.features import frontier
        >>> data = load_split("sklearn_digits", "test", image_size=(32, 32))
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
    if isinstance(preprocessing, keras.Model):
        before = read(preprocessing)
        preprocessing = list(tensor_digests(before, before.outputs).values())
    common = {
        "format": 1,
        "data": [data.name, data.split, data.fingerprint, data.size],
        "dtype": dtype,
        "padding": padding and asdict(padding),
        "preprocessing": preprocessing,
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
        keys.append(FeatureKey(_digest(same), (*one.names, LABELS), data.size, about))
    return keys


def _digest(value: Any) -> str:
    try:
        written = json.dumps(value, sort_keys=True)
    except TypeError as error:
        raise CacheError(f"Expected preprocessing that serialises to JSON: {error}.") from error
    return hashlib.sha256(written.encode()).hexdigest()
