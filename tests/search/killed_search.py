"""A search that kills its own process, as `kill -9` would, at a moment that is asked for."""

import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from search.textures import small_backbone, textures

from reusekit.features import FeatureStore
from reusekit.search import CutSearch, SearchConfig, SearchSpace


def search(folder: Path, train=None, **changed) -> CutSearch:
    """Six trials in three groups of two: heads on two cuts, and the top of the backbone."""
    space = {
        "cuts": ["stem", "out1"],
        "frozen_up_to": ["out1", "out0"],
        "units": (0,),
        "dropout": (0.0,),
        "learning_rates": (0.1, 0.02),
    }
    train = train or textures("train", 60, 1)
    settings = {"seed": 0, "epochs": 3}
    settings |= {name: value for name, value in changed.items() if name not in space}
    space |= {name: value for name, value in changed.items() if name in space}
    return CutSearch(
        small_backbone(),
        validation=textures("validation", 30, 2),
        space=SearchSpace(**space),
        config=SearchConfig(keep=2, ask=2, **settings),
        folder=folder / "search",
        store=FeatureStore(folder / "store"),
        train=train,
    )


def run(one: CutSearch, say: Callable[[str], None]) -> None:
    """Run a search that says how far it is."""
    one.run(report=lambda record: say(f"trial {record.number}"), progress=say)


def search_and_die(folder: Path, moment: str, when: int, parent: Connection) -> None:
    """Search, and die.

    Args:
        folder: Where the search is kept.
        moment: "group" or "state".
        when: While which group of trials is trained, or when which state of the search is written,
            but not yet in its place.
        parent: Is told what the search says, word by word.
    """
    begun = {"group": 0, "state": 0}

    def say(text: str) -> None:
        parent.send(text.split())
        begun["group"] += text.startswith("epoch 1,")
        if text.startswith("epoch 2,"):
            die("group")

    def die(now: str) -> None:
        if (moment, when) == (now, begun[now]):
            os.kill(os.getpid(), signal.SIGKILL)

    replace = Path.replace

    def watched(file: Path, target: Path) -> Path:
        if Path(target).name == "state.json":
            begun["state"] += 1
            die("state")
        return replace(file, target)

    Path.replace = watched
    run(search(folder), say)
