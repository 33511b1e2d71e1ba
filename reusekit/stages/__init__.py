"""Stages: plain functions, typed in and out, from which pipelines are composed."""

from reusekit.stages.baselines import Baseline, run_baselines
from reusekit.stages.cuts import candidate_cuts, clean_cut
from reusekit.stages.evaluate import Evaluation, evaluate
from reusekit.stages.finetune import FineTuned, Phase, finetune
from reusekit.stages.inputs import Splits, load_backbone, load_data
from reusekit.stages.job import Job, start_job
from reusekit.stages.register import register
from reusekit.stages.report import report
from reusekit.stages.search import extract_pooled, head_of, search_cut

__all__ = [
    "Baseline",
    "Evaluation",
    "FineTuned",
    "Job",
    "Phase",
    "Splits",
    "candidate_cuts",
    "clean_cut",
    "evaluate",
    "extract_pooled",
    "finetune",
    "head_of",
    "load_backbone",
    "load_data",
    "register",
    "report",
    "run_baselines",
    "search_cut",
    "start_job",
]
