"""The stage of the report: the mistakes explained, and the page that shows the whole run."""

import base64
import io
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
from mlflow.entities.model_registry import ModelVersion
from PIL import Image

from reusekit.backbones.hub import PresetTokens
from reusekit.data import DataSplit, Task
from reusekit.errors import ReusekitError, reason
from reusekit.explanation import explain
from reusekit.graph import read, resolve
from reusekit.progress import say
from reusekit.stages.evaluation import Evaluation
from reusekit.stages.fine_tuning import FineTuned
from reusekit.stages.inputs import INFERENCE_BATCH, Splits
from reusekit.stages.job import Job
from reusekit.stages.reports import test_data
from reusekit.tasks import SingleRules
from reusekit.tracking import Usage, link_findings, log_artifact, report_page

_MISTAKES = 12
_CLASSES = 40  # more make a table of confusions that nobody reads
_SIDE = 160  # pixels of a picture at most
_CHARACTERS = 1200  # of a text


def write_report(
    job: Job, tuned: FineTuned, splits: Splits, test: Evaluation, version: ModelVersion | None
) -> Path | None:
    """Log the worst mistakes with their explanations, and a page that shows the whole run.

    The page is written from what is in MLflow, as `reusekit report` writes it again.

    Args:
        job: The running job.
        tuned: Its model.
        splits: The data; the mistakes are those on the test split.
        test: What the model says of that.
        version: Its version in the registry; None where the tracking server is away.

    Returns:
        The page's file; None where the server is away, or the page cannot be written: `reusekit
        report` writes it later.
    """
    try:
        return _written(job, tuned, splits, test, version)
    except Exception as error:  # the run is finished, and nothing here may cost it
        say(
            f"warning: The report cannot be written: {reason(error)} All else is kept; "
            "reusekit report models:/NAME/VERSION tries again."
        )
        return None


def _written(
    job: Job, tuned: FineTuned, splits: Splits, test: Evaluation, version: ModelVersion | None
) -> Path | None:
    where = shlex.join(test_data(job.settings.get("data")))
    told = {"seconds": job.clock.seconds, "where": where, **_told(tuned, splits, test)}
    file = job.folder / "report.json"
    file.write_text(json.dumps(told))
    log_artifact(file)
    run = mlflow.active_run()
    if version is None or run is None:
        say("The report waits for the tracking server: reusekit report RUN writes it then.")
        return None
    page = job.folder / "report.html"
    page.write_text(report_page(run.info.run_id, version), "utf-8")
    log_artifact(page)
    link_findings(run.info.run_id, version)
    return page


def _told(tuned: FineTuned, splits: Splits, test: Evaluation) -> dict[str, Any]:
    """Return confusions and mistakes as plain data, and why there are none where that is so."""
    rules, missing = tuned.rules, {}
    if not isinstance(rules, SingleRules):
        why = "there are several tasks, of which MLflow has a table each"
        return {"missing": {"confusion": why, "mistakes": why}}
    task, told = rules.task, {}
    if task.kind != "classification":
        missing["confusion"] = f"the task is {task.kind}"
    elif task.size > _CLASSES:
        missing["confusion"] = f"there are {task.size} classes; confusion.png has them"
    else:
        counts = np.zeros((task.size, task.size), int)
        np.add.at(counts, (test.labels, test.outputs.argmax(-1)), 1)
        told["confusion"] = {"names": list(task.names), "counts": counts.tolist()}
    mistakes, why = _mistakes(tuned, rules, splits, test)
    if why:
        missing["explanations"] = why
    return {**told, "kind": task.kind, "mistakes": mistakes, "missing": missing}


def _mistakes(
    tuned: FineTuned, rules: SingleRules, splits: Splits, test: Evaluation
) -> tuple[list[dict[str, Any]], str]:
    losses = np.nan_to_num(rules.losses(test.outputs, test.labels), nan=1e30, posinf=1e30)
    decided = rules.decided(test.outputs)
    if rules.task.kind != "regression":
        right = (decided == test.labels).reshape(len(losses), -1).all(-1)
        losses = np.where(right, -1.0, losses)
    order = [int(one) for one in np.argsort(-losses, kind="stable")[:_MISTAKES] if losses[one] >= 0]
    if not order:
        return [], ""
    fed, raw = _taken(splits.test, order), _taken(splits.raw.test, order)
    batch = keras.tree.map_structure(lambda *ones: np.stack(ones), *fed)
    values, why = None, ""
    is_image = isinstance(raw[0], np.ndarray) and raw[0].ndim == 3
    task, of = rules.task, None  # of classes, the one that was said is explained
    if task.kind != "classification":
        of = np.abs(test.outputs[order] - test.labels[order]).argmax(-1)
    if is_image or splits.tokenizer is not None:
        try:
            how: Any = "grad_cam" if is_image else "gradient"
            values = explain(tuned.whole, batch, tuned.cut, how, of).values
        except ReusekitError as error:
            why = str(error)
        tokens = batch.get("token_ids") if isinstance(batch, dict) else batch
        if values is not None and is_image and values.ndim != 3:
            values, why = None, f"the cut {tuned.cut} has no axes of height and width."
        elif values is not None and not is_image and not _is_by_token(tuned, values, tokens):
            values, why = None, f"the cut {tuned.cut} keeps no place for each token."
    columns = Usage.of(splits.raw.test).columns
    found = []
    for place, at in enumerate(order):
        shown = {
            "truth": _in_words(test.labels[at], task),
            "said": _in_words(test.outputs[at], task, decided[at]),
            "loss": float(losses[at]),
        }
        if task.kind == "regression":
            shown["off"] = _in_words(test.outputs[at] - test.labels[at], task)
        if of is not None and values is not None and task.size > 1:
            shown["explained"] = task.names[of[place]]
        if is_image:
            shown["image"] = _picture(raw[place])
            if values is not None:
                shown["map"] = _heat(values[place])
        else:
            shown["text"] = _text(raw[place], columns)[:_CHARACTERS]
            if values is not None:
                shown["words"] = _words(splits.tokenizer, fed[place], values[place])
        found.append(shown)
    return found, why


def _is_by_token(tuned: FineTuned, values: np.ndarray, tokens: Any) -> bool:
    """Return whether there is a value for each token, and not for each channel."""
    (tensor, *_) = resolve(read(tuned.whole), tuned.cut)
    return len(tensor.shape) == 3 and tokens is not None and values.shape == np.shape(tokens)


def _taken(split: DataSplit, places: list[int]) -> list[Any]:
    """Return the inputs of some examples, in the order of their places."""
    found, first, wanted = {}, 0, set(places)
    for inputs, labels, *_ in split.batches(INFERENCE_BATCH):
        count = len(keras.tree.flatten(labels)[0])
        for place in wanted.intersection(range(first, first + count)):
            found[place] = keras.tree.map_structure(
                lambda one, at=place - first: np.asarray(one[at]), inputs
            )
        first += count
        if len(found) == len(wanted):
            break
    return [found[place] for place in places]


def _in_words(value: np.ndarray, task: Task, decided: np.ndarray | None = None) -> str:
    """Return a label in words, or what a model says, given what the rules make of that."""
    if task.kind == "classification":
        if decided is None:
            return str(task.names[int(value)])
        return f"{task.names[int(value.argmax())]} ({value.max():.0%})"
    pairs = list(zip(task.names, np.atleast_1d(value), strict=True))
    if task.kind == "regression":
        alone = len(pairs) == 1
        return ", ".join(f"{'' if alone else f'{name} '}{number:.4g}" for name, number in pairs)
    if decided is None:
        return ", ".join(name for name, applies in pairs if applies) or "none"
    chosen = zip(pairs, decided, strict=True)
    return ", ".join(f"{n} ({v:.0%})" for (n, v), applies in chosen if applies) or "none"


def _picture(pixels: np.ndarray) -> str:
    pixels = pixels.astype("float32")
    low, high = min(0.0, float(pixels.min())), float(pixels.max())
    high = 255.0 if 1 < high <= 255 else max(high, 1.0)
    scaled = (255 * (pixels - low) / (high - low)).clip(0, 255).astype("uint8")
    image = Image.fromarray(scaled[..., 0] if scaled.shape[-1] != 3 else scaled)
    image.thumbnail((_SIDE, _SIDE))
    return _png(image)


def _heat(values: np.ndarray) -> str:
    """Return a map as red of which the opacity is the value."""
    share = values / max(float(values.max()), 1e-12)
    pixels = np.zeros((*values.shape, 4), "uint8")
    pixels[..., 0], pixels[..., 1] = 255, 40
    pixels[..., 3] = (190 * share).astype("uint8")
    return _png(Image.fromarray(pixels, "RGBA").resize((64, 64), Image.Resampling.BILINEAR))


def _png(image: Image.Image) -> str:
    written = io.BytesIO()
    image.save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def _text(raw: Any, columns: Any) -> str:
    """Return an input in words, numbers by the names of their columns where they have some."""
    if isinstance(raw, dict):
        own = columns if isinstance(columns, Mapping) else {}
        return " | ".join(f"{name}: {_text(one, own.get(name))}" for name, one in raw.items())
    parts = [np.asarray(one) for one in keras.tree.flatten(raw)]
    return " | ".join(_part(one, columns) for one in parts)


def _part(value: np.ndarray, columns: Any) -> str:
    if value.ndim == 0:
        one = value.item()
        return one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one)
    if columns is not None and value.shape == (len(columns),) and value.dtype.kind in "iuf":
        return ", ".join(f"{name} {one:.4g}" for name, one in zip(columns, value, strict=True))
    return np.array2string(value.ravel(), precision=3, threshold=20)


def _words(tokenizer: Any, tokens: Any, weights: np.ndarray) -> list[tuple[str, float]]:
    """Return the words that are no filling, with their weights as shares of the largest."""
    named = isinstance(tokens, dict)
    numbers = tokens["token_ids"] if named else tokens
    kept = tokens["padding_mask"] if named and "padding_mask" in tokens else numbers
    word, largest = _vocabulary(tokenizer), max(float(np.abs(weights).max()), 1e-12)
    return [
        (word(one), round(float(weight) / largest, 3))
        for one, weight, there in zip(numbers.tolist(), weights.tolist(), kept, strict=True)
        if there
    ]


def _vocabulary(tokenizer: Any) -> Callable[[int], str]:
    """Return what gives the word of a token: of a layer of Keras, or of a preset of KerasHub."""
    for layer in tokenizer.layers:
        if hasattr(layer, "get_vocabulary"):
            names = layer.get_vocabulary()
            return lambda one: str(names[one]) if one < len(names) else f"token {one}"
        if isinstance(layer, PresetTokens):
            own = layer.preprocessor.tokenizer
            # Signs by which some tokenizers mark that a word begins.
            return lambda one: str(own.id_to_token(one)).lstrip("\u0120\u2581")
    return lambda one: f"token {one}"
