"""The cut search: each cut looked at, any of keras-tuner's tuners, nothing stored but heads."""

import keras_tuner
import numpy as np
import pytest

import reusekit as rk
from reusekit.search import (
    CutHyperModel,
    CutResult,
    CutSweepOracle,
    CutTuner,
    SearchResult,
    SearchSpace,
    TrialData,
    accuracy_over_depth,
)
from reusekit.search.oracle import evenly
from reusekit.search.results import ranked

CUTS = ["shallow", "middle", "deep"]


@pytest.fixture(scope="module")
def data() -> TrialData:
    """Features that tell the classes apart better the deeper they are."""
    generator = np.random.default_rng(0)
    labels, validation_labels = np.arange(60) % 3, np.arange(45) % 3

    def features(labels, signal):
        noise = generator.normal(size=(len(labels), 6))
        return (noise + signal * np.eye(6)[labels]).astype("float32")

    signals = dict(zip(CUTS, (0.0, 1.0, 8.0), strict=True))
    return TrialData(
        train={cut: features(labels, signal) for cut, signal in signals.items()},
        train_labels=labels,
        validation={cut: features(validation_labels, s) for cut, s in signals.items()},
        validation_labels=validation_labels,
        classes=3,
    )


@pytest.fixture
def hypermodel(data) -> CutHyperModel:
    return CutHyperModel(data, SearchSpace(CUTS, units=(0, 4)), epochs=4, patience=4)


def tuner(hypermodel, folder, trials=5) -> CutTuner:
    oracle = CutSweepOracle(CUTS, trials, objective="val_accuracy", seed=1)
    return CutTuner(hypermodel, oracle, folder)


def test_each_cut_is_tried_first_and_the_informative_one_wins(hypermodel, tmp_path):
    search = tuner(hypermodel, tmp_path)
    search.search()
    assert [record.cut for record in search.records[:3]] == CUTS
    assert [record.number for record in search.records] == [0, 1, 2, 3, 4]
    defaults = [(r.values["units"], r.values["dropout"]) for r in search.records[:3]]
    assert defaults == [(0, 0.0)] * 3
    assert ranked(search.records)[0].cut == "deep"
    best = search.get_best_hyperparameters()[0]
    assert best.get("cut") == "deep"


def test_a_finished_trial_gives_back_its_trained_head(hypermodel, data, tmp_path):
    search = tuner(hypermodel, tmp_path)
    search.search()
    trial = search.oracle.get_best_trials()[0]
    head = search.load_model(trial)
    predicted = np.asarray(head(data.validation[trial.hyperparameters.get("cut")])).argmax(axis=1)
    accuracy = np.mean(predicted == data.validation_labels)
    assert accuracy == pytest.approx(trial.score)


def test_nothing_is_stored_but_heads(hypermodel, tmp_path):
    tuner(hypermodel, tmp_path).search()
    weights = list(tmp_path.rglob("*.h5"))
    assert {file.name for file in weights} == {"head.weights.h5"}
    assert len(weights) == 5
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} == {".h5", ".json"}


def test_the_same_seed_gives_the_same_trials(hypermodel, tmp_path):
    one, two = tuner(hypermodel, tmp_path / "1"), tuner(hypermodel, tmp_path / "2")
    one.search()
    two.search()
    assert [r.values for r in one.records] == [r.values for r in two.records]
    assert [r.fit.history for r in one.records] == [r.fit.history for r in two.records]


def test_every_trial_is_watched_from_begin_to_end(hypermodel, tmp_path):
    from contextlib import contextmanager

    seen = []

    @contextmanager
    def watch(number, values):
        seen.append(("begin", number, values["cut"]))
        yield lambda record: seen.append(("end", record.number, record.cut))

    oracle = CutSweepOracle(CUTS, 2, objective="val_accuracy", seed=1)
    CutTuner(hypermodel, oracle, tmp_path, watch).search()
    assert seen == [
        ("begin", 0, "shallow"),
        ("end", 0, "shallow"),
        ("begin", 1, "deep"),
        ("end", 1, "deep"),
    ]


@pytest.mark.parametrize(
    "tuner_class",
    [
        keras_tuner.RandomSearch,
        keras_tuner.GridSearch,
        keras_tuner.BayesianOptimization,
        keras_tuner.Hyperband,
    ],
)
def test_keras_tuners_own_tuners_take_the_hypermodel_unchanged(hypermodel, tuner_class, tmp_path):
    limits = {"max_epochs": 2} if tuner_class is keras_tuner.Hyperband else {"max_trials": 3}
    search = tuner_class(hypermodel, objective="val_accuracy", directory=tmp_path, seed=1, **limits)
    search.search(verbose=0)
    trials = search.oracle.get_best_trials(3)
    assert {trial.status for trial in trials} == {"COMPLETED"}
    assert all(0 <= trial.score <= 1 for trial in trials)


def test_a_budget_of_epochs_is_kept(hypermodel):
    hp = keras_tuner.HyperParameters()
    model = hypermodel.build(hp)
    assert len(hypermodel.train(hp, model, epochs=2).history["loss"]) == 2
    assert len(hypermodel.train(hp, model, epochs=4, initial_epoch=1).history["loss"]) == 3


def test_a_failed_trial_is_kept_and_the_search_goes_on(hypermodel, tmp_path, monkeypatch):
    build = hypermodel.build

    def fails_in_the_middle(hp):
        if hp.get("cut") == "middle":
            raise MemoryError("no room for this head")
        return build(hp)

    search = tuner(hypermodel, tmp_path, trials=3)
    monkeypatch.setattr(hypermodel, "build", fails_in_the_middle)
    search.search()
    assert [record.cut for record in search.records] == ["shallow", "deep"]
    assert [str(failure) for failure in search.failures] == ["no room for this head"]


@pytest.mark.parametrize("rates", [(0.1, 0.01), (0.0, 0.1)])
def test_rates_that_make_no_range_are_refused(rates):
    with pytest.raises(rk.ConfigError, match="lowest, highest"):
        SearchSpace(CUTS, learning_rate=rates)


def test_results_are_data_and_a_picture(hypermodel, tmp_path):
    search = tuner(hypermodel, tmp_path)
    search.search()
    result = SearchResult(
        tuple(
            CutResult(cut, depth, 100 * n, tuple(ranked(r for r in search.records if r.cut == cut)))
            for n, (cut, depth) in enumerate(zip(CUTS, (0.1, 0.5, 1.0), strict=True))
        )
    )
    assert result.best.cut == "deep"
    frame = result.to_frame()
    assert frame["cut"].tolist() == CUTS
    assert frame["validation_accuracy"].idxmax() == 2
    assert frame["trials"].sum() == 5
    assert frame["parameters"][2] == 200 + result.best.head_parameters
    trials = result.trials_frame()
    assert trials["trial"].tolist() == [0, 1, 2, 3, 4]
    assert trials["learning_rate"].between(1e-3, 1e-1).all()

    figure = accuracy_over_depth(result, "three cuts")
    (axes,) = figure.axes
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xdata(), [0.1, 0.5, 1.0])
    np.testing.assert_allclose(line.get_ydata(), frame["validation_accuracy"])
    assert [label.get_text() for label in axes.get_xticklabels()] == CUTS
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("most", [1, 2, 3, 7, None])
def test_spreading_evenly_keeps_order_and_the_deepest(most):
    items = [f"cut{number}" for number in range(7)]
    spread = evenly(items, most)
    assert spread == sorted(set(spread))
    assert spread[-1] == "cut6"
    assert len(spread) == (most or 7)
