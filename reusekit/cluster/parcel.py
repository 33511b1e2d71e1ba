"""Functions and what they are run on, packed to be sent to workers.

A backbone goes as the bytes of a `.keras` file, once for all that is sent, and is compared where it
arrives. Everything else goes by pickle, from the driver to its own workers and nowhere else; arrays
in it are not copied.
"""

import copyreg
import hashlib
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
from ray import cloudpickle

from reusekit.digests import digest
from reusekit.errors import ClusterError, ReusekitError
from reusekit.features.key import tensor_digests
from reusekit.graph import Graph, Tensor, keras_internals, read

Sent = Mapping[str, Any]
"""Something packed: arrays and plain values, so that reading it imports nothing of reusekit."""


def packed(content: Any) -> tuple[Sent, Mapping[str, Graph]]:
    """Pack something for a worker.

    Returns:
        The pickle, the bytes of its arrays and a key of both, and the models that it stands on, by
        keys of theirs.

    Raises:
        ClusterError: It holds what cannot be sent.
    """
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    pickler = _Pickler(file, buffers)
    try:
        pickler.dump(content)
    except ReusekitError:
        raise
    except Exception as error:  # whatever an object raises that cannot be pickled
        raise ClusterError(
            "Expected heads, layers and settings that can be sent to workers: classes that are "
            f"defined in a module. Received: {type(error).__name__}: {error}"
        ) from error
    parts: list[Any] = [file.getvalue(), *(buffer.raw() for buffer in buffers)]
    key = hashlib.sha256()
    for part in parts:
        key.update(part)
    content, *arrays = (np.frombuffer(part, np.uint8) for part in parts)
    return {"key": key.hexdigest(), "content": content, "buffers": arrays}, pickler.models


def unpacked(sent: Sent, models: Mapping[str, Graph]) -> Any:
    """Return what was packed, given the models that it stands on; arrays are not copied."""
    return _Unpickler(io.BytesIO(sent["content"].tobytes()), sent["buffers"], models).load()


def key_of(graph: Graph) -> str:
    """Return a key of a model's weights, layers and their names."""
    if graph.keeps_masks:
        graph = read(graph.model)  # the names of masks are there only where they are asked for
    digests = tensor_digests(graph, graph.outputs)
    return digest([[digests[tensor] for tensor in graph.outputs], sorted(graph.names)])


def packed_model(model: keras.Model, key: str) -> Sent:
    """Pack a model: its file, the classes that are not Keras's own, and what is trainable in it.

    Raises:
        ClusterError: Keras cannot save it.
    """
    classes = {
        name: type(layer)
        for layer in keras_internals.all_layers(model)
        if not type(layer).__module__.startswith("keras.")
        for name in (type(layer).__name__, keras.saving.get_registered_name(type(layer)))
    }
    with TemporaryDirectory() as folder:
        file = Path(folder, "model.keras")
        try:
            model.save(file)
            pickled = cloudpickle.dumps(classes)
        except Exception as error:  # Keras raises whatever it likes
            raise _refused(model.name, error) from error
        content = _bytes(file.read_bytes())
    return {
        "key": key,
        "name": model.name,
        "file": content,
        "classes": _bytes(pickled),
        "layers": [layer.trainable for layer in keras_internals.all_layers(model)],
        "variables": [variable.trainable for variable in model.variables],
    }


def unpacked_model(sent: Sent) -> Graph:
    """Return a model that was packed.

    Raises:
        ClusterError: Keras cannot load it without running code from it, or it is another one then.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder, "model.keras")
        file.write_bytes(sent["file"].tobytes())
        try:
            classes = cloudpickle.loads(sent["classes"].tobytes())
            made = keras.saving.load_model(file, classes, compile=False, safe_mode=True)
        except Exception as error:  # Keras raises whatever it likes
            raise _refused(sent["name"], error) from None
    for layer, wanted in zip(keras_internals.all_layers(made), sent["layers"], strict=True):
        if layer.trainable != wanted:
            layer.trainable = wanted
    for variable, wanted in zip(made.variables, sent["variables"], strict=True):
        if variable.trainable != wanted:
            variable.trainable = wanted
    graph = read(made)
    if key_of(graph) != sent["key"]:
        raise _refused(sent["name"], "what Keras loads of it has other weights or layers")
    return graph


def _refused(name: str, why: Any) -> ClusterError:
    told = " ".join(str(why).split())
    return ClusterError(
        f"Expected a backbone that Keras can save and load again, to send it to workers. Received: "
        f"{name!r}: {told}"
    )


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


class _Pickler(cloudpickle.CloudPickler):
    """A pickler that names models and their tensors, and leaves out what data classes cache."""

    def __init__(self, file: io.BytesIO, buffers: list[pickle.PickleBuffer]) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffers.append)
        self.models: dict[str, Graph] = {}
        self._keys: dict[int, str] = {}
        self._tensors: dict[int, tuple[str, bool, str]] = {}
        self._graphs: list[Graph] = []  # so that no identity is used twice

    def persistent_id(self, found: Any) -> Any:
        """Return the name of a graph or a tensor; None for anything else."""
        if isinstance(found, Graph):
            return ("graph", self._key(found), found.keeps_masks)
        if isinstance(found, Tensor):
            return ("tensor", *self._tensors[id(found)])
        return None

    def _key(self, graph: Graph) -> str:
        if id(graph) not in self._keys:
            key = self._keys[id(graph)] = key_of(graph)
            self._graphs.append(graph)
            self.models.setdefault(key, graph)
            for name, tensor in graph.names.items():
                self._tensors.setdefault(id(tensor), (key, graph.keeps_masks, name))
        return self._keys[id(graph)]

    def reducer_override(self, found: Any) -> Any:
        """Reduce a data class to its fields, and anything else as it is reduced elsewhere."""
        kind = type(found)
        plain = kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__
        if is_dataclass(found) and not isinstance(found, type) and plain:
            if not hasattr(found, "__dict__"):
                return NotImplemented
            state = {field.name: getattr(found, field.name) for field in fields(found)}
            return copyreg.__newobj__, (kind,), state, None, None, _restore  # type: ignore[attr-defined]  # pickle has it
        return super().reducer_override(found)


def _restore(made: Any, state: Mapping[str, Any]) -> None:
    vars(made).update(state)


class _Unpickler(pickle.Unpickler):
    """An unpickler of what `_Pickler` wrote, given the models."""

    def __init__(
        self, file: io.BytesIO, buffers: Sequence[np.ndarray], models: Mapping[str, Graph]
    ) -> None:
        super().__init__(file, buffers=buffers)
        self._models = models
        self._read: dict[tuple[str, bool], Graph] = {}

    def persistent_load(self, name: Any) -> Any:
        """Return the graph or tensor of a name."""
        kind, key, keeps_masks, *address = name
        if (key, keeps_masks) not in self._read:
            self._read[key, keeps_masks] = read(self._models[key].model, keep_masks=keeps_masks)
        graph = self._read[key, keeps_masks]
        return graph.names[address[0]] if kind == "tensor" else graph
