"""Measures what MLflow costs: seconds to log a model with its parts, bytes, and seconds a trial.

python scripts/benchmark_tracking.py           # ResNet50, twenty tops, a search of 24 trials
python scripts/benchmark_tracking.py --quick   # small, to see that it works

Runs are kept in a SQLite database in a scratch folder. Prints one JSON line a workload.
"""

import reusekit as rk  # isort: skip  (first: it starts Keras quietly)

import argparse
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import keras
import mlflow
import numpy as np

from reusekit.surgery import Split
from reusekit.tracking import (
    ROLES,
    Ledger,
    Registration,
    log_trial,
    pipeline_run,
    prepare,
    send_models,
    take_ledgers,
)


class Model:
    """A backbone that stays as it is, and heads on it."""

    def __init__(self, quick: bool) -> None:
        keras.utils.set_random_seed(0)
        name, self.cut = (
            ("MobileNet", "conv_pw_5_relu") if quick else ("ResNet50", "conv4_block6_out")
        )
        options = {"alpha": 0.25} if quick else {}
        self.backbone = rk.load_backbone(
            f"keras.applications/{name}", weights=None, input_shape=(64, 64, 3), **options
        )

    def parts(self) -> Split:
        """Return the backbone with a new head, cut in two, after one prediction."""
        whole = rk.attach(self.backbone.model, rk.heads.Classifier(10))
        whole.predict_on_batch(np.zeros((1, 64, 64, 3), "float32"))
        return rk.split(whole, self.cut)


def ledgers_of(parts: Split) -> dict[str, Ledger]:
    """Return the ledgers of bottom, top and whole."""
    return dict(zip(ROLES, take_ledgers([parts.bottom, parts.top, parts.source]), strict=True))


def log(model: Model, parts: Split, ledgers: dict[str, Ledger], name: str) -> None:
    """Write the models and send them, in the active run."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        prepare(Path(folder), parts, model.backbone, ledgers, Registration(name, "f00d"))
        send_models(Path(folder))


def logging_parts(quick: bool) -> dict[str, Any]:
    """Return a whole model with its parts, beside writing its bytes once."""
    model, writing, ours, counting = Model(quick), [], [], []
    for turn in range(3):
        model.backbone.model.set_weights([w + 0.01 for w in model.backbone.model.get_weights()])
        parts = model.parts()
        writing.append(timed(lambda parts=parts: parts.source.save("whole.keras"))[0])
        seconds, ledgers = timed(lambda parts=parts: ledgers_of(parts))
        counting.append(seconds)
        with pipeline_run(f"log {turn}", "parts", {}):
            ours.append(
                timed(lambda p=parts, held=ledgers, t=turn: log(model, p, held, f"model{t}"))[0]
            )
    return {
        "workload": "parts",
        "write_once_s": min(writing),
        "log_s": min(ours),
        "adds_s": min(ours) - min(writing),
        "ledgers_s": min(counting),
        "limit": "under 2 s added",
    }


def storing_tops(quick: bool) -> dict[str, Any]:
    """Twenty tops on one bottom, beside the bytes of one bottom and twenty tops."""
    model, tops = Model(quick), 3 if quick else 20
    before = size_of(Path("mlruns"))
    once = 0
    for number in range(tops):
        keras.utils.set_random_seed(number)
        parts = model.parts()
        if number == 0:
            ledgers = ledgers_of(parts)
            once += saved_size(parts.bottom)
        once += saved_size(parts.top)
        with pipeline_run(f"top {number}", f"tops {number % 2}", {}):
            log(model, parts, ledgers, f"top{number}")
    stored = size_of(Path("mlruns")) - before
    return {
        "workload": "tops",
        "tops": tops,
        "stored_bytes": stored,
        "one_bottom_and_tops_bytes": once,
        "ratio": stored / once,
        "limit": "at most 1.1",
    }


def tracking_trials(quick: bool) -> dict[str, Any]:
    """Time the logging of finished trials."""
    splits = [
        rk.data.load("sklearn_digits", s, treatment=rk.data.Treatment(image_size=(32, 32)))
        for s in ("train", "validation")
    ]
    search = rk.CutSearch(
        rk.load_backbone("reusekit/glyphnet").model,
        *splits,
        rk.SearchSpace(["block3_out", "block5_out"]),
        rk.SearchConfig(max_trials=4 if quick else 24, epochs=20),
        folder=Path("trials"),
        store=rk.FeatureStore("features"),
    )
    search.run()
    with pipeline_run("trials", "trials", {}):
        seconds = [timed(lambda r=record: log_trial(r))[0] for record in search.tuner.records]
    return {
        "workload": "trials",
        "trials": len(seconds),
        "median_ms": 1000 * float(np.median(seconds)),
        "most_ms": 1000 * max(seconds),
        "limit": "at most 50 ms",
    }


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Time some work; returns the seconds and the result."""
    began = perf_counter()
    result = work()
    return perf_counter() - began, result


def saved_size(model: keras.Model) -> int:
    """Return the bytes of a model's file."""
    model.save("part.keras")
    return Path("part.keras").stat().st_size


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    """Run every workload in a scratch folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="little of everything")
    options = parser.parse_args()
    for library in ("alembic", "mlflow"):
        logging.getLogger(library).setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        mlflow.set_tracking_uri("sqlite:///mlflow.db")
        for workload in (logging_parts, storing_tops, tracking_trials):
            found = workload(options.quick)
            print(
                json.dumps(
                    {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
                )
            )


if __name__ == "__main__":
    main()
