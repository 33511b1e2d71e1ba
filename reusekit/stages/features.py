"""What a frozen bottom computes for one training: obtained once, as a plan says."""

import keras

from reusekit.features import FeatureSource, FeatureStore, Trials, plan
from reusekit.stages.inputs import Splits


def frozen_features(
    model: keras.Model, training: Trials, splits: Splits, store: FeatureStore, seed: int
) -> tuple[FeatureSource, FeatureSource]:
    """The features that a training reads, from the store or computed once, as far as there is room.

    Args:
        model: Everything up to the cut is frozen and runs in inference mode.
        training: Where it begins, and what is trained.
        splits: What the features are computed of; the test split is left alone.
        store: Where they are kept.
        seed: Augmentation before the cut follows from this.

    Returns:
        Of the training examples and of the validation examples.

    Raises:
        CacheError: The features are not finite, or cannot be stored.
    """
    made = plan(model, [training], splits.train, splits.validation, store, seed=seed)
    place = training.at, training.pooling
    return (
        made.obtain(splits.train, training=True)[place],
        made.obtain(splits.validation, training=False)[place],
    )
