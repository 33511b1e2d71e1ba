"""Features of a frozen bottom: one pass that taps every cut, stored and read in batches."""

from reusekit.features.batches import Padding, feed
from reusekit.features.entry import Entry, MappedArray
from reusekit.features.frontiers import Frontier, frontier
from reusekit.features.key import Extraction, FeatureKey, feature_keys
from reusekit.features.source import FeatureSource, StoredSource
from reusekit.features.store import EntryInfo, FeatureStore, default_path
from reusekit.features.stored import stored_features

__all__ = [
    "Entry",
    "EntryInfo",
    "Extraction",
    "FeatureKey",
    "FeatureSource",
    "FeatureStore",
    "Frontier",
    "MappedArray",
    "Padding",
    "StoredSource",
    "default_path",
    "feature_keys",
    "feed",
    "frontier",
    "stored_features",
]
