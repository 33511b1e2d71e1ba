"""The main job from end to end on real data: what MLflow holds after it, and what a person sees."""

import collections
import contextlib
import fnmatch
import io
import itertools
import json
import re
import signal
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml
from processes import run_python, start_python
from repository import ROOT

import reusekit as rk
from reusekit.tracking.registry import logged_model_id

QUICK = [
    f"--config={ROOT / 'configs' / 'digits.yaml'}",
    "--data.examples_per_class=5",
    "--search.max_trials=6",
    "--search.max_cuts=2",
    "--search.epochs=12",
    "--finetune.epochs=3",
    "--baselines.learning_rates=[0.003]",
    "--baselines.epochs=1",
    "--baselines.passes=1",
]
NO_BASELINES = ["--baselines.from_scratch=false", "--baselines.linear=false"]


def killed_in_the_middle() -> None:
    """Run the job in a process of its own, and kill that once some trials are finished."""
    process = start_python(
        "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')",
        ROOT / "pipelines" / "cut_search.py",
        *QUICK,
        environment={"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
    )
    while process.is_alive() and not list(Path("runs").glob("searches/*/state.json")):
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def finished(run_pipeline, module_tracking):
    """The job killed, gone on with, and run once more: the folder, and what was printed."""
    killed_in_the_middle()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_pipeline("cut_search", *QUICK)
        run_pipeline("cut_search", *QUICK, *NO_BASELINES)
    return Path.cwd(), module_tracking, printed.getvalue()


def jobs(client) -> list[tuple]:
    """Of each job its run and the runs in it, by kind; the first job first."""
    experiment = client.get_experiment_by_name("digits")
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time ASC"])
    found = []
    for parent in runs:
        if parent.data.tags["reusekit.kind"] == "pipeline":
            children = {"trial": [], "phase": [], "evaluation": []}
            for run in runs:
                if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id:
                    children[run.data.tags["reusekit.kind"]].append(run)
            # Trials that were trained together began at the same time.
            children["trial"].sort(key=lambda run: run.info.run_name)
            found.append((parent, children))
    return found


@pytest.fixture
def runs(finished):
    """The runs of the job that went on with the killed one: the parent, and its children."""
    return jobs(finished[1])[1]


def best_of(trials):
    """The trial that won."""
    return max(
        trials,
        key=lambda run: (run.data.metrics["best_val_accuracy"], -run.data.metrics["best_val_loss"]),
    )


def test_there_is_one_run_for_each_trial_phase_and_evaluation(runs):
    parent, children = runs
    assert parent.info.status == "FINISHED"
    assert [run.data.params["cut"] for run in children["trial"][:2]] == ["stem_out", "block7_out"]
    assert len(children["trial"]) == 6
    assert [run.info.run_name for run in children["phase"]] == [
        "phase finetune",
        "from scratch 0.003",
    ]
    assert sorted(run.info.run_name for run in children["evaluation"]) == [
        "ledger of the bottom",
        "ledger of the top",
        "ledger of the whole",
        "test",
        "test from scratch",
        "test logistic regression",
    ]
    assert all(run.info.status == "FINISHED" for kind in children.values() for run in kind)


def test_a_killed_job_is_gone_on_with(finished):
    folder, client, printed = finished
    killed, second, third = jobs(client)
    before = {run.info.run_name: run for run in killed[1]["trial"]}
    assert {run.info.status for run in (killed[0], *itertools.chain(*killed[1].values()))} == {
        "KILLED",
        "FINISHED",
    }  # faults A2
    assert killed[0].info.status == "KILLED"
    assert 0 < len(before) < 6
    resumed = {run.info.run_name: run.data.tags["reusekit.resumed"] for run in second[1]["trial"]}
    assert {name for name, taken in resumed.items() if taken == "true"} == before.keys()
    for run in second[1]["trial"]:
        if run.info.run_name in before:
            assert run.data.metrics == before[run.info.run_name].data.metrics
    assert {run.data.tags["reusekit.resumed"] for run in third[1]["trial"]} == {"true"}
    assert third[0].data.metrics["test_accuracy"] == second[0].data.metrics["test_accuracy"]
    assert "6 trials had been run before: --fresh runs them anew" in printed
    assert "found in the store" in printed
    assert len(list(folder.glob("runs/searches/*"))) == 1


def test_settings_are_parameters_of_the_parent(runs, module_tracking):
    parent, _ = runs
    assert parent.data.params["backbone.source"] == "reusekit/glyphnet"
    assert parent.data.params["data.examples_per_class"] == "5"
    assert parent.data.params["seed"] == "0"
    # pipeline, Looks: the same as a file, and a name that says what the run is of
    file = module_tracking.download_artifacts(parent.info.run_id, "config.yaml")
    written = yaml.safe_load(Path(file).read_text())
    assert written["search"]["max_trials"] == 6
    assert parent.info.run_name == "cut_search reusekit/glyphnet on sklearn_digits:1.0.0"
    assert 0 < parent.data.metrics["val_accuracy"] <= 1
    files = {info.path for info in module_tracking.list_artifacts(parent.info.run_id)}
    assert {"config.yaml", "classes.json", "confusion.png", "report.html"} <= files
    page = Path(module_tracking.download_artifacts(parent.info.run_id, "report.html")).read_text()
    assert page.count('class="map"') == page.count("<figure>") > 0  # each mistake is explained
    assert re.search(r"promote\.py .*--promote\.candidate 1 --data\.name sklearn_digits", page)
    counts = {k: int(parent.data.params[f"parameters.{k}"]) for k in ("total", "trainable")}
    assert 0 < counts["trainable"] < counts["total"]


def test_the_run_says_what_came_of_it(runs):
    parent, children = runs
    said = parent.data.tags["mlflow.note.content"]
    assert f"cut {best_of(children['trial']).data.params['cut']}" in said
    assert f"test accuracy: {parent.data.metrics['test_accuracy']:.3f}" in said
    assert "logistic regression on pixels: 0." in said


def test_pages_of_run_version_and_models_have_links_a_picture_and_data(finished, runs):
    _, client, _ = finished
    run, version = runs[0], client.get_model_version_by_alias("digits", "champion")
    artifacts = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts"
    links, said = run.data.tags["mlflow.note.content"].split("\n\n")
    for name in ("report.html", "accuracy_over_depth.png", "confusion.png"):
        assert f"({artifacts}/{name})" in links
    assert "(#/models/digits/versions/1)" in links and said.count("\n") == 1
    head, *_ = version.description.split("\n\n## ")
    shown = f"(get-artifact?path=accuracy_over_depth.png&run_uuid={run.info.run_id})"
    assert f"[The report]({artifacts}/report.html)" in head and shown in head
    of_run = f"source_run_id = '{run.info.run_id}'"
    models = {
        model.tags["reusekit.role"]: model
        for model in client.search_logged_models([run.info.experiment_id], of_run)
    }
    notes = {role: model.tags["mlflow.note.content"] for role, model in models.items()}
    assert notes["whole"] == version.description
    assert "[digits](#/models/digits)" in notes["top"]
    assert "[glyphnet-bottom](#/models/glyphnet-bottom)" in notes["top"]
    assert notes["bottom"].startswith("The bottom of models made from `reusekit/glyphnet`")
    digests = {d.tags[0].value: d.dataset.digest for d in run.inputs.dataset_inputs}
    measured = {one.key: one.dataset_digest for one in models["whole"].metrics}
    assert measured["test_accuracy"] == digests["test"]
    assert measured["val_accuracy"] == digests["validation"]
    assert measured["parameters.total"] is None
    about = client.get_registered_model("digits").description
    assert about == "Classifies images into 10 classes."
    page = Path(client.download_artifacts(run.info.run_id, "report.html")).read_text()
    assert artifacts not in page  # it stands alone


def test_steps_of_the_two_phases_never_overlap(finished, runs):
    _, client, _ = finished
    head, tuned = best_of(runs[1]["trial"]), runs[1]["phase"][0]
    steps = [
        [m.step for m in client.get_metric_history(run.info.run_id, "val_loss")]
        for run in (head, tuned)
    ]
    assert steps[0] == list(range(len(steps[0])))
    assert steps[1] == list(range(len(steps[0]), len(steps[0]) + len(steps[1])))


def test_a_trial_keeps_its_whole_history(finished, runs):
    _, client, _ = finished
    run = runs[1]["trial"][0]
    history = client.get_metric_history(run.info.run_id, "val_accuracy")
    assert [m.step for m in history] == list(range(len(history)))
    best = run.data.metrics["best_val_accuracy"]
    assert best in [m.value for m in history]


def test_data_are_inputs_with_their_fingerprints(runs):
    inputs = {d.tags[0].value: d.dataset for d in runs[0].inputs.dataset_inputs}
    assert set(inputs) == {"training", "validation", "test"}
    expected = rk.data.load(
        "sklearn_digits",
        "train",
        treatment=rk.data.Treatment(image_size=(32, 32), channels=1, examples_per_class=5),
    )
    assert inputs["training"].digest == expected.fingerprint


def test_figure_and_tables_are_there(finished, runs):
    folder, client, _ = finished
    run_id = runs[0].info.run_id
    names = {artifact.path for artifact in client.list_artifacts(run_id)}
    assert {"accuracy_over_depth.png", "cuts.json", "trials.json", "plan.json"} <= names
    table = json.loads(
        (folder / client.download_artifacts(run_id, "cuts.json", str(folder))).read_text()
    )
    assert "validation_accuracy" in table["columns"]
    outputs = sorted(folder.glob("runs/2*"))
    assert len(outputs) == 2  # that of the killed job is gone (faults A2)
    assert {file.name for file in outputs[0].iterdir()} == {
        "accuracy_over_depth.png",
        "accuracy_over_latency.png",
        "accuracy_over_parameters.png",
        "cuts.csv",
        "model.png",
        "pareto_latency.csv",
        "pareto_parameters.csv",
        "phases.csv",
        "plan.json",
        "plan.txt",
        "report.html",
        "report.json",
        "trials.csv",
    }


def test_three_linked_models_with_signatures_and_counts(finished, runs):
    models = mlflow.search_logged_models(
        experiment_ids=[runs[0].info.experiment_id],
        filter_string=f"source_run_id = '{runs[0].info.run_id}'",
        output_format="list",
    )
    best = best_of(runs[1]["trial"])
    by_role = {model.tags["reusekit.role"]: model for model in models}
    assert set(by_role) == {"bottom", "top", "whole"}
    bottom = by_role["bottom"]
    assert by_role["top"].tags["reusekit.parent"] == bottom.model_id
    assert by_role["whole"].tags["reusekit.parent"] == bottom.model_id
    totals = {role: int(m.params["parameters.total"]) for role, m in by_role.items()}
    assert totals["bottom"] + totals["top"] == totals["whole"]
    # Bottom and top meet where training began: before that, the backbone is as it was loaded.
    tuned = runs[1]["phase"][0].data.params
    cut = best.data.params["cut"]
    began = tuned["frozen_up_to"] if tuned["kept"] == "True" else cut
    assert bottom.tags["reusekit.cut"] == began
    for role in ("top", "whole"):
        tags = by_role[role].tags
        assert (tags["reusekit.cut"], tags["reusekit.frozen_up_to"]) == (cut, began)
    for model in models:
        assert len(model.tags["reusekit.digest"]) == 32
        info = mlflow.models.get_model_info(model.model_uri)
        assert info.signature.inputs.inputs[0].type == np.dtype("float32")
    accuracy = {m.key: m.value for m in by_role["whole"].metrics}["test_accuracy"]
    assert accuracy == runs[0].data.metrics["test_accuracy"]


def test_a_job_that_comes_to_the_same_model_makes_no_new_version(finished):
    # pipeline W4
    _, client, _ = finished
    assert len(client.search_model_versions("name = 'digits'")) == 1
    champion = client.get_model_version_by_alias("digits", "champion")
    assert int(champion.version) == 1
    _, second, third = jobs(client)
    assert champion.run_id == second[0].info.run_id
    used = {one.model_id for one in client.get_run(third[0].info.run_id).inputs.model_inputs}
    assert logged_model_id(champion) in used
    assert champion.description.startswith("Classifies images into 10 classes.")
    assert "runner-up: cut" in champion.description
    assert "mlflow.keras.load_model" in champion.description
    assert len(client.search_model_versions("name = 'digits-top'")) == 1
    assert len(client.search_model_versions("name = 'glyphnet-bottom'")) == 1


def test_the_champion_predicts_the_same_where_reusekit_is_not(finished, tmp_path):
    folder, _, _ = finished
    test = rk.data.load(
        "sklearn_digits", "test", treatment=rk.data.Treatment(image_size=(32, 32), channels=1)
    )
    images, labels = test.arrays()
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys\n"
        # Importing either is an ImportError from here on.
        "sys.modules['reusekit'] = sys.modules['reusekit_mlflow'] = None\n"
        "import mlflow, numpy\n"
        f"mlflow.set_tracking_uri({mlflow.get_tracking_uri()!r})\n"
        "model = mlflow.keras.load_model('models:/digits@champion')\n"
        f"images = numpy.load({str(tmp_path / 'images.npy')!r})\n"
        f"numpy.save({str(tmp_path / 'out.npy')!r}, model.predict(images, verbose=0))\n"
    )
    done = run_python(code, folder=folder)
    assert done.returncode == 0, done.stderr
    there = np.load(tmp_path / "out.npy")
    here = mlflow.keras.load_model("models:/digits@champion").predict(images, verbose=0)
    np.testing.assert_allclose(there, here, atol=1e-5)
    run_id = mlflow.MlflowClient().get_model_version_by_alias("digits", "champion").run_id
    logged = mlflow.get_run(run_id).data.metrics["test_accuracy"]
    assert np.mean(there.argmax(axis=1) == labels) == pytest.approx(logged, abs=1e-6)


def test_letters_help_with_digits(runs):
    parent, children = runs
    linear = next(r for r in children["evaluation"] if "logistic" in r.info.run_name)
    assert parent.data.metrics["test_accuracy"] > linear.data.metrics["accuracy"]


def test_a_person_sees_the_cuts_the_rivals_the_times_and_what_to_do_next(finished):
    _, _, printed = finished
    for words in (
        "block7_out",
        "stem_out",
        "logistic regression on pixels",
        "same network from scratch",
        "logistic regression on pixels",
        "Where the time went",
        "version 1",
        'mlflow.keras.load_model("models:/digits@champion")',
        f"ui --backend-store-uri {mlflow.get_tracking_uri()}",
    ):
        assert words in printed


def documented() -> list[tuple[list[str], str, list[str], bool]]:
    """The table of names in `docs/tracking.md`.

    Of each row the names, what they are, what carries them, and whether only on a condition.
    """
    rows = re.findall(
        r"^\| (`.+?) \| (\w+) \| (.+?) \|", (ROOT / "docs" / "tracking.md").read_text(), re.M
    )
    return [
        (
            re.findall(r"`([^`]+)`", names),
            kind,
            re.sub(r" \(.*\)", "", carriers).split(", "),
            "(" in carriers,
        )
        for names, kind, carriers in rows
    ]


def found_names(client, runs) -> dict[tuple[str, str], set[str]]:
    """Every name that a job left, by what it is and what carries it."""
    parent, children = runs
    names = collections.defaultdict(set)
    for run in (parent, *itertools.chain(*children.values())):
        kind = run.data.tags["reusekit.kind"]
        names["tag", kind] |= set(run.data.tags)
        names["param", kind] |= set(run.data.params)
        names["metric", kind] |= set(run.data.metrics)
        names["input", kind] |= {d.tags[0].value for d in run.inputs.dataset_inputs}
        names["artifact", kind] |= {a.path for a in client.list_artifacts(run.info.run_id)}
    of_run = f"source_run_id = '{parent.info.run_id}'"
    for model in client.search_logged_models([parent.info.experiment_id], of_run):
        names["tag", "model"] |= set(model.tags)
        names["param", "model"] |= set(model.params)
        names["metric", "model"] |= {metric.key for metric in model.metrics}
    for version in client.search_model_versions(f"run_id = '{parent.info.run_id}'"):
        names["tag", "version"] |= set(version.tags)
    return {
        key: {name for name in found if not name.startswith("mlflow.")}
        for key, found in names.items()
    }


def test_the_documented_names_are_those_that_a_job_leaves(finished, runs):
    found = found_names(finished[1], runs)
    table = documented()
    for names, kind, carriers, conditional in table:
        for name, carrier in itertools.product(names, carriers):
            if not conditional:
                assert fnmatch.filter(found[kind, carrier], name), (name, kind, carrier)
    for (kind, carrier), names in found.items():
        told = [row[0] for row in table if row[1] == kind and carrier in row[2]]
        untold = {
            name
            for name in names
            if not any(fnmatch.fnmatch(name, one) for one in itertools.chain(*told))
        }
        assert not untold, (kind, carrier, untold)


def test_the_documented_questions_are_answered(finished, runs):
    text = (ROOT / "docs" / "tracking.md").read_text()
    trials, bottoms, wholes = re.findall(
        r"```python\n(mlflow\.search.*?)```", text, flags=re.DOTALL
    )
    scope = {"mlflow": mlflow}
    mlflow.set_experiment("digits")
    good = {
        run.info.run_id
        for _, children in jobs(finished[1])
        for run in children["trial"]
        if run.data.metrics["best_val_accuracy"] > 0.9
    }
    assert good
    assert set(eval(trials, scope)["run_id"]) == good
    answered = 0
    for model_id in eval(bottoms, scope)["model_id"]:
        scope["bottom"] = mlflow.get_logged_model(model_id)
        assert scope["bottom"].tags["reusekit.role"] == "bottom"
        found = eval(wholes, scope)
        assert {tags["reusekit.parent"] for tags in found["tags"]} == {model_id}
        answered += len(found)
    assert answered == len(finished[1].search_model_versions("tags.`reusekit.role` = 'whole'"))
