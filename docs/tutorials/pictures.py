# %% [markdown]
# # Your own pictures
#
# One folder for each class, files of any kind and size. Here they are made: stripes and discs.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

numbers = np.random.default_rng(0)
for number in range(120):
    kind = ("across", "disc", "upright")[number % 3]
    high, wide = numbers.integers(28, 60, 2)
    rows, columns = np.indices((high, wide))
    y, x = numbers.integers(10, 18, 2)
    shape = {
        "across": rows // 5 % 2,
        "upright": columns // 5 % 2,
        "disc": (rows - y) ** 2 + (columns - x) ** 2 < 60,
    }[kind]
    grey = shape * 150 + numbers.integers(0, 90, (high, wide))
    Path("photos", kind).mkdir(parents=True, exist_ok=True)
    suffix = ("png", "jpg")[number % 2]
    Image.fromarray(grey.astype("uint8")).save(f"photos/{kind}/{number}.{suffix}")

# %% [markdown]
# ## From folder to split
#
# The three parts are drawn by content, each class alike, so that the same file is always in the same
# part. `image_size` and `channels` are what the backbone takes.

# %%
import reusekit as rk

backbone = rk.load_backbone("reusekit/glyphnet")
treatment = rk.data.Treatment(image_size=(32, 32), channels=1)
train, validation, test = (
    rk.data.from_folder("photos", part, treatment=treatment)
    for part in ("train", "validation", "test")
)
print(train.class_names, train.size, validation.size, test.size)

# %% [markdown]
# ## Search and predict

# %%
space = rk.SearchSpace(cuts=["block2_out", "block5_out", "block7_out"], units=[0], dropout=[0.0])
search = rk.CutSearch(
    backbone,
    train,
    validation,
    space,
    rk.SearchConfig(max_trials=3, epochs=10),
    folder="shapes",
    store=rk.FeatureStore("features"),
)
search.run()
search.results()[["cut", "learning_rate", "val_accuracy"]].head()

# %%
model = search.best_model()
rk.predict(model, ["photos/disc/1.jpg", "photos/across/0.png"], data=train)

# %% [markdown]
# ## See what it looks at
#
# Grad-CAM at any address, over the test pictures. The values are for the class that was predicted.

# %%
pictures, labels = test.arrays()
found = rk.explain(model, pictures[:4], at="block2_out")
figure, row = plt.subplots(1, 4, figsize=(8, 2.2))
for axes, picture, heat, of in zip(row, pictures, found.values, found.of, strict=False):
    axes.imshow(picture[..., 0], cmap="gray", extent=(0, 1, 0, 1))
    axes.imshow(heat, cmap="inferno", alpha=0.5, extent=(0, 1, 0, 1))
    axes.set(title=train.class_names[of], xticks=[], yticks=[])

# %% [markdown]
# ## The same as a command
#
# A configuration of two lines searches, trains on with the top of the backbone unfrozen, measures on the
# test part and registers the model. `skip_unreadable` leaves out broken files, and names them:
#
# ```yaml
# data: {folder: photos, skip_unreadable: true}
# tracking: {model: photos}
# ```
#
# ```shell
# python pipelines/cut_search.py --config photos.yaml
# reusekit predict models:/photos@champion one.png two.jpg
# ```
#
# Another version, a comparison of the two, files for other runtimes, and back to the version of before:
#
# ```shell
# python pipelines/finetune.py --config photos.yaml --cut block3_out
# python pipelines/promote.py --data.folder photos --tracking.model photos
# reusekit export models:/photos@champion --to litert,onnx --data photos
# python pipelines/rollback.py --tracking.model photos
# ```
#
# A comparison takes 30 test examples; with fewer see [Few examples](../pipelines.md#few-examples). The lines
# that run an exported file are in [Export](../export.md#run-it-elsewhere).
#
# Broken files, equal pictures in two parts, colours and rotations: see [Data](../data.md).
