"""Features of several cuts: joined, and selected by group lasso."""

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import reusekit as rk
from reusekit import heads


def features(count=3, examples=4):
    generator = np.random.default_rng(0)
    shapes = [(4, 4, 6), (5, 3), (7,)][:count]
    return [generator.normal(size=(examples, *shape)).astype("float32") for shape in shapes]


def normalized(vectors):
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    return centred / np.sqrt(vectors.var(axis=1, keepdims=True) + 1e-3)


def select(labels, fraction=0.5, **options):
    return heads.Multitap(2).select(features(), labels, fraction=fraction, **options)


def test_every_tap_is_pooled_and_normalized_by_itself():
    maps, sequence, vector = taps = features()
    model = heads.Multitap(2, pooling="max").build([tap.shape[1:] for tap in taps])
    joined = rk.extract(model, "head_features")(taps)
    expected = [normalized(x) for x in (maps.max(axis=(1, 2)), sequence.max(axis=1), vector)]
    np.testing.assert_allclose(joined, np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-5)


def test_a_single_tap_will_do():
    assert heads.Multitap(3).build((4, 4, 6)).output_shape == (None, 3)
    assert heads.Multitap(3).build([(4, 4, 6)]).output_shape == (None, 3)


def test_taps_may_go_by_addresses_inside_nested_models():
    inner = keras.Input((4, 4, 6), name="in")
    part = keras.Model(inner, keras.layers.Conv2D(3, 2, name="conv")(inner), name="part")
    x = keras.Input((4, 4, 6), name="x")
    whole = keras.Model(x, keras.layers.ReLU(name="relu")(part(x)))
    taps = rk.extract(whole, {at: at for at in ("part/conv", "relu")})
    assert rk.attach(taps, heads.Multitap(5)).output_shape == (None, 5)


def test_only_what_is_kept_counts():
    taps = features()
    head = heads.Multitap(2, kept=(1, 3, 14))
    model = head.build([tap.shape[1:] for tap in taps])
    joined, kept = (
        np.asarray(rk.extract(model, at)(taps)) for at in ("head_features", "head_kept")
    )
    np.testing.assert_array_equal(kept, joined[:, [1, 3, 14]])
    assert rk.count_params(model).total == 3 * 2 + 2


def test_selection_finds_what_tells_the_classes_apart():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 300)
    taps = {name: generator.normal(size=(300, 12)) for name in ("first", "second")}
    taps["first"][:, 5] += 4 * (labels == 1)
    taps["second"][:, 2] += 4 * (labels == 2)
    head = heads.Multitap(3).select(taps, labels, fraction=2 / 24)
    assert head.kept == (5, 12 + 2)
    assert head.classes == 3
    model = head.build(dict.fromkeys(taps, (12,)))
    model.compile(keras.optimizers.Adam(0.05), **head.compile_args)
    model.fit(taps, labels, epochs=15, verbose=0)
    assert model.evaluate(taps, labels, verbose=0, return_dict=True)["accuracy"] > 0.9


def test_selection_beats_chance_on_real_digits():
    keras.utils.set_random_seed(0)
    data = load_digits()
    images = np.kron(data.images[:800], np.ones((1, 4, 4)))[..., None].astype("float32") * 15
    labels = data.target[:800]
    backbone = rk.load_backbone("reusekit/glyphnet").model
    cuts = ["block2_out", "block4_out", "block7_out"]
    taps = rk.extract(backbone, cuts, pooling="avg").predict(images, verbose=0)
    train, test = ([tap[part] for tap in taps] for part in (slice(400), slice(400, None)))
    chosen = heads.Multitap(10).select(train, labels[:400], fraction=0.1)
    rest = [place for place in range(144) if place not in chosen.kept]
    others = heads.Multitap(10, kept=np.random.default_rng(0).choice(rest, len(chosen.kept), False))
    accuracy = {}
    for name, head in {"chosen": chosen, "others": others, "all": heads.Multitap(10)}.items():
        model = head.build([tap.shape[1:] for tap in taps])
        model.compile(keras.optimizers.Adam(0.05), **head.compile_args)
        model.fit(train, labels[:400], 64, epochs=15, verbose=0)
        accuracy[name] = model.evaluate(test, labels[400:], verbose=0, return_dict=True)["accuracy"]
    assert len(chosen.kept) == 14
    assert accuracy["others"] + 0.02 < accuracy["chosen"]
    assert accuracy["all"] - 0.08 < accuracy["chosen"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: heads.Multitap(2, kept=()), r"places from 0 to keep.*: \(\)"),
        (lambda: heads.Multitap(2, kept=np.arange(0)), r"places from 0 to keep.*: array"),
        (lambda: heads.Multitap(2, kept=(-1, 2)), r"places from 0 to keep.*\(-1, 2\)"),
        (
            lambda: heads.Multitap(2, kept=(6,)).build((6,)),
            "some of the 6 features. Received place 6",
        ),
        (lambda: heads.Multitap(2, kept=(1.5,)), r"whole numbers, or None.*\(1\.5,\)"),
        (lambda: heads.Multitap(2, kept=(1, 1)), r"different places.*\(1, 1\)"),
        (lambda: heads.Multitap(1), "classes to be .* at least 2"),
        (lambda: heads.Multitap(2, pooling="mean").build((6,)), "Received: 'mean'"),
        (lambda: heads.Multitap(2).build([(6,), (None,)]), "a known number of channels"),
        (lambda: select([0] * 4, fraction=0), "fraction to be .* above 0"),
        (lambda: select([0] * 4, fraction="half"), "fraction to be .*'half'"),
        (lambda: select([0] * 4, penalty=-1), "penalty to be .* at least 0.*-1"),
        (lambda: select([0] * 4, epochs=0), "epochs to be .* at least 1"),
        (lambda: select([0] * 3), r"labels from 0 to 1, shape \(4,\). Received: shape \(3,\)"),
        (lambda: select([1, 2, 1, 2]), "labels from 0 to 1.*Received: labels from 1 to 2"),
    ],
)
def test_what_makes_no_head_is_refused(make, message):
    with pytest.raises(rk.errors.HeadError, match=message):
        make()
