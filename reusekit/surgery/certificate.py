"""The proof that parts or a copy of a model compute the same as the model."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from reusekit.errors import CertificateError, CopyError, SurgeryError, reason
from reusekit.graph import Graph, Tensor, keras_internals, read

# Relative to the largest output. The same layers run in the same order, so that most results are
# equal to the last bit; a backend may still fuse or reorder what stands beside a cut.
_TOLERANCES = {"float64": 1e-10, "float32": 1e-5, "float16": 1e-2, "bfloat16": 4e-2}
_RANDOM = "its outputs are random and follow from no seed"


@dataclass(frozen=True)
class Certificate:
    """The checks of a copy or split, and their outcome.

    Attributes:
        max_abs_error: The largest difference between an output of the model and of its parts.
        tolerance: The largest difference that was allowed.
        exact: Whether all outputs are equal to the last bit.
        outputs: The number of output tensors that were compared.
        parameters: The number of the model's parameters, each weight counted once.
        parameters_conserved: Whether the parts together have the same weights, no more and no less.
        source_untouched: Whether the model's weights and flags are those it had before.
    """

    max_abs_error: float
    tolerance: float
    exact: bool
    outputs: int
    parameters: int
    parameters_conserved: bool
    source_untouched: bool

    def __str__(self) -> str:
        how = "exact" if self.exact else f"within {self.max_abs_error:.1e}"
        return f"{self.outputs} output(s) equal ({how}), {self.parameters:,} parameters conserved"


@dataclass(frozen=True)
class Snapshot:
    """A model's weights by identity and its flags, as they were at one moment.

    Attributes:
        weights: The ids of its weights, in order.
        trainable: The trainable flag of each of its weights.
        flags: The name and trainable flag of each layer, nested ones included.
    """

    weights: tuple[int, ...]
    trainable: tuple[bool, ...]
    flags: tuple[tuple[str, bool], ...]

    @classmethod
    def of(cls, model: keras.Model) -> "Snapshot":
        """Return the model as it is now."""
        layers = keras_internals.all_layers(model)
        # As `model.weights` has them, which takes severalfold the time: it asks each layer in turn
        # for all that is inside it.
        weights = {
            id(variable): variable.trainable
            for layer in layers
            for variable in keras_internals.own_variables(layer)
        }
        flags = [(layer.name, layer.trainable) for layer in layers]
        return cls(tuple(weights), tuple(weights.values()), tuple(flags))

    def changes(self, model: keras.Model) -> list[str]:
        """Describe what has changed about the model; empty if nothing has."""
        now = Snapshot.of(model)
        changed = []
        if now.weights != self.weights:
            changed.append("its list of weights")
        if now.trainable != self.trainable:
            changed.append("the trainable flags of its weights")
        if now.flags != self.flags:
            changed.append("the layers or their trainable flags")
        return changed


def certify(
    graph: Graph,
    parts: Sequence[keras.Model],
    before: Snapshot,
    x: Any = None,
    expected: Any = None,
    training: bool = False,
    state: Sequence[tuple[keras.Variable, Any]] = (),
) -> Certificate:
    """Run a model, then its parts one after another, and compare.

    State that running changes (random seeds, statistics of a BatchNormalization that was recorded
    with `training=True`) stays as it was, so that both runs start from the same.

    Args:
        graph: The whole model.
        parts: Models in a chain.
        before: The model as it was before it was taken apart.
        x: Inputs in the model's structure; None makes random ones.
        expected: The model's outputs for `x`, where they are known; else the model is run.
        training: Whether to run in training mode instead of in inference. Random operations give
            equal values, since both runs start from the same seeds.
        state: Values to run with in the place of some variables' own.

    Returns:
        The certificate.

    Raises:
        CertificateError: Something does not agree; the message says what.
    """
    original = graph.model
    if x is None:
        x = random_inputs(graph)
    if expected is None:
        with keras.StatelessScope(state):
            expected = original(x, training=training)
    expected = _arrays(expected)
    with keras.StatelessScope(state):
        received = x
        for part in parts:
            received = part(received, training=training)
    received = _arrays(received)
    error, tolerance, exact = _compare(expected, received)
    used = {id(v): v for call in graph.calls for v in call.variables}
    kept = {id(v) for part in parts for v in part.weights}
    kept |= {id(v) for part in parts for call in read(part).calls for v in call.given}
    # A nested model that stays whole brings weights along that no output of the model depends on.
    own = {id(v) for v in original.weights} | set(used)
    changes = before.changes(original)
    certificate = Certificate(
        max_abs_error=error,
        tolerance=tolerance,
        exact=exact,
        outputs=len(expected),
        parameters=sum(int(np.prod(v.shape)) for v in used.values()),
        parameters_conserved=set(used) <= kept <= own,
        source_untouched=not changes,
    )
    if not error <= tolerance:
        raise CertificateError(
            f"Expected the parts of {original.name!r} to give its outputs within "
            f"{tolerance:.1e}{' in training' if training else ''}"
            f"{' with other weights' if state else ''}. "
            f"Received: outputs that differ by {error:.1e}. Cut elsewhere, or raise the tolerance "
            "if that is rounding."
        )
    if not certificate.parameters_conserved:
        lost = [v.path for key, v in used.items() if key not in kept]
        raise CertificateError(
            f"Expected the parts of {original.name!r} to have its {len(used)} weights. Received: "
            f"parts {f'without {lost}' if lost else 'with weights of another model'}. Split the "
            "model again."
        )
    if changes:
        raise CertificateError(
            f"Expected {original.name!r} to be as it was. Received: one whose "
            f"{' and '.join(changes)} changed. Load it again."
        )
    return certificate


def prove_copy(
    original: keras.Model,
    copy: keras.Model,
    x: Any = None,
    state: Sequence[tuple[keras.Variable, Any]] = (),
    original_state: Sequence[tuple[keras.Variable, Any]] = (),
    tolerance: float | None = None,
) -> None:
    """Run a model and its copy on one small batch in inference mode, and compare.

    Neither is changed by it: no state, no seed, no weight. Where nothing can be compared, since no
    input can be made up that the model takes or since its outputs are random, a warning says so.

    Args:
        original: The model.
        copy: Its copy, with weights of its own.
        x: Inputs in the model's structure; None makes random ones.
        state: Values to run the copy with in the place of some variables' own.
        original_state: Values to run the model with, likewise.
        tolerance: The largest difference, relative to the largest output; None allows what
            rounding in the outputs' dtype explains.

    Raises:
        CopyError: The outputs differ, the copy does not run, or it reads a weight of its original.
    """
    watched, copied = _Watched(original_state), f"The copy of {original.name!r}"
    try:
        given = random_inputs(read(original), batch=1) if x is None else x
        with watched:
            expected = _arrays(original(given, training=False))
    except Exception as error:
        if x is not None:
            raise CopyError(
                f"Expected x on which {original.name!r} runs, to compare its copy with it. "
                f"Received: one on which Keras says: {reason(error)}"
            ) from error
        why = f"it does not run on random inputs ({reason(error)}); pass x to compare on your own"
        _warn_unproved(copied, why)
        return
    # A function may read a variable that no layer holds; only Keras's own generator is anyone's.
    own = watched.read | {id(variable): variable for variable in original.variables}
    own.pop(id(keras_internals.global_state()), None)
    scope = _Watched(state)
    try:
        with scope:
            received = _arrays(copy(given, training=False))
    except Exception as error:
        raise CopyError(
            f"Expected the copy of {original.name!r} to run as it does. Received: one of which "
            f"Keras says: {reason(error).rstrip('.')}. Use weights='share'."
        ) from error
    read_ones = [own[each].path for each in own if each in scope.read]
    if read_ones:
        raise CopyError(
            f"Expected the copy of {original.name!r} to have weights of its own. Received: one "
            f"that still reads {', '.join(map(repr, read_ones[:3]))} of its original: a function "
            "or an object that no layer holds refers to it. Use weights='share'."
        )
    difference = _difference(expected, received, tolerance)
    if difference and _difference(expected, outputs_on(original, given, original_state), tolerance):
        _warn_unproved(
            f"The copy of {original.name!r}", "its outputs are random and follow from no seed"
        )
    elif difference:
        raise CopyError(
            f"Expected the copy of {original.name!r} to give its outputs. Received: others: "
            f"{difference}. Use weights='share', since a layer keeps something where no copy can "
            "find it."
        )


def prove_equal(
    model: keras.Model, state: Sequence[tuple[keras.Variable, Any]], x: Any, tolerance: float
) -> None:
    """Compare a model with itself under other values of some variables; nothing changes.

    Args:
        model: The model.
        state: The other values.
        x: Inputs in the model's structure; None makes random ones.
        tolerance: The largest difference, relative to the largest output.

    Raises:
        CopyError: The outputs differ.
    """
    changed = f"The changed {model.name!r}"
    try:
        given = random_inputs(read(model), batch=1) if x is None else x
        expected = outputs_on(model, given)
    except Exception as error:
        if x is not None:
            raise CopyError(
                f"Expected x on which {model.name!r} runs. Received: one on which Keras says: "
                f"{reason(error)}"
            ) from error
        why = f"it does not run on random inputs ({reason(error)}); pass x to compare on your own"
        _warn_unproved(changed, why)
        return
    difference = _difference(expected, outputs_on(model, given, state), tolerance)
    if difference and _difference(expected, outputs_on(model, given), tolerance):
        _warn_unproved(changed, _RANDOM)
    elif difference:
        raise CopyError(
            f"Expected {model.name!r} to give the same outputs. Received: others: {difference}."
        )


def runs(model: keras.Model, x: Any) -> bool:
    """Tell whether a model takes some inputs; nothing changes."""
    try:
        outputs_on(model, x)
    except Exception:
        return False
    return True


def outputs_on(
    model: keras.Model, x: Any, state: Sequence[tuple[keras.Variable, Any]] = ()
) -> list[np.ndarray]:
    """Run a model in inference mode, with other values for some variables; nothing changes."""
    with keras.StatelessScope(state):
        return _arrays(model(x, training=False))


class _Watched(keras.StatelessScope):
    """A scope in which no variable changes, and which notes those that are read."""

    def __init__(self, state: Sequence[tuple[keras.Variable, Any]] = ()):
        super().__init__(state)
        self.read: dict[int, keras.Variable] = {}

    def get_current_value(self, variable: keras.Variable) -> Any:
        self.read[id(variable)] = variable
        return super().get_current_value(variable)


def _difference(
    expected: list[np.ndarray], received: list[np.ndarray], tolerance: float | None
) -> str:
    """Say how two lists of outputs differ, or nothing where they are equal."""
    try:
        error, allowed, _ = _compare(expected, received, tolerance)
    except CertificateError as differing:
        return str(differing)
    return "" if error <= allowed else f"a difference of {error:.1e}, above {allowed:.1e}"


def _warn_unproved(what: str, why: str) -> None:
    warnings.warn(f"{what} could not be compared with it: {why}.", stacklevel=4)


def _arrays(structure: Any) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(leaf) for leaf in keras.tree.flatten(structure)]


def _compare(
    expected: list[np.ndarray], received: list[np.ndarray], relative: float | None = None
) -> tuple[float, float, bool]:
    if [a.shape for a in expected] != [a.shape for a in received]:
        raise CertificateError(
            f"Expected outputs of shapes {[a.shape for a in expected]}. Received: "
            f"{[a.shape for a in received]}."
        )
    errors, tolerance, exact = [0.0], 0.0, True
    for one, other in zip(expected, received, strict=True):
        if one.dtype.kind in "OSU":  # texts
            one, other = np.ones(one.shape), np.equal(one, other)
        allowed = _TOLERANCES.get(str(one.dtype), 0.0) if relative is None else relative
        exact = exact and bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
        one, other = one.astype("float64"), other.astype("float64")
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        with np.errstate(invalid="ignore"):
            errors.append(float(np.max(np.where(same, 0, np.abs(one - other)), initial=0)))
        largest = np.max(np.abs(one), initial=0, where=np.isfinite(one))
        tolerance = max(tolerance, allowed * max(1.0, float(largest)))
    return max(errors), tolerance, exact


# --- random inputs ------------------------------------------------------------------------------


_SEQUENCES = (8, 4, 2, 1, 16, 64)
_IMAGES = (64, 128, 256, 32, 16, 8)
"""Sizes of open axes, in the order in which they are tried."""

_LOOKUPS = (keras.layers.StringLookup, keras.layers.IntegerLookup)


def random_inputs(graph: Graph, batch: int = 2, seed: int = 0) -> Any:
    """Make inputs for a model, always the same for the same seed.

    Floats are normal, bools even, integers below the size of every embedding that they may reach
    (two where they reach none). Inputs of a vocabulary are drawn from it; other strings are short
    words. Open spatial axes get a size of 64, open sequences one of 8, or, where the model cannot
    take that, the first of some others that it can.

    Args:
        graph: A model that was read.
        batch: Examples, where the model leaves the batch open.
        seed: Seed of the random numbers.

    Returns:
        Arrays in the model's input structure.

    Raises:
        SurgeryError: The model takes none of the sizes tried for its open axes.

    Example:
        >>> from reusekit.graph import read
        >>> x = keras.Input((3,), dtype="int32", name="ids")
        >>> model = keras.Model(x, keras.layers.Embedding(50, 2, name="e")(x), name="m")
        >>> array = random_inputs(read(model))
        >>> array.shape, array.dtype.name, bool((array < 50).all())
        ((2, 3), 'int32', True)
    """
    draw = _drawing(graph, batch, seed)
    if all(None not in tensor.shape[1:] for tensor in graph.inputs):
        return draw(0, 0)
    error: Exception | None = None
    for image, sequence in zip(_IMAGES, _SEQUENCES, strict=True):
        inputs = draw(image, sequence)
        try:
            with keras.StatelessScope():
                graph.model(inputs, training=False)
        except Exception as raised:
            # Layers and backend may raise anything for a size that they cannot take.
            error = error or raised
        else:
            return inputs
    assert error is not None
    raise SurgeryError(
        f"Expected x, inputs of {graph.model.name!r} to compare with, since it takes no random "
        f"ones with open axes of {', '.join(map(str, _SEQUENCES))} (images: "
        f"{', '.join(map(str, _IMAGES))}). Received: None, and Keras says of those: {reason(error)}"
    ) from error


def _drawing(graph: Graph, batch: int, seed: int) -> Callable[[int, int], Any]:
    """Return a function that draws inputs, given the sizes of open axes of images and others."""
    below, vocabularies = _limits(graph), _vocabularies(graph)

    def values(
        tensor: Tensor, shape: tuple[int, ...], generator: np.random.Generator
    ) -> np.ndarray:
        words = vocabularies.get(tensor)
        if words is None and tensor.dtype == "string":
            words = ["one", "two", "three"]
        if words is not None:
            drawn = np.array(words)[generator.integers(0, len(words), shape)]
            return drawn if tensor.dtype == "string" else drawn.astype(_numpy_dtype(tensor.dtype))
        if tensor.dtype == "bool":
            return generator.random(shape) < 0.5
        limit = below.get(tensor, math.inf)
        if "int" in tensor.dtype or limit < math.inf:
            drawn = generator.integers(0, 2 if limit == math.inf else int(limit), shape)
        else:
            drawn = generator.standard_normal(shape)
        return drawn.astype(_numpy_dtype(tensor.dtype))

    def draw(image: int, sequence: int) -> Any:
        generator = np.random.default_rng(seed)

        def drawn(tensor: Tensor) -> np.ndarray:
            first, *rest = tensor.shape
            size = image if len(tensor.shape) > 3 else sequence
            shape = (first or batch, *(size if axis is None else axis for axis in rest))
            return values(tensor, shape, generator)

        return keras.tree.map_structure(drawn, graph.input_structure)

    return draw


def _numpy_dtype(dtype: str) -> str:
    # numpy has no bfloat16 of its own; the model converts what it is fed.
    return "float32" if dtype.startswith(("bfloat", "float8")) else dtype


def _vocabularies(graph: Graph) -> dict[Tensor, list]:
    """Map each free tensor to the content of the first vocabulary it may be looked up in."""
    found: dict[Tensor, list] = {}
    for call in reversed(graph.calls):
        words: Iterable | None = next((found[t] for t in call.outputs if t in found), None)
        if isinstance(call.operation, _LOOKUPS) and not call.operation.invert:
            words = call.operation.get_vocabulary(include_special_tokens=False) or None
        elif call.variables:
            continue
        if words is not None:
            words = list(words)
            texts = isinstance(words[0], str)
            found.update((t, words) for t in call.inputs if (t.dtype == "string") == texts)
    return found


def _limits(graph: Graph) -> dict[Tensor, float]:
    """Map each free tensor to the size of its smallest possible embedding."""
    limits: dict[Tensor, float] = {}
    for call in reversed(graph.calls):
        limit = min((limits[t] for t in call.outputs if t in limits), default=math.inf)
        if isinstance(call.operation, keras.layers.Embedding):
            limit = call.operation.input_dim
        elif isinstance(call.operation, _LOOKUPS):
            limit = call.operation.vocabulary_size() if call.operation.invert else math.inf
        elif isinstance(call.operation, keras.layers.CategoryEncoding):
            limit = call.operation.num_tokens
        elif call.variables:
            continue
        for tensor in call.inputs:
            if limit < limits.get(tensor, math.inf):
                limits[tensor] = limit
    return limits
