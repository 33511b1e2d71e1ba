"""Modules and functions: no name hides a module, no function takes many parameters."""

import ast
import re
from collections.abc import Iterator

from repository import ROOT

MOST = 7


def hidden_modules():
    for init in sorted(ROOT.glob("reusekit*/**/__init__.py")):
        modules = {path.stem for path in init.parent.iterdir()} - {"__init__"}
        for node in ast.walk(ast.parse(init.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                package = ".".join(init.parent.relative_to(ROOT).parts)
                names = {alias.asname or alias.name for alias in node.names}
                yield from (f"{package}.{n}" for n in names & modules if node.module != package)


def test_no_name_hides_the_module_of_its_name():
    assert not list(hidden_modules())


def long_signatures() -> Iterator[str]:
    """Yield the functions and methods with more parameters than a caller can keep in mind."""
    folders = ("reusekit", "reusekit_mlflow", "pipelines", "scripts")
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                said = node.args
                names = [one.arg for one in (*said.posonlyargs, *said.args, *said.kwonlyargs)]
                count = len(names) - (names[:1] in (["self"], ["cls"]))
                if count > MOST:
                    yield f"{path.relative_to(ROOT)}: {node.name} takes {count}"


def test_no_function_takes_more_than_seven_parameters():
    assert list(long_signatures()) == []


def test_each_ignored_error_of_types_has_a_reason():
    lines = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted(ROOT.glob("reusekit*/**/*.py"))
        for line in path.read_text("utf-8").splitlines()
        if "type: ignore" in line and not re.search(r"# type: ignore\[[a-z-]+\]  # \w", line)
    ]
    assert lines == []
