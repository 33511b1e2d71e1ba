"""Measures this machine, then chooses what to compute once, what to store, what to train together.

Nautilus (Nakandala and Kumar, SIGMOD 2022) chooses with fixed speeds; here they are measured.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import keras
import psutil
from annotated_types import MinLen
from pydantic import NonNegativeInt, PositiveInt

from reusekit.arguments import Seed, checked
from reusekit.data import DataSplit
from reusekit.errors import ConfigError
from reusekit.features.choice import TRAIN, VALIDATION, choose
from reusekit.features.costs import Costs
from reusekit.features.decisions import Decisions
from reusekit.features.padding import Padding
from reusekit.features.plan import Plan
from reusekit.features.randomness import refuse_mixing
from reusekit.features.store import FeatureStore
from reusekit.features.stored import check_dtype, check_examples
from reusekit.features.survey import Survey
from reusekit.features.together import Trials
from reusekit.graph import Graph, read
from reusekit.graph.padding_mask import AUTO


def check_backend() -> None:
    """Refuse other backends of Keras than TensorFlow.

    Raises:
        ConfigError: Keras runs on another one.
    """
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            "Expected the TensorFlow backend of Keras, on which plans and searches run. Received: "
            f"{keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow."
        )


@checked(ConfigError)
def plan(
    model: keras.Model | Graph,
    trials: Annotated[Sequence[Trials], MinLen(1)],
    train: DataSplit,
    validation: DataSplit,
    store: FeatureStore,
    *,
    dtype: str | None = None,
    padding: Padding | None = None,
    preprocessing: Any = None,
    compute_dtype: str | None = None,
    disk: NonNegativeInt | None = None,
    memory: NonNegativeInt | None = None,
    augmented_views: NonNegativeInt = 0,
    seed: Seed = 0,
    batch_size: PositiveInt = 64,
    mask: Any = AUTO,
    costs: Costs | None = None,
) -> Plan:
    """Choose how to come by the features of many trials, and which trials to train together.

    Nothing is computed but the first batch, twice, to measure the bottom and to see whether it
    gives the same both times; and not even that where all is stored already.

    Args:
        model: The backbone; what is before a trial's cut runs in inference mode.
        trials: What is to be trained.
        train: The examples to train on.
        validation: Those to compare on; they are never augmented.
        store: Where features are kept.
        dtype: What features are stored as; None for what the model computes.
        padding: How examples of different lengths are brought to one.
        preprocessing: What is done to the examples that neither the model nor the data sets'
            fingerprints say; see `feature_keys`.
        compute_dtype: "bfloat16" has the bottom compute in that; None in the model's own precision.
        disk: Bytes that the features may take; None for the store's budget, or else for most of
            what is free on its disk.
        memory: Bytes that training may take; None for half of what the machine has available.
        augmented_views: Where random augmentation lies before a cut, how many augmented views of
            the training examples to store. With 0 the bottom runs on every batch instead.
        seed: Augmentation follows from this.
        batch_size: Examples a batch of a pass.
        mask: Which positions pooling passes over, as for `rk.extract`. It crosses with whole maps,
            after all else, so that a head can pool these.
        costs: The speeds, where they are known; None measures them.

    Returns:
        The plan. Print it; `obtain` then does what it says.

    Raises:
        ConfigError: There are no trials, a budget is negative, or Keras runs on another backend
            than TensorFlow.
        CacheError: Features cannot be named, or the store cannot be written.
        DataError: The data set holds no example, or none that the model takes.
        AddressError: A trial's cut names no tensor of the model, or several.

    Example:
        >>> import tempfile
        >>> import reusekit as rk
        >>> from reusekit.data import load_split
        >>> train = load_split("sklearn_digits", "train[:50]", image_size=(32, 32))
        >>> test = load_split("sklearn_digits", "test[:20]", image_size=(32, 32))
        >>> model = rk.load_backbone("reusekit/glyphnet").model
        >>> cuts = [Trials(at, "avg", count=3) for at in ("stem_out", "block7_out")]
        >>> made = plan(model, cuts, train, test, FeatureStore(tempfile.mkdtemp()))
        >>> [(one.at, one.how) for one in made.features]
        [('stem_out', 'tap'), ('block7_out', 'tap')]
        >>> source = made.obtain(train, training=True)["block7_out", "avg"]
        >>> source.arrays().shape
        (50, 64)
    """
    check_backend()
    check_dtype(dtype)
    graph = read(model, keep_masks=mask is not None)
    for name, split in (("train", train), ("validation", validation)):
        check_examples(graph, split, name, padding)
    refuse_mixing(graph, [trial.at for trial in trials])
    survey = Survey(
        graph,
        tuple(trials),
        {TRAIN: train, VALIDATION: validation},
        store,
        {
            "dtype": dtype,
            "padding": padding,
            "preprocessing": preprocessing,
            "compute_dtype": compute_dtype,
        },
        batch_size,
        augmented_views,
        seed,
        mask,
    )
    available = psutil.virtual_memory().available / 2 if memory is None else memory
    problem = survey.problem(costs, survey.disk_budget(disk), available)
    return Decisions(survey, problem, choose(problem)).plan()
