"""Search how deep to cut, and which head to put on, with keras-tuner."""

from reusekit.search.config import Limits, SearchConfig
from reusekit.search.cut_search import CutSearch
from reusekit.search.hypermodel import CutHyperModel
from reusekit.search.oracle import CutGridOracle, CutSweepOracle
from reusekit.search.ranking import (
    RankCorrelation,
    knn_probe,
    logme,
    rank_correlation,
    rank_cuts,
    ridge_probe,
    tmi,
)
from reusekit.search.results import CutResult, SearchResult, TrialRecord
from reusekit.search.sizes import Sizes, measure_latency
from reusekit.search.space import SearchSpace, TrialSpec
from reusekit.search.trial_data import TrialData
from reusekit.search.tuner import CutTuner

__all__ = [
    "CutGridOracle",
    "CutHyperModel",
    "CutResult",
    "CutSearch",
    "CutSweepOracle",
    "CutTuner",
    "Limits",
    "RankCorrelation",
    "SearchConfig",
    "SearchResult",
    "SearchSpace",
    "Sizes",
    "TrialData",
    "TrialRecord",
    "TrialSpec",
    "knn_probe",
    "logme",
    "measure_latency",
    "rank_correlation",
    "rank_cuts",
    "ridge_probe",
    "tmi",
]
