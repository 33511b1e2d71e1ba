"""Combinations of registered models over one bottom, as plain data, and what fits into one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from pydantic import BaseModel, ConfigDict, ValidationError

from reusekit.arguments import first_fault
from reusekit.data import Treatment
from reusekit.errors import TrackingError
from reusekit.tracking import names
from reusekit.tracking.linked import CHAMPION
from reusekit.tracking.stored import COMBINATION, Part, Reference, Stored
from reusekit.tracking.usage import Columns, Usage

_SHOWN = 12  # digits of a digest in a message


class ServedHead(BaseModel):
    """One of the models of a combination.

    Attributes:
        address: The address that is looked up again, such as `models:/digits@champion`.
        version: The version that it meant when the models were combined.
        answers: The kind of values in each column of its answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    version: str
    answers: Mapping[str, str]


class Combination(BaseModel):
    """The content of a combined model, as plain data.

    Attributes:
        name: Its name in the registry.
        alias: The alias of that name, by which other heads are found.
        refresh: The seconds after which aliases are looked at again.
        bottom: What all heads stand on.
        heads: Its heads, by the name that their answers have.
        treatment: How pictures become what the bottom takes.
        columns: The columns of a table that all were trained on; None where they are not the same,
            which is for inputs of one column alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    alias: str
    refresh: float
    bottom: Part
    heads: Mapping[str, ServedHead]
    treatment: Treatment
    columns: Columns | None

    @classmethod
    def read(cls, file: Path, named: str) -> "Combination":
        """Read the content of a combined model that errors name.

        Raises:
            TrackingError: It is damaged.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            where = COMBINATION.as_posix()
            raise TrackingError(
                f"Expected {where} of {named} as it was written. Received: one that is "
                f"damaged{first_fault(error)}. Combine the models again."
            ) from error

    @classmethod
    def of(cls, stored: Stored, client: MlflowClient) -> "Combination":
        """Read the content of a registered combined model.

        Raises:
            TrackingError: It is another kind of model, or it is gone, altered or damaged.
        """
        if stored.role != names.COMBINED:
            raise TrackingError(f"Expected a combined model. Received: {stored.named}.")
        with TemporaryDirectory() as scratch:
            return cls.read(stored.fetch(client, COMBINATION, Path(scratch)), stored.named)


@dataclass(frozen=True)
class HeadVersion:
    """A registered whole whose top may serve as a head; its top is not read yet.

    Attributes:
        version: The version.
        model_id: The logged model.
        reference: Its parts.
        usage: Its names, and how its inputs are treated.
    """

    version: ModelVersion
    model_id: str | None
    reference: Reference
    usage: Usage

    @property
    def named(self) -> str:
        """Its exact address."""
        return address_of(self.version)

    @classmethod
    def read(cls, version: ModelVersion, client: MlflowClient) -> "HeadVersion":
        """Read what is on record of a version.

        Raises:
            TrackingError: It is no whole that refers to a bottom and a top, or answers with no
                names; or it is gone, altered or damaged.
        """
        stored = Stored.of_version(version, client)
        reference = None if stored.role == names.COMBINED else stored.reference(client)
        if reference is None:
            kinds = {"whole": "model with weights of its own", None: "model of no pipeline"}
            kind = kinds.get(stored.role, stored.role)
            raise TrackingError(
                "Expected a whole model that refers to its bottom and its top, as pipelines "
                f"register it without standalone. Received: {stored.named}, a {kind}."
            )
        usage = stored.usage(client)
        if usage is None:
            raise TrackingError(
                f"Expected a model that answers with names. Received: {stored.named}, which was "
                "registered by a version of before. Train and register it again."
            )
        return cls(version, stored.model_id, reference, usage)

    def check(self, content: Combination, head: ServedHead) -> None:
        """Refuse a version that other heads cannot be served with.

        Raises:
            TrackingError: It stands on another bottom, has another preprocessing, or answers with
                other columns.
        """
        check_bottoms({content.name: content.bottom, self.named: self.reference.bottom})
        _check_treatments({content.name: content.treatment, self.named: self.usage.treatment})
        one_column = content.columns is None and _is_one_column(self.usage.columns)
        if self.usage.columns != content.columns and not one_column:
            raise _other_columns({content.name: content.columns, self.named: self.usage.columns})
        if self.usage.answers() != head.answers:
            raise TrackingError(
                f"Expected answers {_listed(head.answers)} of {self.named}, as when the models "
                f"were combined. Received: {_listed(self.usage.answers())}. Combine them again."
            )


def combination_of(
    name: str,
    addresses: Mapping[str, str],
    found: Mapping[str, HeadVersion],
    alias: str | None,
    refresh: float,
) -> Combination:
    """Return the combination of versions that fit together.

    Raises:
        TrackingError: They do not.
    """
    check_bottoms({head: one.reference.bottom for head, one in found.items()})
    _check_treatments({head: one.usage.treatment for head, one in found.items()})
    columns = {head: one.usage.columns for head, one in found.items()}
    first, *others = columns.values()
    same = all(one == first for one in others)
    if not same and not all(map(_is_one_column, columns.values())):
        raise _other_columns(columns)
    content = Combination(
        name=name,
        alias=alias or CHAMPION,
        refresh=refresh,
        bottom=next(iter(found.values())).reference.bottom,
        heads={
            head: ServedHead(
                address=addresses[head], version=one.named, answers=one.usage.answers()
            )
            for head, one in found.items()
        },
        treatment=next(iter(found.values())).usage.treatment,
        columns=first if same else None,
    )
    owners: dict[str, str] = {}
    for head, one in found.items():
        for task, answers in one.usage.by_task.items():
            joined = joined_name(head, task)
            for column in (*answers.columns_of(joined), f"{joined}_probabilities"):
                if owners.setdefault(column, head) != head:
                    raise TrackingError(
                        f"Expected heads with columns of their own. Received: {column!r} of both "
                        f"{owners[column]!r} and {head!r}. Give the heads other names."
                    )
    return content


def joined_name(head: str, task: str) -> str:
    """Return the name of a task among those of all heads."""
    return f"{head}_{task}" if task else head


def check_bottoms(bottoms: Mapping[str, Part]) -> None:
    """Refuse several bottoms, by the hashes of their files.

    Raises:
        TrackingError: They are not one; the message names two.
    """
    (first, one), *others = bottoms.items()
    for name, other in others:
        if other.file != one.file:
            said = " and ".join(
                f"{who} over {part.version} (SHA-256 {part.file[:_SHOWN]})"
                for who, part in ((first, one), (name, other))
            )
            raise TrackingError(f"Expected models over one bottom. Received: {said}.")


def _check_treatments(treatments: Mapping[str, Treatment]) -> None:
    (first, one), *others = treatments.items()
    for name, other in others:
        differ = [key for key, value in one if value != getattr(other, key)]
        if differ:
            said = ", and ".join(
                f"{', '.join(f'{key}={getattr(of, key)!r}' for key in differ)} of {who}"
                for who, of in ((first, one), (name, other))
            )
            raise TrackingError(f"Expected models with one preprocessing. Received: {said}.")


def _is_one_column(columns: Columns | None) -> bool:
    """Return whether an input needs no name of a column to be found in a table."""
    return columns is None or (not isinstance(columns, Mapping) and len(columns) == 1)


def _other_columns(columns: Mapping[str, Columns | None]) -> TrackingError:
    said = "; ".join(f"{'none' if of is None else of} of {who}" for who, of in columns.items())
    return TrackingError(
        f"Expected models that were trained on the same columns of tables. Received: {said[:400]}."
    )


def _listed(answers: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in answers.items())


def address_of(version: ModelVersion) -> str:
    """Return the exact address of a version."""
    return f"models:/{version.name}/{version.version}"
