"""Give the champion's alias back to the version that had it before.

python pipelines/rollback.py --tracking.model digits
"""

from reusekit import stages
from reusekit.launch import launch
from reusekit.settings import TrackingSettings


def roll_back(
    tracking: TrackingSettings = TrackingSettings(),
    reason: str = "no reason was given",
    verbose: bool = False,
) -> None:
    """Give the champion's alias back to the version that had it before.

    Nothing is trained, loaded or deleted. Called again it goes back further.

    Args:
        tracking: Where the registry is, the name in it, and the alias.
        reason: Why; kept with the version that loses the alias.
        verbose: Show the traceback of an error.
    """
    left, restored = stages.roll_back(registry=tracking, reason=reason)
    print(
        f"{tracking.model}@{tracking.promoted} is version {restored} again; it was version {left}."
    )


if __name__ == "__main__":
    launch(roll_back)
