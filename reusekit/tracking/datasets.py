"""The data of a run: which split of what, named by its content."""

from reusekit.data import DataSplit
from reusekit.tracking.log import log_input
from reusekit_mlflow.datasets import TFDSDataset


def log_data(split: DataSplit, context: str) -> None:
    """Record a split as an input of the active run.

    Args:
        split: What is read.
        context: What for: `training`, `validation` or `test`.
    """
    log_input(TFDSDataset(split), context)
