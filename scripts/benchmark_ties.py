"""Times a tied vocabulary beside Keras's own ReversibleEmbedding: memory and training steps.

    python scripts/benchmark_ties.py            # 50,000 words of width 768
    python scripts/benchmark_ties.py --quick    # 5,000 words of width 64

Both models have the same weights and see the same batches; that their losses are equal is checked
at each step. Each runs in a process of its own for the memory, and step by step in turn for the
time, so that a machine whose speed drifts is unfair to neither.
"""

import reusekit as rk  # isort: skip  (first: it starts Keras quietly)

import argparse
import multiprocessing
import resource
import time

import keras
import numpy as np

LENGTH, BATCH = 32, 8


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each model")
    options = parser.parse_args()
    vocabulary, width = (5_000, 64) if options.quick else (50_000, 768)
    seconds = step_seconds(vocabulary, width, options.steps)
    kilobytes = {kind: peak_in_own_process(kind, vocabulary, width) for kind in KINDS}
    print(f"{vocabulary:,} words of width {width}, batches of {BATCH} x {LENGTH}, Adam")
    print(f"{'model':22}{'step':>10}{'peak memory':>14}{'arrays':>9}{'slots':>7}")
    for kind in KINDS:
        arrays, slots = stored(kind)
        print(
            f"{kind:22}{seconds[kind]:9.3f}s{kilobytes[kind] / 1024:10.0f} MiB{arrays:9}{slots:7}"
        )
    ours, theirs = KINDS
    print(
        f"ratio: {seconds[ours] / seconds[theirs]:.3f} in time, "
        f"{kilobytes[ours] / kilobytes[theirs]:.3f} in memory; losses equal"
    )


def stored(kind: str) -> tuple[int, int]:
    """Return the number of vocabulary-sized arrays of a model and its optimizer."""
    model = compiled(KINDS[kind], 64, 8)
    model.optimizer.build(model.trainable_variables)
    weights = (model.weights, model.optimizer.variables)
    arrays, slots = (sum(tuple(v.shape) == (64, 8) for v in each) for each in weights)
    return arrays, slots


def tied_dense(vocabulary: int, width: int) -> keras.Model:
    """Return an embedding, an encoder, and `TiedDense`."""
    tokens = keras.Input((LENGTH,), dtype="int32", name="tokens")
    embedding = keras.layers.Embedding(vocabulary, width, name="embedding")
    hidden = keras.layers.Dense(width, activation="gelu", name="encoder")(embedding(tokens))
    logits = rk.layers.TiedDense(embedding, use_bias=False, name="logits")(hidden)
    return keras.Model(tokens, logits)


def reversible_embedding(vocabulary: int, width: int) -> keras.Model:
    """Return the same with Keras's own layer for it."""
    tokens = keras.Input((LENGTH,), dtype="int32", name="tokens")
    embedding = keras.layers.ReversibleEmbedding(vocabulary, width, name="embedding")
    hidden = keras.layers.Dense(width, activation="gelu", name="encoder")(embedding(tokens))
    return keras.Model(tokens, embedding(hidden, reverse=True))


KINDS = {"TiedDense": tied_dense, "ReversibleEmbedding": reversible_embedding}


def compiled(build, vocabulary: int, width: int) -> keras.Model:
    """Return a model ready to train, the same weights for either kind."""
    keras.utils.set_random_seed(0)
    model = build(vocabulary, width)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss=loss)
    return model


def batches(vocabulary: int, count: int) -> np.ndarray:
    """Random words, shape (count, batch, length)."""
    return np.random.default_rng(0).integers(0, vocabulary, (count, BATCH, LENGTH), "int32")


def step_seconds(vocabulary: int, width: int, steps: int) -> dict[str, float]:
    """Return the median time of a step of each kind, after two that compile and warm up."""
    models = {kind: compiled(build, vocabulary, width) for kind, build in KINDS.items()}
    times = {kind: [] for kind in KINDS}
    for batch in batches(vocabulary, steps + 2):
        losses = []
        for kind, model in models.items():
            began = time.perf_counter()
            losses.append(float(model.train_on_batch(batch, batch)))
            times[kind].append(time.perf_counter() - began)
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    return {kind: float(np.median(values[2:])) for kind, values in times.items()}


def peak_in_own_process(kind: str, vocabulary: int, width: int) -> int:
    """Return the most memory a process needs that trains one kind for three steps, in KiB."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(1) as pool:
        return pool.apply(train_for_memory, (kind, vocabulary, width))


def train_for_memory(kind: str, vocabulary: int, width: int) -> int:
    """Train three steps and return this process's peak resident memory in KiB."""
    model = compiled(KINDS[kind], vocabulary, width)
    for batch in batches(vocabulary, 3):
        model.train_on_batch(batch, batch)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
