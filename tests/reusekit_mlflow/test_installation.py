"""Whatever is imported first, MLflow has all of the plugin."""

import subprocess
import sys

import pytest

HAS_ALL = """
import mlflow
from mlflow.tracking.context.registry import resolve_tags
assert mlflow.data.from_tfds
assert "tfds" in {source._get_source_type() for source in mlflow.data.get_registered_sources()}
assert "reusekit.version" in resolve_tags()
"""


@pytest.mark.parametrize("first", ["datasets", "artifacts"])
def test_a_module_of_the_plugin_may_be_imported_before_mlflow(first):
    code = f"import reusekit_mlflow.{first}\n{HAS_ALL}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Failure" not in done.stderr  # as MLflow warns where it goes on without a part of it
