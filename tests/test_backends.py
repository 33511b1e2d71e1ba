"""The rooms that read, cut and build models need Keras alone: no TensorFlow."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SURGERY = """
import sys

class Watch:
    asked = []

    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow":
            self.asked.append(name)

sys.meta_path.insert(0, Watch())
import reusekit as rk
import keras
import numpy as np

x = keras.Input((8, 8, 3), name="x")
stem = keras.layers.Conv2D(4, 3, padding="same", name="stem")(x)
y = keras.layers.BatchNormalization(name="bn")(keras.layers.Conv2D(4, 1, name="conv")(stem))
y = keras.layers.Add(name="out")([stem, y])
y = keras.layers.GlobalAveragePooling2D(name="pool")(y)
model = keras.Model(x, keras.layers.Dense(2, name="head")(y), name="m")

assert [point.at for point in rk.cut_points(model)] == ["stem", "out", "pool"]
assert rk.split(model, "conv").verify().parameters_conserved
images = np.ones((2, 8, 8, 3), "float32")
expected = keras.ops.convert_to_numpy(model(images))
taps = rk.extract(model, {"early": "stem", "late": "head"})(images)
drop = keras.layers.Dropout(0.5, name="drop")
first, last = rk.segment(model, ["out"])
attached = rk.attach(rk.split(model, "pool").bottom, rk.heads.Classifier(3))
assert attached(images).shape == (2, 3)
looked_for = list(Watch.asked)
for received in (
    taps["late"],
    # Keras looks for TensorFlow wherever it makes a configuration of a layer.
    rk.clone(model)(images),
    rk.flatten(model)(images),
    rk.insert(model, drop, after="out")(images, training=False),
    last(first(images)),
):
    np.testing.assert_allclose(keras.ops.convert_to_numpy(received), expected, rtol=1e-4, atol=1e-6)
assert rk.count_params(model).total == model.count_params()
print(keras.backend.backend(), looked_for, "tensorflow" in sys.modules)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="JAX is not installed; see `make test-jax`"
)
def test_surgery_on_jax_needs_no_tensorflow():
    done = subprocess.run(
        [sys.executable, "-c", SURGERY],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )
    assert done.stdout.strip() == "jax [] False", done.stdout + done.stderr
