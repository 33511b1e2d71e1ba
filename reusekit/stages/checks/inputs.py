"""Checks of what a model does to its inputs, and of what it is fed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import keras
import numpy as np

from reusekit.backbones.preprocessing import RANGES, range_ratio
from reusekit.backbones.preprocessing import scaling as preprocessing
from reusekit.graph import Call, Graph, Tensor, keras_internals, may_agree, read
from reusekit.graph.addresses import without_call_number
from reusekit.stages.checks.finding import Finding
from reusekit.stages.checks.patient import Patient, calls_of, once
from reusekit.surgery import Remove, edit, prepend
from reusekit.training.training_mode import in_training

_UNLIKELY = 8.0
"""How many times as much inputs may vary as in training before it is called another range."""
_BATCH = 64
_WHITE, _DEEP_WHITE = 255.0, 65535.0
"""The largest numbers of pixels of 8 and of 16 bits."""
_DEEP = 1 / 2000
"""The factor below which one scaling is for pixels of 16 bits."""
_SHRINKS, _AGAIN, _NARROW, _OFF_CENTRE = 0.5, 0.1, 1e-3, 0.05
"""The shares of a range that a scaling leaves, a second one leaves of the first, both leave, and
of the largest number below which a range is off the centre that it was shifted to."""
_OPEN_SIZE = 8
_SCALING = (keras.layers.Rescaling, keras.layers.Normalization, *keras_internals.ARITHMETIC)
_NEUTRAL = (
    keras.layers.Identity,
    keras_internals.IMAGE_LAYER,  # as in inference, where nothing is drawn
    *keras_internals.REORDERING,
)


def augmentation(patient: Patient) -> Iterator[Finding]:
    """Look for layers that vary inputs, which an exported model would carry along."""
    for call in _augmenting(patient.whole):
        address = without_call_number(call.address)
        always = call.kwargs.get("training") is True
        yield Finding(
            address,
            "Data augmentation is a layer of the model"
            + (", and varies inputs where training=True is obeyed" if always else "")
            + ": it goes along into every export and server.",
            f"rk.remove(model, {address!r}); rk.data and configurations augment by `augment`.",
            "keras #19108",
            lambda model: _without(model, *_augmenting(read(model))),
        )  # fmt: skip


def _augmenting(graph: Graph) -> list[Call]:
    """Return the first call of each layer in front of all weights that draws at random.

    Behind weights, randomness regularises or is what the model does; and dropout and noise of
    Keras, which are told a rate, regularise wherever they are.
    """
    return [
        call
        for call in once(calls_of(graph))
        if isinstance(call.operation, keras.Layer)
        and len(call.inputs) == 1
        and graph.free.issuperset(call.outputs)
        and in_training(call) == "random"
    ]


def _without(model: keras.Model, *calls: Call) -> keras.Model:
    addresses = dict.fromkeys(without_call_number(call.address) for call in calls)
    return edit(model, *map(Remove, addresses)).model if addresses else model


def scaling(patient: Patient) -> Iterator[Finding]:
    """Look for inputs that are scaled twice."""
    found = _scaled_twice(patient.whole)
    if not found:
        return
    first, *_, last = found
    address = without_call_number(first.address)
    yield Finding(
        without_call_number(last.address),
        f"Inputs are scaled twice: by {first.address!r}, and again by {last.address!r}.",
        f"rk.remove(model, {address!r}) where the model behind scales by itself.",
        "tensorflow #48412",
        lambda model: _without(model, *_scaled_twice(read(model))[:-1]),
    )  # fmt: skip


@dataclass(frozen=True)
class _Way:
    """The way of black and white to a tensor in front of all weights.

    Attributes:
        values: What they are there, black first.
        calls: The calls that scaled or shifted them on the way.
        ranges: The share of what was between them that is left, at the input and after each call.
    """

    values: np.ndarray
    calls: tuple[Call, ...] = ()
    ranges: tuple[float, ...] = (1.0,)

    def after(self, call: Call, values: np.ndarray) -> "_Way":
        if not isinstance(call.operation, _SCALING):
            return replace(self, values=values)
        left = float(np.median(np.abs(values[1] - values[0]))) / _WHITE
        return _Way(values, (*self.calls, call), (*self.ranges, left))

    @property
    def is_scaled_twice(self) -> bool:
        """True where a second scaling leaves next to nothing, or a shift is many times that."""
        shrunk = [after for before, after in pairwise(self.ranges) if after < _SHRINKS * before]
        if not shrunk:
            return False
        left = self.ranges[-1]
        white = _WHITE if shrunk[0] > _DEEP else _DEEP_WHITE
        values = self.values[0] + (self.values[1] - self.values[0]) * white / _WHITE
        largest = max(np.abs(self.values[0]).max(), np.abs(values).max())
        again = len(shrunk) > 1 and left < _NARROW and left < _AGAIN * shrunk[0]
        # By a call behind a scaling: one that scales and shifts at once knows what it is fed.
        shifted = len(shrunk) > (left < _SHRINKS * self.ranges[-2])
        return again or (shifted and left * white < _OFF_CENTRE * largest)


def _scaled_twice(graph: Graph) -> tuple[Call, ...]:
    """Return the calls that scale and shift inputs, to the first that does it again; or none.

    Black and white images go through whatever stands in front of the weights.
    """
    ways: dict[Tensor, _Way] = {}
    for call in graph.calls:
        if call.is_input and "float" in call.outputs[0].dtype:
            shape = [size or _OPEN_SIZE for size in call.outputs[0].shape[1:]]
            black_and_white = np.stack([np.zeros(shape), np.full(shape, _WHITE)])
            ways[call.outputs[0]] = _Way(black_and_white.astype("float32"))
        elif isinstance(call.operation, (*_SCALING, *_NEUTRAL)) and ways.keys() >= {*call.inputs}:
            way = max((ways[one] for one in call.inputs), key=lambda one: len(one.calls))
            way = ways[call.outputs[0]] = way.after(call, _run(call, ways))
            if isinstance(call.operation, _SCALING) and way.is_scaled_twice:
                return way.calls
    return ()


def _run(call: Call, ways: Mapping[Tensor, _Way]) -> np.ndarray:
    args, kwargs = keras.tree.map_structure(
        lambda leaf: ways[leaf].values if isinstance(leaf, Tensor) else leaf,
        (call.args, call.kwargs),
    )
    if keras_internals.takes(call.operation, "training"):
        kwargs = {**kwargs, "training": False}
    return keras.ops.convert_to_numpy(call.operation(*args, **kwargs)).astype("float64")


def input_range(patient: Patient) -> Iterator[Finding]:
    """Look at how the data vary in front of the first normalisation, beside its memory."""
    images = _images(patient)
    ratio = None if images is None else range_ratio(patient.model, images)
    if images is None or ratio is None or 1 / _UNLIKELY < ratio < _UNLIKELY:
        return
    name = _fitting_scale(patient.model, images)
    yield Finding(
        patient.whole.inputs[0].address,
        f"Inputs vary {ratio:.3g} times as much in front of the first normalisation as they "
        "did in training: preprocessing is "
        + ("missing." if ratio > 1 else "applied twice, here and where the data come from."),
        f"rk.load_backbone(..., scale={name!r})." if name else
        "Feed what the model was trained on.",
        "deep-learning-models #21",
        None if name is None else lambda model: _scaled(model, str(name)),
    )  # fmt: skip


def _images(patient: Patient) -> np.ndarray | None:
    shapes = [tensor.shape for tensor in patient.whole.inputs]
    assert patient.data is not None
    fed = next(iter(patient.data.batches(_BATCH)))[0]
    if len(shapes) != 1 or isinstance(fed, dict) or not may_agree(shapes[0], fed.shape):
        return None
    return np.asarray(fed)


def _fitting_scale(model: keras.Model, images: np.ndarray) -> str | None:
    """Return the range that inputs were brought to in training, where one fits."""
    for name in RANGES:
        ratio = range_ratio(_scaled(model, name), images)
        if ratio is not None and 0.5 < ratio < 2:
            return name
    return None


def _scaled(model: keras.Model, name: str) -> keras.Model:
    made = preprocessing(name, tuple(model.inputs[0].shape[1:]))
    return model if made is None else prepend(model, made)
