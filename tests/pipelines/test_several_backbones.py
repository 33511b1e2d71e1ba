"""Several backbones from YAML to the registry, and what is said of those that cannot be had."""

import contextlib
import io
from pathlib import Path

import pandas as pd
import pytest
import yaml
from quick_files import quick_files
from repository import ROOT

import reusekit as rk
from reusekit import stages
from reusekit.launch import EXIT_BAD_INPUT
from reusekit.settings import (
    BackboneSettings,
    CandidateSettings,
    DataSettings,
    FineTuneSettings,
    SearchSettings,
)

CONFIG = f"--config={ROOT / 'configs' / 'several_backbones.yaml'}"
QUICK = [
    CONFIG,
    "--data.examples_per_class=5",  # of which ridge makes as many folds
    "--search.max_cuts=1",
    "--search.max_trials=3",
    "--search.epochs=8",
    "--search.units=[0]",
    "--search.ship=litert-int8",
    "--search.limits={latency: 60, bytes: 8000000}",
    "--finetune.share=0",
    "--baselines.linear=true",
]


@pytest.fixture(scope="module")
def finished(run_pipeline, module_tracking):
    """MLflow's client, and what was printed."""
    printed = io.StringIO()
    with quick_files(), contextlib.redirect_stdout(printed):
        run_pipeline("cut_search", *QUICK)
    return module_tracking, printed.getvalue()


def test_the_search_ends_in_the_registry_with_the_winner(finished):
    client, printed = finished
    version = client.get_model_version_by_alias("several", "champion")
    parent = client.get_run(version.run_id)
    query = f"tags.mlflow.parentRunId = '{version.run_id}' and tags.`reusekit.kind` = 'trial'"
    trials = client.search_runs([parent.info.experiment_id], query)
    found = [run.data.params["backbone"] for run in trials]
    assert sorted(set(found)) == ["glyphnet", "random"]
    assert len(found) == 3
    best = max(trials, key=lambda run: run.data.metrics["best_val_accuracy"])
    source = {"glyphnet": "reusekit/glyphnet", "random": "keras.applications/MobileNetV2"}
    assert version.tags["reusekit.source"] == source[best.data.params["backbone"]]
    assert version.tags["reusekit.source"] == "reusekit/glyphnet"
    digest = rk.load_backbone("reusekit/glyphnet").digest
    assert version.tags["reusekit.backbone"] == digest
    assert parent.data.params["backbones.1.weights"] == "None"
    assert parent.info.run_name == (
        "cut_search reusekit/glyphnet, keras.applications/MobileNetV2 on sklearn_digits:1.0.0"
    )
    assert printed.count("In all") == 1
    assert "Cut of glyphnet at" in printed
    cuts = pd.read_csv(next(Path("runs").glob("*-cut_search/cuts.csv")))
    assert set(cuts["backbone"]) == {"glyphnet", "random"}
    file = client.download_artifacts(version.run_id, "config.yaml")
    written = yaml.safe_load(Path(file).read_text())["backbones"]
    assert [one["source"] for one in written] == list(source.values())


def test_what_ships_is_measured_first_and_the_file_is_logged(finished):
    client, printed = finished
    assert "2 models measured as litert-int8" in printed
    assert "The best trials as litert-int8, on 300 examples" in printed
    version = client.get_model_version_by_alias("several", "champion")
    assert "| litert-int8&emsp; |" in version.description
    run = client.get_run(version.run_id)
    assert run.data.metrics["export.litert-int8.lost"] == pytest.approx(0)
    assert [one.path for one in client.list_artifacts(version.run_id, "exports")] == [
        "exports/several-int8.tflite"
    ]
    trials = pd.read_csv(next(Path("runs").glob("*-cut_search/trials.csv")))
    assert trials["shipped_accuracy"].notna().all()
    assert trials.groupby("backbone")["shipped_bytes"].nunique().tolist() == [1, 1]
    assert next(Path("runs").glob("*-cut_search/accuracy_over_shipped_latency.png")).exists()


def test_what_cannot_be_had_is_left_out_and_that_is_said(finished):
    client, printed = finished
    assert "Left out: models:/several@champion. " in printed
    version = client.get_model_version_by_alias("several", "champion")
    parent = client.get_run(version.run_id)
    assert parent.data.tags["reusekit.left_out"] == "models:/several@champion"
    assert "left_out.json" in {one.path for one in client.list_artifacts(version.run_id)}


def test_the_champion_stands_against_the_others_from_then_on(finished):
    again = stages.load_candidates(
        BackboneSettings(),
        [
            CandidateSettings(source="models:/several@champion", cuts=["block7_out"]),
            CandidateSettings(source="reusekit/glyphnet", cuts=["block7_out"]),
        ],
        SearchSettings(),
        FineTuneSettings(),
    )
    assert [one.name for one in again.those] == ["several", "glyphnet"]
    assert not again.left_out


GLYPHNET, PROSENET = "{source: reusekit/glyphnet}", "{source: reusekit/prosenet}"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([f"--backbones=[{GLYPHNET}, {{source: reusekit/glyphnt}}]"], "Did you mean"),
        ([f"--backbones=[{GLYPHNET}, {PROSENET}]"], "Expected data.input to name a text"),
        ([f"--backbones=[{GLYPHNET}, {GLYPHNET}]"], "'glyphnet' twice. Give each a name"),
        ([f"--backbones=[{GLYPHNET}]", "--search.cuts=[block5_out]"], "search.cuts of null"),
        (
            [f"--backbones=[{GLYPHNET}]", "--finetune.frozen_up_to=stem_out"],
            "finetune.frozen_up_to of null",
        ),
        ([f"--backbones=[{GLYPHNET}]", "--backbone.source=a.keras"], "Received: both"),
        (["--backbones=[{source: reusekit/glyphnet, cuts: [block5_ot]}]"], "'block5_out'"),
        (["--backbones=[{source: reusekit/glyphnet, weight: null}]"], "weight"),
        (["--backbones=[{weights: null}]"], "source"),
        (["--backbones=glyphnet"], "backbones"),
        (
            ["--backbones=[{source: nowhere.keras, skip_unavailable: true}]"],
            "Expected a backbone that can be had",
        ),
        (
            [
                "--data.name=python_topics",
                "--backbones=[{source: reusekit/glyphnet, skip_unavailable: true}]",
            ],
            "Expected a backbone that can be had",
        ),
    ],
)
def test_bad_backbones_end_in_one_sentence(run_pipeline, finished, capsys, words, says):
    before = sorted(Path("runs").iterdir())
    given = [] if words[0].startswith("--data") else ["--data.name=sklearn_digits"]
    with pytest.raises(SystemExit) as stopped:
        run_pipeline("cut_search", *given, *words)
    *_, said = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == EXIT_BAD_INPUT
    assert said.startswith("error: ")
    assert says in said
    assert sorted(Path("runs").iterdir()) == before


def test_each_backbone_has_its_own_tokens(capsys):
    """Two lengths of the same texts, in one search that is never run."""
    candidates = stages.load_candidates(
        BackboneSettings(),
        [
            CandidateSettings(source="reusekit/prosenet", name="long", cuts=["block1_out"]),
            CandidateSettings(
                source="reusekit/prosenet", name="short", cuts=["block1_out"], sequence_length=8
            ),
            CandidateSettings(source="reusekit/glyphnet", skip_unavailable=True),
        ],
        SearchSettings(),
        FineTuneSettings(),
    )
    data = DataSettings(
        name="python_topics", examples_per_class=2, sequence_length=16, class_weights="balanced"
    )
    loaded = stages.load_data_of_all(candidates, data, seed=0)
    long, short = (one.splits for one in loaded.those)
    assert list(loaded.left_out) == ["reusekit/glyphnet"]
    assert "reusekit/glyphnet is left out. Expected images" in capsys.readouterr().err
    assert long.train.input_shape != short.train.input_shape
    assert [len(one.train.examples.element_spec) for one in (long, short)] == [3, 3]
    assert long.raw.train.fingerprint == short.raw.train.fingerprint
    assert long.tokenizer.output_shape[-1] == 16
    assert short.tokenizer.output_shape[-1] == 8
