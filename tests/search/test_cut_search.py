"""The whole of a cut search: what it plans, finds and gives back, and what it refuses."""

import warnings
from dataclasses import replace

import keras
import keras_tuner
import numpy as np
import pytest
from keras import layers

import reusekit as rk
from reusekit.errors import CacheError, ConfigError, DataError, ReusekitError
from reusekit.features import FeatureStore
from reusekit.planning import Plan
from reusekit.search import CutSearch, Limits, SearchConfig, SearchSpace, rank_correlation

CUTS = ["block5_out", "block7_out"]


def arrays(split):
    pairs = list(split.examples.as_numpy_iterator())
    return np.stack([x for x, _ in pairs]), np.array([y for _, y in pairs])


# --- glyphnet on digits, both ways ------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return [
        rk.data.load("sklearn_digits", part, treatment=rk.data.Treatment(image_size=(32, 32)))
        for part in ("train[:80]", "validation[:50]")
    ]


@pytest.fixture(scope="module")
def glyphnet():
    return rk.load_backbone("reusekit/glyphnet").model


@pytest.fixture(scope="module")
def both(glyphnet, digits, tmp_path_factory):
    """A head on each of two cuts, and the top of the backbone trained: planned, and plain."""
    folder = tmp_path_factory.mktemp("glyphnet")
    before = [v.numpy().copy() for v in glyphnet.variables]
    space = SearchSpace(
        CUTS, frozen_up_to=CUTS[:1], units=(0,), dropout=(0.0,), learning_rates=(0.01,)
    )
    found = []
    for plain in (False, True):
        search = CutSearch(
            glyphnet,
            *digits,
            space,
            SearchConfig(epochs=3, keep=2, plain=plain),
            folder=folder / f"plain {plain}",
            store=FeatureStore(folder / "store"),
        )
        search.run()
        found.append(search)
    for variable, value in zip(glyphnet.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)  # the backbone is left as it is
    return found


def test_the_trials_are_those_of_the_plain_way(both, digits):
    planned, plain = (search.results() for search in both)
    assert planned["cut"].tolist() == CUTS
    assert set(planned["frozen_up_to"]) == {"block5_out"}
    same = ["cut", "frozen_up_to", "learning_rate", "parameters", "flops", "bytes", "trained"]
    assert planned[same].equals(plain[same])
    examples = digits[1].size
    gap = np.abs(planned["val_accuracy"] - plain["val_accuracy"])
    assert gap.max() <= 1 / examples + 1e-6
    np.testing.assert_allclose(planned["val_loss"], plain["val_loss"], rtol=1e-2)
    assert planned["val_accuracy"].max() > 0.8
    assert planned["trained"][0] < planned["trained"][1]


@pytest.mark.parametrize("way", [0, 1], ids=["planned", "plain"])
def test_the_models_of_good_trials_are_whole(both, digits, way, tmp_path):
    search = both[way]
    images, labels = arrays(digits[1])
    for position, record in enumerate(search.result.completed):
        model = search.best_model(position)
        loss, accuracy = model.evaluate(images, labels, verbose=0)
        assert accuracy == pytest.approx(record.accuracy)
        assert loss == pytest.approx(record.loss, rel=1e-3)
        assert sum(v.numpy().size for v in model.trainable_variables) == record.trained
    as_trained = search.best_model(position, folded=False)
    assert as_trained.count_params() == record.sizes.parameters
    model.save(tmp_path / "model.keras")
    with warnings.catch_warnings():  # about an optimizer that has made no step yet
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    predicted = loaded.predict(images, verbose=0)
    np.testing.assert_allclose(predicted, model.predict(images, verbose=0), atol=1e-6)
    assert np.mean(predicted.argmax(axis=1) == labels) == pytest.approx(record.accuracy)


def test_a_best_model_is_not_the_backbone(both, glyphnet):
    model = both[0].best_model()
    assert not {id(v) for v in model.weights} & {id(v) for v in glyphnet.weights}


def test_a_place_that_is_not_there(both):
    with pytest.raises(ConfigError, match="from 0 to 1"):
        both[0].best_model(2)


def test_the_plan_is_printed_and_saved(both):
    planned, plain = both
    assert Plan.load(planned.folder / "plan.json") == planned.plan
    assert {one.at for one in planned.plan.features} == {"block5_out"}
    assert "block5_out" in str(planned.plan)
    assert plain.plan is None
    assert not (plain.folder / "plan.json").exists()


def test_latency_is_measured_when_it_is_asked_for(both):
    planned, _ = both
    front = planned.pareto("latency")
    latencies = planned.measure_latencies()
    assert latencies.keys() == set(CUTS)
    assert min(latencies.values()) > 0
    assert set(front["trial"]) <= {0, 1}
    assert planned.results()["latency"].notna().all()
    assert planned.pareto()["parameters"].is_monotonic_increasing


def test_a_frozen_weight_that_is_used_after_the_cut_stays_one_and_frozen(
    train, validation, tmp_path
):
    def backbone():
        keras.utils.set_random_seed(0)
        x = keras.Input((8, 8, 1), name="x")
        i = keras.Input((6,), name="i")
        tower = keras.Model(i, layers.Dense(6, "tanh", name="deep")(i), name="tower")
        shared = layers.Dense(6, name="shared")
        y = tower(shared(layers.Dense(6, "tanh", name="first")(layers.Flatten(name="flat")(x))))
        y = tower(shared(layers.Dense(6, "tanh", name="trained")(y)))
        y = rk.layers.TiedDense(shared, name="tied")(y)
        model = keras.Model(x, layers.Dense(6, name="last")(y), name="sharing")
        model.trainable = False  # as people do; what a search trains is what it is told
        return model

    space = SearchSpace(
        ["last"], frozen_up_to=["tower@0"], units=(0,), dropout=(0.0,), learning_rates=(0.03,)
    )
    found = []
    for plain in (False, True):
        folder = tmp_path / str(plain)
        config = SearchConfig(epochs=2, plain=plain)
        search = CutSearch(
            backbone(), train, validation, space, config, folder=folder,
            store=FeatureStore(folder / "f"),
        )  # fmt: skip
        search.run()
        best = search.best_model()
        images, labels = arrays(validation)
        assert best.evaluate(images, labels, verbose=0)[0] == pytest.approx(
            search.result.best.loss, rel=1e-5
        )
        names = {v.path: v for v in search.graph.model.variables}
        moved = {
            v.path
            for v in best.variables
            if v.path in names and not np.array_equal(v.numpy(), names[v.path].numpy())
        }
        found.append((search.result.best.loss, best.count_params(), moved))
        assert ("shared", "tied") in [tie.owners for tie in rk.tied_weights(best)]
    (loss, *rest), (plain_loss, *plain_rest) = found
    assert loss == pytest.approx(plain_loss, rel=1e-4)
    assert rest == plain_rest
    assert {"trained/kernel", "tied/bias", "last/kernel"} <= rest[1]
    assert not {"shared/kernel", "first/kernel", "deep/kernel"} & rest[1]


# --- a small backbone on textures -------------------------------------------------------------


CLEAN = ["stem", "out0", "out1", "out2"]


@pytest.fixture
def small(backbone, train, validation, tmp_path):
    """A search over heads on the small backbone."""

    def make(cuts=("stem", "out0", "out2"), model=backbone, data=(train, validation), **kwargs):
        space = SearchSpace(cuts, units=(0,), dropout=(0.0,), learning_rates=(0.1,))
        usual = {"space": space, "store": FeatureStore(tmp_path / "store")}
        usual["folder"] = tmp_path / "search"
        space, store, folder = (kwargs.pop(name, default) for name, default in usual.items())
        config = SearchConfig(**{"epochs": 2} | kwargs)
        return CutSearch(model, *data, space, config, folder=folder, store=store)

    return make


def test_without_a_space_every_clean_cut_is_tried(small):
    search = small(space=None, max_trials=2)
    clean = [p for p in rk.cut_points(search.graph, max_width=None) if p.width == 1]
    assert list(search.space.cuts) == [p.at for p in clean if p.params_before]
    assert [at for at in search.space.cuts if at in CLEAN] == CLEAN


def test_a_ranking_orders_and_prunes(small):
    search = small(rank="ridge", best_cuts=2, max_trials=2)
    ranking = search.ranking
    assert sorted(ranking["cut"]) == ["out0", "out2", "stem"]
    best = ranking.sort_values("rank")["cut"].tolist()[:2]
    result = search.run()
    assert [trial.cut for trial in result.trials] == best
    assert [cut.at for cut in result.cuts] == [at for at in ("stem", "out0", "out2") if at in best]


def test_a_search_starts_from_what_an_earlier_one_found(small, tmp_path, capsys):
    cuts, rates = ("stem", "out0", "out2"), [0.001, 0.01, 0.1]
    space = SearchSpace(cuts, units=(0, 4), dropout=(0.0,), learning_rates=rates)
    first = small(space=space, max_trials=7).run()
    best = {}
    for trial in first.completed:
        best.setdefault(trial.cut, trial.spec)
    start = {"start_from": str(tmp_path / "search"), "folder": tmp_path / "later"}
    fewer = space.changed(cuts=("stem", "out1", "out2"), learning_rates=rates[1:])
    later = small(space=fewer, max_trials=3, **start)
    specs = [trial.spec for trial in later.run().trials]
    known = [cut for cut in best if cut != "out0"]
    assert [spec.cut for spec in specs] == [*known, "out1"]
    for spec in specs[:2]:
        wanted = best[spec.cut]
        assert spec.units == wanted.units
        assert spec.learning_rate == max(wanted.learning_rate, 0.01)  # or what comes first
    said = " ".join("".join(capsys.readouterr()).split())
    assert f"as it was best in {tmp_path / 'search'}: {', '.join(known)}." in said
    for wrong, says in (
        ({"start_from": str(tmp_path / "none")}, "Expected the folder of a search"),
        ({"space": space.changed(cuts=("out1",))}, "Expected start_from to be a search with"),
        ({"folder": tmp_path / "search"}, "Expected start_from to be another folder"),
    ):
        with pytest.raises(ConfigError, match=says):
            small(**{"max_trials": 1, **start, **wrong}).run()


def test_how_well_the_ranking_foretold_the_result(small):
    search = small(rank="logme", objective="val_loss")
    reached = {cut.at: -cut.best.loss for cut in search.run().cuts}
    scores = dict(zip(search.ranking["cut"], search.ranking["score"], strict=True))
    expected = rank_correlation([scores[at] for at in reached], list(reached.values()))
    assert search.rank_correlation() == expected
    sizes = [
        p.params_before for p in rk.cut_points(search.graph, max_width=None) if p.at in reached
    ]
    by_size = rank_correlation(sizes, list(reached.values()))
    assert search.rank_correlation("size") == by_size
    ordered = small(rank="size")
    assert ordered.ranking["score"].tolist() == sorted(map(float, sizes), reverse=True)
    assert {one.at for one in ordered.plan.features} == set(ordered.space.cuts)


def test_a_ranking_of_features_that_are_not_stored(small, tmp_path):
    expected = small(rank="logme").ranking
    search = small(rank="logme", disk=0, store=FeatureStore(tmp_path / "empty"))
    assert {one.how for one in search.plan.features} == {"recompute"}
    assert search.ranking["cut"].tolist() == expected["cut"].tolist()
    np.testing.assert_allclose(search.ranking["score"], expected["score"], rtol=1e-3)


def test_rankings_that_make_no_sense(small):
    with pytest.raises(ConfigError, match="best_cuts, which needs a ranking"):
        small(best_cuts=2)
    with pytest.raises(ConfigError, match="no ranking with plain=True"):
        small(plain=True, rank="ridge")
    with pytest.raises(ConfigError, match="Expected a ranking"):
        small().rank_correlation()


def test_cuts_over_the_limits_are_left_out(small, backbone):
    parameters = {at: rk.extract(backbone, at).count_params() for at in ("stem", "out0", "out2")}
    most = parameters["out0"] + 44  # the head's 27, and the statistics that it removes
    search = small(limits=Limits(parameters=most - 1))
    assert list(search.space.cuts) == ["stem", "out0"]
    assert {one.at for one in search.plan.features} == {"stem", "out0"}
    stem, out0 = search.run().trials
    assert (stem.status, out0.status) == ("completed", "over the limit")
    assert out0.sizes.parameters == most
    with pytest.raises(ConfigError, match=r"limits .* nearest 'stem' \(flops: "):
        _ = small(limits=Limits(flops=1)).plan
    with pytest.raises(ConfigError, match="latency"):
        _ = small(limits=Limits(latency=1e-9)).plan


@pytest.mark.parametrize("kwargs", [{"disk": 0}, {}], ids=["no disk", "a tiny store"])
def test_a_budget_for_nothing_gives_the_same_trials(small, tmp_path, kwargs):
    (stored,) = small(cuts=["out0"]).run().trials
    empty = FeatureStore(tmp_path / "empty", budget=100)  # less than one entry
    search = small(cuts=["out0"], store=empty, **kwargs)
    assert {one.how for one in search.plan.features} == {"recompute"}
    (computed,) = search.run(fresh=True).trials
    assert computed.spec == stored.spec
    assert computed.metrics == pytest.approx(stored.metrics, rel=1e-3)
    assert empty.entries() == []


def test_an_oracle_of_keras_tuner(small):
    oracle = keras_tuner.oracles.RandomSearchOracle("val_loss", 2, seed=1)
    result = small().run(oracle=oracle)
    assert (result.objective, result.maximize) == ("val_loss", False)
    assert len(result.trials) == 2


# --- what is refused --------------------------------------------------------------------------


def test_a_model_without_a_clean_cut(train, validation, tmp_path):
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, layers.Rescaling(2.0)(inputs), name="weightless")
    with pytest.raises(ConfigError, match=r"'weightless', which has none.*cut_points"):
        CutSearch(model, train, validation, folder=tmp_path)


def test_a_cut_that_is_nowhere(small):
    with pytest.raises(rk.SurgeryError, match="out1"):
        small(cuts=["out11"]).run()


def test_features_that_are_not_numbers(small, tmp_path):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(2, 3, name="conv")(inputs)
    model = keras.Model(inputs, layers.Rescaling(float("nan"), name="lost")(x))
    with pytest.raises(CacheError, match=r"at 'lost'. Received: some that are not finite"):
        small(cuts=["lost"], model=model).run()
    assert not list((tmp_path / "search").glob("state.json"))


def test_a_data_set_that_has_another_size_than_it_had(small, train, validation):
    fewer = replace(train, examples=train.examples.take(50))
    with pytest.raises(DataError, match=r"60.*50"):
        small(data=(fewer, validation)).run()
    more = replace(train, examples=train.examples.concatenate(train.examples.take(5)))
    with pytest.raises(DataError, match="60"):
        small(data=(more, validation), plain=True).run()


def test_a_folder_that_cannot_be_written(small, tmp_path):
    (tmp_path / "search").write_text("a file is here")
    with pytest.raises(ConfigError, match=r"can be made.*File exists"):
        small().run()


def test_heads_that_do_not_fit_their_features(small):
    class Wide(type(rk.heads.Classifier(3))):
        def connect(self, features):
            raise rk.errors.HeadError("Expected more channels.")

    space = SearchSpace(["stem"], heads={"wide": Wide(3)}, learning_rates=(0.1,))
    with pytest.raises(ReusekitError, match="Expected more channels"):
        small(space=space).run()
