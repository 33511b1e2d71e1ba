"""Stages: plain functions, typed in and out, from which pipelines are composed."""

from reusekit.stages.baselines import Baseline, run_baselines
from reusekit.stages.candidates import (
    Candidate,
    Candidates,
    load_candidates,
    load_data_of_all,
)
from reusekit.stages.cluster import connected
from reusekit.stages.cuts import candidate_cuts, clean_cut
from reusekit.stages.evaluation import Evaluation, evaluate
from reusekit.stages.examination import Examination, Finding, examine, write_mended
from reusekit.stages.exports import export_version, ship
from reusekit.stages.features import FrozenFeatures, frozen_features
from reusekit.stages.fine_tuning import (
    Begun,
    FineTuned,
    Phase,
    best_trial,
    check_phases,
    finetune,
    train_head,
)
from reusekit.stages.inputs import Splits, load_backbone, load_data
from reusekit.stages.job import Job, start_job
from reusekit.stages.promote import (
    carry_out,
    evaluate_version,
    find_contest,
    judge,
    report_verdict,
    roll_back,
)
from reusekit.stages.registration import Scores, register
from reusekit.stages.report_page import write_report
from reusekit.stages.reports import report
from reusekit.stages.search import Searched, extract_features, plan_search, search_cut, winner

__all__ = [
    "Baseline",
    "Begun",
    "Candidate",
    "Candidates",
    "Evaluation",
    "Examination",
    "Finding",
    "FineTuned",
    "FrozenFeatures",
    "Job",
    "Phase",
    "Scores",
    "Searched",
    "Splits",
    "best_trial",
    "candidate_cuts",
    "carry_out",
    "check_phases",
    "clean_cut",
    "connected",
    "evaluate",
    "evaluate_version",
    "examine",
    "export_version",
    "extract_features",
    "find_contest",
    "finetune",
    "frozen_features",
    "judge",
    "load_backbone",
    "load_candidates",
    "load_data",
    "load_data_of_all",
    "plan_search",
    "register",
    "report",
    "report_verdict",
    "roll_back",
    "run_baselines",
    "search_cut",
    "ship",
    "start_job",
    "train_head",
    "winner",
    "write_mended",
    "write_report",
]
