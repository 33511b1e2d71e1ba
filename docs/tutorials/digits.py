# %% [markdown]
# # Digits in five minutes
#
# A small network has learned printed letters. How deep should it be cut to read handwritten digits,
# of which only a few are labelled? No download: network and data are in the packages.

# %%
import reusekit as rk

backbone = rk.load_backbone("reusekit/glyphnet")
rk.cut_points(backbone.model)[::4]

# %% [markdown]
# Each row is an address where a single tensor crosses, shallow to deep, with the costs of what lies
# before it. `split` parts the model there, and proves that both halves together are the whole:

# %%
halves = rk.split(backbone.model, "block4_out")
print(halves.bottom.output_shape, halves.top.output_shape)
print(halves.verify())

# %% [markdown]
# ## The data
#
# A data split is examples with a task: here ten classes. `image_size` is what the network takes.

# %%
treatment = rk.data.Treatment(image_size=(32, 32))
train = rk.data.load("sklearn_digits", "train[:150]", treatment=treatment)
validation = rk.data.load("sklearn_digits", "validation[:150]", treatment=treatment)
test = rk.data.load("sklearn_digits", "test[:200]", treatment=treatment)
print(train.class_names, train.size, validation.size, test.size)

# %% [markdown]
# ## The plan
#
# Nothing has been trained yet. The machine is measured, and the plan says for each cut whether its
# features are computed once and stored, or anew in each pass, with the seconds of both ways.

# %%
space = rk.SearchSpace(
    cuts=["block2_out", "block5_out", "block7_out"],
    units=[0],
    dropout=[0.0],
    learning_rates=[0.01, 0.003],
)
search = rk.CutSearch(
    backbone,
    train,
    validation,
    space,
    rk.SearchConfig(epochs=10),
    folder="digits",
    store=rk.FeatureStore("features"),
)
print(search.plan)

# %% [markdown]
# ## The search
#
# Six trials, three cuts with two rates each; the network itself runs once over the data. Killed, the
# same lines go on where they were.

# %%
result = search.run()
search.results()[["cut", "learning_rate", "val_accuracy", "parameters", "flops"]]

# %% [markdown]
# Accuracy over depth: the deepest cut is seldom the best one for another task.

# %%
best_at = search.results().groupby("cut", sort=False)["val_accuracy"].max().reindex(space.cuts)
axes = best_at.plot.line(marker="o", ylabel="validation accuracy", figsize=(6, 3))

# %% [markdown]
# ## The model
#
# `best_model` is whole again: the network up to the cut, and the head. It is made of stock Keras layers.

# %%
import numpy as np

model = search.best_model()
pictures, labels = test.arrays()
accuracy = float(np.mean(model.predict(pictures, verbose=0).argmax(-1) == labels))
print(f"{accuracy:.3f} of {len(labels)} test digits, cut at {result.best.cut}")

# %% [markdown]
# `predict` answers with the names of classes:

# %%
rk.predict(model, pictures[:4], data=train)

# %% [markdown]
# Next: [your own pictures](pictures.md), or the same as a command that registers the model,
# `make demo`.
