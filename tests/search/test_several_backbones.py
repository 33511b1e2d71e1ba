"""Several backbones in one search: each trial as in a search of its own, one pass for each."""

import keras
import keras_tuner
import numpy as np
import pytest
from keras import layers
from search.textures import small_backbone

import reusekit as rk
from reusekit.errors import ConfigError, DataError
from reusekit.features import FeatureStore
from reusekit.planning.planned import JointPlan
from reusekit.search import CutGridOracle, CutSearch, CutSweepOracle, SearchConfig, SearchSpace

CUTS = {"glyphnet": ["block5_out", "block7_out"], "small": ["out0", "out1"]}
SIZES = {"glyphnet": (32, 32, 1), "small": (8, 8, 1), "colour": (12, 16, 3)}
CHOICES = {"units": (0,), "dropout": (0.0,), "learning_rates": (0.01, 0.1)}
CONFIG = SearchConfig(epochs=2, rank="logme", keep=9)
FROZEN_UP_TO = ["block5_out", "out0"]


def opened(part, **treatment):
    return rk.data.load("sklearn_digits", part, treatment=rk.data.Treatment(**treatment))


@pytest.fixture(scope="module")
def parts():
    return opened("train[:60]"), opened("validation[:40]")


@pytest.fixture(scope="module")
def backbones():
    return {"glyphnet": rk.load_backbone("reusekit/glyphnet"), "small": small_backbone()}


@pytest.fixture(scope="module")
def joint(backbones, parts, tmp_path_factory):
    """The search of both, killed in the middle and gone on with; and its store."""
    folder = tmp_path_factory.mktemp("joint")
    store = FeatureStore(folder / "store")

    def search():
        space = SearchSpace(CUTS, frozen_up_to=FROZEN_UP_TO, **CHOICES)
        return CutSearch(backbones, *parts, space, CONFIG, folder / "search", store)

    class Killed(BaseException):
        pass

    def kill(record):
        if record.number == 3:
            raise Killed

    with pytest.raises(Killed):
        search().run(report=kill)
    left = search()
    assert 0 < len(left.tuner.records) < 8
    left.run()
    return left, store


def test_each_trial_is_that_of_a_search_of_its_own(joint, backbones, parts, tmp_path):
    both, store = joint
    frames = []
    for number, (name, backbone) in enumerate(backbones.items()):
        own = parts  # as they are what it takes
        if name != "small":
            height, width, channels = SIZES[name]
            own = [
                opened(part, image_size=(height, width), channels=channels)
                for part in ("train[:60]", "validation[:40]")
            ]
        space = SearchSpace(CUTS[name], frozen_up_to=[FROZEN_UP_TO[number]], **CHOICES)
        alone = CutSearch(backbone, *own, space, CONFIG, tmp_path / name, store)
        assert {one.how for one in alone.plan.features} == {"stored"}  # one pass was enough
        alone.run()
        mine = [trial for trial in both.result.trials if trial.spec.backbone == name]
        assert [trial.fit.history for trial in mine] == [
            trial.fit.history for trial in alone.result.trials
        ]
        assert [trial.sizes for trial in mine] == [trial.sizes for trial in alone.result.trials]
        assert [trial.trained for trial in mine] == [t.trained for t in alone.result.trials]
        frames.append(alone.ranking.set_index("cut")["score"])
        assert (
            both.ranking[both.ranking["backbone"] == name]
            .set_index("cut")["score"]
            .equals(frames[-1])
        )


def test_there_is_one_plan_one_table_and_one_front(joint, parts):
    search, _ = joint
    assert len(search.result.trials) == 8
    assert list(dict.fromkeys(search.results()["backbone"])) == list(CUTS)
    printed = str(search.plan)
    assert printed.count("In all") == 1
    assert all(word in printed for word in ("backbone", "glyphnet", "small", "block7_out", "out1"))
    saved = JointPlan.load(search.folder / "plan.json")
    assert saved == search.plan
    assert search.plan.bytes == sum(plan.bytes for plan in search.plan.plans.values()) > 0
    assert sorted(search.plan.to_frame()["backbone"].unique()) == sorted(CUTS)
    front = search.pareto("latency")
    best = search.result.best
    assert best.named_cut in search.result.latencies
    assert (front.iloc[-1]["backbone"], front.iloc[-1]["cut"]) == best.named_cut
    assert search.ranking["rank"].tolist() == sorted(search.ranking["rank"])
    assert -1 <= search.rank_correlation().kendall <= 1
    assert best.label in repr(search.result)


def test_the_best_model_is_of_the_right_backbone(joint):
    search, _ = joint
    seen = set()
    for position, record in enumerate(search.result.completed):
        name = record.spec.backbone
        if name in seen:
            continue
        seen.add(name)
        model = search.best_model(position)
        assert model.input_shape == (None, *SIZES[name])
        images, labels = search.backbones[name].validation.arrays()
        assert model.evaluate(images, labels, verbose=0)[1] == pytest.approx(record.accuracy)
    assert seen == set(CUTS)
    with pytest.raises(ConfigError, match=r"a search of one backbone\. Received: glyphnet, small"):
        _ = search.graph


def test_oracles_know_which_cut_is_of_which_backbone(joint, tmp_path):
    search, _ = joint
    space = search.space
    oracle = CutGridOracle(search.hypermodel.spec, objective="val_accuracy")
    oracle._set_project_dir(tmp_path, "grid")
    hp = oracle.get_space()
    space.sample(hp)
    oracle.update_space(hp)
    trials = [oracle.create_trial(str(number)) for number in range(9)]
    assert [trial.status for trial in trials] == ["RUNNING"] * 8 + ["STOPPED"]
    for trial in trials[:8]:
        values = trial.hyperparameters.values
        name = values["backbone"]
        assert values[f"cut/{name}"] in CUTS[name]
        assert values[f"frozen_up_to/{name}"] in FROZEN_UP_TO
    places = [(name, at) for name, cuts in CUTS.items() for at in cuts]
    sweep = CutSweepOracle(places, max_trials=5, objective="val_accuracy", seed=1)
    sweep._set_project_dir(tmp_path, "sweep")
    sweep.update_space(hp)
    found = []
    for number in range(5):
        trial = sweep.create_trial(str(number))
        values = trial.hyperparameters.values
        found.append((values["backbone"], values[f"cut/{values['backbone']}"]))
        assert found[-1] in places
        sweep.update_trial(trial.trial_id, {"val_accuracy": number / 10})
        trial.status = "COMPLETED"
        sweep.end_trial(trial)
    assert found[:4] == places
    assert isinstance(search.tuner.get_best_hyperparameters()[0], keras_tuner.HyperParameters)


def test_limits_and_a_short_disk_are_for_all(backbones, parts, tmp_path):
    def search(**settings):
        config = SearchConfig(epochs=1, **settings)
        space = SearchSpace(CUTS, **CHOICES)
        return CutSearch(backbones, *parts, space, config, tmp_path, FeatureStore(tmp_path / "s"))

    few = search(limits=rk.search.Limits(parameters=2000))
    assert list(few.space.cuts) == ["small"]
    assert list(few.plan.plans) == ["small"]
    with pytest.raises(ConfigError, match=r"limits .* nearest 'small: out0' \(parameters"):
        _ = search(limits=rk.search.Limits(parameters=1)).plan
    room = max(one.bytes for plan in search().plan.plans.values() for one in plan.features)
    short = search(disk=room)
    assert 0 < short.plan.bytes <= room


def test_the_same_examples_are_brought_to_each_backbone(parts):
    train = parts[0].balanced().augmented(["RandomFlip"])
    for height, width, channels in SIZES.values():
        treatment = rk.data.Treatment(image_size=(height, width), channels=channels)
        found = train.treated(treatment)
        own = opened("train[:60]", image_size=(height, width), channels=channels).balanced()
        assert found.fingerprint == own.fingerprint
        assert np.array_equal(found.keys, own.keys)
        assert found.input_shape == (height, width, channels)
        assert found.augmentation == train.augmentation
        for one, other in zip(found.arrays(), own.arrays(), strict=True):
            np.testing.assert_array_equal(one, other)


def texts(parts):
    return [rk.data.from_arrays(np.array(["a", "b"] * 20), np.arange(40) % 2) for _ in parts]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"train": texts}, DataError, r"Backbone 'glyphnet': Expected images"),
        ({"space": SearchSpace(["out0"])}, ConfigError, r"Expected cuts by the names of the backb"),
        (
            {"space": SearchSpace({**CUTS, "big": ["x"]})},
            ConfigError,
            r"names of the backbones, glyphnet, small",
        ),
        (
            {"space": SearchSpace({**CUTS, "small": ["out9"]})},
            rk.errors.AddressError,
            r"Backbone 'small': .*out9",
        ),
        (
            {"space": SearchSpace(CUTS, frozen_up_to=["block55_out"])},
            ConfigError,
            r"that a backbone has\. Received: 'block55_out'\. Did you mean 'block5_out'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    change, error, says, backbones, parts, tmp_path
):
    given = change["train"](parts) if "train" in change else parts
    with pytest.raises(error, match=says):
        CutSearch(backbones, *given, change.get("space"), folder=tmp_path)


def test_names_and_examples_of_backbones(backbones, parts, tmp_path):
    glyphnet, small = backbones.values()
    search = CutSearch([glyphnet, small], *parts, folder=tmp_path)
    assert list(search.backbones) == ["glyphnet", "small"]
    assert {"block7_out", "out2"} <= {at for cuts in search._all_cuts.cuts.values() for at in cuts}
    with pytest.raises(ConfigError, match="'small' twice"):
        CutSearch([small, small], *parts, folder=tmp_path)
    other = {"glyphnet": parts[0], "small": opened("train[60:120]")}
    with pytest.raises(ConfigError, match=r"same train examples in the same order"):
        CutSearch(backbones, other, parts[1], folder=tmp_path)
    with pytest.raises(ConfigError, match=r"as lists of addresses for a single backbone"):
        CutSearch(small, *parts, SearchSpace(CUTS), folder=tmp_path)
    of_colour = keras.Sequential([keras.Input((8, 8, 5)), layers.Conv2D(2, 3)], name="five")
    with pytest.raises(DataError, match=r"Backbone 'five'"):
        CutSearch([small, of_colour], *parts, folder=tmp_path)


def test_texts_become_the_tokens_of_each_backbone(tmp_path):
    parts = [rk.data.load("python_topics", f"{part}[:20]") for part in ("train", "validation")]
    sources = {weights: {"weights": weights} for weights in ("default", None)}
    both = {str(of): rk.load_backbone("reusekit/prosenet", **one) for of, one in sources.items()}
    cuts = {of: ["block2_out"] for of in both}
    search = CutSearch(both, *parts, SearchSpace(cuts), folder=tmp_path)
    for one in search.backbones.values():
        assert one.train.examples.element_spec[0].dtype.is_integer
