"""What a frozen bottom computes, computed once: one pass that taps every cut, and batches of it."""

from reusekit.features.extract import extract_features
from reusekit.features.feed import feed
from reusekit.features.frontier import Frontier, frontier
from reusekit.features.key import FeatureKey, feature_keys
from reusekit.features.padding import Padding
from reusekit.features.store import FeatureStore

__all__ = [
    "FeatureKey",
    "FeatureStore",
    "Frontier",
    "Padding",
    "extract_features",
    "feature_keys",
    "feed",
    "frontier",
]
