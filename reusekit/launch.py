"""Run a typed function as a command: configuration in, one line out where something is wrong."""

import argparse
import importlib
import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import Parameter, getdoc, isclass, signature
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from pydantic import BaseModel

from reusekit.arguments import Settings, check
from reusekit.errors import ConfigError, ReusekitError, nearest, nearest_setting, shortened
from reusekit.secrets import hide
from reusekit.signals import Terminated, interruptible

EXIT_BAD_INPUT = 2
_CLOSED_PIPE = 141  # what a shell shows of a process that a closed pipe has ended

_TRUTHS = ("true", "false", "yes", "no")  # what jsonargparse takes for the value of a flag


def launch(
    function: Callable[..., Any], arguments: Sequence[str] | None = None, positional: bool = False
) -> None:
    """Run a function as a command whose options are the function's parameters.

    Every parameter becomes an option and a key of `--config FILE`; pydantic models open up into
    dotted options, or plain ones where `Settings.grouped` is False. Unknown keys are refused.
    `--print_config` prints what would be used. `--import MODULE` imports modules first, so that the
    layers they register with Keras are known.

    An error of the caller's ends the process with exit code 2 and one line on standard error; with
    `--verbose` (where the function has such a parameter) the traceback comes before it.

    Args:
        function: A function with type hints and a Google-style docstring.
        arguments: The command line; the process's own where None.
        positional: Whether parameters without a default are given by position, not by name.
    """
    prog = None if arguments is None else f"reusekit {function.__name__}"
    parser, jobs = make_parser(function, positional, prog), _flat(function)
    arguments = sys.argv[1:] if arguments is None else arguments
    arguments = _with_values(arguments, function)
    if positional:
        arguments = _with_list(_with_name(arguments, function), function)
    verbose = "--verbose=true" in arguments
    try:
        _check_order(arguments)
        _check_sections(arguments, _options(parser))
        with _looking_up_quietly():
            options = _made(parser, arguments)
        options.pop("config")
        _check_texts(options)
        _import(options.pop("import"))
        verbose = options.get("verbose", False)
        for name, kind in jobs.items():
            own = kind.model_fields.keys() - signature(function).parameters.keys()
            options[name] = kind(**{key: options.pop(key) for key in own})
        with interruptible(), _ending_quietly():
            function(**options)
    except ArgumentError as error:
        why = _configuration_error(str(error), _options(parser), function, positional)
        _stop(why, verbose)
    except ReusekitError as error:
        _stop(str(error), verbose)
    except KeyboardInterrupt as interrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(143 if isinstance(interrupt, Terminated) else 130)  # as shells have it


@contextmanager
def _looking_up_quietly() -> Iterator[None]:
    """Let jsonargparse look for a class in all modules above its own, though it has moved."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"rk\.\w+ is ", DeprecationWarning)
        yield


def _made(parser: ArgumentParser, arguments: Sequence[str]) -> Any:
    """Return the options, their settings made; of a union's refusals the one of settings."""
    options = parser.parse_args(arguments)
    try:
        return parser.instantiate(options)
    except ReusekitError:
        raise
    except ValueError as error:
        own = re.search(r"- (Expected .* Received: .*)", str(error))
        raise ConfigError(own[1] if own else " ".join(str(error).split())) from error


@_looking_up_quietly()
def make_parser(
    function: Callable[..., Any], positional: bool = False, prog: str | None = None
) -> ArgumentParser:
    """Return the parser of a function's command line; see `launch`."""
    parser = ArgumentParser(
        prog=prog,
        exit_on_error=False,
        allow_abbrev=False,
        description=_description(function),
    )
    parser.add_argument("--config", action="config", help="Path of a YAML file with the options.")
    parser.add_argument(
        "--import",
        type=list[str] | str,
        default=[],
        help="Modules to import first, which register classes of your own with Keras: a or [a,b].",
    )
    jobs = _flat(function)
    for kind in jobs.values():  # a parameter of the function's own stands for a setting
        parser.add_class_arguments(kind, as_group=False, skip={*signature(function).parameters})
    parser.add_function_arguments(function, as_positional=positional, skip={*jobs})
    return parser


def launch_one_of(
    functions: Mapping[str, Callable[..., Any]],
    arguments: Sequence[str] | None = None,
    greeting: str = "",
) -> None:
    """Run the function that the first word of the command line names; see `launch`.

    Args:
        functions: Subcommands by name.
        arguments: The command line; the process's own where None.
        greeting: Printed where there are no arguments; the help where it is empty.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if greeting and not words:
        with _ending_quietly():
            print(greeting)
        return
    name, *rest = words or ["--help"]
    if name in ("-h", "--help"):
        with _ending_quietly():
            for subcommand, function in functions.items():
                print(f"reusekit {subcommand:<10} {_summary(function)}")
            print("'reusekit SUBCOMMAND --help' says more.")
    elif name in functions:
        launch(functions[name], rest, positional=True)
    else:
        _stop(
            f"Expected a subcommand. Received: {name!r}. {nearest(name, functions)}", verbose=False
        )


def completion_of(functions: Mapping[str, Callable[..., Any]], shell: str) -> str:
    """Return a script with which a shell completes subcommands, options, choices and files.

    Args:
        functions: Subcommands by name.
        shell: `bash` or `zsh`.
    """
    import shtab
    from docstring_parser import parse as parse_docstring

    parser = argparse.ArgumentParser(prog="reusekit")
    subcommands = parser.add_subparsers()
    for name, function in functions.items():
        parsed = subcommands.add_parser(name, help=_summary(function))
        hints, helps = _hints(function), parse_docstring(getdoc(function) or "").params
        said = {one.arg_name: re.split(r"[.;]\s", one.description or "")[0] for one in helps}
        for option, hint in {**hints, "config": str, "import": str}.items():
            if hint is bool:
                parsed.add_argument(f"--{option}", action="store_true", help=said.get(option))
                continue
            several = hint == list[str] | None
            needed = option in hints and _is_needed(function, option)
            by_position = needed or several or option == next(iter(hints))
            # By argparse's own rules a list takes every further word.
            count: dict[str, Any] = (
                {"nargs": "*" if several else "?"} if by_position and not needed else {}
            )
            choices = get_args(hint) if get_origin(hint) is Literal else None
            flag = option if by_position else f"--{option}"
            action: Any = parsed.add_argument(flag, choices=choices, help=said.get(option), **count)
            if not choices:
                action.complete = shtab.FILE
    # In zsh shtab would have only the first of several words completed.
    return shtab.complete(parser, shell).replace('"(*)::', '"*:')


@contextmanager
def _ending_quietly() -> Iterator[None]:
    """End as other commands do where what reads the output, such as `head`, has gone away."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_CLOSED_PIPE)


def _options(parser: ArgumentParser) -> list[str]:
    """Return every option, in full: `search.limits.flops`."""
    return [key for key in parser.get_defaults().keys() if key != "config"]  # noqa: SIM118


def _check_sections(arguments: Sequence[str], options: Sequence[str]) -> None:
    """Refuse configuration files, and sections given as a whole, that are not what they should be.

    jsonargparse passes over an empty or a wrong section and takes the last of two equal keys.
    """
    sections = {key[: dot.start()] for key in options for dot in re.finditer(r"\.", key)}
    for word, behind in zip(arguments, [*arguments, ""][1:], strict=True):
        name, equals, value = word.removeprefix("--").partition("=")
        value = value if equals else behind
        if not word.startswith("--"):
            continue
        if name == "config":
            _check_keys(_read_yaml(value), "", options, value)
        elif name in sections:
            found = _read_yaml(value) if Path(value).is_file() else _loaded(value, word)
            _check_keys(found, name, options, word)


def _check_texts(options: Mapping[str, Any]) -> None:
    """Refuse text that was meant as a list or a dictionary, as settings do."""
    for name, value in options.items():
        if isinstance(value, str) and (value[:1] in ("{", "[") or "\0" in value):
            raise ConfigError(f"Expected {name} as plain text. Received: {value!r}.")


def _check_keys(found: Any, section: str, options: Sequence[str], where: str) -> None:
    """Refuse what is no section of options, has none or has an unknown one."""
    start = f"{section}." if section else ""
    known = [key.removeprefix(start) for key in options if key.startswith(start)]
    what = f"the section {section!r} of {where}" if section else where
    if not isinstance(found, dict) or not found:
        raise ConfigError(
            f"Expected {what} to hold options by name, such as {known[0]!r}. "
            f"Received: {found!r}. Leave it out for the defaults."
        )
    parts = {key.partition(".")[0] for key in known}
    for key, value in found.items():
        full = f"{section}.{key}".removeprefix(".")
        if full in options:
            continue
        if key not in parts:
            raise ConfigError(
                f"Expected a known option in {where}. Received: {full!r}. {_nearest(full, options)}"
            )
        _check_keys(value, full, options, where)


def _nearest(key: str, options: Sequence[str]) -> str:
    """Return the nearest options or sections of options."""
    sections = {option.rpartition(".")[0]: None for option in options if "." in option}
    return nearest_setting(key, [*options, *sections])


def _read_yaml(file: str) -> Any:
    """Read a configuration file."""
    try:
        if Path(file).exists() and not (Path(file).is_file() or Path(file).is_dir()):
            raise ValueError("a pipe, which can be read only once; save it as a file")
        written = Path(file).read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"Expected --config to be a YAML file that can be read. Received: {file!r}: {why}."
        ) from error
    try:
        return _loaded(written.decode("utf-8-sig"), file)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"Expected {file} to be text in UTF-8. Received: a byte that is none, at position "
            f"{error.start}. Save it as UTF-8."
        ) from error


def _loaded(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _OnceLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        mend = "Indent it with spaces." if "\\t" in problem else "Mend that."
        raise ConfigError(
            f"Expected {where} to be YAML. Received: {problem}{line}. {mend}"
        ) from error
    except RecursionError as error:
        raise ConfigError(
            f"Expected {where} to be YAML of some levels. Received: one that is nested too deep, "
            "or in itself."
        ) from error


class _OnceLoader(yaml.SafeLoader):
    """YAML in which a key stands once, and nothing is in itself."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases, by which a small file can grow without end."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, "an alias, which is refused", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """Refuse a key that stands twice."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add((key.tag, getattr(key, "value", None) if isinstance(key.value, str) else None))
        return super().construct_mapping(node, deep)


def _with_values(arguments: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """Return the command line with `true` added behind bare flags.

    Example:
        >>> def cook(salted: bool = False, minutes: int = 1) -> None: ...
        >>> _with_values(["--salted", "--minutes", "2"], cook)
        ['--salted=true', '--minutes', '2']
        >>> _with_values(["--salted", "false"], cook)
        ['--salted', 'false']
    """
    flags = {f"--{name}" for name, hint in _annotations(function).items() if hint is bool}
    return [
        f"{word}=true" if word in flags and behind.lower() not in _TRUTHS else word
        for word, behind in zip(arguments, [*arguments, ""][1:], strict=True)
    ]


def _with_name(arguments: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """Return the command line with the first parameter's name before a value that stands by itself.

    jsonargparse takes by position only what has no default.

    Example:
        >>> def bake(cake: str = "tart", minutes: int = 1) -> None: ...
        >>> _with_name(["bread", "--minutes", "2"], bake)
        ['--cake=bread', '--minutes', '2']
    """
    name, first = next(iter(signature(function).parameters.items()))
    if first.default is first.empty or not arguments or arguments[0].startswith("-"):
        return list(arguments)
    return [f"--{name}={arguments[0]}", *arguments[1:]]


def _with_list(arguments: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """Return the command line with all further words that stand by themselves as a list.

    Such as files, where the function has a parameter `list[str] | None`.

    Example:
        >>> def bake(oven: str, cakes: list[str] | None = None, minutes: int = 1) -> None: ...
        >>> _with_list(["hot", "--minutes", "2", "tart", "bun"], bake)
        ['hot', '--minutes', '2', '--cakes=["tart", "bun"]']
    """
    hints = _annotations(function)
    taking = next((name for name, hint in hints.items() if hint == list[str] | None), None)
    if taking is None:
        return list(arguments)
    needed = sum(p.default is p.empty for p in signature(function).parameters.values())
    kept: list[str] = []
    words: list[str] = []
    for behind, word in zip(["", *arguments], arguments, strict=False):
        a_value = behind.startswith("--") and "=" not in behind
        if needed and not a_value and not word.startswith("-"):
            needed -= 1
            kept.append(word)
        elif a_value or word.startswith("-"):
            kept.append(word)
        else:
            words.append(word)
    return [*kept, f"--{taking}={json.dumps(words)}"] if words else kept


def _import(modules: str | Sequence[str]) -> None:
    """Import modules, from the current folder, too, as `python -m` does."""
    if modules and "" not in sys.path:
        sys.path.insert(0, "")
    for module in [modules] if isinstance(modules, str) else modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # of the caller's own code
            cause = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"Expected a module for --import that can be imported. Received: {module!r}: "
                f"{cause.rstrip('.')}. Check that it is installed, or lies in the current folder."
            ) from error


def _check_order(arguments: Sequence[str]) -> None:
    """Refuse options that a configuration file behind them would silently override."""
    options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    if "--config" in options and options[0] not in ("--config", "--verbose"):
        raise ConfigError(
            f"Expected --config before the options that it would override. Received: {options[0]} "
            "before it. Put --config first."
        )


def _stop(message: str, verbose: bool) -> None:
    if verbose:
        print(hide(traceback.format_exc()), file=sys.stderr)
    print(f"error: {shortened(hide(' '.join(message.split())))}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def _configuration_error(
    message: str, keys: Sequence[str], function: Callable[..., Any], positional: bool
) -> str:
    """Return jsonargparse's message in one sentence, with the nearest key to an unknown one."""
    missing = re.search(r"the following arguments are required: (?P<keys>[^\n]+)", message)
    if missing:
        needed = missing["keys"].split(", ")
        if positional:
            see = f"See 'reusekit {function.__name__} --help'."
            return f"Expected {' and '.join(map(str.upper, needed))}. Received: nothing. {see}"
        given = ", ".join(f"--{key}" for key in needed)
        return f"Expected {given}, as an option or in a configuration file. Received: nothing."
    unknown = (
        re.search(r"(?:Parser key|Option) '(?P<key>[^']+)' is not accepted", message)
        or re.search(
            r"Group '(?P<group>[^']+)' does not accept (?:parser key|option) '(?P<key>[^']+)'",
            message,
        )
        or re.search(r"unrecognized arguments: --(?P<key>[\w.]+)", message)
    )
    if unknown:
        found = unknown.groupdict()
        key = ".".join(part for part in (found.get("group"), found["key"]) if part)
        return f"Expected a known option. Received: {key!r}. {_nearest(key, keys)}"
    bad = re.search(
        r'Parser key "(?P<key>[\w.]+)":.*(?:Got|Given) value: (?P<value>.*)', message, re.S
    )
    if bad and (why := _refusal(bad["key"], bad["value"].strip(), function)):
        return why
    words = message.removeprefix("unrecognized arguments: ")
    return f"Expected arguments as --help lists them. Received: {words}"


def _refusal(key: str, text: str, function: Callable[..., Any]) -> str | None:
    """Return why a value is refused, as a call from Python would say it."""
    annotations = _annotations(function)
    *groups, name = key.split(".")
    try:
        for group in groups:
            annotations = _annotations(annotations[group])
        check(annotations[name], yaml.safe_load(text), key, ConfigError)
    except ConfigError as error:
        return str(error)
    except (KeyError, yaml.YAMLError):
        pass
    return None


def _annotations(function: Any) -> dict[str, Any]:
    """Return the annotations of a function's options, or of the settings in a group."""
    if isclass(function) and issubclass(function, BaseModel):
        fields = function.model_fields
        return {name: field.rebuild_annotation() for name, field in fields.items()}
    found = {}
    for name, hint in _hints(function).items():
        found.update(_annotations(hint) if name in _flat(function) else {name: hint})
    return found


def _flat(function: Callable[..., Any]) -> dict[str, type[Settings]]:
    """Return the parameters whose settings are options by themselves."""
    return {
        name: hint
        for name, hint in _hints(function).items()
        if isclass(hint) and issubclass(hint, Settings) and not hint.grouped
    }


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    hints = get_type_hints(function, include_extras=True)
    return {name: hints[name] for name in signature(function).parameters if name in hints}


def _is_needed(function: Callable[..., Any], parameter: str) -> bool:
    return signature(function).parameters[parameter].default is Parameter.empty


def _description(function: Callable[..., Any]) -> str:
    """Return the part of its docstring before the parameters."""
    return (getdoc(function) or "").partition("\nArgs:")[0].strip()


def _summary(function: Callable[..., Any]) -> str:
    return _description(function).split("\n\n")[0]
