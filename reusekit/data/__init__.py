"""TensorFlow Datasets in: splits, decoding, resizing, batching, fingerprints."""

from reusekit.data.load import load_split
from reusekit.data.split import DataSplit

__all__ = ["DataSplit", "load_split"]
