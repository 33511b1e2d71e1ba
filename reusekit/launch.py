"""Run a typed function as a command: configuration in, one line out where something is wrong."""

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from inspect import getdoc, signature
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from pydantic import ValidationError

from reusekit.errors import ConfigError, ReusekitError, nearest
from reusekit.signals import Terminated, term_as_interrupt

EXIT_BAD_INPUT = 2

_TRUTHS = ("true", "false", "yes", "no")  # what jsonargparse takes for the value of a flag


def launch(
    function: Callable[..., Any], arguments: Sequence[str] | None = None, positional: bool = False
) -> None:
    """Run a function as a command whose options are the function's parameters.

    Every parameter becomes an option and a key of `--config FILE`; pydantic models open up into
    dotted options. Unknown keys are refused. `--print_config` prints what would be used. `--import
    MODULE` imports modules first, so that the layers they register with Keras are known.

    An error of the caller's ends the process with exit code 2 and one line on standard error; with
    `--verbose` (where the function has such a parameter) the traceback comes before it.

    Args:
        function: A function with type hints and a Google-style docstring.
        arguments: The command line; the process's own where None.
        positional: Whether parameters without a default are given by position, not by name.
    """
    parser = ArgumentParser(
        prog=None if arguments is None else f"reusekit {function.__name__}",
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
    parser.add_function_arguments(function, as_positional=positional)
    arguments = sys.argv[1:] if arguments is None else arguments
    arguments = _with_values(arguments, function)
    if positional:
        arguments = _with_name(arguments, function)
    verbose = "--verbose=true" in arguments
    try:
        _check_order(arguments)
        options = parser.instantiate(parser.parse_args(arguments))
        options.pop("config")
        _import(options.pop("import"))
        verbose = options.get("verbose", False)
        with term_as_interrupt():
            function(**options)
    except ValidationError as error:  # a rule that spans values
        (first, *_) = error.errors()
        _stop(f"{'.'.join(map(str, (error.title, *first['loc'])))}: {first['msg']}", verbose)
    except ArgumentError as error:
        _stop(_configuration_error(str(error), list(parser.get_defaults().keys())), verbose)
    except ReusekitError as error:
        _stop(str(error), verbose)
    except KeyboardInterrupt as interrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(143 if isinstance(interrupt, Terminated) else 130)  # as shells have it


def launch_one_of(
    functions: Mapping[str, Callable[..., Any]], arguments: Sequence[str] | None = None
) -> None:
    """Run the function that the first word of the command line names; see `launch`.

    Args:
        functions: Subcommands by name.
        arguments: The command line; the process's own where None.
    """
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("-h", "--help"):
        for subcommand, function in functions.items():
            print(f"reusekit {subcommand:<8} {_summary(function)}")
        print("'reusekit SUBCOMMAND --help' says more.")
    elif name in functions:
        launch(functions[name], rest, positional=True)
    else:
        _stop(f"Unknown subcommand {name!r}. {nearest(name, functions)}", verbose=False)


def _with_values(arguments: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """The command line with `true` behind flags that stand by themselves, as people write them.

    Example:
        >>> def cook(salted: bool = False, minutes: int = 1) -> None: ...
        >>> _with_values(["--salted", "--minutes", "2"], cook)
        ['--salted=true', '--minutes', '2']
        >>> _with_values(["--salted", "false"], cook)
        ['--salted', 'false']
    """
    flags = {
        f"--{name}" for name, p in signature(function).parameters.items() if p.annotation is bool
    }
    return [
        f"{word}=true" if word in flags and behind.lower() not in _TRUTHS else word
        for word, behind in zip(arguments, [*arguments, ""][1:], strict=True)
    ]


def _with_name(arguments: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """The command line with the first parameter's name before a value that stands by itself.

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


def _import(modules: str | Sequence[str]) -> None:
    """Import modules, from the current folder, too, as `python -m` does."""
    if modules and "" not in sys.path:
        sys.path.insert(0, "")
    for module in [modules] if isinstance(modules, str) else modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # of the caller's own code
            cause = f"{type(error).__name__}: {error}"
            raise ConfigError(f"--import cannot import {module!r}: {cause}.") from error


def _check_order(arguments: Sequence[str]) -> None:
    """Refuse options that a configuration file behind them would silently override."""
    options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    if "--config" in options and options[0] not in ("--config", "--verbose"):
        raise ConfigError(f"Put --config first: it would override {options[0]}.")


def _stop(message: str, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def _configuration_error(message: str, keys: list[str]) -> str:
    """Jsonargparse's message in one line, with the nearest valid key where a key is unknown."""
    message = re.sub(r"\s*For further information visit \S+", "", message)
    message = re.sub(r"\d+ validation errors? for \S+\s*", "", message)
    message = re.sub(r"\[type=[^\]]*\]\.?", "", message)
    message = re.sub(r"<class '(\w+)'>|typing\.(?=Literal)", r"\1", message)
    message = message.replace("Parser key", "Option")
    missing = re.search(r"the following arguments are required: (?P<keys>[^\n]+)", message)
    if missing:
        given = ", ".join(f"--{key}" for key in missing["keys"].split(", "))
        return f"Expected {given}, as an option or in a configuration file. Received: nothing."
    message = _OR_NULL.sub(_or_null, message)
    unknown = (
        re.search(r"Option '(?P<key>[^']+)' is not accepted", message)
        or re.search(r"Group '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'", message)
        or re.search(r"unrecognized arguments: --(?P<key>[\w.]+)", message)
    )
    if not unknown:
        return message
    found = unknown.groupdict()
    key = ".".join(part for part in (found.get("group"), found["key"]) if part)
    return f"Unknown option {key!r}. {nearest(key, keys)}"


_OR_NULL = re.compile(
    r"Does not validate against any of the Union subtypes\s+Subtypes: [^\n]*\s+Errors:\s+- (.*?)"
    r"\s+- Expected a NoneType\s+Given value type: \w+\s+Given value: (.*)",
    re.DOTALL,
)


def _or_null(refused: re.Match) -> str:
    """What is wrong with a value where null would do as well, in a sentence."""
    reason, value = refused.groups()
    if reason.endswith((" than", " to")):  # jsonargparse takes the value out of the reason
        reason += f" {value}"
    return f"{reason}, or null. Received: {value}"


def _description(function: Callable[..., Any]) -> str:
    """What its docstring says before it comes to the parameters."""
    return (getdoc(function) or "").partition("\nArgs:")[0].strip()


def _summary(function: Callable[..., Any]) -> str:
    return _description(function).split("\n\n")[0]
