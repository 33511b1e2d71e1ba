"""Fine-tune a pretrained model at a cut you name, and register it.

python pipelines/finetune.py --config configs/digits_finetune.yaml --cut block5_out
"""

from pydantic import NonNegativeInt

from reusekit import FeatureStore, stages
from reusekit.launch import launch
from reusekit.settings import (
    BackboneSettings,
    BaselineSettings,
    DataSettings,
    FineTuneSettings,
    HeadSettings,
    TrackingSettings,
)


def fine_tune(
    cut: str,
    data: DataSettings,
    backbone: BackboneSettings = BackboneSettings(),
    head: HeadSettings = HeadSettings(),
    finetune: FineTuneSettings = FineTuneSettings(),
    baselines: BaselineSettings = BaselineSettings(),
    tracking: TrackingSettings = TrackingSettings(),
    store: str | None = None,
    output: str = "runs",
    seed: NonNegativeInt = 0,
    standalone: bool = False,
    verbose: bool = False,
) -> None:
    """Fine-tune a pretrained model at a cut you name, and register it.

    Args:
        cut: Where to cut the backbone; `reusekit cuts SOURCE` lists the choices.
        data: Which TFDS data set to train on.
        backbone: Which pretrained model to start from.
        head: The head, and the first phase, in which only the head is trained.
        finetune: The second phase, with the top of the backbone unfrozen.
        baselines: What the result is compared with.
        tracking: Where MLflow keeps the run, and the name in the registry.
        store: Folder of the feature store; null for ~/.cache/reusekit/features.
        output: Folder for this run's files; each run gets one of its own in it.
        seed: Decides the examples, the initial weights and the order of batches.
        standalone: Register the whole model with weights of its own, to be loaded where reusekit is
            not installed. Otherwise its bottom is stored once for all models that stand on it.
        verbose: Say more, and show the traceback of an error.
    """
    with stages.start_job("finetune", output, tracking, seed, verbose, data) as job:
        with job.stage("Load the backbone"):
            pretrained = stages.load_backbone(backbone)
            stages.clean_cut(pretrained, cut)
            if finetune.unfreeze_from is not None:
                stages.clean_cut(pretrained, finetune.unfreeze_from, before=cut)
            features = FeatureStore(store)
        with job.stage("Load the data"):
            splits = stages.load_data(data, pretrained, seed)
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
            begun = stages.train_head(pretrained, cut, head, splits, features, seed)
        with job.stage("Fine-tune the top of the backbone"):
            tuned = stages.finetune(begun, pretrained, finetune, splits, features, job.folder, seed)
        with job.stage("Evaluate on the test split"):
            test = stages.evaluate(tuned.whole, splits.test)
        with job.stage("Train the baselines"):
            rivals = stages.run_baselines(tuned.whole, splits, baselines, job.folder, seed)
        with job.stage("Register"):
            version = stages.register(
                tuned,
                pretrained,
                splits,
                test,
                tracking,
                job.folder,
                baselines=rivals,
                standalone=standalone,
            )
    stages.report(job, tuned, test, version, tracking, baselines=rivals)


if __name__ == "__main__":
    launch(fine_tune)
