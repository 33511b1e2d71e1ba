"""Search how deep to cut, and which head to put on, with keras-tuner."""

from reusekit.search.figure import accuracy_over_depth
from reusekit.search.hypermodel import CutHyperModel, TrialData
from reusekit.search.oracle import CutSweepOracle
from reusekit.search.results import CutResult, SearchResult, TrialRecord
from reusekit.search.space import SearchSpace
from reusekit.search.tuner import CutTuner

__all__ = [
    "CutHyperModel",
    "CutResult",
    "CutSweepOracle",
    "CutTuner",
    "SearchResult",
    "SearchSpace",
    "TrialData",
    "TrialRecord",
    "accuracy_over_depth",
]
