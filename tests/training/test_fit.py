"""Fitting leaves the model at its best epoch and says which that was."""

import keras
import numpy as np
import pytest

from reusekit import heads
from reusekit.features import feed
from reusekit.training import Monitor, Resumption, fit_model
from reusekit.training.fit import Stopping


def test_ends_at_the_epoch_with_the_lowest_validation_loss():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(40, 5)).astype("float32")
    labels = generator.integers(0, 2, 40)  # nothing to learn, so that it gets worse at some point
    keras.utils.set_random_seed(1)
    head = heads.Classifier(2, units=64).build((5,))
    head.compile(keras.optimizers.Adam(0.05), **heads.Classifier(2).compile_args)
    validation = feed(inputs[:20], labels[:20], 20)
    fit = fit_model(
        head,
        feed(inputs[20:], labels[20:], 10, seed=0),
        validation,
        epochs=30,
        patience=5,
    )
    losses = fit.history["val_loss"]
    assert fit.best_epoch == int(np.argmin(losses))
    assert len(losses) == fit.best_epoch + 6 < 30
    loss, accuracy = head.evaluate(validation, verbose=0)
    np.testing.assert_allclose(loss, fit.metrics["val_loss"], rtol=1e-5)
    np.testing.assert_allclose(accuracy, fit.metrics["val_accuracy"])
    assert fit.seconds > 0


class Broken(keras.callbacks.Callback):
    """NaN for weights while the first epoch is validated."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 1

    def on_test_begin(self, logs=None):
        self.kept = self.model.get_weights()
        if self.left:
            self.model.set_weights([weight * np.nan for weight in self.kept])

    def on_test_end(self, logs=None):
        self.left = 0
        self.model.set_weights(self.kept)


def test_goes_back_to_no_epoch_whose_loss_was_no_number():
    generator = np.random.default_rng(0)
    inputs, labels = generator.normal(size=(20, 5)), generator.integers(0, 2, 20)
    keras.utils.set_random_seed(1)
    head = heads.Classifier(2).build((5,))
    head.compile(keras.optimizers.Adam(0.01), **heads.Classifier(2).compile_args)
    validation = feed(inputs, labels, 20)
    fit = fit_model(
        head,
        feed(inputs, labels, 10, seed=0),
        validation,
        epochs=3,
        patience=5,
        callbacks=[Broken()],
    )
    assert np.isnan(fit.history["val_loss"][0]) and fit.best_epoch > 0
    loss, _ = head.evaluate(validation, verbose=0)
    np.testing.assert_allclose(loss, fit.metrics["val_loss"], rtol=1e-5)


class Killed(keras.callbacks.Callback):
    """Ends a training as a kill would, in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.last = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.last and batch == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("killed_in", "patience"), [(2, 9), (1, 1)])
def test_a_killed_training_goes_on_as_if_it_had_not_been(tmp_path, killed_in, patience):
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(40, 5)).astype("float32")
    labels = generator.integers(0, 2, 40)

    def trained(*callbacks):
        keras.utils.set_random_seed(1)
        head = heads.Classifier(2, units=16, dropout=0.5)
        model = head.build((5,))
        model.compile(keras.optimizers.Adam(0.05), **head.compile_args)
        validation = feed(inputs[:20], labels[:20], 20)
        train = feed(inputs[20:], labels[20:], 8, seed=0)
        fit = fit_model(
            model,
            train,
            validation,
            epochs=6,
            patience=patience,
            monitor=Monitor("val_accuracy", maximize=True),
            callbacks=callbacks,
        )
        return fit, model.get_weights()

    fit, weights = trained()
    file = tmp_path / "phases" / "one.npz"
    with pytest.raises(KeyboardInterrupt):
        trained(Resumption(file), Killed(killed_in))
    assert file.exists()
    again, same = trained(Resumption(file))
    assert again.history == fit.history
    assert again.best_epoch == fit.best_epoch
    for one, other in zip(weights, same, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not file.parent.exists()


def test_what_is_damaged_begins_anew(tmp_path):
    file = tmp_path / "one.npz"
    for content in (b"PK damaged", b""):
        file.write_bytes(content)
        assert Resumption(file).read(Stopping("val_loss", 1, "min")) == 0
