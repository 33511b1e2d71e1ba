"""Files of LiteRT's name that are written in no time, for tests of what is done with files."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from reusekit.exports import exporter
from reusekit.exports.formats import LiteRT


@contextmanager
def quick_files() -> Iterator[None]:
    """Have LiteRT write a model's weights alone, and Keras run what was written last."""
    written = []

    def write(self, face, path, quantize, examples):
        with path.open("wb") as file:
            np.savez(file, *(weight.numpy() for weight in face.model.weights))
        written[:] = [face.model]

    def open_(self, path, outputs, threads):
        (model,) = written
        return lambda inputs: {name: np.asarray(y) for name, y in model(inputs).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiteRT, "write", write)
        patch.setattr(LiteRT, "open", open_)
        patch.setattr(exporter, "_RUNS", (2, 2))
        yield
