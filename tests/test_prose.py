"""The first lines of docstrings: imperatives for functions, noun phrases for the rest."""

import ast
import re
from collections.abc import Iterator

import pytest
from repository import ROOT

CLAUSES = "How Says Tells What When Where Whether Which Who Whose Why"
NO_VERBS = "A All An Each Every From Its No Of One That The This"


def first_lines(folder: str) -> Iterator[tuple[str, bool]]:
    """Yield where each docstring stands with its first line, and whether it is a function's."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            if said := ast.get_docstring(node):
                decorators = map(ast.unparse, getattr(node, "decorator_list", ()))
                is_property = any("property" in decorator for decorator in decorators)
                is_function = isinstance(node, ast.FunctionDef) and not is_property
                yield f"{path.relative_to(ROOT)}: {said.splitlines()[0]}", is_function


def is_wrong(line: str, is_function: bool) -> bool:
    word = line.split(": ", 1)[1].split()[0]
    if word in CLAUSES.split() or not is_function:
        return word in CLAUSES.split()
    return word in NO_VERBS.split() or (word.endswith("s") and not word.endswith("ss"))


@pytest.mark.parametrize("folder", ["reusekit", "reusekit_mlflow", "pipelines", "scripts"])
def test_docstrings_begin_with_an_imperative_or_a_noun(folder):
    found = list(first_lines(folder))
    assert found
    assert [line for line, is_function in found if is_wrong(line, is_function)] == []


def test_messages_say_received_in_one_form():
    said = re.compile(r"[,;] received\b|\. Received (?!:)")
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path in sorted((ROOT / "reusekit").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if said.search(node.value)
    ]
    assert found == []
