"""The command `reusekit`."""

import shlex
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from reusekit.backbones import load_backbone
from reusekit.errors import ConfigError
from reusekit.graph import CutPoints, cut_points
from reusekit.launch import launch_one_of


def cuts(
    source: str,
    input_shape: tuple[int, int, int] | None = None,
    max_width: int = 1,
    verbose: bool = False,
) -> None:
    """List where a pretrained model can be cut, shallow to deep.

    Args:
        source: keras.applications/NAME, or reusekit/glyphnet.
        input_shape: Height, width and channels, where not the source's own.
        max_width: How many tensors may cross a cut.
        verbose: Show the traceback of an error.
    """
    # Where a model can be cut does not depend on its weights, so none are downloaded.
    model = load_backbone(source, weights=None, input_shape=input_shape).model
    # All tensors, since a finite width leaves out the output, which is the deepest cut.
    every = cut_points(model, max_width=None)
    points = [p for p in every if p.width <= max_width and p.params_before]
    print(CutPoints(tuple(points), every.model, every.uncounted))


def init(folder: str, verbose: bool = False) -> None:
    """Lay a copy of the pipelines and their configurations into a new project of yours.

    Args:
        folder: Where to; what is there already is never overwritten.
        verbose: Show the traceback of an error.
    """
    target = Path(folder)
    carried = _carried()
    taken = [name for name in carried if (target / name).exists()]
    if taken:
        raise ConfigError(
            f"{target} has a folder named {taken[0]!r} already. Choose a new one, or move it away."
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target) as draft:
            ignore = shutil.ignore_patterns("__pycache__")
            for name, source in carried.items():
                shutil.copytree(source, Path(draft) / name, ignore=ignore)
            for name in carried:
                (Path(draft) / name).rename(target / name)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}.") from error
    pipeline, config = target / "pipelines" / "cut_search.py", target / "configs" / "digits.yaml"
    print(shlex.join([sys.executable, str(pipeline), "--config", str(config)]))


def _carried() -> dict[str, Path]:
    """The folders that `init` copies: inside the wheel, or beside the package in a checkout."""
    package = Path(str(files("reusekit")))
    root = package / "_project"
    if not root.is_dir():
        root = package.parent
    return {name: root / name for name in ("pipelines", "configs")}


def main() -> None:
    """Run the command line."""
    launch_one_of({"cuts": cuts, "init": init})
