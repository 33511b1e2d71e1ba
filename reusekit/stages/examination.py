"""The stage of an examination: faults of a model that nothing tells of, and their mending."""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import keras

from reusekit.backbones import load_backbone
from reusekit.backbones.files import SUFFIXES, check_file, read_file
from reusekit.data import DataSplit, Treatment, from_folder, from_table, load
from reusekit.data.treatment import treatment_for
from reusekit.errors import BackboneError, ConfigError
from reusekit.sharing import count_params
from reusekit.stages.checks import Finding, Patient, checks_of
from reusekit.stages.checks.weights import UNREADABLE
from reusekit.surgery import clone

_IN_PLACE = ("batch-norm", "training-mode")
"""The checks whose mends leave every address as it is."""
_NAMED = 3
"""The layers with the same fault that are named in print."""


@dataclass(frozen=True)
class Examination:
    """The findings in a model, and what was looked at; prints as lines.

    Attributes:
        name: The name or path of the model.
        model: The model; None where it cannot be loaded.
        findings: What is wrong with it.
        checked: The names of the checks that were made.
        notes: What is not wrong, and surprises people.
        look: Finds what is wrong with a model on the way to the mended one.
    """

    name: str
    model: keras.Model | None = field(repr=False)
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    notes: tuple[str, ...] = ()
    look: Callable[[keras.Model], list[Finding]] = field(default=lambda model: [], repr=False)

    @property
    def is_well(self) -> bool:
        """True where nothing was found."""
        return not self.findings

    def mended(self) -> keras.Model:
        """Return a model of its own in which all that can be mended is; the examined one stays.

        It is not compiled: an optimizer belongs to the variables that it was made for.

        Raises:
            ConfigError: Nothing can be mended.
        """
        mends = [one.mend for one in self.findings if one.mend is not None]
        if self.model is None or not mends:
            raise ConfigError(
                f"Expected something that can be mended without you. Received: {self.name}, in "
                f"which {'nothing is wrong' if self.is_well else 'only you can mend it'}."
            )
        model = clone(self.model)
        # What is put in or taken out moves other layers, so that their addresses are sought anew.
        for _ in mends:
            found = [(one.check, one.mend) for one in self.look(model) if one.mend is not None]
            in_place = [one for one in found if one[0] in _IN_PLACE]
            for _, mend in in_place or found[:1]:
                model = mend(model)
        return model

    def __str__(self) -> str:
        lines = [f"{self.name}: {', '.join(self.checked)} looked at."]
        for _, group in groupby(self.findings, key=lambda one: (one.check, one.what)):
            same = list(group)
            one, others = same[0], len(same) - _NAMED
            at = "".join(f", {each.address}" for each in same[:_NAMED] if each.address)
            at += f" and {others} more" if others > 0 else ""
            reported = f" ({one.reported})" if one.reported else ""
            lines += [
                f"- {one.check}{at}: {one.what}{reported}",
                f"  {'Can be mended; by hand: ' if one.mend else 'To do: '}{one.remedy}",
            ]
        return "\n".join([*lines, *self.notes, *(["Nothing was found."] if self.is_well else [])])


def examine(
    model: keras.Model | str | Path,
    data: DataSplit | str | None = None,
    *,
    input: str | None = None,
    label: str | None = None,
) -> Examination:
    """Look for what is known to go wrong in Keras models.

    Args:
        model: A model, the path of a `.keras` or `.h5` file, or whatever else `rk.load_backbone`
            takes. A file is read with its compilation, in Keras's safe mode.
        data: Examples as they are fed to the model, with their labels: a split, a folder with one
            folder for each class, a table, or the name of a TFDS data set, of which the part
            `train` is read at the model's size. Without them neither the range of inputs nor
            labels are checked.
        input: The column of inputs of a table, or the feature of a data set.
        label: The column of labels, likewise.

    Returns:
        What was found.

    Raises:
        BackboneError: There is no such model, or the file holds none.
        DataError: There are no such data.

    Example:
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(4, 3, trainable=False, name="a")(x)
        >>> y = keras.layers.BatchNormalization(name="norm")(y)
        >>> y = keras.layers.Conv2D(4, 3, trainable=False, name="b")(y)
        >>> y = keras.layers.Dense(2)(keras.layers.Flatten()(y))
        >>> [(one.check, one.address) for one in examine(keras.Model(x, y)).findings]
        [('batch-norm', 'norm')]
    """
    if isinstance(model, keras.Model):
        return _examined(Patient(model, model.name, _opened(data, model, input, label)))
    name = str(model)
    try:
        loaded, complaints = _loaded(name)
    except BackboneError as error:
        if "not registered with Keras" in str(error):
            remedy = "Register the class with keras.saving.register_keras_serializable where it is "
            remedy += "defined."
        elif "`Lambda`" in str(error):
            remedy = "A layer or function with a name, registered with "
            remedy += "keras.saving.register_keras_serializable, in the place of the Lambda."
        else:
            raise
        missing = Finding("", str(error), remedy, "keras #19373", check="classes")
        return Examination(name, None, (missing,), ("classes",))
    split = _opened(data, loaded, input, label)
    return _examined(Patient(loaded, name, split, complaints))


def write_mended(examination: Examination, path: Path) -> keras.Model:
    """Write the mended model into a new file, and read it back.

    Raises:
        ConfigError: The file is there already, is no `.keras` file, or nothing can be mended.
    """
    if path.suffix != ".keras" or path.exists() or not path.parent.is_dir():
        raise ConfigError(
            f"Expected a new .keras file in a folder that is there, since nothing is ever written "
            f"over. Received: {str(path)!r}."
        )
    model = examination.mended()
    with tempfile.TemporaryDirectory(dir=path.parent) as draft:
        written = Path(draft, "mended.keras")
        model.save(written)
        loaded = read_file(written, str(path))
        written.rename(path)
    return loaded


def _opened(
    data: DataSplit | str | None, model: keras.Model, input: str | None, label: str | None
) -> DataSplit | None:
    """Return a split, opened at the size that a model of pictures takes."""
    if data is None or isinstance(data, DataSplit):
        return data
    shape: tuple = model.inputs[0].shape if len(model.inputs or ()) == 1 else ()
    treatment = Treatment()
    if len(shape) == 4 and None not in shape[1:]:
        treatment = Treatment(**treatment_for(shape[1:]))
    if Path(data).is_dir():
        return from_folder(data, "train", treatment=treatment)
    if not Path(data).is_file():
        return load(data, "train", input=input, label=label, treatment=treatment)
    if input is None or label is None:
        raise ConfigError(
            f"Expected the columns of input and label of the table {data}. Received: input="
            f"{input!r} and label={label!r}."
        )
    return from_table(data, "train", input=input, label=label, treatment=treatment)


def _loaded(name: str) -> tuple[keras.Model, list[str]]:
    """Return a model, and what Keras complained of while it read the file."""
    if not name.endswith(SUFFIXES):
        return load_backbone(name).model, []
    check_file(Path(name), name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = read_file(Path(name), name, compiled=True)
        except BackboneError as error:  # perhaps for a loss or metric of the user's own
            plain = read_file(Path(name), name)
            said = " ".join(str(error.__cause__ or error).split())[:200]
            return plain, [UNREADABLE + said]
    return model, [str(one.message) for one in caught]


def _examined(patient: Patient) -> Examination:
    checks = checks_of(patient)

    def look(model: keras.Model) -> list[Finding]:
        # Not asked again what a file would keep of it.
        return _findings(Patient(model, patient.name, patient.data, complaints=[]))

    found, notes = tuple(_findings(patient)), tuple(_notes(patient))
    return Examination(patient.name, patient.model, found, tuple(checks), notes, look)


def _findings(patient: Patient) -> list[Finding]:
    checks = checks_of(patient).items()
    return [replace(found, check=check) for check, look in checks for found in look(patient)]


def _notes(patient: Patient) -> list[str]:
    notes, model = [], patient.model
    if patient.graph is None:
        parts = ", ".join(prefix.rstrip("/") for prefix in patient.graphs)
        notes.append(
            "The model has no functional graph, so that only ties, optimizer and rates were looked "
            + (f"at, and what training does inside of {parts}." if parts else "at.")
        )
    if model.built:
        rows = sum(layer.count_params() for layer in model.layers if layer.built)
        total = count_params(model).total
        if rows > total:
            notes.append(
                f"The rows of model.summary() add up to {rows:,} parameters, of which "
                f"{rows - total:,} are counted twice; there are {total:,} (keras #3661)."
            )
    return notes
