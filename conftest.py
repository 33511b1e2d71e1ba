"""Fixtures of all tests: a data folder and a tracking database of their own, and no bars."""

import gc
import os
import shutil
import sys
import tempfile
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest

# Before anything imports TFDS or MLflow: no test may touch what the user has.
_SCRATCH = Path(tempfile.mkdtemp(prefix="reusekit-tests-"))
os.environ["TFDS_DATA_DIR"] = str(_SCRATCH / "data")
os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{_SCRATCH / 'unused.db'}"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["CI"] = "true"
# As reusekit has it; many tests import Keras first.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# No modules of examples: tests/test_site.py runs them, each in a folder of its own.
collect_ignore = ["docs/tutorials"]


def pytest_collection_finish() -> None:
    """Have the garbage collector come by more rarely.

    And have TensorFlow note no stack of Python for each operation of a graph, which it does for its
    messages alone: with the depth that tests have, a tenth of all that they take.
    """
    gc.set_threshold(50_000, 10, 10)
    if "tensorflow" in sys.modules:
        from tensorflow.python.util import tf_stack

        here = tf_stack.extract_stack()
        tf_stack.extract_stack = lambda stacklevel=1: here


def pytest_unconfigure() -> None:
    """Leave nothing behind, and have nobody look through all that tests have made."""
    shutil.rmtree(_SCRATCH, ignore_errors=True)
    gc.freeze()


@pytest.fixture(autouse=True)
def _prepared_digits(request: pytest.FixtureRequest) -> None:
    """Doctests print nothing but what they show, so TFDS has its say before them."""
    if isinstance(request.node, pytest.DoctestItem) and "reusekit.data" in request.node.name:
        request.getfixturevalue("digits")


@pytest.fixture(scope="module", autouse=True)
def _nothing_of_earlier_modules_to_look_through():
    """Take what is alive out of the collector's way; Keras calls it at each deleted variable."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _no_more_compiled_functions_than_a_module_needs():
    """JAX keeps all that it compiles mapped into memory; a process may have 65,530 such maps."""
    yield
    if os.environ.get("KERAS_BACKEND") == "jax":
        import jax

        jax.clear_caches()


@pytest.fixture(scope="module")
def module_tracking(empty_database: Path, tmp_path_factory: pytest.TempPathFactory):
    """A tracking database in an empty current folder, for all tests of a module."""
    folder, before = tmp_path_factory.mktemp("tracking"), os.getcwd()
    os.chdir(folder)
    with database(empty_database, folder) as client:
        yield client
    os.chdir(before)


@pytest.fixture(scope="session")
def digits():
    """The embedded data, prepared once."""
    from reusekit.data import load

    return load("sklearn_digits", "train")


@pytest.fixture(scope="session")
def empty_database() -> Path:
    """An MLflow database with all of its tables; making them takes seconds."""
    import mlflow

    file = _SCRATCH / "empty.db"
    with chdir(_SCRATCH):  # the artifacts of its first experiment belong below the current folder
        mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@contextmanager
def database(empty: Path, folder: Path):
    """A fresh tracking database in a folder; ends the runs that are left open in it."""
    import mlflow

    shutil.copy(empty, folder / "mlflow.db")
    # Absolute, since MLflow keeps the first database that it opened under a relative address.
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_experiment("Default")
    yield mlflow.MlflowClient()
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)


@pytest.fixture
def tracking(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A tracking database in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    with database(empty_database, tmp_path) as client:
        yield client


@pytest.fixture(scope="module")
def s3():
    """S3 with an empty bucket, as `storage.s3_server` serves it."""
    from storage import s3_server  # moto takes a second to import

    with s3_server() as server:
        yield server
