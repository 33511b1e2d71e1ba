"""MLflow's pages of a run and of what it registered: descriptions with links and a picture."""

from pathlib import PurePosixPath
from urllib.parse import quote, urlencode

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from reusekit.tracking.card import with_picture
from reusekit.tracking.log import describe
from reusekit.tracking.registry import asking, logged_model_id

REPORT = "report.html"
_LINKS = "[report]("
_FIRST = ("_over_depth.png", "confusion.png", "residuals.png")
"""The ends of the names of pictures, the one that says most first."""


def link_findings(run_id: str, version: ModelVersion) -> None:
    """Link the report and the pictures of a run from its page, and show one on its model's.

    MLflow folds a run's description after four lines, and shows pictures in their full size; so the
    run has a line of links, and the card of its version the picture. A version that another run has
    registered is left alone.

    Args:
        run_id: The run, which is the active one.
        version: The version that it has registered.

    Raises:
        TrackingError: The server does not answer, or refuses.
    """
    client = MlflowClient()
    with asking(f"link what the run {run_id} has found"):
        run = client.get_run(run_id)
        names = [one.path for one in client.list_artifacts(run_id) if one.path.endswith(".png")]
        links = [f"[report]({_artifact(run, REPORT)})"]
        links += [f"[{_title(name)}]({_artifact(run, name)})" for name in names]
        links.append(f"[{version.name} {version.version}]({_version(version)})")
        note = without_links(run.data.tags.get(MLFLOW_RUN_NOTE, ""))
        describe(f"{' &middot; '.join(links)}\n\n{note}")
        if version.run_id == run_id:
            lines = [f"[The report]({_artifact(run, REPORT)}) has trials, mistakes and costs."]
            shown = next((n for end in _FIRST for n in names if n.endswith(end)), None)
            if shown is not None:
                asked = urlencode({"path": shown, "run_uuid": run_id})
                lines += ["", f"![{_title(shown)}](get-artifact?{asked})"]
            card = client.get_model_version(version.name, version.version).description or ""
            set_card(client, version, with_picture(card, lines))


def without_links(note: str) -> str:
    """Return the description of a run without the line of links."""
    first, _, rest = note.partition("\n\n")
    return rest if first.startswith(_LINKS) else note


def set_card(client: MlflowClient, version: ModelVersion, card: str) -> None:
    """Describe a version, and the logged model that it is made of, in the same words."""
    client.update_model_version(version.name, version.version, card)
    model_id = logged_model_id(version)
    if model_id is not None:
        client.set_logged_model_tags(model_id, {MLFLOW_RUN_NOTE: card})


def _artifact(run: Run, path: str) -> str:
    """Return the page of an artifact, from another page of the same server."""
    info = run.info
    return f"#/experiments/{info.experiment_id}/runs/{info.run_id}/artifacts/{quote(path)}"


def _version(version: ModelVersion) -> str:
    return f"#/models/{quote(version.name, safe='')}/versions/{version.version}"


def _title(name: str) -> str:
    return PurePosixPath(name).stem.replace("_", " ")
