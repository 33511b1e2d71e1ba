"""The search stage: planned or the ordinary way the trials are the same, and MLflow holds them."""

import json

import mlflow
import numpy as np
import pytest

import reusekit as rk
from reusekit import stages
from reusekit.search import Limits
from reusekit.settings import BackboneSettings, SearchJobSettings, SearchSettings

CUTS = ("block1_out", "block2_out", "block4_out")
SWEEP = {"units": [0], "dropout": [0.0], "epochs": 6, "patience": 6, "max_trials": 3}


@pytest.fixture
def plan(backbone, splits, store, tmp_path):
    """Plan a search over three cuts in a folder of the test's own."""

    def planned(plain=False, cuts=CUTS, **settings):
        chosen = stages.candidate_cuts(backbone, cuts)
        candidate = stages.Candidate(backbone, chosen, BackboneSettings(), splits=splits)
        return stages.plan_search(
            candidates=stages.Candidates((candidate,)),
            settings=SearchSettings(**SWEEP | settings),
            store=store,
            job=SearchJobSettings(output=str(tmp_path / "runs"), plain=plain),
        )

    return planned


@pytest.fixture
def carry_out(tracking, tmp_path):
    """Carry a planned search out in an MLflow run; returns it and the runs of its trials."""

    def carried_out(search, fresh=False, **options):
        with mlflow.start_run() as run:
            stages.extract_features(search, tmp_path)
            searched = stages.search_cut(search, tmp_path, fresh, **options)
        query = f"tags.mlflow.parentRunId = '{run.info.run_id}'"
        trials = tracking.search_runs([run.info.experiment_id], query)
        trials = sorted(trials, key=lambda one: one.info.run_name)
        return searched, tracking.get_run(run.info.run_id), trials

    return carried_out


def test_the_plan_is_printed_before_anything_runs_and_logged(
    plan, carry_out, store, tracking, tmp_path, capsys
):
    before = len(store.entries())
    search = plan(cuts=("block3_out",), max_trials=1, epochs=20)
    printed = capsys.readouterr().out
    assert "block3_out" in printed
    assert len(store.entries()) == before
    _, run, _ = carry_out(search)
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert [one["at"] for one in saved["features"]] == ["block3_out"]
    assert (tmp_path / "plan.txt").read_text().strip() == printed.strip()
    logged = {artifact.path for artifact in tracking.list_artifacts(run.info.run_id)}
    assert {"plan.json", "plan.txt"} <= logged
    assert len(store.entries()) > before


def test_a_finished_search_is_taken_from_where_it_is_kept_unless_it_is_to_be_fresh(plan, carry_out):
    small = {"cuts": CUTS[1:], "max_trials": 2}
    first, _, _ = carry_out(plan(**small))
    again, run, trials = carry_out(plan(**small))
    assert (first.resumed, again.resumed) == (0, 2)
    assert again.result.trials == first.result.trials
    assert [trial.data.tags["reusekit.resumed"] for trial in trials] == ["true"] * 2
    assert run.data.metrics["search_resumed_trials"] == 2
    fresh, _, trials = carry_out(plan(**small), fresh=True)
    assert fresh.resumed == 0
    assert [trial.data.tags["reusekit.resumed"] for trial in trials] == ["false"] * 2
    histories = [[t.fit.history for t in one.result.trials] for one in (first, fresh)]
    assert histories[0] == histories[1]


def test_past_a_number_of_runs_trials_are_rows_of_a_table(plan, carry_out, monkeypatch):
    logged = []
    monkeypatch.setattr(
        "reusekit.stages.search.log_table", lambda table, name: logged.append((name, len(table)))
    )
    monkeypatch.setattr("reusekit.stages.search._ROWS", 2)
    search = plan(cuts=CUTS[1:], max_trials=6, epochs=1, ask=1)
    searched, _, runs = carry_out(search, trial_runs=1)
    best = searched.result.best.number
    assert [int(run.info.run_name.split()[1]) for run in runs] == sorted({0, best})
    # Two more, and two more: then the six of the end, as of any search.
    assert [rows for name, rows in logged if name == "trials.json"] == [3, 5, 6]


def test_the_ordinary_way_is_there_for_comparison(plan, carry_out, tracking, capsys):
    search = plan(plain=True, cuts=CUTS[1:], max_trials=2, epochs=1)
    assert "The ordinary way" in capsys.readouterr().out
    searched, run, trials = carry_out(search)
    assert "plan.json" not in {a.path for a in tracking.list_artifacts(run.info.run_id)}
    assert [trial.info.status for trial in trials] == ["FINISHED"] * 2
    begun = stages.best_trial(searched)
    assert begun.cut in CUTS[1:]
    assert begun.whole.output_shape == (None, 10)


def test_another_search_has_a_folder_of_its_own_or_is_refused(plan, carry_out, tmp_path):
    small = {"cuts": ("block2_out",), "max_trials": 1}
    assert plan(**small).folder == plan(**small, keep=2, memory=10**9).folder
    assert plan(**small).folder != plan(**small, epochs=7).folder
    folder = str(tmp_path / "mine")
    carry_out(plan(**small, folder=folder, epochs=1))
    with pytest.raises(rk.ConfigError, match=r"epochs was 1 and is 2.*--fresh"):
        carry_out(plan(**small, folder=folder, epochs=2))


def test_a_trial_is_a_run_with_its_history_its_costs_and_its_cause(plan, carry_out, tracking):
    search = plan(
        cuts=("block2_out",), learning_rates=[1e-2, 1e38], max_trials=None, epochs=3, patience=3
    )
    searched, _, (good, bad) = carry_out(search)
    record = searched.result.trials[0]
    assert good.info.status == "FINISHED"
    assert good.data.params["learning_rate"] == "0.01"
    assert good.data.metrics["best_val_accuracy"] == record.accuracy
    assert good.data.metrics["parameters.total"] == record.sizes.parameters
    assert good.data.metrics["flops"] == record.sizes.flops > 0
    assert good.info.end_time - good.info.start_time >= 1000 * record.fit.seconds - 1
    history = tracking.get_metric_history(good.info.run_id, "val_loss")
    assert [m.step for m in history] == [0, 1, 2]
    assert [m.value for m in history] == record.fit.history["val_loss"]
    assert bad.info.status == "FAILED"
    assert "never finite" in bad.data.tags["reusekit.cause"]
    assert searched.result.best == record


def test_tables_and_figures_are_written_and_logged(plan, carry_out, tracking, tmp_path):
    _, run, _ = carry_out(plan(rank="logme", max_trials=2, best_cuts=2, epochs=2))
    tables = ("cuts", "trials", "pareto_parameters", "pareto_latency", "ranking")
    figures = ("depth", "parameters", "latency")
    files = {f"{name}.csv" for name in tables} | {f"accuracy_over_{name}.png" for name in figures}
    assert files <= {file.name for file in tmp_path.iterdir()}
    logged = {artifact.path for artifact in tracking.list_artifacts(run.info.run_id)}
    expected = {f"{name}.json" for name in tables} | {f"accuracy_over_{n}.png" for n in figures}
    assert expected <= logged
    front = mlflow.load_table("pareto_latency.json", run_ids=[run.info.run_id])
    assert (front["latency"] > 0).all()
    assert front["val_accuracy"].is_monotonic_increasing


def test_the_top_of_the_backbone_may_be_trained_in_the_search(plan, carry_out, backbone):
    searched, _, _ = carry_out(
        plan(cuts=("block4_out",), frozen_up_to=["block3_out"], max_trials=1, epochs=2)
    )
    begun = stages.best_trial(searched)
    moved = {
        layer.name
        for layer in rk.extract(backbone.model, "block4_out").layers
        for one, other in zip(
            layer.get_weights(), begun.whole.get_layer(layer.name).get_weights(), strict=True
        )
        if not np.array_equal(one, other)
    }
    assert moved
    assert all(name.startswith("block4") for name in moved)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"limits": Limits(parameters=10)}, "limits within which a cut keeps"),
        ({"optimizers": ["adm"]}, "Did you mean 'adam'"),
        ({"best_cuts": 2}, "needs a ranking"),
        ({"rank": "logme", "plain": True}, "no ranking with plain"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_a_run_is_opened(plan, settings, says):
    with pytest.raises(rk.ConfigError, match=says):
        plan(**settings)
