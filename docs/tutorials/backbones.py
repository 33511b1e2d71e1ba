# %% [markdown]
# # Which backbone ships
#
# Two backbones, a cut of each, and one question: which file is worth its bytes? Latency and bytes do not
# depend on what weights were trained to, so they are measured before any training.

# %%
import keras

import reusekit as rk

glyphnet = rk.load_backbone("reusekit/glyphnet")

keras.utils.set_random_seed(0)
inputs = keras.Input((16, 16, 1))
x = keras.layers.Rescaling(1 / 255, name="scaled")(inputs)
for number, filters in enumerate((8, 16), start=1):
    x = keras.layers.Conv2D(filters, 3, strides=2, activation="relu", name=f"conv{number}")(x)
keras.Model(inputs, x, name="tiny").save("tiny.keras")
tiny = rk.load_backbone("tiny.keras")
{name: rk.count_params(one.model).total for name, one in (("glyphnet", glyphnet), ("tiny", tiny))}

# %% [markdown]
# *tiny* is untrained, and stands for a second candidate that you have. Each backbone gets the same
# examples, in the size that it takes.

# %%
treatment = rk.data.Treatment(image_size=(32, 32))
train, validation = (
    rk.data.load("sklearn_digits", part, treatment=treatment)
    for part in ("train[:150]", "validation[:150]")
)
space = rk.SearchSpace(
    cuts={"glyphnet": ["block4_out"], "tiny": ["conv2"]},
    units=[0],
    dropout=[0.0],
    learning_rates=[0.01, 0.003],
)
search = rk.CutSearch(
    {"glyphnet": glyphnet, "tiny": tiny},
    train,
    validation,
    space,
    rk.SearchConfig(epochs=15, ship="litert-int8"),
    folder="ships",
    store=rk.FeatureStore("features"),
)
search.run()
columns = ["backbone", "cut", "val_accuracy", "shipped_accuracy", "shipped_bytes"]
search.results()[columns]

# %% [markdown]
# ## The Pareto front
#
# No other trial is at least as accurate *and* at most as large:

# %%
front = search.pareto("shipped_bytes")
front[columns]

# %%
axes = search.results().plot.scatter("shipped_bytes", "val_accuracy", figsize=(6, 3))
_ = axes.plot(front.shipped_bytes, front.val_accuracy, color="tab:orange", drawstyle="steps-post")

# %% [markdown]
# ## The file
#
# `export` writes a file, opens it in its own runtime, and compares it with Keras on real examples. A file
# that loses more than it may is not kept.

# %%
model = search.best_model()
exported = rk.export(model, "saved_model", check=validation, max_accuracy_loss=0.05)
print(exported)

# %% [markdown]
# More formats, and what each can do: [Export](../export.md).
