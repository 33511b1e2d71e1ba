"""A search that kills its own process, as `kill -9` would, at a moment that is asked for."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from search.textures import small_backbone, textures

from reusekit.features import FeatureStore
from reusekit.objects import Objects
from reusekit.search import CutSearch, SearchConfig, SearchSpace, remote_folder


def search(folder: Path, train=None, url: str | None = None, **changed) -> CutSearch:
    """Six trials in three groups of two: heads on two cuts, and the top of the backbone.

    With the address of object storage it is kept there, and the folder is the machine's cache.
    """
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
        folder=f"{url}/search" if url else folder / "search",
        store=FeatureStore(f"{url}/features", cache=folder / "store")
        if url
        else FeatureStore(folder / "store"),
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


@contextmanager
def machine(folder: Path, variables: Mapping[str, str] | None = None) -> Iterator[None]:
    """Be a machine whose caches are in a folder, with leases that are renewed at once."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**(variables or {}), "XDG_CACHE_HOME": str(folder / "caches")}.items():
            patch.setenv(name, value)
        patch.setattr(remote_folder, "RENEWAL", 1.2)
        patch.setattr(remote_folder, "LEASE", 5.0)
        yield


def search_elsewhere(
    folder: Path, url: str, variables: dict[str, str], put: int, parent: Connection
) -> None:
    """Search in object storage, and die when the state is to be put for the `put`-th time.

    Args:
        folder: That of this machine.
        url: The address of the storage.
        variables: By which it is reached.
        put: From 1; 0 stops at the second group until it is killed, and -1 dies when the state is
            to be fetched.
        parent: Is told what the search says, word by word.
    """
    before, count = Objects.put, [0]

    def watched(self: Objects, name: str, content: bytes) -> None:
        count[0] += name == "state.json"
        if name == "state.json" and count[0] == put:
            os.kill(os.getpid(), signal.SIGKILL)
        before(self, name, content)

    def say(text: str) -> None:
        parent.send(text.split())
        if put == 0 and text == "trial 2":
            parent.send(("waiting",))
            parent.recv()

    fetch = Objects.get

    def fetched(self: Objects, name: str) -> bytes | None:
        if name == "state.json" and put == -1:
            os.kill(os.getpid(), signal.SIGKILL)
        return fetch(self, name)

    Objects.put, Objects.get = watched, fetched  # type: ignore[method-assign]
    with machine(folder, variables):
        run(search(folder, url=url), say)
    parent.send(("ended",))
