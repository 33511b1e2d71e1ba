"""A Ray cluster of two nodes of one core each on this machine: how fast, and what it survives.

    python scripts/benchmark_cluster.py                     # every row, small: some minutes
    python scripts/benchmark_cluster.py --rows frozen node  # some of them
    python scripts/benchmark_cluster.py --full              # as often as the table asks: hours

Rows: `frozen`, a search of heads on two nodes beside one (with `--full` that of
`benchmark_search.py`; each node has a core to itself, the driver shares that of the first, and the
core beside the one node works as well), and what `simulate_cluster.py` says of it; `task`, what an
empty task costs; `overhead`, trials that sleep beside what they would take without any overhead;
`node`, a node killed at random moments; `driver`, the driver killed at random moments and started
again, with MLflow; `slow`, a node that stands still for a while; `away`, object storage that is
away for a while; `full`, disks that are full, as root on Linux. Every search is compared with an
undisturbed one: records, features and weights are equal to the last bit.
"""

import os

os.environ["TF_NUM_INTRAOP_THREADS"] = "1"  # here as in a worker
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import reusekit as rk  # isort: skip  (first: it starts Keras quietly)

import argparse
import itertools
import json
import math
import multiprocessing
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread
from time import perf_counter, sleep
from typing import Any

import keras
import killed_driver
from benchmark_search import Bench
from benchmark_trials import ORACLES, Untrained, hypermodel
from local_nodes import Nodes, keep_to
from local_storage import BUCKET, S3
from rich.console import Console
from rich.table import Table
from simulate_cluster import simulate

from reusekit.cluster import Cluster
from reusekit.digests import digest
from reusekit.errors import ReusekitError
from reusekit.features import FeatureStore
from reusekit.planning import Plan
from reusekit.search import CutSearch, CutTuner, SearchConfig, SearchSpace
from reusekit.search import tuner as tuner_module
from reusekit.search.execution import Outcome
from reusekit.workers import HERE


@dataclass(frozen=True)
class Sizes:
    """The amount of everything.

    Attributes:
        examples: For training, of digits.
        side: Of a picture; 0 for the small network that the package carries.
        epochs: Of a trial.
        trials: That sleep.
        seconds: For which each of them sleeps.
        slots: Workers for these.
        nodes, drivers: How many are killed.
        stands, away: Seconds for which a slow node stands still, and the object storage is away.
    """

    examples: int = 200
    side: int = 0
    epochs: int = 2
    trials: int = 64
    seconds: float = 0.25
    slots: int = 2
    nodes: int = 2
    drivers: int = 1
    stands: float = 5.0
    away: float = 5.0


SMALL = {"store": "300k", "search": "32k"}
"""The size of a full disk, by what it is full of."""

FULL = Sizes(890, 96, 20, 10_000, 1.0, 16, 50, 20, 20.0, 20.0)


# --- searches -----------------------------------------------------------------------------------


def search(
    folder: Path, sizes: Sizes, cluster: Cluster | None = None, url: str | None = None
) -> CutSearch:
    """Return a search of heads on several cuts of a network, not begun.

    Args:
        folder: Where features and trials are kept; with an address, the cache of the features.
        sizes: The amount of everything.
        cluster: Where it runs.
        url: The address of object storage to keep them in instead.
    """
    small = not sizes.side
    side, channels = (32, 1) if small else (sizes.side, 3)
    treatment = rk.data.Treatment(image_size=(side, side), channels=channels)
    splits = [
        rk.data.load("sklearn_digits", split, treatment=treatment)
        for split in (f"train[:{sizes.examples}]", "validation[:100]")
    ]
    backbone: Any = rk.load_backbone("reusekit/glyphnet")
    cuts = ["block2_out", "block4_out", "block7_out"]
    if not small:
        keras.utils.set_random_seed(0)
        backbone = keras.applications.MobileNetV2((side, side, 3), include_top=False, weights=None)
        cuts = ["block_3_expand", "block_6_expand", "block_13_expand", "out_relu"]
    space = SearchSpace(cuts, units=[0], dropout=[0.0, 0.5], learning_rates=[1e-3, 1e-2, 1e-1])
    config = SearchConfig(epochs=sizes.epochs, disk=10**9, memory=10**9)
    store, kept = FeatureStore(folder / "store"), folder / "search"
    if url is not None:
        store, kept = FeatureStore(f"{url}/features", cache=folder / "store"), f"{url}/search"
    return CutSearch(backbone, *splits, space, config, kept, store, cluster=cluster)


def blocks(folder: Path, sizes: Sizes, cluster: Cluster | None = None) -> CutSearch:
    """Return the frozen search of `benchmark_search.py`, not begun; without a side a small one."""
    bench = Bench(quick=not sizes.side, full=False, folder=folder)
    epochs = bench.epochs["frozen"]
    config = SearchConfig(epochs=epochs, patience=epochs, disk=10**9, memory=10**9)
    given = bench.model, bench.train, bench.validation, bench.frozen_space(), config
    return CutSearch(*given, folder / "search", FeatureStore(folder / "store"), cluster=cluster)


def told(one: CutSearch) -> str:
    """Return a digest of records, stored features and the best model's weights."""
    records = [
        replace(each, fit=each.fit and replace(each.fit, seconds=0.0)).to_dict() | {"weights": 0}
        for each in one.result.trials
    ]
    assert one.store is not None
    stored = sorted(
        (file.name, digest(file.read_bytes().hex()))
        for entry in one.store.entries()
        for file in entry.folder.glob("*.npy")
    )
    weights = [value.tobytes().hex() for value in one.best_model().get_weights()]
    return digest([records, stored, weights])


def searched(
    sizes: Sizes,
    cluster: Cluster | None = None,
    url: str | None = None,
    beside: AbstractContextManager[None] | None = None,
) -> tuple[float, str, Plan]:
    """Return the seconds of a search, what was found as a digest, and its plan.

    Args:
        sizes: The amount of everything.
        cluster: Where it runs.
        url: The address of object storage to keep it in.
        beside: What happens while it runs; see `meanwhile`.
    """
    with tempfile.TemporaryDirectory() as folder:
        one = search(Path(folder), sizes, cluster, url)
        plan = one.plan
        assert isinstance(plan, Plan)
        began = perf_counter()
        with beside or nullcontext():
            one.run()
        return perf_counter() - began, told(one), plan


def parts_of(one: CutSearch) -> tuple[dict[str, float], str, Plan]:
    """Return the seconds of a search and of its parts, a digest of what it found, and its plan."""
    moments = [perf_counter()]
    for part in (lambda: one.plan, one.extract, one.run):
        part()
        moments.append(perf_counter())
    plan = one.plan
    assert isinstance(plan, Plan)
    parts = [after - before for before, after in itertools.pairwise(moments)]
    seconds = dict(zip(("plan", "features", "trials"), parts, strict=True))
    return seconds | {"all": moments[-1] - moments[0]}, told(one), plan


class Sleeping(Untrained):
    """Has each trial sleep, in the place of being trained."""

    seconds = 0.0

    def __call__(self, group: Any) -> Iterator[Outcome]:
        """Sleep, and return the outcomes of a group."""
        sleep(self.seconds * len(group))
        return super().__call__(group)

    def __reduce__(self) -> tuple[Any, ...]:
        return asleep, (self.hypermodel, self.objective, self.seconds)


def asleep(hypermodel: Any, objective: Any, seconds: float) -> Sleeping:
    """Return what sleeps for so many seconds a trial."""
    made = Sleeping(hypermodel, objective)
    vars(made)["seconds"] = seconds
    return made


def nothing(item: int) -> int:
    """Return what it is given."""
    return item


@contextmanager
def meanwhile(work: Callable[[], None], after: float) -> Iterator[None]:
    """Do something beside the block, some seconds after it has begun."""

    def later() -> None:
        sleep(after)
        work()

    thread = Thread(target=later)
    thread.start()
    try:
        yield
    finally:
        thread.join()


# --- rows ---------------------------------------------------------------------------------------

Row = Mapping[str, Any]


def frozen(sizes: Sizes) -> Row:
    """Time a search on one node and on two, and compare it with what its plan says.

    Each node has one core of this machine to itself, and this process shares that of the first.
    Cores of one machine share its memory, so one node is timed beside a core that works, as that of
    the other of two nodes does, and beside one that does not.
    """
    found = {}
    for count, beside in ((1, nullcontext()), (1, neighbour(sizes)), (2, nullcontext())):
        with (
            beside,
            tempfile.TemporaryDirectory() as folder,
            Nodes(count, apart=True) as nodes,
            Cluster(nodes.address) as cluster,
        ):
            searched(Sizes(examples=20), cluster)  # workers start, import, and know no backbone
            one = parts_of(blocks(Path(folder), sizes, cluster))
        found["two" if count == 2 else "one" if found else "one beside an idle core"] = one
    seconds = {name: each[0] for name, each in found.items()}
    # Of the plan itself, which is made first, nothing is said in it.
    foretold = {
        name: seconds[name]["plan"] + simulate(found["one"][2], count).seconds
        for name, count in (("one", 1), ("two", 2))
    }
    alone = seconds["one beside an idle core"]["all"]
    return {
        "times as fast": seconds["one"]["all"] / seconds["two"]["all"],
        "as one beside an idle core": alone / seconds["two"]["all"],
        "simulated": foretold["one"] / foretold["two"],
        "seconds": seconds,
        "simulated seconds": foretold,
        "limit": "at least 1.7",
        "equal": len({each[1] for each in found.values()}) == 1,
    }


@contextmanager
def neighbour(sizes: Sizes) -> Iterator[None]:
    """Have another core of this machine work on the same search as long as the block lasts."""
    made = multiprocessing.get_context("spawn")
    begun = made.Event()
    process = made.Process(target=keep_busy, args=(sizes, begun), daemon=True)
    process.start()
    try:
        if not begun.wait(300):
            raise TimeoutError("Expected a search to begin in 300 seconds. Received: none.")
        yield
    finally:
        process.kill()
        process.join()


def keep_busy(sizes: Sizes, begun: Any) -> None:
    """Search again and again, on the second core of this machine alone."""
    keep_to(sorted(os.sched_getaffinity(0))[1:2])
    while True:
        with tempfile.TemporaryDirectory() as folder:
            one = blocks(Path(folder), sizes)
            begun.set()
            one.run()


def task(sizes: Sizes) -> Row:
    """Time empty tasks, one after another and many at a time."""
    with Nodes(2) as nodes, Cluster(nodes.address) as cluster:
        alone, many = seconds_of_tasks(cluster)
    return {"ms alone": 1e3 * alone, "ms of many": 1e3 * many, "limit": "5 to 20 ms", "equal": None}


def seconds_of_tasks(cluster: Cluster, count: int = 300) -> tuple[float, float]:
    """Return the seconds of an empty task, waited for, and of one among many."""
    from reusekit.cluster.parcel import packed

    list(cluster.map(nothing, range(8)))
    began, waited = perf_counter(), math.ceil(count / 10)
    for item in range(waited):
        list(cluster.map(nothing, [item]))
    alone = (perf_counter() - began) / waited
    send = partial(cluster._task.remote, "perform", packed([0])[0], *cluster._put(nothing))
    began = perf_counter()
    cluster._connected.get([send() for _ in range(count)])
    return alone, (perf_counter() - began) / count


def overhead(sizes: Sizes) -> Row:
    """Time trials that sleep, over what they would take if nothing else took any time."""

    def tuned(workers: Any, folder: str) -> tuple[float, list[Any]]:
        own = hypermodel(sizes.trials)
        oracle = ORACLES["grid"](sizes.trials)
        tuner = CutTuner(own, oracle, folder)
        began = perf_counter()
        tuner.search(workers=workers)
        return perf_counter() - began, tuner.records

    before = tuner_module.GroupTrainer
    tuner_module.GroupTrainer = lambda *told: asleep(*told[:2], sizes.seconds)  # type: ignore[assignment,misc]
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            Nodes(2, math.ceil(sizes.slots / 2)) as nodes,
            Cluster(nodes.address, workers=sizes.slots) as cluster,
        ):
            list(cluster.map(partial(napping, 1.0), range(4 * sizes.slots)))  # workers start
            seconds, records = tuned(cluster, f"{folder}/cluster")
            tuner_module.GroupTrainer = Untrained  # type: ignore[misc]
            _, alone = tuned(HERE, f"{folder}/here")
    finally:
        tuner_module.GroupTrainer = before  # type: ignore[misc]
    ideal = sizes.trials * sizes.seconds / sizes.slots
    return {
        "overhead": seconds / ideal - 1,
        "seconds": seconds,
        "ideal": ideal,
        "trials": sizes.trials,
        "slots": sizes.slots,
        "limit": "below 10 %",
        "equal": records == alone,
    }


def napping(seconds: float, item: int) -> int:
    """Sleep, and return what it is given."""
    sleep(seconds)
    return item


def node(sizes: Sizes) -> Row:
    """Kill a node at random moments of a search."""
    return _disturbed(sizes, sizes.nodes, lambda nodes: nodes.kill_one())


def slow(sizes: Sizes) -> Row:
    """Have a node stand still in the middle of a search."""
    return _disturbed(sizes, 1, lambda nodes: nodes.stop_one(sizes.stands))


def away(sizes: Sizes) -> Row:
    """Have the object storage that holds features and trials go away in the middle of a search."""
    server = S3()
    os.environ |= server.variables

    def go_away(nodes: Nodes) -> None:
        server.stop()
        sleep(sizes.away)
        server.start()

    server.start()
    try:
        server.client().create_bucket(Bucket=BUCKET)
        with tempfile.TemporaryDirectory() as caches:
            os.environ["XDG_CACHE_HOME"] = caches
            return _disturbed(sizes, 1, go_away, f"s3://{BUCKET}/")
    finally:
        server.stop()


def _disturbed(
    sizes: Sizes, times: int, disturb: Callable[[Nodes], None], url: str | None = None
) -> Row:
    moments, same = random.Random(0), 0

    def place(number: int) -> str | None:
        return None if url is None else f"{url}{number}"

    with Nodes(2) as nodes, Cluster(nodes.address) as cluster:
        searched(replace(sizes, examples=20), cluster)
        seconds, expected, _ = searched(sizes, cluster, place(0))
        longest = seconds
        for number in range(1, times + 1):
            beside = meanwhile(partial(disturb, nodes), moments.uniform(0, 0.9 * seconds))
            took, found, _ = searched(sizes, cluster, place(number), beside)
            same, longest = same + (found == expected), max(longest, took)
            if not nodes.others:  # Ray starts nodes in the main thread alone
                nodes.add_one()
    return {
        "of": f"{same} of {times}",
        "seconds": seconds,
        "longest": longest,
        "limit": "all",
        "equal": same == times,
    }


def full(sizes: Sizes) -> Row:
    """Have the disk of the features be full, then that of the trials, and go on when they are not.

    A disk is a `tmpfs`, which root alone mounts.
    """
    _, expected, _ = searched(sizes)
    said, same = [], 0
    for name, size in SMALL.items():
        with (
            tempfile.TemporaryDirectory() as scratch,
            small_disk(Path(scratch, name), size) as grow,
        ):
            folder = Path(scratch)
            try:
                search(folder, sizes).run()
            except ReusekitError as error:
                said.append(str(error))
            grow()
            one = search(folder, sizes)
            one.run()
            same += told(one) == expected
    one_each = len(said) == 2 and not any("\n" in each for each in said)
    return {"said": said, "limit": "one sentence each", "equal": one_each and same == 2}


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[], None]]:
    """Mount a small file system at a folder, and yield what makes it large."""
    folder.mkdir()
    mount = partial(subprocess.run, check=True)
    mount(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)])
    try:
        yield lambda: mount(["mount", "-o", "remount,size=1g", str(folder)]) and None
    finally:
        mount(["umount", str(folder)])


def driver(sizes: Sizes) -> Row:
    """Kill the driver of a pipeline at random moments, and start it again."""
    moments, same = random.Random(0), 0
    with tempfile.TemporaryDirectory() as scratch, Nodes(2) as nodes:
        undisturbed = Path(scratch, "undisturbed")
        seconds = killed_driver.run(nodes.address, undisturbed, sizes.epochs)
        expected, _ = killed_driver.registered(undisturbed)
        for number in range(sizes.drivers):
            folder = Path(scratch, str(number))
            moment = moments.uniform(0.3, 0.9) * seconds
            killed_driver.run(nodes.address, folder, sizes.epochs, moment)
            killed_driver.run(nodes.address, folder, sizes.epochs)
            found, twice = killed_driver.registered(folder)
            same += found == expected and not twice
    return {
        "of": f"{same} of {sizes.drivers}",
        "seconds": seconds,
        "limit": "all, no trial twice in MLflow",
        "equal": same == sizes.drivers,
    }


ROWS: dict[str, Callable[[Sizes], Row]] = {
    "frozen": frozen,
    "task": task,
    "overhead": overhead,
    "node": node,
    "driver": driver,
    "slow": slow,
    "away": away,
    "full": full,
}


def main() -> None:
    """Run rows, and print them as a table and as lines of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--full", action="store_true", help="as often as the table asks: hours")
    parser.add_argument("--slots", type=int, help="workers for trials that sleep")
    options = parser.parse_args()
    sizes = FULL if options.full else Sizes()
    sizes = sizes if options.slots is None else replace(sizes, slots=options.slots)
    table = Table("row", "figures", "asked for", "equal")
    for name in options.rows:
        row = dict(ROWS[name](sizes))
        print(json.dumps({"row": name, **row}), flush=True)
        limit, equal = row.pop("limit"), row.pop("equal")
        table.add_row(name, json.dumps(row), limit, "-" if equal is None else str(equal))
    Console().print(table)


if __name__ == "__main__":
    main()
