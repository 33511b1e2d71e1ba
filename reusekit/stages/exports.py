"""The stage of an export: a registered version as files, checked on the data it was tested on."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
from mlflow.entities.model_registry import ModelVersion

from reusekit import tracking
from reusekit.data import DataSplit
from reusekit.errors import ConfigError, DataError
from reusekit.exports import Exporter, Exports
from reusekit.exports.exporter import AnyFormat
from reusekit.exports.formats import FORMATS, Quantization, written_as
from reusekit.progress import say
from reusekit.stages.fine_tuning import FineTuned
from reusekit.stages.inputs import Splits
from reusekit.stages.promote import PLACES, of_task
from reusekit.stages.registration import from_raw
from reusekit.tasks import TaskRules, rules_of
from reusekit.tracking.names import THRESHOLDS


def export_version(
    address: str,
    formats: Sequence[AnyFormat],
    precisions: Sequence[Quantization | None],
    folder: Path,
    max_accuracy_loss: float | None = None,
    where: str | None = None,
) -> Exports:
    """Write a registered version as files, compare them with it, and log them beside it.

    The test split, and the training split for calibration, are those that its run has recorded. A
    file beside them, `NAME.json`, has the names of outputs, and size and channels of pictures.

    Args:
        address: Of the version, such as `models:/digits@champion`.
        formats: The formats.
        precisions: The precisions in which each of them that can is written.
        folder: Where to.
        max_accuracy_loss: The most that a file may lose of the task's measure.
        where: Where the data lie now; None for TFDS's own folder.

    Raises:
        ExportError: No format has a precision; or see `reusekit.export`.
        ConfigError: The data are not on record, or cannot be found again.
        TrackingError: There is no such version, or the registry does not answer.
    """
    pairs = [(one, how) for how in precisions for one in formats if _can(one, how)]
    for how in precisions:
        if not any(found == how for _, found in pairs):
            FORMATS[formats[0]].check(how)  # which says what it can
    for one, how in pairs:
        FORMATS[one].check(how)
    version = tracking.find_registered_version(address)
    check = _recorded(version, "test", where)
    calibrated = "int8-calibrated" in precisions
    calibrate = _recorded(version, "training", where) if calibrated else None
    thresholds = json.loads((version.tags or {}).get(THRESHOLDS, "null"))
    rules = _with_thresholds(rules_of(check.task), thresholds)
    model = tracking.load_version(version)
    model.name = version.name  # which files are called by
    exporter = Exporter(model, check, calibrate, folder, max_accuracy_loss, rules)
    made = []
    for one, how in pairs:
        say(f"Writing {one}{f', {how}' if how else ''} ...")
        made.append(exporter.export(one, how))
    exports = Exports(tuple(made))
    tracking.log_exports(version, exports, check)
    meaning = tracking.Usage.of(check).model_dump_json(indent=2)
    Path(folder, f"{version.name}.json").write_text(meaning, "utf-8")
    return exports


def ship(
    tuned: FineTuned,
    splits: Splits,
    ship_as: str,
    version: ModelVersion | None,
    name: str,
    folder: Path,
) -> Exports:
    """Write the final model as the file that the search was for, and compare it on the test split.

    File and figures are logged to the active run, and shown on the version's card.

    Args:
        tuned: The model.
        splits: The data: it is calibrated on training examples where the precision takes any.
        ship_as: The format with its precision, such as `litert-int8`.
        version: Its version in the registry; None where that waits for the server.
        name: What the model, and so the file, is called.
        folder: Where to.

    Raises:
        ExportError: The trained model cannot be written, or says something else as a file.
        TrackingError: The registry refuses.
    """
    tuned, splits = from_raw(tuned, splits)
    format, quantize = written_as(ship_as)
    model = keras.Model(tuned.whole.input, tuned.whole.output, name=name)
    exporter = Exporter(model, splits.test, splits.train, folder, rules=tuned.rules)
    exports = Exports((exporter.export(format, quantize),))
    tracking.log_shipped(version, exports)
    return exports


def _can(name: str, precision: str | None) -> bool:
    return precision is None or precision in FORMATS[name].quantizations


def _recorded(version: Any, context: str, where: str | None) -> DataSplit:
    """Read a split again that the run of a version has recorded.

    Raises:
        ConfigError: There is none, or it cannot be found again.
    """
    named = f"version {version.version} of {version.name}"
    found = [one for one in tracking.recorded_splits(version) if one.context == context]
    if not found:
        raise ConfigError(
            f"Expected a {context} split among the inputs of the run of {named}. Received: none. "
            "Give rk.export one that is at hand."
        )
    place = PLACES.get(found[0].source.reader)
    given = {} if where is None or place is None else {_argument(place): where}
    try:
        return found[0].source.load_split(**given)
    except DataError as error:
        raise ConfigError(
            f"{error} Say where the {context} split of {named} lies with --data, or give rk.export "
            "one that is at hand."
        ) from error


def _argument(place: str) -> str:
    return "path" if place == "folder" else place


def _with_thresholds(rules: TaskRules, thresholds: Any) -> TaskRules:
    """Return the rules with the thresholds that a version was registered with."""
    made: list[Any] = []
    for before, one in rules.each():
        own = of_task(thresholds, before)
        made.append(one if own is None else replace(one, thresholds=tuple(own)))  # type: ignore[call-arg]  # of labels
    return replace(rules, several=tuple(made)) if rules.task.parts else made[0]  # type: ignore[call-arg]  # of several
