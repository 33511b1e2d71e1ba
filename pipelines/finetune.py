"""Fine-tune a pretrained model at a cut you name, and register it.

python pipelines/finetune.py --config configs/digits_finetune.yaml --cut block5_out
"""

from reusekit import FeatureStore, stages
from reusekit.launch import launch
from reusekit.settings import (
    BackboneSettings,
    BaselineSettings,
    DataSettings,
    FineTuneJobSettings,
    FineTuneSettings,
    HeadSettings,
)


def fine_tune(
    options: FineTuneJobSettings,
    data: DataSettings,
    backbone: BackboneSettings = BackboneSettings(),
    head: HeadSettings = HeadSettings(),
    finetune: FineTuneSettings = FineTuneSettings(),
    baselines: BaselineSettings = BaselineSettings(),
) -> None:
    """Fine-tune a pretrained model at a cut you name, and register it.

    Args:
        options: The cut, the seed, the output folder, where MLflow keeps the run, and where work is
            done.
        data: Which data to train on.
        backbone: Which pretrained model to start from.
        head: The head, and the first phase, in which only the head is trained.
        finetune: The second phase, with the top of the backbone unfrozen.
        baselines: What the result is compared with.
    """
    cut = options.cut
    with (
        stages.start_job(
            name="finetune",
            output=options.output,
            tracking=options.tracking,
            seed=options.seed,
            verbose=options.verbose,
            data=data,
        ) as job,
        stages.connected(settings=options.cluster) as workers,
    ):
        with job.stage("Load the backbone"):
            pretrained = stages.load_backbone(settings=backbone)
            stages.clean_cut(backbone=pretrained, at=cut)
            if finetune.frozen_up_to is not None:
                stages.clean_cut(backbone=pretrained, at=finetune.frozen_up_to, before=cut)
            store = FeatureStore(options.store).computed_by(workers)
        with job.stage("Load the data"):
            splits = stages.load_data(settings=data, backbone=pretrained, seed=options.seed)
            stages.check_phases(splits, head, finetune)
        job.record(
            splits,
            cut=cut,
            backbone=backbone,
            data=data,
            head=head,
            finetune=finetune,
            baselines=baselines,
        )
        with job.stage("Train the head"):
            begun = stages.train_head(
                backbone=pretrained,
                cut=cut,
                settings=head,
                splits=splits,
                store=store,
                seed=options.seed,
            )
        with job.stage("Fine-tune the top of the backbone"):
            tuned = stages.finetune(
                begun=begun,
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
        scores = stages.Scores(test=test, baselines=rivals)
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
        with job.stage("Write the report"):
            stages.write_report(job=job, tuned=tuned, splits=splits, test=test, version=version)
    stages.report(job=job, tuned=tuned, scores=scores, version=version, tracking=options.tracking)


if __name__ == "__main__":
    launch(fine_tune)
