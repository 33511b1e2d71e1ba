"""Annotations in words, as messages say what was expected."""

import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import AfterValidator
from pydantic.fields import FieldInfo

NUMBERS = {int: "a whole number", float: "a number"}
PLAIN = {bool: "True or False", str: "text", bytes: "bytes", type(None): "None"}
_NAMES = {
    "Model": "a Keras model",
    "Layer": "a Keras layer",
    "KerasTensor": "a Keras tensor",
    "ndarray": "an array",
    "PathLike": "a path",
    "dict": "a dictionary",
    "DataSplit": "a DataSplit, as rk.data.load, from_folder, from_table, from_arrays and "
    "from_dataset make it",
}


def members(annotation: Any) -> list[Any]:
    """Return the members of a union, without the constraints on them."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return members(arguments[0])
    if origin in (Union, types.UnionType):
        return [member for one in arguments for member in members(one)]
    return [annotation]


def choices_of(annotation: Any) -> tuple:
    """Return the values of a `Literal`; none of anything else."""
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def described(annotation: Any, qualities: str = "") -> str:
    """Return an annotation in words.

    Args:
        annotation: What is expected.
        qualities: More to say of text, a list or a dictionary.

    Example:
        >>> from pydantic import Field, PositiveInt
        >>> described(PositiveInt | None)
        'None or a whole number of at least 1'
        >>> described(Sequence[Annotated[float, Field(ge=0, lt=1)]])
        'a list, each item a number of at least 0 and below 1'
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        base, *metadata = arguments
        flat = [m for one in metadata for m in (one.metadata if _is_field(one) else [one])]
        text = next((m.description for m in metadata if _is_field(m) and m.description), None)
        return text or described(base, _qualities(flat)) + _ranges(base, flat)
    if origin in (Union, types.UnionType):
        return _joined(map(described, arguments))
    if origin is Literal:
        return _joined(map(repr, arguments))
    if origin is tuple and arguments[1:] != (...,):
        return f"({', '.join(map(described, arguments))})"
    if origin in (list, tuple, Sequence, Collection, Iterable):
        of = "" if arguments[0] is Any else f", each item {described(arguments[0])}"
        return f"a list{qualities}{of}"
    if origin in (dict, Mapping):
        of = "" if arguments[1] is Any else f", each value {described(arguments[1])}"
        return f"a dictionary{qualities}{of}"
    if origin is Callable or annotation is Callable:
        return "a function"
    if annotation in (*NUMBERS, *PLAIN):
        return {**NUMBERS, **PLAIN}[annotation] + qualities
    named = getattr(origin or annotation, "__name__", str(annotation))
    if named in _NAMES:
        return _NAMES[named]
    return f"{'an' if named[0] in 'AEIOU' else 'a'} {named}"


def _is_field(metadata: Any) -> bool:
    return isinstance(metadata, FieldInfo)


def _ranges(base: Any, metadata: Sequence[Any]) -> str:
    """Describe the constraints on a number."""
    limits = []
    for one in metadata:
        if isinstance(one, Gt) and base is int:
            limits.append(f"at least {one.gt + 1}")  # type: ignore[operator]  # a whole number
        elif isinstance(one, Gt):
            limits.append(f"above {one.gt}")
        elif isinstance(one, Ge):
            limits.append(f"at least {one.ge}")
        elif isinstance(one, Lt):
            limits.append(f"below {one.lt}")
        elif isinstance(one, Le):
            limits.append(f"at most {one.le}")
    of = " of " if limits and limits[0].startswith("at") else " "
    return of + " and ".join(limits) if limits else ""


def _qualities(metadata: Sequence[Any]) -> str:
    """Describe the constraints on text, a list or a dictionary."""
    full = ["not empty"] * any(isinstance(one, MinLen) for one in metadata)
    short = [f"no longer than {one.max_length}" for one in metadata if isinstance(one, MaxLen)]
    once = ["with nothing twice"] * (DISTINCT in metadata)
    return "".join(f", {quality}" for quality in (*full, *short, *once))


def _joined(parts: Iterable[str]) -> str:
    *first, last = sorted(dict.fromkeys(parts), key="None".__ne__)
    return f"{', '.join(first)} or {last}" if first else last


def _each_once(values: list) -> list:
    if any(value in values[:number] for number, value in enumerate(values)):
        raise ValueError("the same twice")
    return values


@dataclass(frozen=True)
class _Distinct(AfterValidator):
    """The rule that nothing stands twice in a list; a help text shows it by its name."""

    def __repr__(self) -> str:
        return "nothing twice"


DISTINCT = _Distinct(_each_once)
