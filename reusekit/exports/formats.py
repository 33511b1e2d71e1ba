"""The formats of exported models: each written by Keras and its own tools, and run by its runtime.

What a format needs is imported where it is used: each is an extra of its own.
"""

import logging
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import numpy as np
import tensorflow as tf

from reusekit.errors import ExportError
from reusekit.exports.interface import Interface
from reusekit.startup import quiet

Named = dict[str, np.ndarray]
Running = Callable[[Mapping[str, np.ndarray]], Named]
"""A file in its runtime: inputs to outputs, by name."""

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"

Quantization = Literal["float16", "int8", "int8-calibrated"]


class Format(ABC):
    """A format.

    Attributes:
        name: Its name.
        ending: The end of a file's name.
        modules: The modules that write and run it, beside TensorFlow.
        quantizations: The precisions below float32 that it can have.
        texts: Whether its inputs may be strings.
        exact: Whether it computes in whatever precision the model computes in.
    """

    name: ClassVar[str]
    ending: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()
    quantizations: ClassVar[tuple[Quantization, ...]] = ()
    texts: ClassVar[bool] = False
    exact: ClassVar[bool] = False

    def check(self, quantize: Quantization | None) -> None:
        """Refuse what the format cannot do, or not here.

        Raises:
            ExportError: It has no such precision, or what writes and runs it is not installed.
        """
        if quantize is not None and quantize not in self.quantizations:
            able = [name for name, one in FORMATS.items() if quantize in one.quantizations]
            choices = " or ".join(("None", *map(repr, self.quantizations)))
            raise ExportError(
                f"Expected quantize to be {choices} for the format {self.name!r}. Received: "
                f"{quantize!r}, which {' and '.join(map(repr, able))} can have."
            )
        missing = [module for module in self.modules if find_spec(module) is None]
        if missing:
            raise ExportError(
                f"Expected what writes and runs the format {self.name!r}: pip install "
                f"'reusekit[{self.name}]'. Received: no module {missing[0]!r} is installed here."
            )

    @abstractmethod
    def write(
        self,
        face: Interface,
        path: Path,
        quantize: Quantization | None,
        examples: Callable[[], Iterator[Named]],
    ) -> None:
        """Write a model.

        Args:
            face: The model.
            path: Where to, in a folder that is there.
            quantize: The precision.
            examples: Gives the inputs by which int8 is calibrated.
        """

    @abstractmethod
    def open(self, path: Path, outputs: Sequence[str], threads: int | None) -> Running:
        """Open a file in its runtime.

        Args:
            path: The file.
            outputs: The names of its outputs.
            threads: How many it may use; None for all.
        """


class LiteRT(Format):
    """LiteRT, which was TensorFlow Lite: one file for telephones and small computers."""

    name = "litert"
    ending = ".tflite"
    modules = ("ai_edge_litert",)
    quantizations = ("float16", "int8", "int8-calibrated")

    def write(
        self,
        face: Interface,
        path: Path,
        quantize: Quantization | None,
        examples: Callable[[], Iterator[Named]],
    ) -> None:
        """Write a model of LiteRT's own operations alone; see `Format.write`."""
        # Those of TensorFlow are none of the runtime's.
        target: dict[str, Any] = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
        options: dict[str, Any] = {"target_spec": target}
        if quantize is not None:
            options["optimizations"] = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            target["supported_types"] = [tf.float16]
        if quantize == "int8-calibrated":
            options["representative_dataset"] = examples
        face.model.export(
            path, format="litert", verbose=False, input_signature=face.signature, **options
        )

    def open(self, path: Path, outputs: Sequence[str], threads: int | None) -> Running:
        """Open a file in LiteRT; see `Format.open`."""
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path), num_threads=threads or _processors())
        signature = next(iter(interpreter.get_signature_list()))
        runner = interpreter.get_signature_runner(signature)
        return lambda inputs: runner(**inputs)


class ONNX(Format):
    """ONNX: one file for ONNX Runtime and many others."""

    name = "onnx"
    ending = ".onnx"
    modules = ("onnx", "tf2onnx", "onnxruntime")
    quantizations = ("float16", "int8", "int8-calibrated")

    def write(
        self,
        face: Interface,
        path: Path,
        quantize: Quantization | None,
        examples: Callable[[], Iterator[Named]],
    ) -> None:
        """Write a model, which has a plain form before it is quantised; see `Format.write`."""
        _teach_complements()
        with TemporaryDirectory(dir=path.parent) as scratch:
            plain = Path(scratch, "plain.onnx")
            face.model.export(
                str(plain), format="onnx", verbose=False, input_signature=face.signature
            )
            if quantize is None:
                plain.replace(path)
            else:
                self._quantize(plain, path, quantize, examples)

    def _quantize(
        self,
        plain: Path,
        path: Path,
        quantize: Quantization,
        examples: Callable[[], Iterator[Named]],
    ) -> None:
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
        from onnxruntime.transformers.float16 import convert_float_to_float16

        if quantize == "float16":
            onnx.save(convert_float_to_float16(onnx.load(plain), keep_io_types=True), path)
            return
        ready = plain.with_name("ready.onnx")
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        if quantize == "int8":
            # Convolutions of ONNX Runtime take weights of this type alone.
            unsigned = quantization.QuantType.QUInt8
            quantization.quantize_dynamic(ready, path, weight_type=unsigned)
        else:
            reader = _Calibration(examples())
            quantization.quantize_static(ready, path, reader, per_channel=True)

    def open(self, path: Path, outputs: Sequence[str], threads: int | None) -> Running:
        """Open a file in ONNX Runtime on processors; see `Format.open`."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or _processors()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda inputs: dict(
            zip(outputs, session.run(list(outputs), dict(inputs)), strict=True)
        )


class OpenVINO(Format):
    """OpenVINO: a folder with `model.xml` and `model.bin` for Intel's processors."""

    name = "openvino"
    ending = "-openvino"
    modules = ("openvino",)
    quantizations = ("float16",)

    def write(
        self,
        face: Interface,
        path: Path,
        quantize: Quantization | None,
        examples: Callable[[], Iterator[Named]],
    ) -> None:
        """Write a model with the names of its outputs; see `Format.write`."""
        import openvino

        with TemporaryDirectory(dir=path.parent) as scratch:
            plain = Path(scratch, "model.xml")
            face.model.export(
                str(plain), format="openvino", verbose=False, input_signature=face.signature
            )
            made = openvino.Core().read_model(plain)
            for output, name in zip(made.outputs, sorted(face.outputs), strict=True):
                output.tensor.set_names({name})
            path.mkdir()
            openvino.save_model(made, path / "model.xml", compress_to_fp16=quantize == "float16")
            del made  # which has the file mapped

    def open(self, path: Path, outputs: Sequence[str], threads: int | None) -> Running:
        """Open a folder in OpenVINO on processors; see `Format.open`."""
        import openvino

        # Else it computes in bfloat16 where the processor can.
        options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        options["INFERENCE_NUM_THREADS"] = str(threads or _processors())
        compiled = openvino.Core().compile_model(path / "model.xml", "CPU", options)

        def run(inputs: Mapping[str, np.ndarray]) -> Named:
            found = compiled(dict(inputs))
            return {name: np.array(found[name]) for name in outputs}

        return run


class SavedModel(Format):
    """TensorFlow's SavedModel: a folder for TensorFlow Serving."""

    name = "saved_model"
    ending = "-saved_model"
    texts = True
    exact = True

    def write(
        self,
        face: Interface,
        path: Path,
        quantize: Quantization | None,
        examples: Callable[[], Iterator[Named]],
    ) -> None:
        """Write a model; see `Format.write`."""
        face.model.export(
            str(path), format="tf_saved_model", verbose=False, input_signature=face.signature
        )

    def open(self, path: Path, outputs: Sequence[str], threads: int | None) -> Running:
        """Open a folder in TensorFlow, whose threads are those of the process."""
        loaded = tf.saved_model.load(str(path))
        serve = loaded.signatures["serving_default"]

        def run(inputs: Mapping[str, np.ndarray]) -> Named:
            # What is loaded lives no longer than something refers to it.
            found = serve(**{name: tf.constant(value) for name, value in inputs.items()})
            return {name: value.numpy() for name, value in found.items()} if loaded else {}

        return run


FORMATS: Mapping[str, Format] = {
    one.name: one for one in (LiteRT(), ONNX(), OpenVINO(), SavedModel())
}
WRITTEN: Mapping[str, tuple[str, Quantization | None]] = {
    "-".join(filter(None, (name, how))): (name, how)
    for name, one in FORMATS.items()
    for how in (None, *one.quantizations)
}
"""Each format in each precision that it can have, by its name, such as `litert-int8`."""


def written_as(name: str) -> tuple[Any, Quantization | None]:
    """Return format and precision of a name in `WRITTEN`.

    Raises:
        ExportError: What writes and runs the format is not installed.
    """
    format, quantize = WRITTEN[name]
    FORMATS[format].check(quantize)
    return format, quantize


class _Calibration:
    """The examples by which ONNX Runtime calibrates."""

    def __init__(self, examples: Iterator[Named]) -> None:
        self._examples = examples

    def get_next(self) -> Named | None:
        return next(self._examples, None)


@cache
def _teach_complements() -> None:
    """Have tf2onnx write 1 - erf(x) for erfc(x), of which Keras makes GELU, and ONNX has none."""
    from tf2onnx.handler import tf_op
    from tf2onnx.utils import make_name, map_onnx_to_numpy_type

    def write(graph: Any, node: Any, **_: Any) -> None:
        output, name = node.output[0], node.name
        said = {"shapes": [graph.get_shape(output)], "dtypes": [graph.get_dtype(output)]}
        graph.remove_node(name)
        erf = graph.make_node("Erf", node.input, name=make_name(name), **said)
        numbers = map_onnx_to_numpy_type(said["dtypes"][0])
        one = graph.make_const(make_name(name), np.array(1, numbers))
        inputs = [one.output[0], erf.output[0]]
        graph.make_node("Sub", inputs, outputs=[output], name=name, **said)

    tf_op("Erfc").register_compat_handler(write, 9)


def _processors() -> int:
    return os.cpu_count() or 1


@contextmanager
def without_remarks() -> Iterator[None]:
    """Hold back what converters remark about themselves; what is wrong, they raise."""
    names = (None, "absl", "tensorflow", "tf2onnx")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    level_of_tensorflow = os.environ.get(_LEVEL)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if level_of_tensorflow is None:
            os.environ.pop(_LEVEL, None)
        else:  # tf2onnx sets its own, which processes that are started later would have
            os.environ[_LEVEL] = level_of_tensorflow
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
