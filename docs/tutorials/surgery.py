# %% [markdown]
# # Surgery and ties
#
# Jianlin Su's essay on reuse in Keras (2019) goes through the ways to use layers and models again.
# Here they are one by one: plain Keras where it does the job, and reusekit where it does not.

# %%
import keras
import numpy as np
from keras import layers

import reusekit as rk

keras.utils.set_random_seed(0)

# %% [markdown]
# ## One layer, called three times
#
# Plain Keras: keep the layer and call it again. Keras has one `.output` of it, that of the first call;
# reusekit has an address for each call.

# %%
inputs = keras.Input((8,), name="x")
dense = layers.Dense(8, activation="relu", name="again")
repeated = keras.Model(inputs, dense(dense(dense(inputs))))
rk.count_params(repeated)

# %%
halves = rk.split(repeated, "again@2")
print(halves.frontier, halves.verify())

# %% [markdown]
# ## A model as a layer
#
# Plain Keras: call it. Its inner layers are then out of reach of `get_layer` and `.output`. In reusekit
# their addresses go on: `outer/inner`.

# %%
inner = keras.Sequential(
    [keras.Input((8,)), layers.Dense(6, name="six"), layers.Dense(4, name="four")], name="inner"
)
outer_in = keras.Input((8,), name="y")
nested = keras.Model(outer_in, layers.Dense(2, name="out")(inner(outer_in)))
print(rk.extract(nested, "inner/six").output_shape)
print([layer.name for layer in rk.flatten(nested).layers])

# %% [markdown]
# ## Clones
#
# `keras.models.clone_model` gives fresh weights, forgets `trainable = False` of the model, and parts what
# was tied. `rk.clone` keeps all three, and compares both models before it hands one back.

# %%
x = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
repeated.trainable = False
plain, copied = keras.models.clone_model(repeated), rk.clone(repeated)
for name, model in (("clone_model", plain), ("rk.clone", copied)):
    same = np.array_equal(model(x), repeated(x))
    print(f"{name:12} same numbers: {same}, trainable: {model.trainable}")

# %% [markdown]
# ## One weight in two layers
#
# The essay's `EmbeddingDense`: a last layer whose kernel is the embedding, transposed. Written by hand
# it is lost when the model is saved or cloned. `TiedDense` keeps it through both:

# %%
tokens = keras.Input((16,), dtype="int32", name="tokens")
embedding = layers.Embedding(1000, 32, name="embedding")
hidden = layers.Dense(32, activation="gelu", name="hidden")(embedding(tokens))
language = keras.Model(tokens, rk.layers.TiedDense(embedding, name="logits")(hidden))
language.save("language.keras")
loaded = keras.models.load_model("language.keras")
for model in (language, rk.clone(language), loaded):
    print(rk.tied_weights(model)[0].owners, rk.count_params(model).total)

# %% [markdown]
# What would break the tie is refused before anything has changed:

# %%
try:
    rk.replace(language, "embedding", layers.Embedding(1000, 32, name="other"))
except rk.errors.TieError as error:
    print(error)

# %% [markdown]
# ## Features from the middle
#
# Plain Keras does this with `Model(model.input, layer.output)`, as long as the layer is in no nested model
# and was called once. `rk.extract` does it at any address, or several:

# %%
image = keras.Input((16, 16, 3), name="image")
stem = layers.Conv2D(8, 3, padding="same", name="stem")(image)
one = layers.Conv2D(8, 3, padding="same", activation="relu", name="one")(stem)
two = layers.Conv2D(8, 3, padding="same", name="two")(one)
total = layers.Add(name="sum")([two, stem])
classes = layers.Dense(5, name="classes")(layers.GlobalAveragePooling2D(name="pooled")(total))
residual = keras.Model(image, classes)
[part.shape for part in rk.extract(residual, ["one", "pooled"]).outputs]

# %% [markdown]
# ## Splitting from the middle
#
# The essay's hardest part. Its `get_outputs_of` overwrites private attributes of Keras 2. Plain Keras 3
# takes a tensor as an input, unless a branch goes around it:

# %%
try:
    keras.Model(residual.get_layer("one").output, residual.output)
except Exception as error:
    print(type(error).__name__, str(error)[:80])

# %% [markdown]
# It does not say which tensor is missing. reusekit finds it: the frontier is all that crosses.

# %%
halves = rk.split(residual, "one")
print(halves.frontier)
print(halves.verify())

# %% [markdown]
# ## Insert and replace
#
# In a model with branches, too; the other weights are shared with the source, or copied by `rk.clone`.

# %%
edited = rk.insert(residual, layers.BatchNormalization(name="normed"), after="stem")
edited = rk.replace(edited, "classes", layers.Dense(3, name="three"))
print(edited.output_shape, "normed" in {layer.name for layer in edited.layers})

# %% [markdown]
# Every function has its page in the [reference](../reference/models.md).
