"""Fills a feature store in a process of its own, which may be killed at any moment."""

import glob
import os
import resource
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from reusekit.features import FeatureKey, FeatureStore

SIZE, WIDTH, BATCH = 400, 25, 10
KEY = FeatureKey("k", ("x",), SIZE)
BLOCK_BYTES = 20 * WIDTH * 4


def rows(start: int) -> dict[str, np.ndarray]:
    """A batch, in which every number of an example is the example's."""
    numbers = np.arange(start, start + BATCH, dtype="float32")
    return {"x": np.tile(numbers[:, None], (1, WIDTH))}


def fill(path: Path, doing: str, parent: Connection) -> None:
    """Fill a store, and say how far it is.

    Args:
        path: The store's folder.
        doing: "slowly", "die" (within the manifest), "full" (the disk), "together" (begins when
            told to) or "hold" (reads until it is killed).
        parent: Whom to tell.
    """

    def compute(start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        parent.send(("computing", start))
        for at in range(start, stop, BATCH):
            if doing == "slowly":
                time.sleep(0.02)
                parent.send((at,))
            yield rows(at)

    store = FeatureStore(path, block_bytes=BLOCK_BYTES)
    if doing == "die":
        fsync = os.fsync

        def die(file: int) -> None:
            fsync(file)
            if len(glob.glob(f"{path}/drafts/k/manifest.json*")) == 2:  # the old and the new
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = die
    if doing == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK_BYTES // 2, BLOCK_BYTES // 2))
    if doing == "together":
        parent.send(("ready",))
        parent.recv()
    try:
        entry = store.get_or_compute(KEY, compute)
    except ValueError as error:
        parent.send((type(error).__name__, str(error)))
        return
    parent.send(("sum", int(np.asarray(entry["x"]).sum())))
    if doing == "hold":
        time.sleep(600)


def fill_shared(url: str, cache: Path, variables: dict[str, str], parent: Connection) -> None:
    """Fill a store in object storage slowly, and say how far it is."""
    os.environ.update(variables)

    def compute(start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        for at in range(start, stop, BATCH):
            parent.send((at,))
            yield rows(at)
            time.sleep(0.02)

    FeatureStore(url, block_bytes=50 * WIDTH * 4, cache=cache).get_or_compute(KEY, compute)
    parent.send(("done",))
