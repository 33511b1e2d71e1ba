"""Whatever a person gets wrong ends in one line that helps, and nothing is half-written."""

import os

import mlflow
import numpy as np
import pytest
from repository import ROOT

from reusekit.backbones import glyphnet
from reusekit.launch import EXIT_BAD_INPUT

DIGITS = f"--config={ROOT / 'configs' / 'digits.yaml'}"
DATA = "--data.name=sklearn_digits"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--backbone.source=keras.applications/ResNet5"], "Did you mean"),
        (["--backbone.weights=nowhere.h5"], "nowhere.h5"),
        (["--finetune.frozen_up_to=block5_ot"], "Did you mean 'block5_out'"),
        (["--search.cuts=[block5_ot]"], "Did you mean 'block5_out'"),
        (["--serch.max_trials=3"], "Did you mean 'search.max_trials'"),
        (["--search.max_trial=3"], "Did you mean 'search.max_trials'"),
        (["--search.freeze=[block2_out]"], "It is called 'search.frozen_up_to' now"),
        (["--search.max_trials=many"], "search.max_trials"),
        (["--search.max_trials=0"], "search.max_trials to be None or a whole number of at least 1"),
        (["--data.resize=squash"], "stretch"),
        (["--seed=x"], "seed"),
        (["--seed=1", DIGITS], "Put --config first"),
        (["--config=missing.yaml"], "missing.yaml"),
        (["--data.name=mnits"], "mnist"),
        (["--data.name=mnist"], "--data.download true"),
        (["--data.train=trian"], "Did you mean 'train'"),
        (["--data.data_dir=photos"], "Expected no data_dir"),  # pipeline W2
        (["--data.shares={train: 0.9}"], "add up to 1. Received: 0.9 + 0.15 + 0.15 = 1.2."),
        (["--data.label={a: 1}"], "Expected label['a'] as plain text"),
        (["--data.label=[]"], "Expected label to name a feature or a column. Received: []"),
        (["--data.examples_per_class=10000"], "Expected examples_per_class to be at most"),
        (["--tracking.uri=http://127.0.0.1:9"], "does not answer"),
        (["--tracking.alias=latest"], "MLflow keeps"),
        (["--seed=-1"], "seed to be a whole number of at least 0"),
        (["--search.units=[-5]"], "search.units[0] to be a whole number of at least 0"),
        (["--search.dropout=[1.5]"], "search.dropout[0] to be a number of at least 0 and below"),
        (["--search.learning_rate=[0.1, 0.01]"], "lowest rate first"),
        (["--search.frozen_up_to=[block5_ot]"], "Did you mean 'block5_out'"),
        (["--search.optimizers=[adm]"], "Did you mean 'adam'"),
        (["--search.objective=accuracy"], "val_accuracy"),
        (["--search.rank=logm"], "logme"),
        (["--search.best_cuts=2"], "needs a ranking"),
        (["--search.ship=litert-in8"], "Did you mean 'litert-int8'"),
        (["--plain", "--search.rank=logme"], "no ranking"),
        (["--plain=perhaps"], "plain"),
        (["--search.limits.parameters=10"], "limits within which a cut keeps"),
        (["--search.limits.parameter=10"], "Did you mean 'search.limits.parameters'"),
        (["--search.max_trials=null"], "learning_rates"),
        (["--search.disk=0"], "search.disk to be None or a whole number of at least 1"),
        (["--search.store=taken/store"], "taken/store"),
        (["--backbone.options={weights: null}"], "backbone.weights"),
        (["--data.test=validation"], "share no examples"),
        (["--data.name=imagenet2012", "--data.download=true"], "imagenet2012"),
        (["--tracking.model=a/b"], "to register 'a/b'"),
        (["--output=taken/runs"], "can be written. Received: 'taken/runs'"),
    ],
)
def test_one_line_and_exit_code_2(words, says, run_pipeline, tracking, digits, capfd):
    with open("taken", "w") as file:
        file.write("a file where a folder is wanted")
    with pytest.raises(SystemExit) as stopped:
        run_pipeline("cut_search", *([] if DIGITS in words else [DIGITS]), *words)
    out, err = capfd.readouterr()
    assert stopped.value.code == EXIT_BAD_INPUT
    assert out == ""
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert err.splitlines()[-1:] == message
    assert says in message[0]
    assert "Traceback" not in err
    experiments = [experiment.experiment_id for experiment in tracking.search_experiments()]
    assert not tracking.search_runs(experiments)
    assert not os.path.exists("runs")


def test_the_unknown_key_of_a_file_is_named(run_pipeline, tracking, tmp_path, capfd):
    (tmp_path / "typo.yaml").write_text("search:\n  max_trails: 3\n")
    with pytest.raises(SystemExit):
        run_pipeline("cut_search", "--config=typo.yaml")
    assert "Did you mean 'search.max_trials'" in capfd.readouterr().err


def test_a_pipe_is_no_configuration(run_pipeline, tracking, tmp_path, capfd):
    os.mkfifo("pipe")  # which nobody writes into
    with pytest.raises(SystemExit) as stopped:
        run_pipeline("cut_search", "--config=pipe")
    assert stopped.value.code == EXIT_BAD_INPUT
    assert "Received: 'pipe': a pipe, which can be read only once" in capfd.readouterr().err


def test_a_folder_without_a_name_is_no_data_set(run_pipeline, tracking, tmp_path, capfd):
    # pipeline W2: it trained on the digits, and wrote into the folder
    (tmp_path / "photos").mkdir()
    with pytest.raises(SystemExit) as stopped:
        run_pipeline("cut_search", "--data.data_dir=photos")
    assert stopped.value.code == EXIT_BAD_INPUT
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "data.name" in err
    assert not list((tmp_path / "photos").iterdir())


def test_the_data_set_is_named_first(run_pipeline, tracking, capfd):
    with pytest.raises(SystemExit):
        run_pipeline("finetune", DATA, "--cut=nowhere")
    assert "sklearn_digits" in capfd.readouterr().err.splitlines()[0]


def test_the_tracker_is_asked_before_anything_is_loaded(run_pipeline, tracking, capfd):
    with pytest.raises(SystemExit):
        run_pipeline(
            "cut_search", DATA, "--tracking.uri=http://127.0.0.1:9", "--backbone.source=nonsense"
        )
    err = capfd.readouterr().err
    assert "does not answer" in err
    assert "Load the backbone" not in err
    assert not os.path.exists("runs")


def test_a_mistake_leaves_no_run_and_no_folder(run_pipeline, tracking, digits):
    with pytest.raises(SystemExit):
        run_pipeline(
            "cut_search", DATA, "--search.cuts=[nowhere]", "--tracking.experiment=mistaken"
        )
    assert mlflow.active_run() is None
    assert tracking.get_experiment_by_name("mistaken") is None
    assert not os.path.exists("runs")


def test_a_job_that_breaks_leaves_a_failed_run_and_no_open_one(
    run_pipeline, tracking, digits, capfd
):
    network = glyphnet.build()
    network.get_layer("stem_conv").kernel.assign(np.full((3, 3, 1, 16), np.nan))
    network.save_weights("broken.weights.h5")
    with pytest.raises(SystemExit):
        run_pipeline(
            "finetune",
            DATA,
            "--cut=block2_out",
            "--data.examples_per_class=5",
            "--backbone.weights=broken.weights.h5",
            "--tracking.experiment=broken",
        )
    assert mlflow.active_run() is None
    experiment = tracking.get_experiment_by_name("broken")
    (run,) = tracking.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    assert "finite features at 'block2_out'" in capfd.readouterr().err


def test_the_traceback_is_there_where_it_is_asked_for(run_pipeline, tracking, capfd):
    with pytest.raises(SystemExit):
        run_pipeline("cut_search", DATA, "--search.cuts=[nowhere]", "--verbose")
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: ")


def test_print_config_can_be_used_as_a_config(run_pipeline, tracking, capfd, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run_pipeline("cut_search", DIGITS, "--search.max_trials=5", "--print_config")
    assert stopped.value.code == 0
    printed = capfd.readouterr().out
    assert "max_trials: 5" in printed
    (tmp_path / "again.yaml").write_text(printed)
    with pytest.raises(SystemExit) as stopped:
        run_pipeline("cut_search", "--config=again.yaml", "--print_config")
    assert capfd.readouterr().out == printed
