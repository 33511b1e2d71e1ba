"""Times reading, listing cuts and splitting, beside Keras on the same machine in the same run.

python scripts/benchmark_surgery.py            # all of it: a minute or two
python scripts/benchmark_surgery.py --quick    # shorter chains, one application model
"""

import reusekit  # isort: skip  # noqa: F401  (first: it starts Keras quietly)

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable

import keras

from reusekit.graph import cut_points, read
from reusekit.surgery import split

# The model, and the seconds within which its cut points should be listed.
APPLICATIONS = (("ResNet50", 0.1), ("EfficientNetV2L", 1.0), ("NASNetLarge", 1.0))
CHAINS = (100, 300, 1000, 3000, 10_000)


def main() -> None:
    """Prints three tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    # Keras itself recurses once for each layer of a chain.
    sys.setrecursionlimit(50_000)
    applications(APPLICATIONS[:1] if quick else APPLICATIONS)
    chains(CHAINS[:3] if quick else CHAINS)
    repeated(50 if quick else 1000)


def applications(models: tuple[tuple[str, float], ...]) -> None:
    """Cut points and a split in the middle, beside `keras.Model` for the same two halves."""
    print(
        f"{'model':18}{'calls':>7}{'cut_points':>12}{'goal':>7}{'split':>9}{'keras':>9}{'ratio':>7}"
    )
    for name, goal in models:
        model = getattr(keras.applications, name)(weights=None)
        graph = read(model)
        points = cut_points(graph)
        at = points[len(points) // 2].at
        listing = best(lambda model=model: cut_points(model))
        ours = best(lambda model=model, at=at: split(model, at))
        theirs = best(lambda model=model, at=at: halves(model, at))
        print(
            f"{name:18}{len(graph.calls):7}{listing:11.3f}s{goal:6.1f}s{ours:8.3f}s"
            f"{theirs:8.3f}s{ours / theirs:7.2f}"
        )


def halves(model: keras.Model, at: str) -> tuple[keras.Model, keras.Model]:
    """What `split` gives at a clean cut, by Keras alone."""
    middle = model.get_layer(at).output
    return keras.Model(model.input, middle), keras.Model(middle, model.output)


def chains(lengths: tuple[int, ...]) -> None:
    """Chains of layers, to see how time grows."""
    print(f"\n{'chain':>8}{'read':>10}{'us/call':>9}{'cut_points':>12}{'split':>10}{'keras':>10}")
    for length in lengths:
        x = y = keras.Input((1,), name="x")
        for number in range(length):
            y = keras.layers.Dense(1, use_bias=False, name=f"d{number}")(y)
        model = keras.Model(x, y)
        at = f"d{length // 2}"
        repeats = 3 if length <= 1000 else 1
        reading = best(lambda model=model: read(model), repeats)
        listing = best(lambda model=model: cut_points(model), repeats)
        ours = best(lambda model=model, at=at: split(model, at), repeats)
        theirs = best(lambda model=model, at=at: halves(model, at), repeats)
        print(
            f"{length:8}{reading:9.3f}s{reading / length * 1e6:9.1f}{listing:11.3f}s"
            f"{ours:9.3f}s{theirs:9.3f}s"
        )


def repeated(times: int) -> None:
    """What splitting again and again leaves behind on the source."""
    model = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3))
    at = "block_6_expand"
    split(model, at)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    calls = [len(layer._inbound_nodes) for layer in model.layers]
    began = time.perf_counter()
    for _ in range(times):
        split(model, at)
    seconds = time.perf_counter() - began
    grown = (tracemalloc.get_traced_memory()[0] - before) / times
    tracemalloc.stop()
    after = [len(layer._inbound_nodes) for layer in model.layers]
    layers = sum(b > a for a, b in zip(calls, after, strict=True))
    print(
        f"\n{times} splits of MobileNetV2 in {seconds:.1f} s: each leaves {grown / 1024:.0f} KiB, "
        f"one record on each of {layers} layers of the top ({len(model.layers)} in all)"
    )


def best(work: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of several runs, in seconds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
