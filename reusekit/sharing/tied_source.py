"""The weight matrix that a layer shares, and its equation of multiplication."""

from typing import Any, NamedTuple

import keras

from reusekit.errors import TieError

_EMBEDDINGS = (keras.layers.Embedding, keras.layers.ReversibleEmbedding)
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
# Over the last axis, as Dense does it; an Embedding is a Dense layer on one-hot vectors.
_LAST_AXIS = "...a,ab->...b"


class Equation(NamedTuple):
    """An einsum equation in three parts, without arrows and commas.

    Attributes:
        inputs: The subscripts of the layer's input.
        kernel: Those of its kernel.
        outputs: Those of its output.
    """

    inputs: str
    kernel: str
    outputs: str

    @classmethod
    def parse(cls, text: str) -> "Equation":
        """Read `inputs,kernel->outputs`."""
        left, outputs = text.replace(" ", "").split("->")
        inputs, kernel = left.split(",")
        return cls(inputs, kernel, outputs)

    @property
    def transposed(self) -> "Equation":
        """The equation that leads from the outputs' axes back to the inputs' axes."""
        return Equation(self.outputs, self.kernel, self.inputs)

    @property
    def canonical(self) -> str:
        """The same for equations that do the same: leading axes as an ellipsis, others renamed."""
        inputs, outputs = self.inputs, self.outputs
        while inputs[0] == outputs[0] and inputs[0] not in (".", *self.kernel):
            inputs, outputs = inputs[1:], outputs[1:]
        axes = dict.fromkeys((inputs + self.kernel + outputs).replace(".", ""))
        letters = {ord(axis): chr(ord("a") + number) for number, axis in enumerate(axes)}
        parts = (f"...{part.replace('.', '')}" for part in (inputs, outputs))
        return str(Equation(next(parts), self.kernel, next(parts))).translate(letters)

    @property
    def made(self) -> str:
        """The subscripts of the output that come from the kernel, in the order of the output."""
        return "".join(axis for axis in self.outputs if axis in set(self.kernel) - set(self.inputs))

    def __str__(self) -> str:
        return f"{self.inputs},{self.kernel}->{self.outputs}"


def check_source(source: Any) -> None:
    """Raise TieError unless the layer is of a kind whose matrix can be shared.

    Raises:
        TieError: With the kinds that can.
    """
    if isinstance(source, _CONVOLUTIONS):
        last = source.data_format == "channels_last"
        if set(source.kernel_size) != {1} or source.groups != 1 or not last:
            raise TieError(
                "Expected a convolution over channels_last with kernels of size 1 and one group. "
                f"Received: {source.name!r} with data_format={source.data_format!r}, kernel_size="
                f"{source.kernel_size}, groups={source.groups}."
            )
    elif not isinstance(source, (keras.layers.Dense, keras.layers.EinsumDense, *_EMBEDDINGS)):
        raise TieError(
            "Expected an Embedding, ReversibleEmbedding, Dense, EinsumDense or a convolution with "
            f"kernels of size 1. Received: {type(source).__name__}: {source!r}"
        )


def matrix(layer: Any) -> Any:
    """Return the weight that a layer multiplies with, as it is stored; None where it has none."""
    return getattr(layer, "embeddings" if isinstance(layer, _EMBEDDINGS) else "kernel", None)


def multiplies(layer: Any) -> bool:
    """Return whether a layer does what a `TiedDense` can do: multiply, add a bias, activate.

    A class of one's own that is derived from such a layer may do more, and counts as another.
    """
    if type(layer) in _CONVOLUTIONS:
        last = layer.data_format == "channels_last"
        return last and layer.groups == 1 and {*layer.kernel_size, *layer.strides} == {1}
    if type(layer) is keras.layers.EinsumDense and layer.bias is not None:
        sizes = dict(zip(equation(layer).kernel, layer.kernel.shape, strict=True))
        return tuple(layer.bias.shape) == tuple(sizes[axis] for axis in equation(layer).made)
    return type(layer) in (keras.layers.Dense, keras.layers.EinsumDense)


def equation(source: keras.Layer) -> Equation:
    """Return the equation of an EinsumDense, or the usual one over the last axis."""
    text = source.equation if isinstance(source, keras.layers.EinsumDense) else _LAST_AXIS
    return Equation.parse(text)


def kernel_shape(source: keras.Layer) -> tuple[int, ...]:
    """Return the shape of a built layer's kernel, in the axes of `equation`."""
    if isinstance(source, _EMBEDDINGS):
        return source.input_dim, source.output_dim
    shape = tuple(source.kernel.shape)
    return shape[-2:] if isinstance(source, _CONVOLUTIONS) else shape


def kernel(source: keras.Layer, dtype: str) -> Any:
    """Return the weight as the layer uses it: with LoRA's part, integers rescaled.

    Args:
        source: A built layer.
        dtype: The dtype to compute in.

    Raises:
        TieError: The layer is quantised in a way that has no matrix to share.
    """
    mode = source.quantization_mode
    if mode in (None, "float8"):  # float8 rounds what is multiplied, not what is stored
        weight = keras.ops.convert_to_tensor(matrix(source), dtype=dtype)
        shape = kernel_shape(source)
        return weight if len(weight.shape) == len(shape) else keras.ops.reshape(weight, shape)
    if isinstance(source, _EMBEDDINGS):
        # Its rows are what it gives for each word, however it stores them.
        return keras.ops.cast(source(keras.ops.arange(source.input_dim)), dtype)
    if mode != "int8" or source.lora_enabled or isinstance(source, keras.layers.EinsumDense):
        raise TieError(
            f"Expected the tied layer {source.name!r} in floating point or float8, an Embedding, "
            f"or a Dense in int8 without LoRA. Received: {type(source).__name__} quantised to "
            f"{mode!r}{' with LoRA' if source.lora_enabled else ''}. Quantise with filters= that "
            "leave it out, or replace the layer that is tied to it first."
        )
    scale = keras.ops.convert_to_tensor(source.kernel_scale, dtype=dtype)
    return keras.ops.cast(source.kernel, dtype) / scale
