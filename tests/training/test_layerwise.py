import keras
import numpy as np
import pytest
from keras import layers, optimizers
from zoo import ZOO

import reusekit as rk
from reusekit.errors import TrainingError
from reusekit.training import GradualUnfreezing, LayerwiseOptimizer, freeze, layerwise_optimizer


def values(variables):
    return [keras.ops.convert_to_numpy(variable).copy() for variable in variables]


def chain(seed=0):
    """Three dense layers: three blocks of two variables each."""
    keras.utils.set_random_seed(seed)
    x = keras.Input((4,), name="x")
    y = layers.Dense(5, name="a")(x)
    y = layers.Dense(3, name="b")(y)
    return keras.Model(x, layers.Dense(2, name="head")(y), name="chain")


def data(model, examples=8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((examples, *model.input_shape[1:]), dtype="float32")
    return x, rng.random((examples, *model.output_shape[1:]), dtype="float32")


def multipliers(optimizer):
    return {rate.path: rate.multiplier for rate in optimizer.rates}


# --- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_gives_the_numbers_of_sgd_with_groups_written_by_hand(jit_compile):
    model = chain()
    x, y = data(model)
    weights = [value.astype("float64") for value in values(model.trainable_variables)]
    rates = [0.2 * 0.5**depth for depth in (2, 2, 1, 1, 0, 0)]
    momenta = [np.zeros_like(value) for value in weights]
    optimizer = layerwise_optimizer(model, optimizers.SGD(0.2, momentum=0.9), decay=0.5)
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    for _ in range(5):
        model.train_on_batch(x, y)

        k1, b1, k2, b2, k3, b3 = weights
        first, second = x @ k1 + b1, (x @ k1 + b1) @ k2 + b2
        error = 2 * (second @ k3 + b3 - y) / y.size
        at_second, at_first = error @ k3.T, error @ k3.T @ k2.T
        gradients = [x.T @ at_first, at_first.sum(0), first.T @ at_second, at_second.sum(0)]
        gradients += [second.T @ error, error.sum(0)]
        momenta = [0.9 * m - r * g for m, r, g in zip(momenta, rates, gradients, strict=True)]
        weights = [w + m for w, m in zip(weights, momenta, strict=True)]

        for ours, theirs in zip(values(model.trainable_variables), weights, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


MAKERS = {
    "sgd": lambda rate: optimizers.SGD(rate),
    "nesterov": lambda rate: optimizers.SGD(rate, momentum=0.9, nesterov=True),
    "adam": lambda rate: optimizers.Adam(rate, amsgrad=True),
    "adamw": lambda rate: optimizers.AdamW(rate, weight_decay=0.1),
    "sgdw": lambda rate: optimizers.SGD(rate, weight_decay=0.3),
    "clipnorm": lambda rate: optimizers.SGD(rate, clipnorm=0.5),
    "clipvalue": lambda rate: optimizers.Adam(rate, clipvalue=0.1),
    "ema": lambda rate: optimizers.SGD(rate, use_ema=True, ema_overwrite_frequency=2),
    "accumulation": lambda rate: optimizers.Adam(rate, gradient_accumulation_steps=2),
    "adadelta": lambda rate: optimizers.Adadelta(rate),
    "adafactor": lambda rate: optimizers.Adafactor(rate),
    "adagrad": lambda rate: optimizers.Adagrad(rate),
    "adamax": lambda rate: optimizers.Adamax(rate),
    "ftrl": lambda rate: optimizers.Ftrl(rate),
    "lamb": lambda rate: optimizers.Lamb(rate),
    "lion": lambda rate: optimizers.Lion(rate),
    "muon": lambda rate: optimizers.Muon(rate),
    "nadam": lambda rate: optimizers.Nadam(rate),
    "rmsprop": lambda rate: optimizers.RMSprop(rate, momentum=0.5, centered=True),
    "schedule_free": lambda rate: optimizers.ScheduleFreeAdamW(rate),
    "schedule": lambda rate: optimizers.AdamW(
        optimizers.schedules.ExponentialDecay(rate, 2, 0.5), weight_decay=0.1
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_each_optimizer_is_that_optimizer_with_other_rates(name):
    """Step by step, beside one optimizer of its own for each group of variables."""
    one, many = chain(), chain()
    layerwise = layerwise_optimizer(one, MAKERS[name](0.1), decay=0.25)
    groups = [(many.get_layer(layer), 0.1 * 0.25**d) for layer, d in zip("ab", (2, 1), strict=True)]
    groups.append((many.get_layer("head"), 0.1))
    apart = [(layer.trainable_variables, MAKERS[name](rate)) for layer, rate in groups]
    rng = np.random.default_rng(0)
    for _ in range(5):
        gradients = [rng.normal(size=v.shape).astype("float32") for v in one.trainable_variables]
        tensors = [keras.ops.convert_to_tensor(gradient) for gradient in gradients]
        layerwise.apply(tensors, one.trainable_variables)
        for place, (variables, optimizer) in enumerate(apart):
            optimizer.apply(tensors[2 * place : 2 * place + 2], variables)
        for ours, theirs in zip(values(one.weights), values(many.weights), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    assert int(layerwise.iterations) == int(apart[0][1].iterations)


def test_the_optimizer_inside_stays_as_it_was_but_for_its_state():
    model, inner = chain(), optimizers.SGD(1.0, weight_decay=0.5)
    kind, before = type(inner), set(vars(inner))
    layerwise = layerwise_optimizer(model, inner, decay=0.5)
    layerwise.apply([keras.ops.ones(v.shape) for v in model.weights], model.weights)
    assert type(inner) is kind
    assert not {name for name in set(vars(inner)) - before if callable(getattr(inner, name))}
    assert int(inner.iterations) == 1


def test_gradients_are_clipped_all_together():
    model = chain()
    optimizer = layerwise_optimizer(model, optimizers.SGD(1.0, global_clipnorm=1.0), decay=0.5)
    before = values(model.weights)
    gradients = [np.full(v.shape, 2.0, "float32") for v in model.weights]
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
    optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], model.weights)
    for old, new, depth in zip(before, values(model.weights), (2, 2, 1, 1, 0, 0), strict=True):
        np.testing.assert_allclose(old - new, 2.0 / norm * 0.5**depth, rtol=1e-4)


def test_without_decay_it_is_the_optimizer_itself():
    one, two = chain(), chain()
    one.compile(layerwise_optimizer(one, optimizers.Adam(0.01), decay=1.0), "mse")
    two.compile(optimizers.Adam(0.01), "mse")
    for model in (one, two):
        model.fit(*data(model), epochs=3, shuffle=False, verbose=0)
    for ours, theirs in zip(values(one.weights), values(two.weights), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_weight_decay_leaves_out_what_the_optimizer_was_told_to():
    model = chain()
    inner = optimizers.SGD(0.1, weight_decay=0.5)
    inner.exclude_from_weight_decay(var_names=["bias"])
    optimizer = layerwise_optimizer(model, inner, decay=0.5)
    for layer in model.layers[1:]:
        layer.bias.assign(np.ones(layer.bias.shape))
    before = values(model.weights)
    zeros = [keras.ops.zeros(variable.shape) for variable in model.weights]
    optimizer.apply(zeros, model.weights)
    for variable, old, new in zip(model.weights, before, values(model.weights), strict=True):
        depth = {"a": 2, "b": 1, "head": 0}[variable.path.split("/")[0]]
        factor = 1.0 if variable.name == "bias" else 1 - 0.5 * 0.1 * 0.5**depth
        np.testing.assert_allclose(new, factor * old, rtol=1e-6)


# --- in training ---------------------------------------------------------------------------------


def mixed_chain():
    keras.utils.set_random_seed(0)
    x = keras.Input((4,), name="x")
    y = layers.Dense(5, name="a", dtype="mixed_float16")(x)
    return keras.Model(x, layers.Dense(2, name="head", dtype="float32")(y), name="mixed")


@pytest.mark.parametrize("jit_compile", [False, True])
def test_loss_scaling_around_it(jit_compile):
    """Two models, one with a rate for each block: the updates stand in the ratio of the rates."""
    moved = []
    for decay in (1.0, 0.25):
        model = mixed_chain()
        inner = layerwise_optimizer(model, optimizers.SGD(0.1), decay=decay)
        scaled = optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)
        model.compile(scaled, "mse", jit_compile=jit_compile)
        before = values(model.weights)
        model.train_on_batch(*data(model))
        moved.append([new - old for new, old in zip(values(model.weights), before, strict=True)])
    for whole, part, factor in zip(*moved, (0.25, 0.25, 1.0, 1.0), strict=True):
        assert np.abs(whole).max() > 1e-4
        np.testing.assert_allclose(part, factor * whole, rtol=1e-3, atol=1e-7)


def test_mixed_precision_policy_wraps_it_by_itself(tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = chain()
        inner = optimizers.SGD(0.1, momentum=0.9, loss_scale_factor=8.0)
        model.compile(layerwise_optimizer(model, inner, decay=0.5), "mse")
        history = model.fit(*data(model), epochs=20, verbose=0).history["loss"]
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy(before)
    assert isinstance(model.optimizer, optimizers.LossScaleOptimizer)
    assert inner.loss_scale_factor is None
    assert history[-1] < history[0]
    assert int(inner.iterations) == 20
    for each in (model, loaded):
        each.fit(*data(each), epochs=2, shuffle=False, verbose=0)
    for ours, theirs in zip(values(model.weights), values(loaded.weights), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_fixed_loss_scale_changes_nothing():
    one, two = chain(), chain()
    for model, factor in ((one, None), (two, 64.0)):
        inner = optimizers.SGD(0.1, loss_scale_factor=factor)
        model.compile(layerwise_optimizer(model, inner, decay=0.5), "mse")
        model.fit(*data(model), epochs=2, shuffle=False, verbose=0)
    for ours, theirs in zip(values(one.weights), values(two.weights), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_callbacks_set_the_rate():
    model = chain()
    optimizer = layerwise_optimizer(model, optimizers.SGD(0.5), decay=0.5)
    model.compile(optimizer, "mse")
    seen = []
    model.fit(
        *data(model),
        epochs=3,
        verbose=0,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.5 / 2**epoch),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda *_: seen.append([rate.rate for rate in optimizer.rates])
            ),
        ],
    )
    assert seen[0] == [0.125, 0.125, 0.25, 0.25, 0.5, 0.5]
    assert seen[2] == [rate / 4 for rate in seen[0]]


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX optimizers train all or nothing")
def test_together_with_gradual_unfreezing():
    """As freezing and fitting by hand, with the same optimizer throughout."""

    def layerwise(model):
        return layerwise_optimizer(model, optimizers.Adam(0.01), decay=0.5)

    def fit(model, epochs, **kwargs):
        model.fit(*data(model), epochs=epochs, shuffle=False, verbose=0, **kwargs)

    staged, by_hand = chain(), chain()
    staged.compile(layerwise(staged), "mse")
    fit(staged, 5, callbacks=[GradualUnfreezing({0: "b", 1: "a", 3: None})])
    optimizer = layerwise(by_hand)
    optimizer.build(by_hand.trainable_variables)
    for at, epochs in (("b", 1), ("a", 2), (None, 2)):
        freeze(by_hand, at)
        by_hand.compile(optimizer, "mse")
        fit(by_hand, epochs)
    for ours, theirs in zip(values(staged.weights), values(by_hand.weights), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- whose rate ----------------------------------------------------------------------------------


def test_rates_go_by_identity_where_paths_are_equal():
    def inner(name):
        x = keras.Input((4,))
        return keras.Model(x, layers.Dense(4, name="d")(x), name=name)

    keras.utils.set_random_seed(0)
    first, second = inner("first"), inner("second")
    x = keras.Input((4,), name="x")
    model = keras.Model(x, second(first(x)))
    assert first.weights[0].path == second.weights[0].path
    optimizer = layerwise_optimizer(model, optimizers.SGD(1.0), decay=0.5)
    assert [(rate.address, rate.multiplier) for rate in optimizer.rates] == [
        *[("first/d", 0.5)] * 2,
        *[("second/d", 1.0)] * 2,
    ]
    before = values(model.weights)
    optimizer.apply([keras.ops.ones(v.shape) for v in model.weights], model.weights)
    moved = [old - new for old, new in zip(before, values(model.weights), strict=True)]
    np.testing.assert_allclose(moved[0], 0.5, rtol=1e-5)
    np.testing.assert_allclose(moved[2], 1.0, rtol=1e-5)


def test_a_weight_used_twice_has_the_rate_of_its_first_use():
    optimizer = layerwise_optimizer(ZOO["layer_called_twice"](), "sgd", decay=0.5)
    assert [(rate.address, rate.depth) for rate in optimizer.rates] == [
        *[("shared@0", 1)] * 2,
        *[("head", 0)] * 2,
    ]
    siamese = layerwise_optimizer(ZOO["siamese"](), "sgd", decay=0.5)
    assert {rate.address for rate in siamese.rates} == {"tower@0/a", "tower@0/b", "head"}


def test_blocks_of_resnet50():
    model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=3)
    frame = layerwise_optimizer(model, "adam", decay=0.9).rates.to_frame()
    assert frame["path"].tolist() == [v.path for v in model.trainable_variables]
    names = frame["address"].str.extract(r"^(conv1|conv\d_block\d|predictions)")[0]
    # The stem, sixteen blocks, and the classifier.
    assert names.groupby(frame["depth"]).nunique().tolist() == [1] * 18
    assert frame["depth"].is_monotonic_decreasing
    np.testing.assert_allclose(frame["multiplier"], 0.9 ** frame["depth"])


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_trainable_variable_of_every_model_has_one_rate(name):
    model = ZOO[name]()
    try:
        optimizer = layerwise_optimizer(model, "sgd", decay=0.5)
    except TrainingError:
        # No clean cut parts its weights; then every tensor is to end a block.
        everywhere = [point.at for point in rk.cut_points(model, max_width=None)]
        optimizer = layerwise_optimizer(model, "sgd", decay=0.5, blocks=everywhere)
    rates = optimizer.rates
    freeze(model, None)
    assert [rate.path for rate in rates] == [v.path for v in model.trainable_variables]
    assert all(rate.multiplier == 0.5**rate.depth for rate in rates)
    assert not rates or min(rate.depth for rate in rates) == 0


def test_frozen_weights_have_a_rate_for_when_they_are_thawed():
    model = chain()
    freeze(model, "a")
    optimizer = layerwise_optimizer(model, optimizers.SGD(0.1), decay=0.5)
    assert multipliers(optimizer)["a/kernel"] == 0.25
    model.compile(optimizer, "mse")
    model.fit(*data(model), epochs=1, verbose=0)
    assert len(model.trainable_variables) == 4


def unet():
    x = keras.Input((8, 8, 1), name="x")
    skips, y = [], x
    for level in range(2):
        y = layers.Conv2D(2, 3, padding="same", name=f"down{level}")(y)
        skips.append(y)
        y = layers.MaxPooling2D(2, name=f"pool{level}")(y)
    skips.append(layers.Conv2D(2, 1, name="direct")(x))
    y = layers.Conv2D(2, 1, name="middle")(y)
    for level in (1, 0):
        y = layers.Concatenate(name=f"join{level}")([layers.UpSampling2D(2)(y), skips[level]])
    y = layers.Concatenate(name="last")([y, skips[2]])
    return keras.Model(x, y, name="unet")


def test_blocks_may_be_given():
    model = unet()
    with pytest.raises(TrainingError, match=r"no clean cut that does\. Pass blocks="):
        layerwise_optimizer(model, "sgd")
    optimizer = layerwise_optimizer(model, "sgd", decay=0.5, blocks=["down1", "down0"])
    found = {rate.address: rate.depth for rate in optimizer.rates}
    assert found == {"down0": 2, "down1": 1, "middle": 0, "direct": 0}
    with pytest.raises(rk.errors.UnknownAddressError, match="Did you mean"):
        layerwise_optimizer(model, "sgd", blocks=["down7"])
    with pytest.raises(TrainingError, match=r"Received: \['last'\]"):
        layerwise_optimizer(model, "sgd", blocks=["last"])


# --- saved and loaded ----------------------------------------------------------------------------


def fitted(tmp_path, make=lambda: optimizers.Adam(0.05), at=None):
    model = chain()
    freeze(model, at)
    optimizer = layerwise_optimizer(model, make(), decay=0.5)
    model.compile(optimizer, "mse")
    model.fit(*data(model), epochs=3, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    return model


@pytest.mark.parametrize("at", [None, "a"])
@pytest.mark.parametrize("name", ["nesterov", "adam", "schedule"])
def test_a_saved_model_goes_on_with_the_same_numbers(tmp_path, name, at):
    model = fitted(tmp_path, lambda: MAKERS[name](0.05), at)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, LayerwiseOptimizer)
    trained = {variable.path for variable in model.trainable_variables}
    assert [rate for rate in model.optimizer.rates if rate.path in trained] == list(
        loaded.optimizer.rates
    )
    for each in (model, loaded):
        each.fit(*data(each), epochs=3, shuffle=False, verbose=0)
    for ours, theirs in zip(values(model.weights), values(loaded.weights), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_file_holds_each_slot_once(tmp_path):
    model = fitted(tmp_path)
    plain = chain()
    plain.compile(optimizers.Adam(0.05), "mse")
    plain.fit(*data(plain), verbose=0)
    model.save_weights(tmp_path / "ours.weights.h5")
    plain.save_weights(tmp_path / "plain.weights.h5")
    sizes = [(tmp_path / f"{name}.weights.h5").stat().st_size for name in ("ours", "plain")]
    assert sizes[0] < 1.1 * sizes[1]


def test_loss_scaling_around_it_is_saved_too(tmp_path):
    model = mixed_chain()
    inner = layerwise_optimizer(model, optimizers.Adam(0.05), decay=0.5)
    model.compile(optimizers.LossScaleOptimizer(inner, initial_scale=64.0), "mse")
    model.fit(*data(model), epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(*data(each), epochs=2, shuffle=False, verbose=0)
    for ours, theirs in zip(values(model.weights), values(loaded.weights), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_resumed_from_a_backup_it_goes_on_with_the_same_numbers(tmp_path):
    def run(epochs, folder):
        model = chain()
        model.compile(layerwise_optimizer(model, optimizers.Adam(0.05), decay=0.5), "mse")
        backup = keras.callbacks.BackupAndRestore(tmp_path / folder, delete_checkpoint=False)
        model.fit(*data(model), epochs=epochs, shuffle=False, verbose=0, callbacks=[backup])
        return values(model.weights)

    run(2, "resumed")
    for ours, theirs in zip(run(4, "straight"), run(4, "resumed"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- bad input -----------------------------------------------------------------------------------


def test_a_variable_without_a_rate_is_an_error():
    model = chain()
    optimizer = layerwise_optimizer(model, optimizers.SGD(0.1))
    before = values(model.weights)
    wider = keras.Model(model.input, layers.Dense(1, name="later")(model.output))
    wider.compile(optimizer, "mse")
    with pytest.raises(TrainingError, match="none for 'later/kernel'"):
        wider.fit(*data(wider), verbose=0)
    for old, new in zip(before, values(model.weights), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_loaded_model_with_more_to_train_is_not_trained_at_wrong_rates(tmp_path):
    """Keras forgets the flags of single variables, so more is trainable than was saved."""
    model = chain()
    model.get_layer("a").bias.trainable = False
    model.compile(layerwise_optimizer(model, optimizers.SGD(0.1)), "mse")
    model.fit(*data(model), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.predict(data(model)[0], verbose=0)
    with pytest.raises(TrainingError, match="those of 5 variables"):
        loaded.fit(*data(model), verbose=0)


def test_optimizers_that_cannot_serve_are_refused():
    model = chain()
    for wrapped in (
        optimizers.LossScaleOptimizer(optimizers.SGD()),
        layerwise_optimizer(model, "sgd"),
    ):
        with pytest.raises(TrainingError, match=f"Received: {type(wrapped).__name__}"):
            layerwise_optimizer(model, wrapped)
    used = optimizers.SGD()
    used.build(model.trainable_variables)
    taken = optimizers.SGD()
    layerwise_optimizer(model, taken)
    for optimizer in (used, taken):
        with pytest.raises(TrainingError, match="has not been used"):
            layerwise_optimizer(model, optimizer)
    for unknown, meant in (("adamm", "Did you mean 'Adam'"), (None, ""), ({}, "")):
        with pytest.raises(TrainingError, match=f"eceived:? {unknown!r}. ?{meant}"):
            layerwise_optimizer(model, unknown)
    for decay in (0, -1, 1.5, float("nan"), "0.8"):
        with pytest.raises(TrainingError, match="Expected decay to be"):
            layerwise_optimizer(model, "sgd", decay=decay)


def test_a_backend_that_updates_all_variables_together_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(TrainingError, match="Received: torch"):
        layerwise_optimizer(chain(), "sgd")


def test_a_weight_outside_the_graph_is_refused():
    class Net(keras.Model):
        def __init__(self, **kwargs):
            x = keras.Input((4,), name="x")
            super().__init__(x, layers.Dense(2, name="b")(layers.Dense(3, name="a")(x)), **kwargs)
            self.temperature = self.add_weight(name="temperature", shape=())

    with pytest.raises(TrainingError, match=r"Received: '.*temperature', which does not"):
        layerwise_optimizer(Net(name="net"), "sgd")
