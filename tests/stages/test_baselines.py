"""The network from scratch begins at the same weights at each rate; the best one is measured."""

from types import SimpleNamespace

import mlflow
import pytest

import reusekit as rk
from reusekit.settings import BaselineSettings
from reusekit.stages.baselines import from_scratch


def test_each_rate_begins_as_the_first_did_and_the_best_is_measured(
    tracking, backbone, splits, tmp_path
):
    head = rk.heads.Classifier(10)
    whole = rk.attach(rk.extract(backbone.model, "block2_out"), head)
    found = {}
    with mlflow.start_run() as run:
        for rates in ([1e-2], [1e-2, 1e-6], [1e-6, 1e-2]):
            # In one batch, so that the order of examples, which differs by pass, decides nothing.
            settings = BaselineSettings(learning_rates=rates, epochs=8, batch_size=64)
            tuned = SimpleNamespace(whole=whole, head=head)
            found[tuple(rates)] = from_scratch(tuned, splits, settings, tmp_path, seed=0)
    phases = mlflow.search_runs(
        [run.info.experiment_id], "tags.`reusekit.kind` = 'phase'", order_by=["start_time"]
    )
    alone, first, _, _, last = phases["metrics.val_loss"]
    assert first == pytest.approx(alone, rel=1e-4)
    assert last == pytest.approx(alone, rel=1e-4)
    one = found.pop((1e-2,))
    for other in found.values():
        assert other.choice == one.choice
        assert other.test.scores["loss"] == pytest.approx(one.test.scores["loss"], rel=1e-3)
