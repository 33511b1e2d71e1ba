"""Fitting leaves the model at its best epoch and says which that was."""

import keras
import numpy as np

from reusekit import heads
from reusekit.features import feed
from reusekit.training import fit_classifier


def test_ends_at_the_epoch_with_the_lowest_validation_loss():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(40, 5)).astype("float32")
    labels = generator.integers(0, 2, 40)  # nothing to learn, so that it gets worse at some point
    keras.utils.set_random_seed(1)
    head = heads.Classifier(2, units=64).build((5,))
    validation = feed(inputs[:20], labels[:20], 20)
    fit = fit_classifier(
        head,
        feed(inputs[20:], labels[20:], 10, seed=0),
        validation,
        optimizer=keras.optimizers.Adam(0.05),
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
    validation = feed(inputs, labels, 20)
    fit = fit_classifier(
        head,
        feed(inputs, labels, 10, seed=0),
        validation,
        optimizer=keras.optimizers.Adam(0.01),
        epochs=3,
        patience=5,
        callbacks=[Broken()],
    )
    assert np.isnan(fit.history["val_loss"][0]) and fit.best_epoch > 0
    loss, _ = head.evaluate(validation, verbose=0)
    np.testing.assert_allclose(loss, fit.metrics["val_loss"], rtol=1e-5)
