"""Times reading, listing cuts and splitting, beside Keras on the same machine in the same run.

python scripts/benchmark_surgery.py            # all of it: a minute or two
python scripts/benchmark_surgery.py --quick    # shorter chains, one application model
"""

import reusekit  # isort: skip  # noqa: F401  (first: it starts Keras quietly)

import argparse
import gc
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import keras

from reusekit.graph import cut_points, keras_internals, read
from reusekit.surgery import split

# The model, and the seconds within which its cut points should be listed.
APPLICATIONS = (("ResNet50", 0.1), ("EfficientNetV2L", 1.0), ("NASNetLarge", 1.0))
CHAINS = (100, 300, 1000, 3000, 10_000)


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    repeats = 2 if quick else 20
    # Keras itself recurses once for each layer of a chain.
    sys.setrecursionlimit(50_000)
    # First, since the memory that other models leave free would hide what grows.
    repeated(*(3, 2) if quick else (1000, 20))
    applications(APPLICATIONS[:1] if quick else APPLICATIONS, repeats)
    chains(CHAINS[:3:2] if quick else CHAINS, max(2, repeats // 2))


def applications(models: tuple[tuple[str, float], ...], repeats: int) -> None:
    """Cut points and a split in the middle, beside `keras.Model` for the same two halves."""
    print(
        f"{'model':18}{'calls':>7}{'cut_points':>12}{'goal':>7}{'split':>9}{'keras':>9}{'ratio':>7}"
    )
    for name, goal in models:
        model = getattr(keras.applications, name)(weights=None)
        graph = read(model)
        points = cut_points(graph)
        at = points[len(points) // 2].at
        works = (
            lambda model=model: cut_points(model),
            lambda model=model, at=at: split(model, at),
            lambda model=model, at=at: halves(model, at),
        )
        listing, ours, theirs = best(works, repeats)
        print(
            f"{name:18}{len(graph.calls):7}{listing:11.3f}s{goal:6.1f}s{ours:8.3f}s"
            f"{theirs:8.3f}s{ours / theirs:7.2f}"
        )


def halves(model: keras.Model, at: str) -> tuple[keras.Model, keras.Model]:
    """Split at a clean cut by Keras alone."""
    middle = model.get_layer(at).output
    return keras.Model(model.input, middle), keras.Model(middle, model.output)


def chains(lengths: tuple[int, ...], repeats: int) -> None:
    """Time chains of layers: the microseconds for each layer as the length grows."""
    columns = ("read", "cut_points", "split", "keras")
    titles = "".join(f"{title:>12}{'us/layer':>10}" for title in columns)
    print(f"\n{'chain':>8}{titles}{'ratio':>7}")
    for length in lengths:
        x = y = keras.Input((1,), name="x")
        for number in range(length):
            y = keras.layers.Dense(1, use_bias=False, name=f"d{number}")(y)
        model = keras.Model(x, y)
        at = f"d{length // 2}"
        works = (
            lambda model=model: read(model),
            lambda model=model: cut_points(model),
            lambda model=model, at=at: split(model, at),
            lambda model=model, at=at: halves(model, at),
        )
        taken = best(works, repeats if length <= 1000 else 3)
        cells = "".join(f"{t:11.3f}s{t / length * 1e6:10.1f}" for t in taken)
        print(f"{length:8}{cells}{taken[2] / taken[3]:7.2f}", flush=True)


def repeated(times: int, traced: int) -> None:
    """Measure what splitting again and again leaves behind on the source."""
    model = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3))
    at = "block_6_expand"
    top = [layer for layer in split(model, at).top.layers if layer in model.layers]
    calls, resident, began = _calls(model), _resident(), time.perf_counter()
    for _ in range(times):
        split(model, at)
    seconds = time.perf_counter() - began
    grown = (_resident() - resident) / times / len(top)
    left = (_calls(model) - calls) / times
    # Following each allocation slows the work down severalfold, and a few splits tell as much.
    tracemalloc.start()
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(traced):
        split(model, at)
    gc.collect()
    size = (tracemalloc.get_traced_memory()[0] - before) / traced / len(top)
    tracemalloc.stop()
    print(
        f"{times} splits of MobileNetV2 in {seconds:.1f} s. Each leaves {left:.0f} records, one "
        f"on each of the {len(top)} layers of the top ({len(model.layers)} in all), of "
        f"{size:.0f} bytes by allocation; the process grew by {grown:.0f} bytes for each.\n"
    )


def _calls(model: keras.Model) -> int:
    """Return the number of calls Keras has recorded on the layers of a model."""
    return sum(keras_internals.calls_of(layer) for layer in model.layers)


def _resident() -> int:
    """Return the bytes of memory that this process holds, garbage collected."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def best(works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the shortest of several runs of each, in seconds of this process.

    They take turns, so that what else the machine does is the same to all.
    """
    times = [[] for _ in works]
    for _ in range(repeats):
        for work, taken in zip(works, times, strict=True):
            began = time.process_time()
            work()
            taken.append(time.process_time() - began)
    return [min(taken) for taken in times]


if __name__ == "__main__":
    main()
