"""A dense layer whose kernel is another layer's weight."""

from typing import Any

import keras
from pydantic import PositiveInt

from reusekit.arguments import checked
from reusekit.errors import TieError, nearest
from reusekit.graph import keras_internals
from reusekit.sharing import tied_source


@keras.saving.register_keras_serializable(package="reusekit")
class TiedDense(keras.layers.Layer):
    """A dense layer whose kernel is the weight of another layer: one weight, used twice.

    The classic use is the output of a language model, which multiplies with the transposed
    embedding (Press and Wolf, 2017, "Using the Output Embedding to Improve Language Models"); the
    other is the decoder of an autoencoder. Gradients of both uses reach the one variable, and it
    is stored once. Where LoRA is enabled on the source, its part counts here as well. A source that
    is quantised is scaled back: an Embedding in int8 or int4, a Dense in int8, a Dense or an
    EinsumDense in float8. Others are refused at this layer's next call.

    The source belongs to this layer as an inner layer: `trainable = False` here freezes the source
    too, and where a model has this layer without the source, all the source's weights come along.

    Saved models with this layer load after `import reusekit`, if the source is a layer of the model
    or of plain models nested in it. One that a class of its own makes for itself, as KerasHub's
    backbones do, would come back as another: `rk.flatten` such a model before it is saved.
    `keras.models.clone_model` and `from_config` copy layers one by one and cannot keep a tie; they
    are refused. `rk.clone` keeps it.

    Args:
        source: The layer to share the weight of: Embedding, ReversibleEmbedding, Dense,
            EinsumDense, or a convolution with kernels of size 1.
        transpose: Whether to multiply with the transposed weight, which leads from the source's
            outputs to its inputs: from hidden states to words for an Embedding. False multiplies as
            the source does.
        units: Width of the output, needed only where this layer is built before the source is.
        use_bias: Whether to add a bias of this layer's own.
        activation: The activation at the end; None for none.
        scale: Whether to multiply with a learned scalar, 1 at first.
        **kwargs: `bias_initializer`, `bias_regularizer` and `bias_constraint`, as of a Dense; and
            what every Keras layer takes: `name`, `dtype`, `trainable`, `activity_regularizer`.

    Raises:
        TieError: The source has no matrix to share, or its shape does not fit.

    Example:
        >>> tokens = keras.Input((7,), dtype="int32", name="tokens")
        >>> embedding = keras.layers.Embedding(50, 4, name="embedding")
        >>> logits = TiedDense(embedding, name="logits")(embedding(tokens))
        >>> model = keras.Model(tokens, logits)
        >>> model.output_shape, model.count_params()
        ((None, 7, 50), 250)
    """

    @checked(TieError)
    def __init__(
        self,
        source: keras.Layer,
        transpose: bool = True,
        units: PositiveInt | None = None,
        use_bias: bool = True,
        activation: Any = None,
        scale: bool = False,
        **kwargs: Any,
    ):
        tied_source.check_source(source)
        initializer = kwargs.pop("bias_initializer", "zeros")
        regularizer = kwargs.pop("bias_regularizer", None)
        constraint = kwargs.pop("bias_constraint", None)
        super().__init__(**kwargs)
        self.source = source
        self.transpose = transpose
        self.units = units
        self.use_bias = use_bias
        self.activation = _looked_up(keras.activations, "activation", activation)
        self.scale = scale
        self.bias_initializer = _looked_up(keras.initializers, "bias_initializer", initializer)
        self.bias_regularizer = _looked_up(keras.regularizers, "bias_regularizer", regularizer)
        self.bias_constraint = _looked_up(keras.constraints, "bias_constraint", constraint)
        self.supports_masking = True
        self.bias = self.multiplier = None

    @property
    def equation(self) -> tied_source.Equation:
        """The einsum equation that this layer computes with the source's kernel."""
        equation = tied_source.equation(self.source)
        return equation.transposed if self.transpose else equation

    def build(self, input_shape: tuple) -> None:
        """Build the source where it is not built yet, and check that the shapes fit."""
        if not self.source.built:
            self._build_source(input_shape)
        sizes = self._sizes(input_shape)
        if self.use_bias and self.bias is None:
            shape = [sizes[axis] for axis in self.equation.made]
            self.bias = self.add_weight(
                name="bias",
                shape=shape,
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        if self.scale and self.multiplier is None:
            self.multiplier = self.add_weight(name="scale", shape=(), initializer="ones")

    def _build_source(self, input_shape: tuple) -> None:
        if not self.transpose:
            self.source.build(input_shape)
        elif isinstance(self.source, keras.layers.Embedding):
            self.source.build()
        elif self.units is not None and not isinstance(self.source, keras.layers.EinsumDense):
            self.source.build((*input_shape[:-1], self.units))
        else:
            raise TieError(
                f"Expected {self.name!r} to be called after {self.source.name!r}, the layer it is "
                "tied to. Received: one whose input width is not known yet. Call or build that "
                f"layer first{', or pass units=' if self.units is None else ''}."
            )

    def _sizes(self, input_shape: tuple) -> dict[str, int | None]:
        """Map each subscript of the equation to its size."""
        equation = self.equation
        shape = tied_source.kernel_shape(self.source)
        sizes: dict[str, int | None] = dict(zip(equation.kernel, shape, strict=True))
        axes = equation.inputs.replace("...", "")
        given = input_shape[len(input_shape) - len(axes) :]
        fits = len(given) == len(axes)
        for axis, size in zip(axes, given, strict=False):
            fits = fits and (sizes.setdefault(axis, size) == size or size is None)
        if not fits:
            taken = tuple(sizes.get(axis) for axis in axes)
            raise TieError(
                f"Expected {self.name!r} to be fed {('...', *taken)}, the shape that "
                f"{self.source.name!r} {'gives' if self.transpose else 'takes'}, since the shared "
                f"weight is {shape}{' and transposed' if self.transpose else ''}. Received: "
                f"{tuple(input_shape)}."
            )
        width = sizes[equation.outputs[-1]]
        if self.units not in (None, width):
            raise TieError(
                f"Expected {self.name!r} to have units={width}, as {self.source.name!r} has it. "
                f"Received: units={self.units}."
            )
        return sizes

    def call(self, inputs: Any) -> Any:
        """Multiply with the source's weight, scale, add the bias and activate."""
        kernel = tied_source.kernel(self.source, self.compute_dtype)
        if isinstance(self.source, keras.layers.EinsumDense):
            x = keras.ops.einsum(str(self.equation), inputs, kernel)
        else:
            # What the equation says; but TensorFlow's gradient of an einsum with an ellipsis makes
            # a tensor of examples x words x width.
            x = keras.ops.matmul(inputs, keras.ops.transpose(kernel) if self.transpose else kernel)
        if self.multiplier is not None:
            x = x * keras.ops.convert_to_tensor(self.multiplier)
        if self.bias is not None:
            x = x + self._broadcast_bias()
        return self.activation(x)

    def _broadcast_bias(self) -> Any:
        """Return the bias with an axis of size one for each later axis that it does not have."""
        bias, made = keras.ops.convert_to_tensor(self.bias), self.equation.made
        later = self.equation.outputs[self.equation.outputs.index(made[0]) :]
        sizes = dict(zip(made, bias.shape, strict=True))
        return keras.ops.reshape(bias, [sizes.get(axis, 1) for axis in later])

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Return the shape of the output, `(..., units)` but for an EinsumDense."""
        equation, sizes = self.equation, self._sizes(input_shape)
        count = len(equation.inputs.replace("...", ""))
        leading = input_shape[: len(input_shape) - count]
        return (*leading, *(sizes[axis] for axis in equation.outputs.replace("...", "")))

    @checked(TieError)
    def tied_to(self, source: keras.Layer, turned: bool = False) -> "TiedDense":
        """Return the same layer, with the same bias and scale, tied to another source.

        Args:
            source: A layer that multiplies as the present source does.
            turned: Whether its weight is the present source's transposed.
        """
        settings = self._settings()
        settings["transpose"] ^= turned
        twin = TiedDense(
            source,
            activation=self.activation,
            bias_initializer=self.bias_initializer,
            bias_regularizer=self.bias_regularizer,
            bias_constraint=self.bias_constraint,
            **settings,
        )
        twin.bias, twin.multiplier = self.bias, self.multiplier
        return twin

    def get_config(self) -> dict:
        """Return the configuration; within one save, the source in it is the very layer it is."""
        return {
            **self._settings(),
            "source": keras_internals.serialized_as_shared(self.source),
            "activation": keras.activations.serialize(self.activation),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
        }

    def _settings(self) -> dict:
        return {
            **super().get_config(),
            "transpose": self.transpose,
            "units": self.units,
            "use_bias": self.use_bias,
            "scale": self.scale,
        }

    @classmethod
    def from_config(cls, config: dict) -> "TiedDense":
        """Make the layer again, tied to the copy of its source that is made with it.

        Raises:
            TieError: The layer is copied by itself, so that its source would become two.
        """
        if not keras_internals.in_sharing_scope():
            raise TieError(
                f"Expected {config.get('name')!r} to be copied together with the layer that it is "
                "tied to. Received: a copy of it by itself, of which the one weight would become "
                "two. Use rk.clone in place of keras.models.clone_model and from_config; saving "
                "as .keras and loading is fine."
            )
        config = dict(config)
        source = keras.saving.deserialize_keras_object(config.pop("source"))
        return cls(source, **config)


def _looked_up(kinds: Any, name: str, wanted: Any) -> Any:
    """Look up what Keras knows under a name, or makes of a configuration."""
    try:
        return kinds.get(wanted)
    except Exception as error:  # Keras raises whatever comes of a configuration that is none
        raise TieError(
            f"Expected {name} to be what Keras takes for one, or the name of one. Received: "
            f"{wanted!r}. {nearest(str(wanted), dir(kinds))}"
        ) from error
