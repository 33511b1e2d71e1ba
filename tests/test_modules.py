"""The names of modules: none is hidden by a function or class that its package imports."""

import ast

from repository import ROOT


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
