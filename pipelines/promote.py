"""Compare a registered version with the champion on held-out data; the better one is champion.

python pipelines/promote.py --config configs/digits_promote.yaml --dry_run
"""

from pydantic import NonNegativeInt

from reusekit import stages
from reusekit.launch import launch
from reusekit.settings import DataSettings, PromoteSettings, TrackingSettings


def promote_candidate(
    data: DataSettings,
    promote: PromoteSettings = PromoteSettings(),
    tracking: TrackingSettings = TrackingSettings(),
    output: str = "runs",
    seed: NonNegativeInt = 0,
    dry_run: bool = False,
    verbose: bool = False,
) -> None:
    """Compare a registered version with the champion on held-out data; the better one is champion.

    The alias is moved only if the candidate wins by the margin, as sure as it is asked for. Where
    no version has the alias yet, the candidate gets it. Either way the candidate says why.

    Args:
        data: The data set, of which the split `test` is held out: neither version may have seen it.
        promote: Which version is the candidate, and by what it has to win.
        tracking: Where the registry is, the name in it, and the alias of the champion.
        output: Folder for the predictions; each run gets one of its own in it.
        seed: Decides the resamples of the examples.
        dry_run: Compare and say what would be done, and write nothing.
        verbose: Say more, and show the traceback of an error.
    """
    with stages.start_job(
        name="promote", output=output, tracking=tracking, seed=seed, verbose=verbose, data=data
    ) as job:
        with job.stage("Look up the candidate and the champion"):
            contest = stages.find_contest(settings=promote, registry=tracking)
        with job.stage("Evaluate them on the held-out split"):
            candidate = stages.evaluate_version(version=contest.candidate, data=data)
            champion = None
            if contest.champion is not None:
                champion = stages.evaluate_version(version=contest.champion, data=data)
        with job.stage("Decide"):
            verdict = stages.judge(
                candidate=candidate, champion=champion, settings=promote, seed=seed
            )
            if not dry_run:
                stages.carry_out(
                    verdict=verdict,
                    settings=promote,
                    registry=tracking,
                    folder=job.folder,
                    seed=seed,
                )
    stages.report_verdict(verdict=verdict, registry=tracking, dry_run=dry_run)


if __name__ == "__main__":
    launch(promote_candidate)
