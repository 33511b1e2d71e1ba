"""Random small models for Hypothesis: shared layers, nesting, masks, several inputs and outputs."""

import keras
from hypothesis import strategies as st
from keras import layers

WIDTH = 3


@st.composite
def models(draw, most_calls=8):
    """A model over sequences of vectors of one width, so that anything may feed anything."""
    masked = draw(st.booleans())
    inputs = [keras.Input((4, WIDTH), name=f"in{n}") for n in range(draw(st.integers(1, 3)))]
    tensors = list(inputs)
    if masked:
        tensors[0] = layers.Masking(name="masking")(tensors[0])
    shared = layers.Dense(WIDTH, name="shared")
    nested = _nested(draw(st.booleans()), shared)
    for number in range(draw(st.integers(2, most_calls))):
        one, other = (draw(st.sampled_from(tensors)) for _ in range(2))
        kind = draw(st.sampled_from(["dense", "shared", "add", "join", "nested", "op", "lstm"]))
        tensors.append(_call(kind, f"{kind}{number}", one, other, shared, nested))
    count = draw(st.integers(1, 3))
    outputs = [tensors[-1], *(draw(st.sampled_from(tensors)) for _ in range(count - 1))]
    structure = draw(st.sampled_from(["list", "dict", "one"]))
    if structure == "dict":
        given = {tensor.name: tensor for tensor in inputs}
        return keras.Model(given, {f"y{n}": y for n, y in enumerate(outputs)}, name="random")
    if structure == "one" and len(inputs) == 1:
        return keras.Model(inputs[0], outputs[0], name="random")
    return keras.Model(inputs, outputs, name="random")


def _nested(shares, shared):
    inner = keras.Input((4, WIDTH), name="inner")
    y = layers.Dense(WIDTH, name="shared" if not shares else "own", activation="tanh")(inner)
    y = layers.Add(name="skip")([y, shared(inner) if shares else inner])
    return keras.Model(inner, layers.LayerNormalization(name="norm")(y), name="nested")


def _call(kind, name, one, other, shared, nested):
    match kind:
        case "dense":
            return layers.Dense(WIDTH, name=name)(one)
        case "shared":
            return shared(one)
        case "add":
            return layers.Add(name=name)([one, other])
        case "join":
            joined = layers.Concatenate(name=f"{name}_concat")([one, other])
            return layers.Dense(WIDTH, name=name)(joined)
        case "nested":
            return nested(one)
        case "op":
            return keras.ops.tanh(one) * other
        case "lstm":
            return layers.SimpleRNN(WIDTH, return_sequences=True, name=name)(one)
