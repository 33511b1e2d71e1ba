"""One page that shows a run: settings, findings, mistakes, costs, and how to load its model."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jinja2
import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from reusekit.errors import TrackingError
from reusekit.secrets import shown
from reusekit.tracking.backbones import find_registered_version
from reusekit.tracking.names import KIND, ROLE
from reusekit.tracking.pages import without_links
from reusekit.tracking.registry import asking

_OUTPUTS = ("classes", "labels", "numbers")
_TABLES = ("cuts", "trials", "pareto_parameters", "exports", *_OUTPUTS)
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_COLUMNS = (
    *("trial", "status", "backbone", "cut", "frozen_up_to", "units", "dropout", "optimizer"),
    *("learning_rate", "batch_size", "adaptation", "parameters", "latency", "best_epoch"),
)
_PLANNED = ("Extract the features of every cut", "Search the cut")
_WIDTH, _HEIGHT = 640, 300  # of a chart
_LEFT, _RIGHT, _TOP, _BOTTOM = 100, 600, 20, 230  # of the dots in it
_MOST = 200  # trials of a page, besides those of the Pareto front


def find_run(address: str) -> tuple[str, ModelVersion | None]:
    """Find the run of a report, and the version that it has registered.

    Args:
        address: The id of a pipeline's run, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        TrackingError: There is no such run, or it is no pipeline's.
    """
    if address.startswith("models:/"):
        version = find_registered_version(address)
        if not version.run_id:
            raise TrackingError(
                f"Expected a version that a pipeline has registered. Received: {address}, which "
                "has no run."
            )
        return version.run_id, version
    client = MlflowClient()
    if not _RUN_ID.fullmatch(address):
        raise TrackingError(
            "Expected the id of a run, 32 hexadecimal digits, or models:/NAME@ALIAS. Received: "
            f"{address!r}."
        )
    with asking(f"look up the run {address}"):
        run = client.get_run(address)
        if run.data.tags.get(KIND) != "pipeline":
            raise TrackingError(
                f"Expected the run of a pipeline. Received: {address}, of kind "
                f"{run.data.tags.get(KIND)!r}."
            )
        found = client.search_model_versions(f"run_id = '{address}'")
    wholes = [one for one in found if one.tags.get(ROLE) == "whole"]
    if not wholes:
        return address, None
    return address, client.get_model_version(wholes[0].name, wholes[0].version)


def report_page(run_id: str, version: ModelVersion | None = None) -> str:
    """Write the page of a run, from what it has logged, as HTML that needs no network.

    Args:
        run_id: The run of a pipeline.
        version: The version that it has registered, if any.

    Raises:
        TrackingError: The server does not answer, or there is no such run.
    """
    with asking(f"read the run {run_id}"):
        run = MlflowClient().get_run(run_id)
        with TemporaryDirectory() as scratch:
            found = _read(run_id, Path(scratch))
    tables = {name: _rows(found[f"{name}.json"]) for name in _TABLES if f"{name}.json" in found}
    told = found.get("report.json", {})
    every = tables.get("trials", [])
    measure = _measure(every, run.data.params.get("objective"))
    trials = _best(every, tables.get("pareto_parameters", []), measure)
    page = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page.filters["number"] = _number
    template = page.from_string(
        files("reusekit.tracking").joinpath("report.html.jinja").read_text("utf-8")
    )
    return template.render(
        run=run.info,
        began=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        note=without_links(run.data.tags.get(MLFLOW_RUN_NOTE, "")),
        asked=_asked(run),
        metrics=run.data.metrics,
        params=run.data.params,
        plan=found.get("plan.txt", ""),
        spent=_spent(found.get("plan.json"), told),
        depth=_depth(tables.get("cuts", []), measure),
        front=_front(trials, tables.get("pareto_parameters", []), measure),
        measure=measure,
        trials=_shown(trials, measure),
        count=len(every),
        per_output=next((tables[n] for n in _OUTPUTS if n in tables), []),
        confusion=_confusion(told.get("confusion")),
        kind=told.get("kind"),
        mistakes=told.get("mistakes"),
        missing=told.get("missing", {}),
        where=told.get("where", ""),
        uri=shlex.quote(shown(mlflow.get_tracking_uri())),
        exports=tables.get("exports", []),
        version=version,
        address=None if version is None else f"models:/{version.name}/{version.version}",
    )


def _read(run_id: str, folder: Path) -> dict[str, Any]:
    """Return what a run has of the files that a report shows, by their fixed names."""
    names = {one.path for one in MlflowClient().list_artifacts(run_id)}
    wanted = {*(f"{name}.json" for name in _TABLES), "plan.txt", "plan.json", "report.json"}
    found: dict[str, Any] = {}
    for name in sorted(wanted & names):
        file = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=name, dst_path=str(folder)
        )
        text = Path(file).read_text("utf-8")
        found[name] = json.loads(text) if name.endswith(".json") else text
    return found


def _rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def _measure(trials: Sequence[Mapping[str, Any]], objective: str | None) -> str:
    """Return the column of trials that is shown: the objective, if the run has named it."""
    scores = [name for name in (trials[0] if trials else ()) if name.startswith("val_")]
    if objective in scores:
        return str(objective)
    return next((name for name in scores if name != "val_loss"), "val_loss")


def _best(
    trials: Sequence[Mapping[str, Any]], front: Sequence[Mapping[str, Any]], measure: str
) -> list[Mapping[str, Any]]:
    """Return all trials, or the best and those of the Pareto front where there are too many."""
    if len(trials) <= _MOST:
        return list(trials)
    done = [row for row in trials if row.get(measure) is not None]
    # The front ends with the best trial of all, whichever way the measure goes.
    rises = not front or front[-1][measure] >= max(row[measure] for row in done)
    done.sort(key=lambda row: row[measure], reverse=rises)
    on_front = {row["trial"] for row in front}
    return [*done[:_MOST], *(row for row in done[_MOST:] if row["trial"] in on_front)]


def _asked(run: Run) -> dict[str, dict[str, str]]:
    """Return the settings that say something, by their group."""
    found: dict[str, dict[str, str]] = {}
    for name, value in sorted(run.data.params.items()):
        group, _, rest = name.partition(".")
        if value not in ("None", "[]", "") and rest and group not in ("parameters", "latency"):
            found.setdefault(group, {})[rest] = value
    return found


def _spent(plan: Any, told: Mapping[str, Any]) -> list[tuple[str, float | None, float]]:
    """Return stages with the seconds that were estimated, if any, and those that they took."""
    took: dict[str, float] = dict(told.get("seconds", {}))
    rows: list[tuple[str, float | None, float]] = []
    planned = [took.pop(name) for name in _PLANNED if name in took]
    if planned and isinstance(plan, dict):
        plans = plan.get("plans", {"": plan}).values()  # of several backbones each
        estimate = sum(one["seconds"] for one in plans)
        rows.append(("Extract features and search, as planned", estimate, sum(planned)))
    return [*rows, *((name, None, seconds) for name, seconds in took.items())]


@dataclass(frozen=True)
class Dot:
    """A dot of a chart, before it has a place.

    Attributes:
        x: Its value across.
        y: Its value upwards.
        title: Its name.
        line: The line that goes through it; None where none does.
    """

    x: float
    y: float
    title: str
    line: str | None


def _chart(dots: Sequence[Dot], across: str) -> dict[str, Any] | None:
    """Return dots with their places in a drawing, and lines; None where there are none.

    Args:
        dots: The dots, in the order in which lines go through them.
        across: The format of values across.
    """
    if not dots:
        return None
    (low_x, high_x), (low_y, high_y) = (
        (min(values), max(values)) for values in zip(*((one.x, one.y) for one in dots), strict=True)
    )
    points, lines = [], dict[str, list[str]]()
    for one in dots:
        x = round(_LEFT + (_RIGHT - _LEFT) * (one.x - low_x) / (high_x - low_x or 1), 1)
        y = round(_BOTTOM - (_BOTTOM - _TOP) * (one.y - low_y) / (high_y - low_y or 1), 1)
        points.append({"x": x, "y": y, "title": one.title, "best": one.line is not None})
        if one.line is not None:
            lines.setdefault(one.line, []).append(f"{x},{y}")
    ends = {"low_x": f"{low_x:{across}}", "high_x": f"{high_x:{across}}"}
    room = {"width": _WIDTH, "height": _HEIGHT, "left": _LEFT, "right": _RIGHT}
    tall = {"top": _TOP, "bottom": _BOTTOM, "low_y": low_y, "high_y": high_y}
    joined = [" ".join(line) for line in lines.values()]
    return {"points": points, "lines": joined, **ends, **room, **tall}


def _depth(cuts: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Any] | None:
    """Return the best of each cut over its depth, a line for each backbone."""
    name = measure.replace("val_", "validation_")
    dots = [
        Dot(row["depth"], row[name], f"{_place(row)}: {row[name]:.4g}", str(row.get("backbone")))
        for row in cuts
        if row.get(name) is not None
    ]
    return _chart(dots, ".0%")


def _front(
    trials: Sequence[Mapping[str, Any]], front: Sequence[Mapping[str, Any]], measure: str
) -> dict[str, Any] | None:
    """Return trials over their parameters, with a line through those of the Pareto front."""
    best = {row["trial"] for row in front}
    done = [row for row in trials if row.get(measure) is not None]
    dots = [
        Dot(
            row["parameters"],
            row[measure],
            f"trial {row['trial']}, {_place(row)}: {row[measure]:.4g}, "
            f"{row['parameters']:,.0f} parameters",
            "front" if row["trial"] in best else None,
        )
        for row in sorted(done, key=lambda row: row["parameters"])
    ]
    return _chart(dots, ",.0f")


def _place(row: Mapping[str, Any]) -> str:
    return f"{row['backbone']} {row['cut']}" if row.get("backbone") else str(row["cut"])


def _shown(trials: Sequence[Mapping[str, Any]], measure: str) -> list[dict[str, Any]]:
    """Return the columns of trials that differ or are always looked for, the measure first."""
    columns = [
        name
        for name in _COLUMNS
        if any(row.get(name) is not None for row in trials)
        and (name in ("trial", "cut", "parameters") or len({str(r.get(name)) for r in trials}) > 1)
    ]
    return [{n: row.get(n) for n in (columns[0], measure, *columns[1:])} for row in trials]


def _confusion(told: Any) -> dict[str, Any] | None:
    if not told:
        return None
    rows = [
        [(count, round(count / max(sum(row), 1), 3)) for count in row] for row in told["counts"]
    ]
    return {"names": told["names"], "rows": list(zip(told["names"], rows, strict=True))}


def _number(value: Any) -> str:
    """Return a value of a table as people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
