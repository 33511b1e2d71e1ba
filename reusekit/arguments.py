"""One check of what callers pass: types and ranges, as the annotations say them.

`@checked(SomeError)` on a public function, method or class compares each argument with its
annotation before anything else happens, and raises that error, in one sentence, where it does not
fit. Constraints are pydantic's: `PositiveInt`, `Annotated[float, Field(ge=0, le=1)]`, `Literal`.
"""

import functools
import inspect
import operator
import os
import re
import reprlib
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    Union,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import MinLen
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import core_schema

from reusekit.annotations import DISTINCT, NUMBERS, PLAIN, choices_of, described, members
from reusekit.errors import ConfigError, ReusekitError, nearest, nearest_setting

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
_CONFIG = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def checked(error: type[ReusekitError]) -> Callable[[_Decorated], _Decorated]:
    """Refuse arguments that do not fit their annotations, before the function runs.

    Strict: "3" is no number, True is none either, and NaN and infinity are refused unless
    `AllowInfNan` is in the annotation. A list does for a tuple, and NumPy's numbers do where
    Python's do. Everything else is passed on as it is, never copied or converted. `Any` is not
    checked. A description in the annotation, `Field(description="an address")`, is what the message
    says of it.

    Args:
        error: What is raised. An annotation's own validator may raise a more precise one.

    Example:
        >>> from pydantic import PositiveInt
        >>> @checked(ReusekitError)
        ... def bake(minutes: PositiveInt, how: Literal["fast", "slow"] = "fast") -> None: ...
        >>> bake(True)
        Traceback (most recent call last):
        reusekit.errors.ReusekitError: Expected minutes to be a whole number of at least 1.
        Received: True.
        >>> bake(5, how="slwo")
        Traceback (most recent call last):
        reusekit.errors.ReusekitError: Expected how to be 'fast' or 'slow'. Received: 'slwo'. Did
        you mean 'slow'?
    """

    def decorate(decorated: Any) -> Any:
        if not inspect.isclass(decorated):
            return _guarded(decorated, decorated, error)
        hints = decorated if is_dataclass(decorated) else decorated.__init__
        # A class is checked where it stands, so that it stays the class it is.
        setattr(decorated, "__init__", _guarded(decorated.__init__, hints, error))  # noqa: B010
        return decorated

    return decorate


def _guarded(function: Callable, annotated: Any, error: type[ReusekitError]) -> Callable:
    """Return the function behind a check of its arguments, made at its first call."""
    signature = inspect.signature(function)
    parameters = signature.parameters
    names = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, _EITHER)]
    rest = next((p.name for p in parameters.values() if p.kind is p.VAR_POSITIONAL), None)
    typed = any(get_origin(p.annotation) is Unpack for p in parameters.values())

    @functools.cache
    def checks() -> Mapping[str, Callable[[Any], Any]]:
        wanted = _hints(annotated, parameters).items()
        return {name: _adapter(one).validate_python for name, one in wanted if one is not Any}

    def check(name: str, value: Any) -> Any:
        validate = checks().get(name)
        if validate is None:
            return value
        value = _plain_number(value)
        try:
            validate(value)
        except ValidationError:
            raise _refusal(error, name, _hints(annotated, parameters)[name], value) from None
        return value

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs if typed else ():
            if name not in parameters and name not in checks():
                raise TypeError(f"{function.__qualname__}() got an unexpected argument {name!r}")
        given = [check(name, value) for name, value in zip(names, args, strict=False)]
        given += [check(rest, value) if rest else value for value in args[len(names) :]]
        return function(*given, **{name: check(name, value) for name, value in kwargs.items()})

    # Keras asks a layer for its arguments without unwrapping.
    vars(guarded).update(__signature__=signature, checks=checks)
    return guarded


_EITHER = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _hints(annotated: Any, parameters: Iterable[str]) -> dict[str, Any]:
    """Return the annotations of parameters, and of the keywords that a TypedDict lists."""
    hints = get_type_hints(annotated, include_extras=True)
    found = {name: hints[name] for name in parameters if name in hints}
    for name, hint in list(found.items()):
        if get_origin(hint) is Unpack:
            del found[name]
            found |= get_type_hints(get_args(hint)[0], include_extras=True)
    return found


def check(annotation: Any, value: Any, name: str, error: type[ReusekitError]) -> None:
    """Refuse one value that does not fit an annotation; see `checked`.

    Example:
        >>> from pydantic import PositiveInt
        >>> check(list[PositiveInt], [3, 0], "units", ReusekitError)
        Traceback (most recent call last):
        reusekit.errors.ReusekitError: Expected units[1] to be a whole number of at least 1.
        Received: 0.
    """
    try:
        _adapter(annotation).validate_python(value)
    except ValidationError:
        raise _refusal(error, name, annotation, value) from None


def _adapter(annotation: Any) -> TypeAdapter:
    return TypeAdapter(_strict(annotation), config=_CONFIG)


def _strict(annotation: Any) -> Any:
    """Return the annotation as pydantic is to take it: instances stay what they are."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        base, *metadata = arguments
        inner = get_args(_strict(base)) or (_strict(base),)
        if isinstance(inner[-1], BeforeValidator):  # what it makes is what constraints are about
            return Annotated[(*inner[:-1], *metadata, inner[-1])]
        return Annotated[(_strict(base), *metadata)]
    if annotation is int:  # more than 64 bits no backend takes
        return Annotated[int, Field(ge=-(2**63), lt=2**63), BeforeValidator(_number)]
    if annotation in NUMBERS or annotation is bool:
        return Annotated[annotation, BeforeValidator(_number)]
    if origin is Literal and not any(isinstance(one, bool) for one in arguments):
        return Annotated[annotation, BeforeValidator(_no_truth)]
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(_strict, arguments))
    if origin is tuple:
        items = tuple(one if one is ... else _strict(one) for one in arguments)
        kind = types.GenericAlias(tuple, items)
        return Annotated[(kind, BeforeValidator(_as(tuple, Sequence)))]
    if origin in (list, Sequence):
        kind = types.GenericAlias(list, (_strict(arguments[0]),))
        return Annotated[(kind, BeforeValidator(_as(list, Sequence)))]
    if origin in (Collection, Iterable):  # an iterator can be read only once
        adapter = _adapter(types.GenericAlias(list, arguments[:1]))
        return Annotated[Any, AfterValidator(_as(_items_by(adapter), origin))]
    if origin in (dict, Mapping):
        kind = types.GenericAlias(dict, tuple(map(_strict, arguments)))
        return Annotated[(kind, BeforeValidator(_as(dict, Mapping)))]
    if origin is type:
        return Annotated[Any, _Instance(type)]
    if origin or annotation in (Any, *PLAIN) or not inspect.isclass(annotation):
        return annotation  # a Literal, a Callable
    return Annotated[Any, _Instance(annotation)]


@dataclass(frozen=True)
class _Instance:
    """Pydantic's own check for an instance; its `InstanceOf` takes no dataclasses here."""

    kind: type

    def __get_pydantic_core_schema__(self, *_: Any) -> core_schema.CoreSchema:
        return core_schema.is_instance_schema(self.kind)


def _as(make: Callable, kind: type) -> Callable[[Any], Any]:
    """Return a converter to the type that pydantic compares; text is no list."""

    def convert(value: Any) -> Any:
        if not isinstance(value, kind) or isinstance(value, str | bytes):
            raise ValueError(f"no {kind.__name__}")
        try:
            return make(value)
        except (TypeError, NotImplementedError):  # an array without an axis, a symbolic tensor
            raise ValueError("nothing to go through") from None

    return convert


def _items_by(items: TypeAdapter) -> Callable[[Any], None]:
    """Return a check of the items of what can be gone through again."""

    def check_items(value: Iterable) -> None:
        if isinstance(value, Collection):
            items.validate_python(list(value))
        else:
            iter(value)

    return check_items


def _number(value: Any) -> Any:
    """Convert NumPy's numbers; pydantic would take whatever has `__float__`, such as arrays."""
    value = _plain_number(value)
    if not isinstance(value, int | float):
        raise ValueError("no number")
    return value


def _no_truth(value: Any) -> Any:
    """Refuse True and False, which Python takes for 1 and 0."""
    if isinstance(_plain_number(value), bool):
        raise ValueError("no choice")
    return value


def _plain_number(value: Any) -> Any:
    """Return NumPy's numbers as Python's, and everything else as it is."""
    numpy = sys.modules.get("numpy")
    return value.item() if numpy and isinstance(value, numpy.number | numpy.bool) else value


def _refusal(error: type[ReusekitError], name: str, annotation: Any, value: Any) -> ReusekitError:
    """Name the innermost part of a value that does not fit, in one sentence."""
    name, annotation, value = _innermost(name, annotation, value)
    failed = _failure(annotation, value)
    own = None if failed is None else _raised(failed)
    if own is not None:
        return own
    hint = ""
    choices = [c for part in members(annotation) for c in choices_of(part) if isinstance(c, str)]
    if isinstance(value, str) and choices:
        hint = nearest(value, choices)
        hint = f" {hint}" if hint.startswith("Did") else ""
    held = getattr(value, "model", None)  # as a Backbone or the result of an edit has one
    if held is not None and not isinstance(value, type) and _failure(annotation, held) is None:
        hint = " Pass its .model."
    received = " ".join(_REPR.repr(value).split())
    return error(f"Expected {name} to be {described(annotation)}. Received: {received}.{hint}")


def _failure(annotation: Any, value: Any) -> ValidationError | None:
    try:
        _adapter(annotation).validate_python(value)
    except ValidationError as failed:
        return failed
    return None


def _raised(failed: ValidationError) -> ReusekitError | None:
    """Return the first of our own errors among the causes of a refusal."""
    causes = (found.get("ctx", {}).get("error") for found in failed.errors())
    return next((cause for cause in causes if isinstance(cause, ReusekitError)), None)


def first_fault(failed: ValidationError) -> str:
    """Return the end of a sentence on a damaged file: where its first fault is, and which."""
    first = failed.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{f' at {where[:80]}' if where else ''}: {first['msg'][:200]}"


def _innermost(name: str, annotation: Any, value: Any) -> tuple[str, Any, Any]:
    """Follow lists and dictionaries of the right kind down to the first part that does not fit."""
    for member in members(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if isinstance(value, str | bytes):
            continue
        parts: Iterable[tuple[str, Any, Any]] = ()
        if origin in (list, Sequence, Collection, Iterable) and isinstance(value, Sequence):
            parts = ((f"{name}[{i}]", arguments[0], one) for i, one in enumerate(value))
        elif origin is tuple and isinstance(value, Sequence):
            wanted = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
            if len(wanted) == len(value):
                pairs = zip(wanted, value, strict=True)
                parts = ((f"{name}[{i}]", one, part) for i, (one, part) in enumerate(pairs))
        elif origin in (dict, Mapping) and isinstance(value, Mapping):
            parts = [(f"each key of {name}", arguments[0], key) for key in value]
            parts += [(f"{name}[{_REPR.repr(k)}]", arguments[1], v) for k, v in value.items()]
        for part in parts:
            if _failure(*part[1:]) is not None:
                return _innermost(*part)
    return name, annotation, value


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120
_REPR.maxlong = 60


class Settings(BaseModel):
    """A group of settings: immutable, given by name, and checked as arguments are.

    A subclass says each setting once, as an annotated field with a default and a description.
    Functions, configuration files, the command line and MLflow take the settings from it.

    Example:
        >>> from pydantic import PositiveInt
        >>> class Oven(Settings):
        ...     minutes: PositiveInt = 5
        >>> Oven(minutes=0)
        Traceback (most recent call last):
        reusekit.errors.ConfigError: Expected minutes to be a whole number of at least 1.
        Received: 0.
        >>> Oven(minute=3)
        Traceback (most recent call last):
        reusekit.errors.ConfigError: Expected settings of Oven by their names. Received: 'minute'.
        Did you mean 'minutes'?
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
    grouped: ClassVar[bool] = True
    """Whether they are a group on the command line, `group.name`; else each stands by itself."""

    def __init__(self, **values: Any) -> None:
        fields = _fields(type(self))
        for name in values:
            if name not in fields:
                raise ConfigError(
                    f"Expected settings of {type(self).__name__} by their names. Received: "
                    f"{name!r}. {nearest_setting(name, fields)}"
                )
        missing = [name for name in fields if fields[name].required and name not in values]
        if missing:
            raise ConfigError(f"Expected {missing[0]} among the settings. Received: nothing.")
        try:
            super().__init__(**{name: fields[name](name, one) for name, one in values.items()})
        except ValidationError as failed:  # of a rule that spans values
            own = _raised(failed)
            raise own or ConfigError(failed.errors()[0]["msg"]) from None

    def changed(self, **values: Any) -> Self:
        """Return a copy with other values for some settings, checked like these."""
        return type(self)(**{**dict(self), **values})

    @model_validator(mode="after")
    def _plain_text(self) -> Self:
        """Refuse text that was meant as a list or a dictionary, or holds NUL.

        jsonargparse takes `{a: 1}`, where values are texts, for `{"a": "{a: 1}"}`.
        """
        texts = dict(self)
        for name, value in self:
            if isinstance(value, Mapping):
                texts |= {f"{name}[{key!r}]": one for key, one in value.items()}
        for name, value in texts.items():
            if isinstance(value, str) and (value[:1] in ("{", "[") or "\0" in value):
                raise ConfigError(f"Expected {name} as plain text. Received: {value!r}.")
        return self


@dataclass(frozen=True)
class _Setting:
    """One field of a group of settings."""

    annotation: Any
    adapter: TypeAdapter
    required: bool

    def __call__(self, name: str, value: Any) -> Any:
        """Return a value as pydantic is to have it: lists for tuples, Python's own numbers."""
        value = _plain_number(value)
        try:
            return self.adapter.validate_python(value)
        except ValidationError as failed:
            own = _raised(failed)
            raise own or _refusal(ConfigError, name, self.annotation, value) from None
        except TypeError:  # Python's, of a dictionary whose keys are no names of settings
            raise _refusal(ConfigError, name, self.annotation, value) from None


@functools.cache
def _fields(settings: type[Settings]) -> dict[str, _Setting]:
    found = {}
    for name, field in settings.model_fields.items():
        annotation = field.rebuild_annotation()
        grouped = inspect.isclass(annotation) and issubclass(annotation, Settings)
        # A dictionary does for a group in a group, as configuration files have it.
        adapter = TypeAdapter(annotation) if grouped else _adapter(annotation)
        found[name] = _Setting(annotation, adapter, field.is_required())
    return found


def _path(value: str | os.PathLike) -> str | os.PathLike:
    """Return a path that a file system can have."""
    text = os.fspath(value)
    longest = max((len(os.fsencode(part)) for part in str(text).split(os.sep)), default=0)
    if not text or isinstance(text, bytes) or "\0" in text or longest > 255:
        raise ValueError("no path")
    return value


AnyPath = Annotated[
    str | os.PathLike,
    AfterValidator(_path),
    Field(description="a path that a file system can have"),
]
"""A file or folder; whether it is there is another question."""


def expanded(path: str | os.PathLike, error: type[ReusekitError]) -> Path:
    """Put the home folder in the place of a path's `~`.

    Args:
        path: Any path.
        error: What is raised where there is no such folder, as in a container whose user has none.

    Example:
        >>> expanded("~/runs", ReusekitError) == Path.home() / "runs"
        True
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise error(
            f"Expected the home folder that {os.fspath(path)!r} begins with. Received: none is "
            "known. Set HOME, or name a folder without ~."
        ) from None


def _name(value: str) -> str:
    if not value or "/" in value:
        raise ValueError("no name")
    return value


Name = Annotated[str, AfterValidator(_name), Field(description='text without "/"')]
"""The name of a layer or model."""


def _alias(value: str) -> str:
    if len(value) > 250 or not re.fullmatch(r"(?!(?i:latest|v\d+)$)[\w-]+", value):
        raise ValueError("no alias")
    return value


Alias = Annotated[
    str,
    AfterValidator(_alias),
    Field(
        description="letters, digits, _ and -, and not 'latest' or 'v1', which MLflow keeps for "
        "itself"
    ),
]
"""The alias of a registered version."""


_Item = TypeVar("_Item")

Choices = Annotated[Sequence[_Item], MinLen(1), DISTINCT]
"""What is chosen from: a list that is not empty, with nothing twice in it."""

Distinct = Annotated[Sequence[_Item], DISTINCT]
"""A list with nothing twice in it."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What random numbers follow from."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole."""

Rate = Annotated[float, Field(ge=0, lt=1)]
"""A dropout rate."""
