"""Features of a frozen bottom for one training, obtained once as a plan says."""

from dataclasses import dataclass, replace

import keras

from reusekit.features import FeatureSource, FeatureStore
from reusekit.planning import Costs, Extraction, Resources, Trials, obtain, plan
from reusekit.stages.inputs import Splits


@dataclass(frozen=True)
class FrozenFeatures:
    """The features that one training reads.

    Attributes:
        train: Features of the training examples.
        validation: Features of the validation examples.
        costs: The speeds of this machine that the plan was made for.
    """

    train: FeatureSource
    validation: FeatureSource
    costs: Costs


def frozen_features(
    model: keras.Model,
    training: Trials,
    splits: Splits,
    store: FeatureStore,
    seed: int,
    costs: Costs | None = None,
) -> FrozenFeatures:
    """Return the features of a training, stored or computed once as room allows.

    Args:
        model: Everything up to the cut is frozen and runs in inference mode.
        training: Where it begins, and what is trained.
        splits: What the features are computed of; the test split is left alone.
        store: Where they are kept.
        seed: Augmentation before the cut follows from this.
        costs: The speeds of this machine where an earlier plan has measured them; of the bottom's
            own speed nothing is taken over.

    Raises:
        CacheError: The features are not finite, or cannot be stored.
    """
    # Whole maps are for a top, which takes what crosses; their mask would be for a head.
    extraction = Extraction(seed=seed) if training.pooling else Extraction(seed=seed, mask=None)
    made = plan(
        model,
        [training],
        splits.train,
        splits.validation,
        store,
        extraction,
        Resources(costs=costs and replace(costs, bottom_seconds=None)),
    )
    name = training.at, training.pooling
    return FrozenFeatures(
        obtain(made, model, store, splits.train, training=True)[name],
        obtain(made, model, store, splits.validation)[name],
        made.costs,
    )
