"""Bad command lines and configuration files, over all options of both pipelines and subcommands.

The pipelines themselves are not run: a try that gets as far has been accepted.
"""

import contextlib
import io
import runpy
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from faults.outcome import Outcome, is_clear
from reusekit.cli import cache, cuts, init, sync
from reusekit.launch import EXIT_BAD_INPUT, launch, launch_one_of, make_parser

TRIES = 400

_PIPELINES = Path(__file__).parents[2] / "pipelines"
_SUBCOMMANDS = {"cuts": cuts, "init": init, "cache": cache, "sync": sync}
_WORDS = [
    ["cuts"], ["cuts", "nowhere"], ["cuts", "reusekit/glyphnet", "--max_width=0"], ["cutss"],
    ["cuts", "reusekit/glyphnet", "--max_width=x"], ["init", ""], ["init", "a\0b"],
    ["init", "a" * 300], ["init", "taken"], ["init", "taken/x"], ["cache", "verify", "--path="],
    ["cache", "lits"], ["cache", "list", "--path=nowhere"], ["cache", "gc", "--budget=-1"],
    ["cache", "list", "--path=taken"], ["sync", "nowhere"], ["sync", "taken"], ["sync", "\0"],
    ["sync", "a" * 300], ["cache", "list", "--path=" + "a" * 5_000],
]  # fmt: skip
# No option takes any of these; in a file some are written as they stand here.
_VALUES = [{"a": 1}, [["x"]], [{"x": 1}], "{a: 1}", "[[x]]", "\0"]
_FILES = {
    "empty": b"", "list": b"- a\n", "scalar": b"5\n", "tab": b"seed:\n\t5\n", "open": b"seed: [1\n",
    "utf16": "seed: 5\n".encode("utf-16"), "latin": "output: \xe9\n".encode("latin-1"),
    "nul": b"seed: 5\0\n", "twice": b"seed: 1\nseed: 2\n", "alias": b"search: &a {units: *a}\n",
    "tag": b"seed: !!python/object/apply:os.getcwd []\n", "deep": b"[" * 5_000,
    "key": b"? [a, b]\n: 5\n", "number": b"5: 6\n", "config": b"config: other.yaml\n",
}  # fmt: skip


_NEEDED = {
    "cut_search": ["--data.name=sklearn_digits"],
    "finetune": ["--data.name=sklearn_digits", "--cut=block5_out"],
    "promote": ["--data.name=sklearn_digits"],
}


class _AcceptedError(Exception):
    """The pipeline would run."""


def run(generator: np.random.Generator, tries: int, folder: Path) -> Iterator[Outcome]:
    """Try one bad option, file or subcommand at a time; nothing may be written."""
    pipelines = {name: _stub(name) for name in ("cut_search", "finetune", "promote")}
    with contextlib.chdir(folder):
        Path("taken").write_text("a file where a folder is wanted")
        for number in range(tries):
            name = str(generator.choice([*pipelines, "reusekit"]))
            if name == "reusekit":
                words = _WORDS[generator.integers(len(_WORDS))]
                yield _judged(f"{number}: reusekit {words}", launch_one_of, _SUBCOMMANDS, words)
            else:
                words = [*_bad_words(generator, pipelines[name]), *_NEEDED[name]]
                yield _judged(f"{number}: {name} {words}", launch, pipelines[name], words)


def _stub(name: str) -> Callable[..., None]:
    """Return a function with a pipeline's signature that runs nothing."""
    functions = runpy.run_path(str(_PIPELINES / f"{name}.py"))
    function = next(f for f in functions.values() if getattr(f, "__module__", "") == "<run_path>")

    @wraps(function)
    def accept(**_: Any) -> None:
        raise _AcceptedError

    return accept


def _bad_words(generator: np.random.Generator, function: Callable[..., None]) -> list[str]:
    """Return a command line, or the writing of a file and a command line that names it."""
    kind = generator.choice(["file", "key", "section", "option", "written"])
    free = (
        "config",
        "import",
        "backbone.options",
        "data.name",
        "cut",
    )  # any dictionary, and what is given anyway
    known = make_parser(function).get_defaults().keys()
    options = [key for key in known if key not in free]
    option = str(generator.choice(options))
    value = _VALUES[generator.integers(len(_VALUES))]
    if kind == "file":
        file = str(generator.choice(sorted(_FILES)))
        Path(file).write_bytes(_FILES[file])
        return [f"--config={file}"]
    if kind == "option":
        return [f"--{option}={value}"]
    if kind == "key":
        return [f"--{option}x=1"] if generator.random() < 0.5 else _written({f"{option}x": 1})
    if kind == "section":
        section = str(generator.choice([key for key in options if "." in key])).split(".")[0]
        return _written({section: [{}, [], None, 5, "x", {"serch": {}}][generator.integers(6)]})
    return _written({option: {"a": [value]}})


def _written(values: dict[str, Any]) -> list[str]:
    """Return options as a file would have them, sections opened up."""
    content: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    Path("written.yaml").write_text(yaml.safe_dump(content))
    return ["--config=written.yaml"]


def _judged(detail: str, start: Callable[..., None], *arguments: Any) -> Outcome:
    """Check for one line on standard error, exit code 2, and nothing made."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    detail, errors = detail[:150], io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            start(*arguments)
    except SystemExit as stopped:
        lines = errors.getvalue().splitlines()
        made = {path: path.stat().st_mtime_ns for path in Path().rglob("*")} != before
        good = len(lines) == 1 and is_clear(lines[0].removeprefix("error: "))
        if made:
            return Outcome("E command", "outside", f"{detail}: files were made")
        if stopped.code == EXIT_BAD_INPUT and good:
            return Outcome("E command", "refused", f"{detail}: {lines[0][:200]}")
        return Outcome("E command", "foreign", f"{detail}: {stopped.code} {lines[:3]}")
    except _AcceptedError:
        return Outcome("E command", "accepted", detail)
    except Exception as error:
        return Outcome("E command", "foreign", f"{detail}: {type(error).__name__}: {error}"[:400])
    return Outcome("E command", "accepted", detail)
