"""Search how deep to cut a pretrained model, fine-tune the best cut, register it.

python pipelines/cut_search.py --config configs/digits.yaml --search.max_trials 8
"""

from collections.abc import Sequence

from reusekit import FeatureStore, stages
from reusekit.launch import launch
from reusekit.settings import (
    BackboneSettings,
    BaselineSettings,
    CandidateSettings,
    DataSettings,
    FineTuneSettings,
    SearchJobSettings,
    SearchSettings,
)


def cut_search(
    data: DataSettings,
    backbone: BackboneSettings = BackboneSettings(),
    backbones: Sequence[CandidateSettings] = (),
    search: SearchSettings = SearchSettings(),
    finetune: FineTuneSettings = FineTuneSettings(),
    baselines: BaselineSettings = BaselineSettings(),
    options: SearchJobSettings = SearchJobSettings(),
) -> None:
    """Search how deep to cut a pretrained model, fine-tune the best cut, register it.

    Killed at any moment, the same command goes on: finished trials are taken from where they are
    kept, and features from the store. So are those of a search that was finished, unless --fresh
    asks to search anew. A change of what is searched is another search, with a folder of its own.

    Args:
        data: Which data to train on.
        backbone: Which pretrained model to start from.
        backbones: Several of them in its place: the search chooses among them, too.
        search: What the search tries.
        finetune: The phase after the search, with the top of the backbone unfrozen.
        baselines: What the result is compared with.
        options: The seed, the output folder, where MLflow keeps the run, and where work is done.
    """
    with (
        stages.start_job(
            name="cut_search",
            output=options.output,
            tracking=options.tracking,
            seed=options.seed,
            verbose=options.verbose,
            data=data,
        ) as job,
        stages.connected(settings=options.cluster) as workers,
    ):
        with job.stage("Load the backbone"):
            candidates = stages.load_candidates(
                backbone=backbone, backbones=backbones, search=search, finetune=finetune
            )
            store = FeatureStore(search.store, search.disk).computed_by(workers)
        with job.stage("Load the data"):
            candidates = stages.load_data_of_all(
                candidates=candidates, settings=data, seed=options.seed
            )
            stages.check_phases(candidates.splits, finetune)
        with job.stage("Plan the search"):
            planned = stages.plan_search(
                candidates=candidates,
                settings=search,
                store=store,
                job=options,
                workers=workers,
            )
        job.record(
            candidates.splits,
            **candidates.recorded,
            data=data,
            search=search,
            finetune=finetune,
            baselines=baselines,
            plain=options.plain,
        )
        candidates.log()
        with job.stage("Extract the features of every cut"):
            stages.extract_features(search=planned, folder=job.folder)
        with job.stage("Search the cut"):
            searched = stages.search_cut(
                search=planned,
                folder=job.folder,
                fresh=options.fresh,
                trial_runs=search.trial_runs,
            )
        pretrained, splits = stages.winner(candidates=candidates, searched=searched)
        with job.stage("Fine-tune the best trial"):
            tuned = stages.finetune(
                begun=stages.best_trial(searched=searched),
                backbone=pretrained,
                settings=finetune,
                splits=splits,
                store=store,
                folder=job.folder,
                seed=options.seed,
            )
        with job.stage("Evaluate on the test split"):
            test = stages.evaluate(model=tuned.whole, split=splits.test, rules=tuned.rules)
        with job.stage("Train the baselines"):
            rivals = stages.run_baselines(
                tuned=tuned,
                splits=splits,
                settings=baselines,
                folder=job.folder,
                seed=options.seed,
            )
        scores = stages.Scores(test=test, baselines=rivals, searched=searched)
        with job.stage("Register"):
            version = stages.register(
                tuned=tuned,
                backbone=pretrained,
                splits=splits,
                scores=scores,
                settings=options.tracking,
                folder=job.folder,
                standalone=options.standalone,
            )
        exports = None
        if search.ship is not None:
            with job.stage("Ship"):
                exports = stages.ship(
                    tuned=tuned,
                    splits=splits,
                    ship_as=search.ship,
                    version=version,
                    name=options.tracking.model,
                    folder=job.folder,
                )
        with job.stage("Write the report"):
            stages.write_report(job=job, tuned=tuned, splits=splits, test=test, version=version)
    stages.report(
        job=job,
        tuned=tuned,
        scores=scores,
        version=version,
        tracking=options.tracking,
        exports=exports,
        left_out=candidates.left_out,
    )


if __name__ == "__main__":
    launch(cut_search)
