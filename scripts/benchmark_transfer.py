"""The gain of transfer on few examples, of handwritten digits or of texts: mean and spread.

    python scripts/benchmark_transfer.py digits --seeds 5 --examples_per_class 5
    python scripts/benchmark_transfer.py text --seeds 5 --examples_per_class 20

Runs a demo's own pipeline once for each seed, in a tracking database of its own, and reads the
test accuracies from there. Each seed draws other training examples and other initial weights; all
three methods are tuned on the same validation split. About two minutes a seed on two cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import mlflow
import pandas as pd

from reusekit.progress import console

ROOT = Path(__file__).parents[1]
METHODS = {
    "test": "transfer",
    "test from scratch": "same network from scratch",
    "test logistic regression": "logistic regression on raw inputs",
}
# One rate more than the demos, which have two minutes, can try from scratch.
RATES = {"digits": "[0.003, 0.01, 0.03]", "text": "[0.001, 0.003, 0.01]"}


def run_once(demo: str, seed: int, examples_per_class: int, folder: Path) -> None:
    """Run a demo's pipeline in a process of its own, as a user would start it."""
    command = [
        sys.executable,
        str(ROOT / "pipelines" / "cut_search.py"),
        f"--config={ROOT / 'configs' / demo}.yaml",
        f"--data.examples_per_class={examples_per_class}",
        f"--seed={seed}",
        f"--baselines.learning_rates={RATES[demo]}",
        f"--search.store={folder / 'features'}",
        f"--tracking.uri=sqlite:///{folder / 'mlflow.db'}",
    ]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def accuracies(folder: Path) -> pd.DataFrame:
    """Test accuracy by seed (rows) and method (columns), as the runs logged it."""
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    runs = mlflow.search_runs(search_all_experiments=True)
    seeds = runs.set_index("run_id")["params.seed"].dropna()
    measured = runs[runs["tags.mlflow.runName"].isin(METHODS)]
    return pd.DataFrame(
        {
            "seed": measured["tags.mlflow.parentRunId"].map(seeds).astype(int),
            "method": measured["tags.mlflow.runName"].map(METHODS),
            "accuracy": measured["metrics.accuracy"],
        }
    ).pivot(index="seed", columns="method", values="accuracy")[list(METHODS.values())]


def main() -> None:
    """Run all seeds and print each, the mean, the spread, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", choices=RATES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--examples_per_class", type=int, default=5)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds must be at least 2, for a spread; received {options.seeds}")
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            console.print(f"seed {seed} ...")
            run_once(options.demo, seed, options.examples_per_class, Path(scratch))
        table = accuracies(Path(scratch))
    transfer, *rivals = METHODS.values()
    table["lead over the better rival"] = table[transfer] - table[rivals].max(axis="columns")
    print(table.to_string(float_format="{:.3f}".format))
    print()
    print(table.agg(["mean", "std", "min", "max"]).to_string(float_format="{:.3f}".format))
    summary = {
        method: {"mean": round(values.mean(), 4), "std": round(values.std(), 4)}
        for method, values in table.items()
    }
    print(
        json.dumps(
            {"demo": options.demo, "examples_per_class": options.examples_per_class} | summary
        )
    )


if __name__ == "__main__":
    main()
