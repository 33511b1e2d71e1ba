import keras

from reusekit.graph import keras_internals


def test_installed_keras_has_every_private_attribute_we_read():
    moved = keras_internals.missing()
    assert not moved, (
        f"Keras {keras.__version__} no longer has {moved}: adapt "
        "reusekit/graph/keras_internals.py, the only file that reads them."
    )
