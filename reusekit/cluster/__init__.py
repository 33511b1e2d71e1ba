"""A cluster of Ray's, whose workers compute features and train groups of trials."""

from reusekit.cluster.cluster import Cluster
from reusekit.cluster.settings import ClusterSettings

__all__ = ["Cluster", "ClusterSettings"]
