"""Splits of arrays, and of data sets that Keras trains on."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf
from annotated_types import MinLen

from reusekit.arguments import Distinct, checked
from reusekit.data.label_values import labels_from
from reusekit.data.rows import ROWS, Rows, numbers, row_keys, streamed, treated, weights_from
from reusekit.data.selection import only
from reusekit.data.shares import Shares
from reusekit.data.split import DataSplit, cause_of
from reusekit.data.task import Kind, by_task, joined
from reusekit.data.treatment import Treatment
from reusekit.errors import DataError

_AS_THEY_ARE = Treatment()
_LOOK = 512
"""Examples that are read twice to see whether a data set gives the same ones again."""

Names = Annotated[Distinct[str], MinLen(1)]
"""Names of outputs."""
AnyNames = Names | Mapping[str, Names]
"""The same, of several tasks by the tasks' names."""


@checked(DataError)
def from_arrays(
    inputs: Any,
    labels: Any,
    split: str = "train",
    *,
    names: AnyNames | None = None,
    weights: Any = None,
    shares: Shares | None = None,
    treatment: Treatment = _AS_THEY_ARE,
) -> DataSplit:
    """Make a split of arrays.

    Args:
        inputs: Shape (examples, ...): numbers, text, or pictures as uint8; or a dictionary of
            arrays by the names of a model's inputs. It is not copied, so leave it as it is;
            a pass that finds it changed fails.
        labels: Shape (examples,) or (examples, outputs). Words, true and false, and whole numbers
            are classes, and so are rows with a single 1; other rows of 0 and 1 are several labels,
            other numbers are predicted. `treatment.task` says otherwise. A dictionary of such
            arrays is several tasks at once, by name.
        split: Name of the split; with shares, the part to take.
        names: Of the classes, labels or numbers, in the order of outputs; None takes words and
            whole numbers for the names of their classes. With names, whole numbers are positions
            among them, unless all names are whole numbers: say them where not every split has
            every class. Of several tasks a dictionary.
        weights: The weight of each example; None for no weights.
        shares: Draw the split from these arrays, stratified; None takes all of them.
        treatment: Which examples are kept, and how pictures are treated.

    Raises:
        DataError: The arrays differ in length, numbers are missing, or the labels fit no task.

    Example:
        >>> from sklearn.datasets import load_wine
        >>> wine = load_wine()
        >>> train = from_arrays(wine.data, wine.target, "train", names=wine.target_names.tolist(),
        ...                     shares=Shares())
        >>> train.size, train.input_shape, train.class_names
        (124, (13,), ('class_0', 'class_1', 'class_2'))
    """
    if shares is not None and shares.group is not None:
        raise DataError(
            "Expected shares without a group, which is a column: rk.data.from_table takes a "
            f"DataFrame with it. Received: {shares.group!r}."
        )
    rows = array_rows(inputs, labels, "arrays", names, weights, treatment.task)
    positions = np.arange(len(rows.keys)) if shares is None else rows.drawn(shares).of(split)
    return rows.split(split, positions, treatment, {})


def array_rows(
    inputs: Any,
    labels: Any,
    source: str,
    names: AnyNames | None = None,
    weights: Any = None,
    task: Kind | Mapping[str, Kind] | None = None,
) -> Rows:
    """Return arrays as labelled rows, of which a reader of another source takes splits.

    Args:
        inputs: As for `from_arrays`.
        labels: As for `from_arrays`.
        source: Name of the source, the same from call to call.
        names: As for `from_arrays`.
        weights: As for `from_arrays`.
        task: The task that is asked for, as in a `Treatment`; None for what the labels state.

    Raises:
        DataError: As for `from_arrays`.

    Example:
        >>> rows = array_rows(np.eye(4), ["cat", "dog", "cat", "dog"], "pets")
        >>> rows.split("all", np.arange(4), Treatment(), {}).class_names
        ('cat', 'dog')
    """
    held = _by_name(inputs)
    told = _labels(labels)
    sizes = {name or "inputs": len(part) for name, part in held.items()}
    weighed = None if weights is None else weights_from(weights, "weights")
    sizes |= {name: len(part) if part.ndim else 0 for name, part in _parts(told).items()}
    sizes |= {} if weighed is None else {"weights": len(weighed)}
    if len(set(sizes.values())) > 1 or not all(sizes.values()):
        listed = ", ".join(f"{count:,} of {name}" for name, count in sizes.items())
        raise DataError(f"Expected one label for each example, and some. Received: {listed}.")
    stated, found = labels_from(told, "the arrays", names, task)

    def block(rows: np.ndarray) -> Any:
        parts = {
            name: numbers(part[rows], f"inputs {name or ''}".strip(), rows)
            for name, part in held.items()
        }
        return parts.get(None, parts)

    def taken(positions: np.ndarray, treatment: Treatment) -> tuple[tf.data.Dataset, np.ndarray]:
        def blocks() -> Iterator[Any]:
            for start in range(0, len(positions), step):
                rows = positions[start : start + step]
                found = block(rows)
                ends = tf.nest.map_structure(lambda part: part[[0, -1]], found)
                if not np.array_equal(row_keys(ends), keys[rows[[0, -1]]]):
                    raise DataError(
                        "Expected arrays as they were when they were opened. Received: arrays that "
                        "have changed since. Open them again."
                    )
                yield found

        read = streamed(blocks, block(positions[:1]), len(positions))
        return treated(read, treatment), positions

    size = len(found)
    step = max(1, min(ROWS, 2**24 * size // max(1, sum(part.nbytes for part in held.values()))))
    starts = range(0, size, step)
    keys = np.concatenate([row_keys(block(np.arange(s, min(s + step, size)))) for s in starts])
    texts = any(part.dtype.kind in "OSU" for part in held.values())
    stored = str({name: (str(part.dtype), part.shape[1:]) for name, part in held.items()})
    return Rows(source, taken, keys, stated, found, weighed, open_length=texts, stored=stored)


def _labels(labels: Any) -> Any:
    """Return labels as an array, or as a dictionary of arrays by task."""
    if not isinstance(labels, Mapping):
        return _array(labels, "labels")
    return {str(name): _array(part, f"labels {name}") for name, part in labels.items()}


def _parts(labels: Any) -> dict[str, np.ndarray]:
    """Return arrays of labels by what messages call them."""
    if not isinstance(labels, Mapping):
        return {"labels": labels}
    return {f"labels {name}": part for name, part in labels.items()}


def _array(values: Any, what: str) -> np.ndarray:
    try:
        found = np.asanyarray(values)
        listed = isinstance(values, list | tuple) and found.dtype.kind in "SU"
        found = np.array(values, object) if listed else found  # else a missing word becomes "nan"
    except ValueError as error:
        raise DataError(
            f"Expected {what} as an array, each example of one shape. Received: {cause_of(error)}"
        ) from error
    if np.ma.is_masked(found):
        raise DataError(
            f"Expected a value in each row of {what}. Received: a masked array, of which "
            f"{np.ma.count_masked(found):,} values are masked."
        )
    # Neither pandas nor TensorFlow takes numbers in the other order of bytes.
    return found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))


def _by_name(inputs: Any) -> dict[str | None, np.ndarray]:
    """Return inputs as arrays by name; None names an only one."""
    parts = inputs if isinstance(inputs, Mapping) else {None: inputs}
    held = {name: _array(part, f"inputs {name or ''}".strip()) for name, part in parts.items()}
    for name, part in held.items():
        numbers = part.dtype.kind in "biuf"
        texts = part.dtype.kind in "SU" or (
            part.dtype == object and all(isinstance(one, str | bytes) for one in part.flat)
        )
        if part.ndim < 1 or not (numbers or texts):
            raise DataError(
                f"Expected {name or 'inputs'} as an array of numbers or text, each example of one "
                f"shape. Received: {part.dtype} of shape {part.shape}."
            )
    if not held:
        raise DataError("Expected inputs. Received: none.")
    return held


@checked(DataError)
def from_dataset(
    dataset: tf.data.Dataset | keras.utils.PyDataset,
    split: str = "train",
    *,
    names: AnyNames | None = None,
    batched: bool | None = None,
    shares: Shares | None = None,
    treatment: Treatment = _AS_THEY_ARE,
) -> DataSplit:
    """Make a split of a data set as `keras.Model.fit` takes it.

    It is read once, for its labels and its fingerprint, and then by each pass anew.

    Args:
        dataset: Gives (input, label) or (input, label, weight), single ones or batches, the same in
            each pass: without `shuffle`, since a split shuffles by itself. A dictionary of labels
            is several tasks at once.
        split: Name of the split; with shares, the part to take.
        names: See `from_arrays`; None takes those that Keras's readers of folders leave.
        batched: Whether it gives batches; None finds out by shapes.
        shares: Draw the split from this data set, stratified; None takes all of it.
        treatment: Which examples are kept, and how pictures are treated.

    Raises:
        DataError: It gives something else, other examples in each pass, or never ends.

    Example:
        >>> dataset = tf.data.Dataset.from_tensor_slices((np.eye(6, dtype="float32"), [0, 1] * 3))
        >>> data = from_dataset(dataset.batch(4), names=["even", "odd"])
        >>> data.size, data.input_shape, data.class_names
        (6, (6,), ('even', 'odd'))
    """
    batches = _batches(dataset, batched)
    keys, labels, weights = _read(batches)
    again = next(iter(batches.unbatch().batch(_LOOK)))[0]
    if not np.array_equal(row_keys(_arrays(again)), keys[:_LOOK]):
        raise DataError(
            "Expected a data set that gives the same examples in the same order at each pass. "
            "Received: other ones at the second. Leave out shuffle (shuffle=False in Keras's "
            "readers) and random augmentation: a split shuffles by itself."
        )
    names = names or getattr(dataset, "class_names", None)  # as Keras's readers of folders say
    task, found = labels_from(by_task(labels), "the data set", names, treatment.task)
    inputs = batches.map(lambda *example: example[0]).unbatch()
    inputs = inputs.apply(tf.data.experimental.assert_cardinality(len(keys)))

    def taken(positions: np.ndarray, treatment: Treatment) -> tuple[tf.data.Dataset, np.ndarray]:
        read = inputs if len(positions) == len(keys) else only(inputs, positions)
        return treated(read, treatment), positions

    is_open = any(map(Treatment(length=1).shortens, tf.nest.flatten(inputs.element_spec)))
    stored = str(inputs.element_spec)
    rows = Rows("dataset", taken, keys, task, found, weights, open_length=is_open, stored=stored)
    positions = np.arange(len(keys)) if shares is None else rows.drawn(shares).of(split)
    return rows.split(split, positions, treatment, {})


def _batches(
    dataset: tf.data.Dataset | keras.utils.PyDataset, batched: bool | None
) -> tf.data.Dataset:
    """Return batches of (input, label) or (input, label, weight)."""
    if isinstance(dataset, keras.utils.PyDataset):
        batched, dataset = True, _of_py_dataset(dataset)
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise DataError("Expected a data set that ends. Received: an infinite one; see repeat().")
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise DataError(
            "Expected a data set of (input, label) or (input, label, weight). Received: "
            f"{len(spec) if isinstance(spec, tuple) else 1} parts. Add the labels."
        )
    if not all(isinstance(part, tf.TensorSpec) for part in tf.nest.flatten(spec)):
        raise DataError("Expected dense tensors in the data set. Received: ragged or sparse ones.")
    tasks = spec[1].values() if isinstance(spec[1], dict) else [spec[1]]
    if not tasks or not all(isinstance(one, tf.TensorSpec) for one in tasks):
        raise DataError(
            "Expected one tensor of labels, or a dictionary of them by task. Received: a "
            f"{type(spec[1]).__name__} of them."
        )
    if batched is None:
        batched = _looks_batched(spec)
    return dataset if batched else dataset.batch(256)


def _looks_batched(spec: tuple) -> bool:
    """Return whether shapes are those of batches.

    Raises:
        DataError: They could be either.
    """
    ranks = {part.shape.rank for part in tf.nest.flatten(spec)}
    if 0 in ranks:
        return False
    leading = {part.shape[0] for part in tf.nest.flatten(spec) if part.shape.rank}
    if leading == {None} and None not in ranks:
        return True
    if len(leading) > 1 and None not in ranks:
        return False
    raise DataError(
        "Expected batched=True or batched=False, since the shapes of the data set could be those "
        f"of batches or of single examples. Received: {spec}."
    )


def _of_py_dataset(dataset: keras.utils.PyDataset) -> tf.data.Dataset:
    count = dataset.num_batches
    if count is None:
        raise DataError("Expected a PyDataset of a known number of batches. Received: None.")
    if not count:
        raise DataError("Expected a data set with examples. Received: none.")

    def made(number: int) -> Any:
        batch = dataset[number]
        return tuple(keras.tree.map_structure(np.asarray, part) for part in batch)

    def batches() -> Iterator[Any]:
        for number in range(count):
            yield made(number)

    first = made(0)
    spec = tf.nest.map_structure(
        lambda part: tf.TensorSpec((None, *part.shape[1:]), tf.as_dtype(part.dtype)), first
    )
    return tf.data.Dataset.from_generator(batches, output_signature=spec)


def _read(batches: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Read a data set once: keys of its inputs, labels, and weights where there are some."""
    keys, labels, weights = [], [], []
    start = 0
    try:
        for inputs, told, *weight in batches:
            arrays = _arrays(inputs)
            for part in arrays.values() if isinstance(arrays, dict) else (arrays,):
                if part.dtype.kind in "biuf":
                    numbers(part, "inputs", np.arange(start, start + len(part)))
            keys.append(row_keys(arrays))
            labels.append(joined(told))
            weights += [one.numpy() for one in weight]
            start += len(keys[-1])
    except tf.errors.OpError as error:
        raise DataError(
            f"Expected a data set that can be read to its end. Received: {cause_of(error)}"
        ) from error
    if not start:
        raise DataError("Expected a data set with examples. Received: none.")
    weighed = weights_from(np.concatenate(weights), "weights") if weights else None
    return np.concatenate(keys), np.concatenate(labels), weighed


def _arrays(inputs: Any) -> Any:
    """Return inputs as an array, or a dictionary of arrays."""
    if isinstance(inputs, tuple | list):
        inputs = {str(place): part for place, part in enumerate(inputs)}
    return tf.nest.map_structure(lambda part: part.numpy(), inputs)
