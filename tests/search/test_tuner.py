"""The tuner: any oracle, what is kept of trials, what becomes of those that fail."""

import signal
from contextlib import suppress
from dataclasses import replace

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf

import reusekit as rk
from reusekit.errors import ConfigError, ReusekitError
from reusekit.search import (
    CutGridOracle,
    CutHyperModel,
    CutSweepOracle,
    CutTuner,
    Limits,
    SearchConfig,
    SearchSpace,
)
from reusekit.search.oracle import evenly
from reusekit.workers import Here

CUTS = ["shallow", "middle", "deep"]


def sweep(trials=3, **kwargs):
    return CutSweepOracle(CUTS, trials, objective="val_accuracy", seed=1, **kwargs)


def grid(**kwargs):
    return CutGridOracle(objective="val_accuracy", **kwargs)


def searched(hypermodel, oracle, folder, latencies=None, report=lambda _: None, **settings):
    hypermodel.config = hypermodel.config.changed(**settings)
    tuner = CutTuner(hypermodel, oracle, folder, latencies=latencies)
    tuner.search(report)
    return tuner


def accuracy(hypermodel, record, model):
    """The accuracy that the model of a trial has on the validation features."""
    source = hypermodel.data.validation[record.cut, "avg"]
    predicted = model.predict(source.arrays(), verbose=0).argmax(axis=1)
    return np.mean(predicted == source.labels)


ORACLES = {
    "random": lambda: keras_tuner.oracles.RandomSearchOracle("val_accuracy", 4, seed=1),
    "grid": lambda: keras_tuner.oracles.GridSearchOracle("val_accuracy", 4, seed=1),
    "bayesian": lambda: keras_tuner.oracles.BayesianOptimizationOracle("val_loss", 4, seed=1),
}


@pytest.mark.parametrize("name", ORACLES)
def test_any_oracle(hypermodel, name, tmp_path):
    tuner = searched(hypermodel, ORACLES[name](), tmp_path)
    assert [record.number for record in tuner.records] == [0, 1, 2, 3]
    assert {record.status for record in tuner.records} == {"completed"}
    assert len({tuple(sorted(record.values.items())) for record in tuner.records}) == 4
    objective = tuner.oracle.objective
    ends = [one.metrics[objective.name] for one in tuner.records]
    best = max(ends) if objective.direction == "max" else min(ends)
    (chosen,), (model,) = tuner.get_best_hyperparameters(), tuner.get_best_models()
    record = next(one for one in tuner.records if one.values == chosen.values)
    assert record.metrics[objective.name] == best
    assert accuracy(hypermodel, record, model) == pytest.approx(record.accuracy)


def test_hyperband_goes_on_with_the_weights_that_a_trial_had(data, tmp_path):
    space = SearchSpace(CUTS, units=(0,), dropout=(0.0,), learning_rate=(0.01, 0.1))
    hypermodel = CutHyperModel(data, space, SearchConfig(patience=9))
    oracle = keras_tuner.oracles.HyperbandOracle("val_loss", max_epochs=2, factor=2, seed=3)
    tuner = searched(hypermodel, oracle, tmp_path)
    later = [one for one in tuner.records if one.values["tuner/initial_epoch"] > 0]
    assert later
    for record in later:
        before = next(r for r in tuner.records if r.number == int(record.values["tuner/trial_id"]))
        assert record.spec == before.spec
        first, last = record.values["tuner/initial_epoch"], record.values["tuner/epochs"]
        # The weights of the earlier trial are kept, too, so that it can be gone on with here.
        model = tuner.trained(before.number)
        fit = hypermodel.train(record.spec, model, epochs=last, initial_epoch=first)
        assert len(record.fit.history["loss"]) == last - first
        assert record.fit.metrics == pytest.approx(fit.metrics, rel=1e-4)


class Eager(Here):
    """This process, which reads all items before it works on one."""

    def map(self, function, items):
        return super().map(function, [*items])


@pytest.mark.parametrize(("oracle", "ahead"), [("random", 4), ("bayesian", 2)])
def test_trials_are_asked_for_ahead_where_none_follows_from_others(
    hypermodel, oracle, ahead, tmp_path
):
    hypermodel.config = hypermodel.config.changed(ask=2)
    here, there = (CutTuner(hypermodel, ORACLES[oracle](), tmp_path / n) for n in ("a", "b"))
    here.search()
    known = []
    there.search(lambda _: known.append(len(there.oracle.trials)), workers=Eager())
    assert known[0] == ahead
    told = [[replace(r, fit=replace(r.fit, seconds=0.0)) for r in t.records] for t in (here, there)]
    assert told[0] == told[1]


def test_each_cut_is_tried_first_and_the_informative_one_wins(hypermodel, tmp_path):
    tuner = searched(hypermodel, sweep(5), tmp_path)
    assert [record.cut for record in tuner.records[:3]] == CUTS
    defaults = [(r.spec.units, r.spec.dropout) for r in tuner.records[:3]]
    assert defaults == [(0, 0.0)] * 3
    assert tuner.get_best_hyperparameters()[0].get("cut") == "deep"


def test_the_grid_is_every_combination_the_cut_slowest(hypermodel, tmp_path):
    tuner = searched(hypermodel, grid(), tmp_path)
    found = [(r.cut, r.spec.units, r.spec.learning_rate) for r in tuner.records]
    assert found == [(cut, u, rate) for cut in CUTS for u in (0, 4) for rate in (0.3, 0.1)]


def test_a_range_makes_no_grid(data, tmp_path):
    hypermodel = CutHyperModel(data, SearchSpace(CUTS))
    with pytest.raises(ConfigError, match="learning_rates="):
        searched(hypermodel, grid(), tmp_path)


def test_trials_of_different_batch_sizes_and_optimizers(data, tmp_path):
    space = SearchSpace(
        ["deep"],
        units=(0,),
        dropout=(0.0,),
        optimizers=("adam", "sgd"),
        learning_rates=(0.1,),
        batch_sizes=(16, 60),
    )
    tuner = searched(CutHyperModel(data, space, SearchConfig(epochs=2)), grid(), tmp_path)
    assert len(tuner.records) == 4
    for record in tuner.records:
        alone = CutHyperModel(data, space, SearchConfig(epochs=2))
        fit = alone.train(record.spec, alone.build_for(record.spec))
        assert record.fit.metrics == pytest.approx(fit.metrics, rel=1e-4)


# --- what is kept -----------------------------------------------------------------------------


def test_only_the_weights_of_the_best_are_kept(hypermodel, tmp_path):
    tuner = searched(hypermodel, sweep(4), tmp_path, keep=2)
    ranked = sorted(tuner.records, key=lambda r: (-r.accuracy, r.loss))
    kept = {record.number for record in ranked[:2]}
    files = list(tmp_path.rglob("*.npz"))
    assert {int(file.name.split(".")[0]) for file in files} == kept
    for number in kept:
        record = next(one for one in tuner.records if one.number == number)
        found = accuracy(hypermodel, record, tuner.trained(number))
        assert found == pytest.approx(record.accuracy)
    worst = ranked[-1].number
    with pytest.raises(ReusekitError, match=f"Received: {worst}.*keep="):
        tuner.trained(worst)


def test_a_file_holds_what_the_trial_trained_and_nothing_else(hypermodel, tmp_path):
    tuner = searched(hypermodel, sweep(3), tmp_path)
    (file,) = tmp_path.rglob("*.npz")
    with np.load(file) as held:
        sizes = [held[name].size for name in held]
    record = max(tuner.records, key=lambda r: r.accuracy)
    statistics = 2 * 6 + 1  # the mean and the variance that the head removes, and their count
    assert record.trained <= sum(sizes) <= record.trained + statistics


def test_nothing_else_is_left_in_the_folder_but_small_text(hypermodel, tmp_path):
    searched(hypermodel, sweep(3), tmp_path)
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} == {".npz", ".json"}


# --- what fails -------------------------------------------------------------------------------


def failing(hypermodel, cuts, error):
    """Has the trials of some cuts fail when their model is built."""
    build = hypermodel.build_for

    def build_for(spec):
        if spec.cut in cuts:
            raise error
        return build(spec)

    hypermodel.build_for = build_for


EXHAUSTED = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating a tensor")


@pytest.mark.parametrize("error", [MemoryError("no room"), EXHAUSTED])
def test_one_that_fails_in_a_group_is_recorded_and_the_others_succeed(hypermodel, error, tmp_path):
    reported = []
    tuner = CutTuner(hypermodel, sweep(3), tmp_path)
    failing(hypermodel, ["middle"], error)
    tuner.search(report=reported.append)
    assert [r.status for r in tuner.records] == ["completed", "failed", "completed"]
    failed = tuner.records[1]
    assert failed.error.startswith(type(error).__name__)
    assert failed.fit is None and failed.metrics == {}
    assert sorted(r.number for r in reported) == [0, 1, 2]
    assert [t.status for t in tuner.oracle.trials.values()] == ["COMPLETED", "FAILED", "COMPLETED"]


class Huge(keras.layers.Layer):
    """Asks for more memory than there is, in the compiled step."""

    def call(self, x, training=False):
        if not training:
            return x
        taken = tf.numpy_function(lambda _: np.ones(2**60, "float32"), [x[0, 0]], tf.float32)
        return x + tf.stop_gradient(tf.reshape(taken, (-1,))[0])


def test_memory_that_runs_out_while_training(hypermodel, tmp_path):
    build = hypermodel.build_for

    def build_for(spec):
        model = build(spec)
        if spec.cut == "middle":
            model = keras.Model(model.input, Huge()(model.output))
            model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    tuner = CutTuner(hypermodel, sweep(3), tmp_path)
    hypermodel.build_for = build_for
    tuner.search()
    assert [r.status for r in tuner.records] == ["completed", "failed", "completed"]
    assert tuner.records[1].error.startswith("ResourceExhaustedError")


def test_a_loss_that_is_never_finite_is_a_failure(data, tmp_path):
    space = SearchSpace(CUTS, units=(0,), dropout=(0.0,), optimizers=("sgd",))
    hypermodel = CutHyperModel(data, space, SearchConfig(epochs=2))
    tuner = CutTuner(hypermodel, sweep(3), tmp_path)
    build = hypermodel.build_for

    def build_for(spec):
        model = build(spec)
        if spec.cut == "deep":
            model.optimizer.learning_rate = float("nan")
        return model

    hypermodel.build_for = build_for
    tuner.search()
    assert [r.status for r in tuner.records] == ["completed", "completed", "failed"]
    assert "never finite" in tuner.records[2].error


def test_all_failing_is_one_error_with_the_first_cause(hypermodel, tmp_path):
    tuner = CutTuner(hypermodel, sweep(3), tmp_path)
    failing(hypermodel, CUTS, RuntimeError("the first cause"))
    with pytest.raises(
        ReusekitError, match=r"Received: 3 that failed.*RuntimeError: the first cause"
    ):
        tuner.search()
    assert [r.status for r in tuner.records] == ["failed"] * 3


def test_hyperband_ends_though_trials_fail(data, tmp_path):
    space = SearchSpace(CUTS, units=(0,), dropout=(0.0,))
    hypermodel = CutHyperModel(data, space)
    oracle = keras_tuner.oracles.HyperbandOracle("val_loss", max_epochs=2, factor=2, seed=3)
    tuner = CutTuner(hypermodel, oracle, tmp_path)
    failing(hypermodel, ["deep"], ValueError("bad"))
    tuner.search()
    assert {r.status for r in tuner.records if r.cut == "deep"} == {"failed"}
    assert {r.status for r in tuner.records if r.cut != "deep"} == {"completed"}


def test_an_interrupt_is_no_failure(hypermodel, tmp_path):
    tuner = CutTuner(hypermodel, sweep(3), tmp_path)

    def interrupted(spec):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise ValueError("Unbatching a tensor")  # as TensorFlow may make of it

    hypermodel.build_for = interrupted
    with pytest.raises(KeyboardInterrupt):
        tuner.search()
    assert tuner.records == []


def test_an_objective_that_no_head_reports(hypermodel, tmp_path):
    objective = keras_tuner.Objective("val_acuracy", "max")
    oracle = CutSweepOracle(CUTS, 3, objective=objective, seed=1)
    with pytest.raises(ConfigError, match=r"val_acuracy.*Did you mean 'val_accuracy'"):
        searched(hypermodel, oracle, tmp_path)


def test_several_objectives_at_once_are_refused(hypermodel, tmp_path):
    oracle = CutSweepOracle(CUTS, 3, objective=["val_accuracy", "val_loss"], seed=1)
    with pytest.raises(ConfigError, match="one metric"):
        CutTuner(hypermodel, oracle, tmp_path)


# --- limits -----------------------------------------------------------------------------------


def test_a_model_over_the_limit_is_recorded_and_not_trained(hypermodel, tmp_path):
    built = []
    linear = hypermodel.build_for(rk.search.TrialSpec("deep", "deep")).count_params()
    tuner = searched(
        hypermodel, grid(), tmp_path, limits=Limits(parameters=linear), report=built.append
    )
    statuses = {r.spec.units: r.status for r in tuner.records}
    assert statuses == {0: "completed", 4: "over the limit"}
    over = [r for r in tuner.records if r.status == "over the limit"]
    assert all(r.fit is None and r.sizes.parameters > linear for r in over)
    assert all("parameters: " in r.error and str(linear) in r.error for r in over)
    assert sorted(r.number for r in built) == list(range(len(tuner.records)))


def test_a_cut_that_takes_too_long(hypermodel, tmp_path):
    latencies = {"shallow": 0.001, "middle": 0.002, "deep": 0.5}
    tuner = searched(
        hypermodel, sweep(3), tmp_path, limits=Limits(latency=0.01), latencies=latencies
    )
    assert [r.status for r in tuner.records] == ["completed", "completed", "over the limit"]
    assert tuner.records[2].error.startswith("latency")


def test_all_over_the_limit_is_an_error_that_says_so(hypermodel, tmp_path):
    with pytest.raises(ReusekitError, match=r"parameters: .* limit is 1"):
        searched(hypermodel, sweep(3), tmp_path, limits=Limits(parameters=1))


@pytest.mark.parametrize("most", [1, 2, 3, 7, None])
def test_spreading_evenly_keeps_order_and_the_deepest(most):
    items = [f"cut{number}" for number in range(7)]
    spread = evenly(items, most)
    assert spread == sorted(set(spread))
    assert spread[-1] == "cut6"
    assert len(spread) == (most or 7)
