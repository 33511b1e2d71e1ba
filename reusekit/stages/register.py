"""The last stage: log the parts, prove that they are the whole, register what is worth keeping."""

import mlflow
from mlflow.entities.model_registry import ModelVersion

from reusekit.backbones import Backbone
from reusekit.settings import TrackingSettings
from reusekit.sharing import count_params
from reusekit.stages.evaluate import Evaluation
from reusekit.stages.finetune import FineTuned
from reusekit.stages.inputs import Splits
from reusekit.tracking import log_parts
from reusekit.tracking import register as register_version


def register(
    tuned: FineTuned,
    backbone: Backbone,
    splits: Splits,
    test: Evaluation,
    settings: TrackingSettings,
) -> ModelVersion:
    """Log bottom, top and whole to the active run and register the whole under its alias.

    Args:
        tuned: The model and its parts.
        backbone: Where it comes from.
        splits: What it was trained on; a few test inputs show the parts to be the whole.
        test: How good it is.
        settings: The name and the alias in the registry.

    Returns:
        The new version.

    Raises:
        SurgeryError: Bottom and top do not compute what the whole computes.
        TrackingError: The registry refuses.
    """
    examples = next(iter(splits.test.batches(4)))[0].numpy()
    tuned.parts.verify(examples)
    tags = {
        "reusekit.cut": tuned.cut,
        "reusekit.source": backbone.source,
        "reusekit.backbone": backbone.digest,
        "reusekit.data": splits.train.fingerprint,
    }
    metrics = {"test_accuracy": test.accuracy, "test_loss": test.loss}
    whole = log_parts(tuned.parts.bottom, tuned.parts.top, tuned.whole, examples, tags, metrics)
    mlflow.log_params(
        {f"parameters.{name}": n for name, n in count_params(tuned.whole).to_dict().items()}
    )
    mlflow.log_metrics(metrics)
    return register_version(whole, settings.model, settings.alias, tags)
