"""Features of a frozen bottom: one pass that taps every cut, stored and read in batches."""

from reusekit.features.budget import EntryInfo
from reusekit.features.costs import Costs, measure
from reusekit.features.entry import Entry
from reusekit.features.feed import feed
from reusekit.features.frontier import Frontier, frontier
from reusekit.features.key import FeatureKey, feature_keys
from reusekit.features.padding import Padding
from reusekit.features.plan import Plan, PlannedFeatures, PlannedGroup
from reusekit.features.planner import plan
from reusekit.features.sharded_array import ShardedArray
from reusekit.features.source import FeatureSource
from reusekit.features.store import FeatureStore, default_path
from reusekit.features.stored import StoredFeatures, stored_features
from reusekit.features.together import Trials

__all__ = [
    "Costs",
    "Entry",
    "EntryInfo",
    "FeatureKey",
    "FeatureSource",
    "FeatureStore",
    "Frontier",
    "Padding",
    "Plan",
    "PlannedFeatures",
    "PlannedGroup",
    "ShardedArray",
    "StoredFeatures",
    "Trials",
    "default_path",
    "feature_keys",
    "feed",
    "frontier",
    "measure",
    "plan",
    "stored_features",
]
