"""Search how deep to cut a pretrained model, fine-tune the best cut, register it.

python pipelines/cut_search.py --config configs/digits.yaml --search.max_trials 8
"""

from pydantic import NonNegativeInt

from reusekit import FeatureStore, stages
from reusekit.launch import launch
from reusekit.settings import (
    BackboneSettings,
    BaselineSettings,
    DataSettings,
    FineTuneSettings,
    SearchSettings,
    TrackingSettings,
)


def cut_search(
    data: DataSettings,
    backbone: BackboneSettings = BackboneSettings(),
    search: SearchSettings = SearchSettings(),
    finetune: FineTuneSettings = FineTuneSettings(),
    baselines: BaselineSettings = BaselineSettings(),
    tracking: TrackingSettings = TrackingSettings(),
    output: str = "runs",
    seed: NonNegativeInt = 0,
    plain: bool = False,
    fresh: bool = False,
    standalone: bool = False,
    verbose: bool = False,
) -> None:
    """Search how deep to cut a pretrained model, fine-tune the best cut, register it.

    Killed at any moment, the same command goes on: finished trials are taken from where they are
    kept, and features from the store. So are those of a search that was finished, unless --fresh
    asks to search anew. A change of what is searched is another search, with a folder of its own.

    Args:
        data: Which TFDS data set to train on.
        backbone: Which pretrained model to start from.
        search: What the search tries.
        finetune: The phase after the search, with the top of the backbone unfrozen.
        baselines: What the result is compared with.
        tracking: Where MLflow keeps the run, and the name in the registry.
        output: Folder for tables and figures; each run gets one of its own in it.
        seed: Decides the examples, the initial weights, the order of batches and the trials.
        plain: Run each trial alone, the backbone for every batch of it, for comparison.
        fresh: Discard the trials that an earlier run of the same search finished.
        standalone: Register the whole model with weights of its own, to be loaded where reusekit is
            not installed. Otherwise its bottom is stored once for all models that stand on it.
        verbose: Say more, and show the traceback of an error.
    """
    with stages.start_job("cut_search", output, tracking, seed, verbose, data) as job:
        with job.stage("Load the backbone"):
            pretrained = stages.load_backbone(backbone)
            if finetune.unfreeze_from is not None:
                stages.clean_cut(pretrained, finetune.unfreeze_from)
            cuts = stages.candidate_cuts(pretrained, search.cuts, search.max_cuts)
            for at in search.freeze:
                stages.clean_cut(pretrained, at)
            store = FeatureStore(search.store, search.disk)
        with job.stage("Load the data"):
            splits = stages.load_data(data, pretrained, seed)
        with job.stage("Plan the search"):
            planned = stages.plan_search(
                pretrained, cuts, splits, search, store, output, seed, plain, fresh
            )
        job.record(
            splits,
            backbone=backbone,
            data=data,
            search=search,
            finetune=finetune,
            baselines=baselines,
            plain=plain,
        )
        with job.stage("Extract the features of every cut"):
            stages.extract_features(planned, job.folder)
        with job.stage("Search the cut"):
            searched = stages.search_cut(planned, job.folder)
        with job.stage("Fine-tune the best trial"):
            best = stages.best_trial(searched)
            tuned = stages.finetune(best, pretrained, finetune, splits, store, job.folder, seed)
        with job.stage("Evaluate on the test split"):
            test = stages.evaluate(tuned.whole, splits.test)
        with job.stage("Train the baselines"):
            rivals = stages.run_baselines(tuned.whole, splits, baselines, job.folder, seed)
        with job.stage("Register"):
            version = stages.register(
                tuned, pretrained, splits, test, tracking, job.folder, searched, rivals, standalone
            )
    stages.report(job, tuned, test, version, tracking, searched, rivals)


if __name__ == "__main__":
    launch(cut_search)
