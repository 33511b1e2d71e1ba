import ast
import inspect

import keras
import pytest
from keras.src.ops import numpy as operations

from reusekit.graph import keras_internals

OF_OTHERS = {"_lora_enabled_layers", "_replace", "_"}  # KerasHub's, Python's, and no name


def test_installed_keras_has_every_private_attribute_we_read():
    moved = keras_internals.missing()
    assert not moved, (
        f"Keras {keras.__version__} no longer has {moved}: adapt "
        "reusekit/graph/keras_internals.py, the only file that reads them."
    )


def test_every_private_attribute_that_is_read_is_looked_for():
    tree = ast.parse(inspect.getsource(keras_internals))
    read, looked_for = set(), set()
    for function in tree.body:
        is_list = isinstance(function, ast.FunctionDef) and function.name == "missing"
        for node in ast.walk(function):
            if is_list and isinstance(node, ast.Constant) and isinstance(node.value, str):
                looked_for.update(node.value.split())
            elif isinstance(node, ast.Attribute):
                read.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)
    private = {name for name in read if name.startswith("_") and name.isidentifier()}
    private = {name for name in private if not name.startswith("__")} - OF_OTHERS
    starts = {"_compile"}  # of attributes that are told by their beginning
    assert private - looked_for - starts == set()


@pytest.mark.parametrize(
    ("owner", "name", "told"),
    [
        (keras.layers.Layer, "_untrack_variable", "Layer._untrack_variable"),
        (operations, "GetItem", "keras.src.ops.numpy.GetItem"),
    ],
)
def test_what_a_coming_keras_lacks_is_named(owner, name, told, monkeypatch):
    monkeypatch.delattr(owner, name)
    assert told in keras_internals.missing()
