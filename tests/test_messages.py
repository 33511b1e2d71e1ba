"""Messages of errors: `Expected X. Received: Y.`, and what to do next where X does not say it."""

import ast
import itertools
import re
from collections.abc import Iterator

import pytest
from repository import ROOT

import reusekit.errors

# A last sentence that begins with one of these says what to do next.
VERBS = (
    "Add|Adapt|Allow|Ask|Attach|Bring|Build|Call|Check|Choose|Combine|Compile|Copy|Cut|Delete|Draw|Edit"
    "|End|Fetch|Free|Give|Have|Import|Indent|Insert|Install|Join|Keep|Leave|Load|Lower|Make|Mend|Move|Name"
    "|Open|Pass|Pool|Put|Quantise|Raise|Register|Remove|Rename|Replace|Restore|Run|Save|Say|Search"
    "|See|Send|Set|Spell|Split|Start|Take|Tie|Train|Use|Wait|Write"
)
FORM = re.compile(r"(?:Expected .*[.?] Received: |\{} (?=[A-Z{]))(.*)", re.DOTALL)
NEAREST = "Did you mean {}?"
MOST = 200  # variants of one message that are looked at


def missing_of(text: str) -> str:
    """Say what a message lacks; values in it are `{}`."""
    if text == "{}":
        return ""  # another's message
    found = FORM.match(text)
    if found is None:
        return "Expected and Received"
    last = re.split(r"(?<=[.?])\s+", found[1].strip())[-1]
    told = last in found[1][: len(last)] or re.match(rf"(?:{VERBS})\b|Did you|Nearest|{{}}$", last)
    return "" if told else "an instruction at its end"


class Texts:
    """The texts that an expression of a module may be; values that are not known are `{}`."""

    def __init__(self, tree: ast.Module) -> None:
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        self._functions = {node.name: node for node in nodes}
        self._around = {inner: node for node in nodes for inner in ast.walk(node)}
        self._tree = tree

    def of(self, node: ast.expr, deep: int = 5) -> list[str]:
        """Return the variants of a text, as far as it is put together in this module."""
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return self._joined(parts, deep)
            case ast.FormattedValue(value=value, conversion=-1):
                return self.of(value, deep)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._joined([left, right], deep)
            case ast.BinOp(left=left, op=ast.Mult()):
                return ["", *self.of(left, deep)]
            case ast.IfExp(body=one, orelse=other):
                return self.of(one, deep) + self.of(other, deep)
            case ast.Call(func=ast.Name(id="nearest" | "nearest_setting" | "_nearest")):
                return [NEAREST]
            case ast.Call(func=ast.Name(id=name)) if deep and name in self._functions:
                parts = ast.walk(self._functions[name])
                found = [part.value for part in parts if isinstance(part, ast.Return)]
                return [text for value in found if value for text in self.of(value, deep - 1)]
            case ast.Name(id=name) if deep and node in self._around:
                around = (self._around[node], self._tree)
                found = (self._assigned(name, nodes, deep - 1) for nodes in around)
                return next(filter(None, found), ["{}"])
        return ["{}"]

    def _joined(self, parts: list[ast.expr], deep: int) -> list[str]:
        variants = itertools.product(*(self.of(part, deep) for part in parts))
        return ["".join(one) for one in itertools.islice(variants, MOST)]

    def _assigned(self, name: str, within: ast.AST, deep: int) -> list[str]:
        body = within.body if isinstance(within, ast.Module) else ast.walk(within)
        found = []
        for part in body:
            if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == name:
                found += self.of(part.value, deep)
        return found


def own_errors(trees: list[ast.Module]) -> set[str]:
    """Return the names of the errors that reusekit raises, those of single modules included."""
    found = {name for name in vars(reusekit.errors) if name.endswith("Error")}
    for node in itertools.chain.from_iterable(map(ast.walk, trees)):
        if isinstance(node, ast.ClassDef) and found & set(map(ast.unparse, node.bases)):
            found.add(node.name)
    return found


def messages(tree: ast.Module, errors: set[str]) -> Iterator[tuple[int, str]]:
    """Yield the line and the text, in its variants, of each error that a module makes."""
    texts = Texts(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[message, *_]) if name in errors:
                yield from ((node.lineno, text) for text in dict.fromkeys(texts.of(message)))


def last_words(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the text, in its variants, of each end that a script comes to."""
    texts = Texts(tree)
    for node in ast.walk(tree):
        match node:
            case (
                ast.Raise(
                    exc=ast.Call(func=ast.Name(), args=[ast.JoinedStr() | ast.Constant() as said])
                )
                | ast.Expr(value=ast.Call(func=ast.Attribute(attr="exit"), args=[said]))
            ):
                found = [text for text in texts.of(said) if text != "{}"]
                yield from ((node.lineno, text) for text in dict.fromkeys(found))


def test_every_error_says_what_was_expected_and_what_to_do_next():
    paths = sorted(ROOT.glob("reusekit*/**/*.py"))
    trees = {path.relative_to(ROOT): ast.parse(path.read_text("utf-8")) for path in paths}
    errors = own_errors(list(trees.values()))
    found = [(path, *one) for path, tree in trees.items() for one in messages(tree, errors)]
    assert len(found) > 500
    wrong = [f"{path}:{line}: {text}" for path, line, text in found if missing_of(text)]
    assert wrong == []


def test_every_script_ends_with_the_same_words():
    paths = [path for path in sorted(ROOT.glob("scripts/**/*.py")) if path.parent.name != "faults"]
    trees = [(path.relative_to(ROOT), ast.parse(path.read_text("utf-8"))) for path in paths]
    found = [(path, *one) for path, tree in trees for one in last_words(tree)]
    assert len(found) > 8
    assert [f"{path}:{line}: {text}" for path, line, text in found if missing_of(text)] == []


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("There is no file 'a'.", "Expected and Received"),
        ("Expected a file, but there is none.", "Expected and Received"),
        ("Expected a file. Received: 'a'. It is gone.", "an instruction at its end"),
        ("Expected a file. Received: 'a'.", ""),
        ("Expected a file. Received: 'a'. Did you mean 'b'?", ""),
        ("Expected a file. Received: 'a'. Choose one that is there.", ""),
    ],
)
def test_a_message_that_lacks_something_is_found(text, lacks):
    assert missing_of(text) == lacks
