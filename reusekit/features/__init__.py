"""What a frozen bottom computes, computed once: one pass that taps every cut, and batches of it."""

from reusekit.features.budget import EntryInfo
from reusekit.features.entry import Entry
from reusekit.features.extract import extract_features
from reusekit.features.feed import feed
from reusekit.features.frontier import Frontier, frontier
from reusekit.features.key import FeatureKey, feature_keys
from reusekit.features.padding import Padding
from reusekit.features.sharded_array import ShardedArray
from reusekit.features.store import FeatureStore, default_path
from reusekit.features.stored import StoredFeatures, stored_features

__all__ = [
    "Entry",
    "EntryInfo",
    "FeatureKey",
    "FeatureStore",
    "Frontier",
    "Padding",
    "ShardedArray",
    "StoredFeatures",
    "default_path",
    "extract_features",
    "feature_keys",
    "feed",
    "frontier",
    "stored_features",
]
