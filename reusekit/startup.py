"""The start-up before Keras is imported, with TensorFlow's noise held back.

TensorFlow writes informational lines to the process's standard error from C++ while it loads,
before it reads `TF_CPP_MIN_LOG_LEVEL`, so the only way to keep them out is to catch the file
descriptor. Everything that is not on the short list of known noise is passed on unchanged.
"""

import logging
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

BEGAN = time.perf_counter()
"""When this process began to import reusekit."""

_INFORMATIONAL = re.compile(
    r"I\d{4} .*"  # glog's mark of an informational line
    r"|WARNING: All log messages before absl::InitializeLog\(\) is called .*"
    r"|To enable the following instructions: .*"  # second line of an informational message
    r"|W\d{4} .*tf_tfl_flatbuffer_helpers.*Ignored \w+\."  # LiteRT's converter, on each model
)
_CUDA_INIT_FAILED = re.compile(r"E\d{4} .*failed call to cuInit")
_NVIDIA_DRIVER = "/proc/driver/nvidia"
_OUR_LEVEL = "1"  # of TF_CPP_MIN_LOG_LEVEL: warnings and errors


def is_command() -> bool:
    """Return whether this process is the `reusekit` command, which starts Keras late."""
    return os.path.basename((sys.argv or [""])[0]) == "reusekit"


def without_noise(lines: Iterable[str], has_driver: bool | None = None) -> list[str]:
    """Return the lines a person should see of what TensorFlow printed while it loaded.

    That CUDA does not start is noise only on a machine without an NVIDIA driver.

    Args:
        lines: What was printed, line by line.
        has_driver: Whether this machine has an NVIDIA driver; looked up where None.

    Example:
        >>> without_noise(["I0000 00:00:17 3909 port.cc:153] oneDNN is on", "W0000 odd card"])
        ['W0000 odd card']
    """
    if has_driver is None:
        has_driver = os.path.exists(_NVIDIA_DRIVER)
    return [
        line
        for line in lines
        if not _INFORMATIONAL.match(line) and (has_driver or not _CUDA_INIT_FAILED.match(line))
    ]


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the noise on standard error while Keras and its backend start.

    Does nothing where the user has set `TF_CPP_MIN_LOG_LEVEL` (then their word counts) or where
    there is no standard error to catch.
    """
    ours = os.environ.get("TF_CPP_MIN_LOG_LEVEL", _OUR_LEVEL) == _OUR_LEVEL
    if not ours:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = _OUR_LEVEL
    try:
        saved = os.dup(2)
    except OSError:
        yield
        return
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            kept = without_noise(caught.read().decode(errors="replace").splitlines())
            if kept:
                print("\n".join(kept), file=sys.stderr)


def is_no_retracing(record: logging.LogRecord) -> bool:
    """Return False for TensorFlow's retracing warning, caused by many models in a process."""
    return "triggered tf.function retracing" not in record.getMessage()


@contextmanager
def without_retracing() -> Iterator[None]:
    """Hold back TensorFlow's retracing warning, which counts over all models of a process."""
    log = logging.getLogger("tensorflow")
    if is_no_retracing in log.filters:
        yield
        return
    log.addFilter(is_no_retracing)
    try:
        yield
    finally:
        log.removeFilter(is_no_retracing)


def use_onednn() -> None:
    """Have TensorFlow compute by oneDNN on any x86 processor, unless the user has chosen.

    By itself it does so only where the processor has some of the later instructions of AVX-512,
    although without them, too, networks of convolutions train several times as fast. Last bits
    differ, as they do between processors; keys of stored features know neither.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


@cache
def start_keras() -> None:
    """Import Keras and its backend quietly; it takes seconds.

    Without a driver for GPUs TensorFlow finds out now that there is none: what it says about that
    at the first operation would not be held back any more. Where there is a driver it is not asked,
    since looking would initialise CUDA at import.
    """
    use_onednn()
    with quiet():
        import keras  # noqa: F401

        tensorflow = sys.modules.get("tensorflow")
        if tensorflow is not None and not os.path.exists(_NVIDIA_DRIVER):
            tensorflow.config.list_physical_devices()
