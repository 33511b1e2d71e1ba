"""A cluster of Ray's, on which functions are run over many items."""

import itertools
import tempfile
import textwrap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event, Lock
from time import monotonic, sleep
from typing import Any, Self

from reusekit.arguments import AnyPath, checked, expanded
from reusekit.cluster.connection import (
    connect,
    disconnect,
    head_of,
    is_listening,
    look_of,
    threads_of,
    versions,
)
from reusekit.cluster.settings import ClusterSettings
from reusekit.errors import ClusterError, ConfigError
from reusekit.signals import interruptible
from reusekit.workers import BLOCK_BYTES, BLOCK_SECONDS, Workers

_AHEAD = 2
"""Tasks for each worker that are sent before the first of them is finished."""
_WINDOW = 4
"""Tasks for each worker whose results are not taken yet: those after a slow one wait."""
_RUNS = 2
"""Runs over items at a time: workers keep as many functions; see `reusekit.cluster.worker`."""
_PATIENCE = 30
"""Seconds for a head node to answer at most; Ray ends this process after 60 without a word."""
_LOOK = 2.0
"""Seconds between two looks at the nodes."""


class Cluster(Workers):
    """Workers on a Ray cluster: processes that compute features and train groups of trials.

    Each has its share of CPUs and GPUs, and takes its next task when it has finished one, so that a
    fast one does more. A task whose worker or node died is given to another. The driver, which is
    this process, reads examples, writes the store and keeps the search, so that workers need none
    of these; only features that are too large for memory are read by workers, in the store's
    folder.

    Args:
        address: "local" starts a cluster on this machine, which ends with this process; "auto"
            finds the one that this machine is in; `HOST:PORT` and `ray://HOST:PORT` are others. A
            process that is connected stays so.
        **options: The other settings of `ClusterSettings`.

    Raises:
        ClusterError: On entry: Ray is not installed, no cluster answers, its versions are others
            than those here, or no node has room for a worker.
        ConfigError: No such option, or not such a value.

    Example:
        >>> with Cluster("local", workers=2) as cluster:  # doctest: +SKIP
        ...     search = CutSearch(backbone, train, validation, cluster=cluster)
        ...     result = search.run()
    """

    @checked(ConfigError)
    def __init__(self, address: str = "local", **options: Any) -> None:
        self.options = ClusterSettings(address=address, **options)
        self._ray: Any = None
        self._mine, self._head = False, ""
        self._models: dict[str, Any] = {}
        self._held: tuple[Any, Sequence[Any]] = (None, ())
        self._one_at_a_time, self._over = Lock(), Event()

    def __enter__(self) -> Self:
        self._ray, self._mine = connect(self.options)
        self._head = head_of(self._ray)
        try:
            self._wanted = versions()
            self._look(None)
            if not self.count:
                raise self._no_room()
            self._task = self._remote()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._models.clear()
        self._held = (None, ())
        if self._mine:
            disconnect(self._ray)
        self._ray = None

    @property
    def _connected(self) -> Any:
        if self._ray is None:
            raise ClusterError(
                "Expected a cluster that is connected. Received: one outside of its block; open it "
                "with `with Cluster(...) as cluster:`."
            )
        return self._ray

    def _nodes(self) -> list[dict[str, Any]]:
        ray, patience = self._connected, min(self.options.wait, _PATIENCE)
        ends = monotonic() + patience
        while not is_listening(self._head):
            if monotonic() > ends:
                raise ClusterError(
                    f"Expected a head node that is alive. Received: none at {self._head} for "
                    f"{patience} seconds. Start the cluster and this anew: what came back is kept."
                )
            sleep(_LOOK / 10)
        return [one for one in ray.nodes() if one["Alive"]]

    @property
    def count(self) -> int:
        """The number of workers that there is room for now."""
        options, rooms = self.options, 0
        for node in self._nodes():
            has = node["Resources"]
            room = has.get("CPU", 0) // options.cpus
            if options.gpus:
                room = min(room, has.get("GPU", 0) // options.gpus)
            rooms += int(room)
        return rooms if options.workers is None else min(rooms, options.workers)

    def _no_room(self) -> ClusterError:
        options, nodes = self.options, self._nodes()
        wanted = f"{options.cpus} CPUs" + (f" and {options.gpus:g} GPUs" if options.gpus else "")
        has = [
            f"{node['Resources'].get('CPU', 0):g} CPUs, {node['Resources'].get('GPU', 0):g} GPUs"
            for node in nodes
        ]
        return ClusterError(
            f"Expected a node with {wanted} for a worker. Received: {'; '.join(has) or 'no node'}."
        )

    def _look(self, folder: Path | None, token: str = "") -> None:
        """Raise ClusterError for what keeps a node from being used."""
        ray = self._connected
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = ray.remote(num_cpus=0, max_retries=1)(look_of(self._wanted))
        named = None if folder is None else str(folder)
        asked = {
            look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(named, token): node["NodeManagerAddress"]
            for node in self._nodes()
            if node["Resources"].get("CPU", 0)
        }
        ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=self.options.wait)
        if late:
            raise ClusterError(
                f"Expected every node to answer in {self.options.wait} seconds. Received: nothing "
                f"from {asked[late[0]]}."
            )
        for one in ready:
            with suppress(ray.exceptions.RayError):  # of a node that has died meanwhile
                why = ray.get(one)
                if why is not None:
                    raise ClusterError(f"{why} See node {asked[one]}.")

    @checked(ClusterError)
    def check_folder(self, folder: AnyPath) -> None:
        """Raise ClusterError where a node does not see a folder that this process sees."""
        path, token = expanded(folder, ClusterError).absolute(), ""
        with ExitStack() as held:
            with suppress(OSError):  # where one may only read, a folder of that name has to do
                marker = held.enter_context(tempfile.NamedTemporaryFile(dir=path, prefix=".seen-"))
                token = Path(marker.name).name
            self._look(path, token)

    def _remote(self) -> Any:
        """Return the task of Ray's that runs a function over a block of items."""
        environment, look = threads_of(self.options), look_of(self._wanted)

        # Sent as it is: what it needs of reusekit is imported where it runs, which imports
        # TensorFlow, whose threads are to be known before.
        def perform(what: str, *sent: Any) -> Any:
            import os

            os.environ.update(environment)
            why = look()  # for a node that came later
            if why is not None:
                return why
            from reusekit.cluster import worker

            return getattr(worker, what)(*sent)

        options = self.options
        return self._connected.remote(
            num_cpus=options.cpus,
            num_gpus=options.gpus,
            max_retries=options.retries,
            max_calls=0,  # with GPUs a process would end with its first task
        )(perform)

    @checked(ClusterError)
    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Yield the result of each item, in the order of the items; see `reusekit.workers`.

        Args:
            function: What is run; of an iterator that it returns a list comes back.
            items: What it is run on. They are read as workers need them, a few tasks ahead.

        Raises:
            ClusterError: The function cannot be sent; a worker or its node died too often in the
                same task, or no node is left.
        """
        ray = self._connected
        from reusekit.cluster.parcel import packed

        held = self._put(function)

        def send(block: Sequence[Any]) -> Any:
            return self._task.remote("perform", packed(block)[0], *held)

        yield from _Run(ray, self, send, items)

    @checked(ClusterError)
    def expect(self, function: Callable[[Any], Any], item: Any) -> None:
        """Have each worker start and run a function once; see `reusekit.workers`.

        Raises:
            ClusterError: The function cannot be sent; the cluster is not connected.
        """
        from reusekit.cluster.parcel import packed

        block, held = packed([item])[0], self._put(function)
        for _ in range(self.count):  # each takes one, unless it has ended before others come
            self._task.remote("expect", block, *held)

    @checked(ClusterError)
    def together(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Return what a function makes of items, two at a time; see `reusekit.workers`.

        Where one fails, or is interrupted, the others end as if they were interrupted, too.
        """
        given = list(items)
        if self.options.workers is not None or len(given) < 2:  # each run has as many tasks
            return super().together(function, given)
        try:
            with interruptible(), ThreadPoolExecutor(_RUNS) as pool:
                runs = [pool.submit(function, one) for one in given]
                try:
                    ended, _ = wait(runs, return_when=FIRST_EXCEPTION)
                    for one in filter(ended.__contains__, runs):
                        one.result()
                except BaseException:
                    self._over.set()
                    pool.shutdown(cancel_futures=True)
                    raise
                return [one.result() for one in runs]
        finally:
            self._over.clear()

    def _put(self, function: Any) -> Sequence[Any]:
        """Return a function and its models as Ray holds them for all tasks."""
        from reusekit.cluster.parcel import packed, packed_model

        with self._one_at_a_time:
            ray, (known, held) = self._connected, self._held
            if known is not function:
                sent, models = packed(function)
                for key, graph in models.items():
                    if key not in self._models:
                        self._models[key] = ray.put(packed_model(graph.model, key))
                held = ray.put(sent), *(self._models[key] for key in models)
                self._held = function, held
            return held


def _short(error: Exception) -> str:
    return textwrap.shorten(str(error), 300, placeholder=" ...").rstrip(".")


class _Run:
    """One run over some items, in blocks of so many that a task takes a while."""

    def __init__(
        self, ray: Any, cluster: Cluster, send: Callable[[Sequence[Any]], Any], items: Iterable[Any]
    ) -> None:
        self._ray, self._cluster, self._send = ray, cluster, send
        self._items = iter(items)
        self._per_block = 1

    def __iter__(self) -> Iterator[Any]:
        order: deque[Any] = deque()  # of tasks whose results are not taken
        running: set[Any] = set()
        looked, seen = -_LOOK, monotonic()
        workers = 0
        try:
            while True:
                if self._cluster._over.is_set():
                    raise KeyboardInterrupt
                now = monotonic()
                if now - looked >= _LOOK:
                    workers, looked = self._cluster.count, now
                    seen = now if workers else seen
                    self._check_left(now - seen)
                ahead = workers if self._cluster.options.workers else _AHEAD * workers
                while len(running) < ahead and len(order) < _WINDOW * workers:
                    block = list(itertools.islice(self._items, self._per_block))
                    if not block:
                        break
                    order.append(self._send(block))
                    running.add(order[-1])
                if not order and workers:
                    return
                came = bool(order) and order[0] not in running
                ready: Sequence[Any] = ()
                if running:
                    many, timeout = (len(running), 0) if came else (1, _LOOK)
                    ready, _ = self._ray.wait(list(running), num_returns=many, timeout=timeout)
                    running.difference_update(ready)
                elif not came:
                    sleep(_LOOK / 10)
                if came and not ready:  # else those that have ended get their next tasks first
                    yield from self._taken(order.popleft())
        finally:
            for task in running:  # where the run ends before its items do
                with suppress(self._ray.exceptions.RayError):
                    self._ray.cancel(task)

    def _check_left(self, seconds: float) -> None:
        if seconds > self._cluster.options.wait:
            raise ClusterError(
                "Expected a node that is alive. Received: none for "
                f"{self._cluster.options.wait} seconds."
            )

    def _taken(self, task: Any) -> Sequence[Any]:
        errors = self._ray.exceptions
        try:
            found = self._ray.get(task)
        except (errors.RayTaskError, errors.UnserializableException) as error:
            cause = getattr(error, "cause", error)
            if not isinstance(cause, errors.RayError):  # what the function itself raised
                raise cause from None
            if isinstance(cause, (errors.OutOfDiskError, errors.ObjectStoreFullError)):
                raise ClusterError(
                    "Expected nodes with room for what goes between driver and workers. Received: "
                    "one whose object store is full, and its disk, too. Free some of that disk, or "
                    "start the node with a larger --object-store-memory."
                ) from None
            raise ClusterError(
                "Expected errors of workers that can be sent back. Received: one that cannot: "
                f"{_short(cause)}. Run it without a cluster, which shows all of it."
            ) from None
        except errors.RayError as error:
            retries = self._cluster.options.retries
            raise ClusterError(
                f"Expected a worker that lives through a task, in {retries + 1} tries. Received: "
                f"{type(error).__name__}: {_short(error)}"
            ) from error
        if isinstance(found, str):
            raise ClusterError(found)
        results, seconds, size = found
        fitting = min(BLOCK_SECONDS / max(seconds, 1e-6), BLOCK_BYTES / max(size, 1)) * len(results)
        self._per_block = max(1, min(int(fitting), 2 * self._per_block))
        return results
