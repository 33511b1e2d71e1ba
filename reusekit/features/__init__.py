"""What a frozen bottom computes, computed once: one pass that taps every cut, and batches of it."""

from reusekit.features.extract import extract_features
from reusekit.features.feed import feed

__all__ = ["extract_features", "feed"]
