"""Models trained together: each has the numbers that it has alone, and that Keras's `fit` gives."""

from threading import Event, Thread

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from reusekit.errors import ReusekitError, TrainingError
from reusekit.features import feed
from reusekit.search.joint import Member, fit_together
from reusekit.training.fit import Fit

TRAIN, VALIDATION, CLASSES, BATCH, SEED = 90, 40, 3, 16, 5


def problem(examples, seed):
    """Three kinds of features of the same examples, and their labels."""
    numbers = np.random.default_rng(seed)
    labels = numbers.integers(0, CLASSES, examples)
    kinds = {"wide": (6,), "narrow": (4,), "map": (5, 5, 2)}
    features = {}
    for name, shape in kinds.items():
        noise = numbers.normal(size=(examples, *shape))
        noise[..., 0] += labels.reshape(-1, *[1] * (len(shape) - 1))
        features[name] = noise.astype("float32")
    return features, labels


TRAINING, VALIDATING = problem(TRAIN, 1), problem(VALIDATION, 2)


def batches(names=("wide", "narrow", "map")):
    """Training and validation batches of these features, in the same order each time."""
    (train, labels), (validation, validation_labels) = TRAINING, VALIDATING
    return (
        feed({name: train[name] for name in names}, labels, BATCH, SEED),
        feed({name: validation[name] for name in names}, validation_labels, 64),
    )


def model_of(kind, optimizer):
    """A small model, always with the same weights and the same random numbers to come."""
    keras.utils.set_random_seed(3)
    shape = TRAINING[0]["map" if kind == "convolutional" else kind.split("_")[0]].shape[1:]
    x = inputs = keras.Input(shape, name="features")
    if kind == "convolutional":
        x = layers.Conv2D(4, 3, use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
        x = layers.GlobalAveragePooling2D()(x)
    if kind.endswith("_dropout"):
        x = layers.Dense(8, activation="relu")(x)
        x = layers.Dropout(0.5)(x)
    outputs = layers.Dense(CLASSES, activation="softmax", name="classes")(x)
    model = keras.Model(inputs, outputs, name=kind)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


CASES = {
    "adam": ("wide", lambda: keras.optimizers.Adam(0.01), 6, None),
    "quick adam": ("wide", lambda: keras.optimizers.Adam(0.3), 6, None),
    "sgd, dropout": ("wide_dropout", lambda: keras.optimizers.SGD(0.1, momentum=0.9), 6, None),
    "adamw": ("narrow", lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1), 4, None),
    "rmsprop, batch norm": ("convolutional", lambda: keras.optimizers.RMSprop(0.01), 6, None),
    "adam, batch norm": ("convolutional", lambda: keras.optimizers.Adam(0.02), 6, None),
    "stops at once": ("narrow_dropout", lambda: keras.optimizers.SGD(9.0), 6, 1),
    "stops later": ("wide", lambda: keras.optimizers.SGD(2.0), 6, 2),
}


def features_of(kind):
    return "map" if kind == "convolutional" else kind.split("_")[0]


def member(name):
    kind, optimizer, epochs, patience = CASES[name]
    callbacks = []
    if patience is not None:
        callbacks = [keras.callbacks.EarlyStopping(patience=patience, restore_best_weights=True)]
    return Member(model_of(kind, optimizer()), features_of(kind), epochs, callbacks)


@pytest.fixture(scope="module")
def together():
    """All cases trained at once: by name, the model and what happened to it."""
    members = {name: member(name) for name in CASES}
    fits = fit_together(list(members.values()), *batches())
    return {name: (members[name].model, fit) for name, fit in zip(members, fits, strict=True)}


@pytest.mark.parametrize("name", ["sgd, dropout", "adam, batch norm", "stops later"])
def test_each_has_the_numbers_that_it_has_alone(together, name):
    model, fit = together[name]
    alone = member(name)
    (expected,) = fit_together([alone], *batches())
    assert fit.best_epoch == expected.best_epoch
    assert fit.history.keys() == expected.history.keys()
    for metric, values in expected.history.items():
        np.testing.assert_allclose(fit.history[metric], values, rtol=1e-6, err_msg=metric)
    for one, other in zip(model.get_weights(), alone.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_each_has_the_numbers_of_keras_fit(together, name):
    model, fit = together[name]
    alone = member(name)
    train, validation = batches([alone.features])
    history = alone.model.fit(
        train.map(lambda x, y: (x[alone.features], y)),
        validation_data=validation.map(lambda x, y: (x[alone.features], y)),
        epochs=alone.epochs,
        callbacks=list(alone.callbacks),
        shuffle=False,
        verbose=0,
    ).history
    assert fit.history.keys() == history.keys()
    for metric, values in history.items():
        np.testing.assert_allclose(fit.history[metric], values, rtol=1e-5, err_msg=metric)
    for one, other in zip(model.get_weights(), alone.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_each_stops_when_it_would_alone_and_goes_back_to_its_best_epoch(together):
    lengths = {name: len(fit.history["loss"]) for name, (_, fit) in together.items()}
    assert lengths["adam"] == 6
    assert lengths["adamw"] == 4  # its own number of epochs
    assert lengths["stops at once"] < lengths["stops later"] < 6
    (_, (features, labels)) = TRAINING, VALIDATING
    for name in ("stops at once", "stops later"):
        model, fit = together[name]
        assert fit.best_epoch < len(fit.history["loss"]) - 1
        loss, accuracy = model.evaluate(features[features_of(CASES[name][0])], labels, verbose=0)
        assert loss == pytest.approx(fit.metrics["val_loss"], rel=1e-5)
        assert accuracy == pytest.approx(fit.metrics["val_accuracy"])


def test_a_member_that_diverges_leaves_the_others_alone(together):
    members = [member("adam"), member("quick adam")]
    kind, *_ = CASES["adam"]
    diverging = model_of(kind, keras.optimizers.SGD(1e38))
    stopping = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    members.insert(1, Member(diverging, features_of(kind), 6, [stopping]))
    adam, lost, quick = fit_together(members, *batches())
    assert isinstance(lost, TrainingError)
    assert "never finite in 3 epochs" in str(lost)
    for found, name in ((adam, "adam"), (quick, "quick adam")):
        for metric, values in together[name][1].history.items():
            np.testing.assert_allclose(found.history[metric], values, rtol=1e-6)


def test_the_batches_come_in_the_order_of_feed_from_the_first_pass_on():
    features, _ = TRAINING
    seen = []

    class Watching(keras.Model):
        """A model that writes down which labels it is trained on."""

        def train_step(self, data):
            _, y = data
            tf.numpy_function(lambda values: seen.extend(values.tolist()), [y], [])
            return super().train_step(data)

    keras.utils.set_random_seed(0)
    inputs = keras.Input((1,))
    outputs = layers.Dense(TRAIN, activation="softmax")(inputs)
    model = Watching(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    column, numbers = features["wide"][:, :1], np.arange(TRAIN)
    train = feed({"x": column}, numbers, BATCH, SEED)
    fit_together([Member(model, "x", 2)], train, feed({"x": column}, numbers, BATCH))
    expected = feed(column, numbers, BATCH, SEED)
    order = [int(y) for _ in range(2) for _, labels in expected for y in labels]
    assert seen == order
    assert order[:TRAIN] != order[TRAIN:]  # the second pass is shuffled anew


def test_later_epochs_keep_their_numbers():
    told = []
    members = [member("adam"), member("adamw")]
    watch = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: told.append(epoch))
    members[0] = Member(members[0].model, members[0].features, 6, [watch])
    seen = []
    fits = fit_together(
        members, *batches(), initial_epoch=2, progress=lambda *both: seen.append(both)
    )
    assert told == [2, 3, 4, 5]
    assert [len(fit.history["loss"]) for fit in fits] == [4, 2]
    assert seen == [(2, 2), (3, 1), (4, 1), (5, 0)]


def test_a_model_with_nothing_to_train_does_not_stop_the_others():
    frozen, other = member("adam"), member("adamw")
    frozen.model.trainable = False
    with pytest.warns(UserWarning, match="does not have any trainable weights"):
        still, moving = fit_together([frozen, other], *batches())
    assert len(set(still.history["val_loss"])) == 1
    assert len(set(moving.history["val_loss"])) == 4


@pytest.mark.parametrize("frozen", [False, True])
def test_a_weight_that_one_trains_and_another_reads_is_refused(frozen):
    keras.utils.set_random_seed(0)
    inputs, common = keras.Input((6,)), layers.Dense(4, name="common")
    one, other = (keras.Model(inputs, layers.Dense(CLASSES)(common(inputs))) for _ in range(2))
    for model in (one, other):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss)
    if frozen:
        other.trainable = False
        common.trainable = True  # for the other model, which is frozen as a whole, it stays so
        assert not other.trainable_variables
    before = one.get_weights()
    with pytest.raises(ReusekitError, match=r"Received: two with .*common/kernel"):
        fit_together([Member(one, "wide", 1), Member(other, "wide", 1)], *batches(["wide"]))
    for value, old in zip(one.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


def test_one_model_twice_is_refused():
    one = member("adam")
    with pytest.raises(ReusekitError, match="weights of their own"):
        fit_together([one, Member(one.model, one.features, 3)], *batches())


def test_models_that_differ_by_their_rates_share_a_trace(monkeypatch, together):
    traced, real = [], keras.Model.train_step
    monkeypatch.setattr(keras.Model, "train_step", lambda *a: traced.append(a[0]) or real(*a))
    loss = keras.losses.SparseCategoricalCrossentropy()
    own = model_of("wide", keras.optimizers.Adam(0.01))
    own.compile(own.optimizer, lambda y, outputs: loss(y, outputs), metrics=["accuracy"])
    clipped = model_of("wide", keras.optimizers.Adam(0.01, clipnorm=0.001))
    models = [Member(model, "wide", 6) for model in (clipped, own)]
    fits = fit_together([member("adam"), member("quick adam"), *models], *batches(["wide"]))
    assert len(traced) == 3  # one for both rates, and each of those that compute something else
    for fit, name in zip(fits, ("adam", "quick adam"), strict=False):
        assert fit.history == together[name][1].history
    assert fits[2].history["loss"] != fits[0].history["loss"]
    np.testing.assert_allclose(fits[3].history["loss"], fits[0].history["loss"], rtol=1e-6)


def test_graphs_that_are_not_optimized_give_the_same_numbers(together):
    names = ["sgd, dropout", "adamw"]
    fits = fit_together(list(map(member, names)), *batches(), optimized=False)
    for fit, name in zip(fits, names, strict=True):
        for metric, values in together[name][1].history.items():
            np.testing.assert_allclose(fit.history[metric], values, rtol=1e-6, err_msg=metric)
    assert not tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer")


def test_fits_say_how_long_they_took(together):
    assert all(isinstance(fit, Fit) and fit.seconds > 0 for _, fit in together.values())


def test_searches_in_two_threads_leave_the_optimizer_of_graphs_on():
    def training(entered, leave):
        def once():
            yield {"wide": TRAINING[0]["wide"]}, TRAINING[1]
            entered.set()
            leave.wait(60)

        spec = batches(["wide"])[0].element_spec
        train = tf.data.Dataset.from_generator(once, output_signature=spec)
        one = Member(model_of("wide", keras.optimizers.SGD(0.1)), "wide", 1)
        fit_together([one], train, batches(["wide"])[1], optimized=False)

    (in_first, end_first), (in_last, end_last) = [(Event(), Event()) for _ in range(2)]
    first, last = (
        Thread(target=training, args=events)
        for events in ((in_first, end_first), (in_last, end_last))
    )
    first.start()
    assert in_first.wait(60)
    last.start()
    assert in_last.wait(60)
    end_first.set()
    first.join()
    assert tf.config.optimizer.get_experimental_options()["disable_meta_optimizer"]
    end_last.set()
    last.join()
    assert not tf.config.optimizer.get_experimental_options()["disable_meta_optimizer"]
