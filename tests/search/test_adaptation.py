"""Trials that adapt the backbone by few weights: alone, together, stored, resumed, made whole."""

import keras
import numpy as np
import pytest
from search.textures import small_backbone, textures

from reusekit.errors import ConfigError, TrainingError
from reusekit.features import FeatureStore
from reusekit.graph import keras_internals
from reusekit.search import CutSearch, SearchConfig, SearchSpace, TrialSpec

ADAPTATIONS = ["none", "from:out1", "lora:1", "lora:4", "norms"]


def search(folder, adaptation=ADAPTATIONS, plain=False, **space) -> CutSearch:
    choices = {"cuts": ["out2"], "frozen_up_to": ["out0"], "units": [0], "dropout": [0.0]}
    choices |= {"adaptation": adaptation, "learning_rates": [0.03], "standardize": False}
    return CutSearch(
        small_backbone(),
        textures("train", 45, 1),
        textures("validation", 30, 2),
        SearchSpace(**choices | space),
        SearchConfig(epochs=2, patience=9, keep=len(ADAPTATIONS), plain=plain),
        folder=folder / f"search{plain}",
        store=FeatureStore(folder / "store"),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("adapted")


@pytest.fixture(scope="module")
def searched(folder) -> CutSearch:
    one = search(folder)
    one.run()
    return one


def histories(result):
    return {trial.spec.adaptation: trial.fit.history for trial in result.trials}


def test_trials_begin_where_they_should_and_train_what_they_say(searched):
    frame = searched.results().set_index("trial")
    assert set(frame["status"]) == {"completed"}
    specs = [trial.spec for trial in searched.result.trials]
    assert [(spec.frozen_up_to, spec.adaptation) for spec in specs] == [
        ("out2", None),
        ("out1", None),
        *(("out0", one) for one in ADAPTATIONS[2:]),
    ]
    trained = dict(zip(ADAPTATIONS, frame["trained"], strict=True))
    head = 8 * 3 + 3
    assert trained["none"] == head
    for rank in (1, 4):  # two convolutions of 3 x 3, from 8 channels to 8
        assert trained[f"lora:{rank}"] == head + 2 * rank * (3 * 3 * 8 + 8)
    assert trained["norms"] == head + 2 * 2 * 8
    assert frame["parameters"].nunique() == 1  # LoRA is merged in the end
    planned = {(one.at, one.pooling): one.how for one in searched.plan.features}
    assert planned.keys() == {("out2", "avg"), ("out0", None), ("out1", None)}


def test_ranks_are_trained_together_each_as_it_is_alone(searched):
    group = next(one for one in searched.plan.groups if one.at == "out0")
    assert group.together > 1
    for trial in searched.result.trials:
        if str(trial.spec.adaptation).startswith("lora"):
            model = searched.hypermodel.build_for(trial.spec)
            alone = searched.hypermodel.train(trial.spec, model)
            for name, found in trial.fit.history.items():
                np.testing.assert_allclose(alone.history[name], found, rtol=1e-5, err_msg=name)


def test_the_plain_way_finds_the_same(searched, folder):
    plain = search(folder, ["lora:4"], plain=True)
    plain.run()
    ours = histories(searched.result)
    for adaptation, found in histories(plain.result).items():
        for name in ("loss", "val_loss"):
            np.testing.assert_allclose(found[name], ours[adaptation][name], rtol=1e-4)
    assert not _lora(plain.best_model())


def test_only_what_was_trained_is_stored(searched):
    for trial, adaptation in zip(searched.result.trials, ADAPTATIONS, strict=True):
        with np.load(searched.folder / "weights" / f"{trial.number:04d}.npz") as held:
            kept = sum(held[name].size for name in held)
        moving = {"none": 0, "from:out1": 2 * 8}.get(adaptation, 4 * 8)  # of normalisations
        assert kept == trial.trained + moving, adaptation


def test_a_search_goes_on_and_its_best_models_are_whole_merged_and_equal(searched, folder):
    again = search(folder)
    assert [one.to_dict() for one in again.run().trials] == [
        one.to_dict() for one in searched.result.trials
    ]
    x, y = textures("validation", 30, 2).arrays()
    for position, trial in enumerate(again.result.completed):
        whole = again.best_model(position)
        assert not _lora(whole)
        loss = whole.evaluate(x, y, verbose=0)[0]
        assert loss == pytest.approx(trial.metrics["val_loss"], rel=1e-4)
        if trial.spec.adaptation == "lora:4":
            kept = again.best_model(position, merged=False)
            assert len(_lora(kept)) == 2
            given, merged = (np.array(model(x, training=False)) for model in (kept, whole))
            np.testing.assert_allclose(merged, given, rtol=1e-4, atol=1e-6)


def _lora(model: keras.Model) -> list[keras.Layer]:
    return [p for p in keras_internals.all_layers(model) if getattr(p, "lora_enabled", False)]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"adaptation": ["lor:2"]}, ConfigError, "none, from:ADDRESS, .*Did you mean 'lora:8'"),
        ({"adaptation": ["norms"], "frozen_up_to": []}, ConfigError, "Expected frozen_up_to"),
        ({"adaptation": ["lora:9"]}, TrainingError, "a rank of at most 8, as of the kernel of 'c"),
        ({"lora_targets": "attention"}, TrainingError, "in the part of 'small' to adapt"),
        ({"adaptation": ["from:out11"]}, ValueError, "Did you mean 'out1'"),
    ],
)
def test_bad_adaptations_are_refused_before_anything_runs(changed, error, message, tmp_path):
    with pytest.raises(error, match=message):
        search(tmp_path, **{"adaptation": ["lora:2"]} | changed)


def test_an_adaptation_of_nothing_is_a_head_alone():
    space = SearchSpace(["a", "b"], frozen_up_to=["a"], adaptation=["lora:2", "none", "from:a"])
    assert space.begins == ["a"]
    assert space.parts("b") == [("a", "lora:2"), ("b", None), ("a", None)]
    spec = TrialSpec("a", "a", adaptation="lora:2")
    assert TrialSpec.from_dict(spec.to_dict()) == spec
    assert not spec.trains_backbone
