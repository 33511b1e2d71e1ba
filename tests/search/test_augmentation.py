"""A search on augmented examples is what Keras makes of them by hand, and stores none as plain."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from search.textures import small_backbone, textures

import reusekit as rk
from reusekit.errors import CacheError, ConfigError
from reusekit.features import FeatureStore, feed, stored_features
from reusekit.planning.rule import VALIDATION_BATCH
from reusekit.search import CutSearch, SearchConfig, SearchSpace

# The second trial trains a part of the backbone.
SPACE = SearchSpace(["out1", "out2"], frozen_up_to=["out1"], units=[0], dropout=[0.0],
                    learning_rates=[0.03], standardize=False)  # fmt: skip
RECIPE = ["RandomFlip", {"MixUp": {"alpha": 0.4}}]
PLAIN = textures("train", 45, 1)
VALIDATION = textures("validation", 30, 2)


def searched(folder, recipe=RECIPE, store=None, **settings) -> CutSearch:
    search = CutSearch(
        small_backbone(),
        PLAIN.augmented(recipe),
        VALIDATION,
        SPACE,
        SearchConfig(**{"epochs": 2, "patience": 9} | settings),
        folder=folder / "search",
        store=store or FeatureStore(folder / "store"),
    )
    search.run()
    return search


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return searched(tmp_path_factory.mktemp("mixed"))


def histories(search) -> list[dict[str, list[float]]]:
    return [trial.fit.history for trial in search.result.trials]


def test_epochs_are_those_of_a_loop_by_hand_in_every_way(mixed, tmp_path):
    plain = searched(tmp_path, plain=True)
    for one, other in zip(histories(mixed), histories(plain), strict=True):
        for name in one:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-4)

    trial = plain.result.trials[1]
    model, seed = plain.hypermodel.build_for(trial.spec), plain.config.seed
    x, y = PLAIN.arrays()
    batches, augmentation = feed(x, y, trial.spec.batch_size, seed), plain.train.augmentation
    flip, mix = augmentation.layers
    for epoch in range(2):
        loss = 0.0
        for number, (images, labels) in enumerate(batches):
            augmentation.reseed(seed, epoch, number)
            images = flip(images, training=True)
            both = {"images": images, "labels": keras.ops.one_hot(labels, 3)}
            both = mix(both, training=True)
            found = model.train_on_batch(both["images"], both["labels"], return_dict=True)
            loss += found["loss"] * len(labels) / PLAIN.size
        assert loss == pytest.approx(trial.fit.history["loss"][epoch], rel=1e-4)
        validated = model.evaluate(
            feed(*VALIDATION.arrays(), VALIDATION_BATCH), verbose=0, return_dict=True
        )
        for name, value in validated.items():
            assert value == pytest.approx(trial.fit.history[f"val_{name}"][epoch], rel=1e-4)


def test_no_layer_of_it_is_in_the_best_model_nor_anything_augmented_in_the_store(mixed):
    assert {entry.about["split"] for entry in mixed.store.entries()} == {"validation"}
    best = mixed.best_model()
    assert not any(
        keras.layers.RandomFlip in type(layer).__mro__ or isinstance(layer, keras.layers.MixUp)
        for layer in best.layers
    )
    assert best.evaluate(*VALIDATION.arrays(), verbose=0)[0] == pytest.approx(
        mixed.result.best.metrics["val_loss"], rel=1e-4
    )
    assert any("'MixUp" in note and "=k" not in note for note in mixed.plan.notes)


def test_another_augmentation_is_another_search(mixed):
    with pytest.raises(ConfigError, match="another"):
        replace_search(mixed, ["RandomFlip"]).run()
    same = replace_search(mixed, RECIPE)
    same.run()
    assert histories(same) == histories(mixed)


def replace_search(search, recipe) -> CutSearch:
    return CutSearch(
        small_backbone(),
        PLAIN.augmented(recipe),
        VALIDATION,
        SPACE,
        search.config,
        folder=search.folder,
        store=search.store,
    )


def test_views_are_stored_under_names_of_their_own(tmp_path):
    store = FeatureStore(tmp_path / "store")
    search = searched(tmp_path, ["RandomFlip"], store, augmented_views=2)
    assert {one.how for one in search.plan.features} == {"views"}
    views = [e for e in store.entries() if e.about["split"] == "train"]
    assert {entry.about["view"] for entry in views} == {0, 1}
    (plain,) = stored_features(store, small_backbone(), ["out1"], PLAIN, pooling="avg")
    flipped = search.train
    found = [
        stored_features(store, small_backbone(), ["out1"], one, pooling="avg", view=0)[0]
        for one in (flipped, PLAIN.augmented(["RandomFlip", "RandomRotation"][:1]))
    ]
    np.testing.assert_array_equal(*(one.stored["out1"] for one in found))
    assert not np.allclose(found[0].stored["out1"], plain.stored["out1"])
    before = len(store.entries())
    other = PLAIN.augmented([keras.layers.RandomRotation(0.2)])
    stored_features(store, small_backbone(), ["out1"], other, pooling="avg", view=0)
    assert len(store.entries()) == before + 1
    with pytest.raises(CacheError, match="Leave out view=0"):
        stored_features(store, small_backbone(), ["out1"], PLAIN, pooling="avg", view=0)
    with pytest.raises(CacheError, match="mixed, each anew"):
        mixing = PLAIN.augmented(RECIPE)
        stored_features(store, small_backbone(), ["out1"], mixing, pooling="avg", view=0)


def test_what_would_be_wrong_is_refused_before_any_work(mixed, tmp_path):
    augmented = PLAIN.augmented(RECIPE)
    for train, validation, said, settings in (
        (PLAIN, augmented, "validation examples without augmentation", {}),
        (augmented, VALIDATION, "augmented_views to be 0", {"augmented_views": 1}),
    ):
        with pytest.raises(ConfigError, match=said):
            CutSearch(small_backbone(), train, validation, SPACE, SearchConfig(**settings),
                      folder=tmp_path)  # fmt: skip
    head = rk.heads.Regression(outputs=3)
    with pytest.raises(ConfigError, match=r"rk\.heads\.Classifier.*Received: Regression"):
        CutSearch(small_backbone(), augmented, VALIDATION,
                  SearchSpace(["out1"], heads={"numbers": head}), folder=tmp_path)  # fmt: skip
    values = mixed.tuner.get_best_hyperparameters()[0]
    model = mixed.hypermodel.build(values)
    with pytest.raises(ConfigError, match=r"train\.balanced\(\)"):
        mixed.hypermodel.fit(values, model, class_weight={0: 2.0})
    stale = replace(
        mixed.plan, features=tuple(replace(f, varies=False) for f in mixed.plan.features)
    )
    with pytest.raises(ConfigError, match="a plan made for augmented"):
        rk.planning.obtain(stale, small_backbone(), mixed.store, augmented, training=True)
