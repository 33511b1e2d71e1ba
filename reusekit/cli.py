"""The command `reusekit`."""

import shutil
from importlib.resources import files
from pathlib import Path

from reusekit.backbones import load_backbone
from reusekit.errors import ConfigError
from reusekit.graph import cut_points
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
    print(cut_points(load_backbone(source, weights=None, input_shape=input_shape).model, max_width))


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
        for name, source in carried.items():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}.") from error
    print(f"python {target / 'pipelines' / 'cut_search.py'} --config "
          f"{target / 'configs' / 'digits.yaml'}")  # fmt: skip


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
