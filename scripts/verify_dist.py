"""Build the wheel and the sdist, and try them where nothing else is installed.

Builds the last commit twice, at two places, and compares the SHA-256 of what comes out; has twine
check the metadata; installs the wheel into an empty environment for each Python from 3.11 to 3.13
that is at hand, with the newest packages its metadata allow, and runs a smoke test there; and runs
the model rooms on JAX where no TensorFlow is. An environment takes about 2.5 GB while it is tried.

    python scripts/verify_dist.py                # all of it
    python scripts/verify_dist.py --python 3.12  # this one; --python none builds and checks only
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11", "3.12", "3.13")

SMOKE = """
import keras
import numpy as np
import reusekit as rk

assert "site-packages" in rk.__file__, rk.__file__
x = keras.Input((8, 8, 3), name="x")
stem = keras.layers.Conv2D(4, 3, padding="same", name="stem")(x)
out = keras.layers.Add(name="out")([stem, keras.layers.Conv2D(4, 1, name="conv")(stem)])
pool = keras.layers.GlobalAveragePooling2D(name="pool")(out)
model = keras.Model(x, keras.layers.Dense(2, name="head")(pool))
assert [point.at for point in rk.cut_points(model)] == ["stem", "out", "pool"]
assert rk.split(model, "conv").verify().exact
whole = rk.attach(rk.split(model, "pool").bottom, rk.heads.Classifier(3))
assert whole(np.ones((2, 8, 8, 3), "float32")).shape == (2, 3)
"""
FULL = """
backbones = [rk.load_backbone(f"reusekit/{name}") for name in ("glyphnet", "prosenet")]
assert None not in [backbone.weights for backbone in backbones]
digits = rk.data.load("sklearn_digits", "train[:20]")
topics = rk.data.load("python_topics", "train[:20]")
assert digits.size == topics.size == 20
print(rk.__version__, *(rk.count_params(backbone.model).total for backbone in backbones))
"""
WITHOUT_TENSORFLOW = """
import importlib.util
import reusekit.graph, reusekit.sharing, reusekit.surgery, reusekit.training

assert importlib.util.find_spec("tensorflow") is None
print(rk.__version__, "on", keras.backend.backend())
"""


def main() -> None:
    """Build, check and try."""
    options = parse()
    built = build(ROOT / "dist")
    with tempfile.TemporaryDirectory(prefix="dist-") as scratch:
        check_metadata(built, Path(scratch))
        wheel = next(file for file in built if file.suffix == ".whl")
        tried = [try_on(version, wheel, Path(scratch)) for version in options.python or PYTHONS]
        if options.python == ["none"]:
            return
        if not any(tried):
            sys.exit("Expected a Python from 3.11 to 3.13. Received: none at hand. Install one.")
        try_on_jax(wheel, Path(scratch))


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", action="append", choices=(*PYTHONS, "none"))
    return parser.parse_args()


def build(folder: Path) -> list[Path]:
    """Build the last commit twice, compare, and return the files."""
    if run("git", "status", "--porcelain", where=ROOT):
        print("What is not committed is not built.")
    stamp = run("git", "log", "-1", "--format=%ct", where=ROOT)
    made = []
    with tempfile.TemporaryDirectory(prefix="build-") as scratch:
        for place in ("one", "another"):
            source = Path(scratch, place)
            source.mkdir()
            archive = Path(scratch, "source.tar")
            run("git", "archive", "--output", str(archive), "HEAD", where=ROOT)
            shutil.unpack_archive(archive, source)
            command = (sys.executable, "-m", "hatchling", "build", "--directory", "built")
            run(*command, where=source, SOURCE_DATE_EPOCH=stamp)
            files = sorted((source / "built").iterdir())
            made.append(
                {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
            )
        if made[0] != made[1]:
            sys.exit(f"Expected two equal builds of a commit. Received: {made[0]} and {made[1]}.")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source / "built", folder)
    for name, digest in made[0].items():
        print(f"{name}: {(folder / name).stat().st_size:,} bytes, twice sha256 {digest}")
    return [folder / name for name in made[0]]


def check_metadata(built: list[Path], scratch: Path) -> None:
    """Have twine read the metadata, and render the README."""
    python = environment(sys.executable, scratch / "twine", "twine")
    print(run(python, "-m", "twine", "check", "--strict", *map(str, built), where=scratch))


def try_on(version: str, wheel: Path, scratch: Path) -> bool:
    """Install the wheel on one version of Python and run the smoke test, or say it is missing."""
    interpreter = found(version)
    if interpreter is None:
        if version != "none":
            print(f"Python {version}: not at hand, not tried")
        return False
    began, folder = time.perf_counter(), scratch / version
    python = environment(interpreter, folder, str(wheel))
    installed = time.perf_counter() - began
    command = Path(python).with_name("reusekit")
    data = {"TFDS_DATA_DIR": str(folder / "data")}
    said = run(python, "-c", SMOKE + FULL, where=folder, **data)
    assert "reusekit doctor" in run(str(command), "--help", where=folder)
    assert "block7_out" in run(str(command), "cuts", "reusekit/glyphnet", where=folder)
    assert "cut_search.py" in run(str(command), "init", "project", where=folder)
    took = time.perf_counter() - began
    print(
        f"Python {version}: {said}; {installed:.0f} s to install, {took - installed:.0f} s to try"
    )
    shutil.rmtree(folder)
    return True


def try_on_jax(wheel: Path, scratch: Path) -> None:
    """Run the model rooms on JAX, with what `make test-jax` installs and no TensorFlow."""
    began, folder = time.perf_counter(), scratch / "jax"
    python = environment(
        sys.executable, folder, "--no-deps", "-r", str(ROOT / "requirements-jax.lock")
    )
    install(python, "--no-deps", str(wheel))
    said = run(python, "-c", SMOKE + WITHOUT_TENSORFLOW, where=folder, KERAS_BACKEND="jax")
    print(f"Without TensorFlow: {said}; {time.perf_counter() - began:.0f} s")


def found(version: str) -> str | None:
    """Return an interpreter of that version, on the PATH or of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    on_path = shutil.which(f"python{version}")
    for candidate in (on_path, *sorted(pyenv.glob(f"{version}.*/bin/python"))):
        says = "import sys; print('%d.%d' % sys.version_info[:2])"
        if candidate:
            answer = subprocess.run([candidate, "-c", says], capture_output=True, text=True)
            if answer.stdout.strip() == version:
                return str(candidate)
    return None


def environment(interpreter: str, folder: Path, *packages: str) -> str:
    """Make an empty environment, install packages, and return its interpreter."""
    run(interpreter, "-m", "venv", str(folder), where=ROOT)
    python = str(folder / "bin" / "python")
    install(python, *packages)
    return python


def install(python: str, *packages: str) -> None:
    """Install with uv where it is on the PATH, else with pip."""
    uv = shutil.which("uv")
    pip = (uv, "pip", "install", "--python", python) if uv else (python, "-m", "pip", "install")
    run(*pip, "--quiet", *packages, where=ROOT)


def run(*command: str, where: Path, **environment: str) -> str:
    """Run a command with nothing of this project on its path; return what it prints, or stop."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=where,
        env={**kept, "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = f"{done.stdout}{done.stderr}"
        sys.exit(f"Expected {' '.join(command)[:300]} to succeed. Received: {said}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
