"""Planning: measures the machine, decides what to store and train together, and obtains it."""

from reusekit.features.key import Extraction
from reusekit.planning.costs import Costs, measure
from reusekit.planning.planned import (
    Plan,
    PlannedFeatures,
    PlannedGroup,
    Resources,
    Trials,
)
from reusekit.planning.planner import plan
from reusekit.planning.supply import obtain

__all__ = [
    "Costs",
    "Extraction",
    "Plan",
    "PlannedFeatures",
    "PlannedGroup",
    "Resources",
    "Trials",
    "measure",
    "obtain",
    "plan",
]
