"""The TFDS builder `python_topics`: what Python's standard library says of itself, by topic."""

import ast
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

SEEN = {
    "concurrency": ("asyncio", "concurrent"),
    "drawing": ("turtle",),
    "files": ("genericpath", "os", "pathlib", "posixpath", "tarfile"),
    "mail": ("email",),
    "network": ("ftplib", "http", "selectors", "urllib"),
    "numbers": ("fractions", "numbers", "random", "statistics"),
    "programs": ("importlib", "inspect", "pickle", "pickletools", "tokenize", "traceback"),
    "testing": ("doctest",),
}
"""The modules of each class whose texts are there to train on; they are read, not imported."""
OTHERS = {
    "concurrency": ("multiprocessing", "queue", "subprocess", "threading"),
    "drawing": ("tkinter",),
    "files": ("bz2", "glob", "gzip", "lzma", "shutil", "tempfile", "zipfile"),
    "mail": ("imaplib", "mailbox", "poplib", "smtplib"),
    "network": ("ipaddress", "socket", "socketserver", "ssl", "xmlrpc"),
    "numbers": ("_pydecimal", "decimal"),
    "programs": ("ast", "bdb", "dis", "pdb", "symtable"),
    "testing": ("unittest",),
}
"""Those of the validation split and the test split, so that no module's own words give it away."""

FEWEST_WORDS = 5
# Texts of a topic: as many as the smallest has, so that none is the likely one.
_TRAIN, _VALIDATION, _TEST = 60, 40, 80
_DESCRIPTION = """
Short texts, the first paragraphs of docstrings of Python's standard library, by topic: 60 of each
of eight topics to train on, and 40 and 80 of other modules of the same topics for validation and
test. They are those of the Python that prepares the data set, which is its configuration. The
choice is fixed, and no text occurs twice.
"""


def docstrings(source: bytes | str) -> Iterator[str]:
    """Yield the docstrings of a Python file, in the order of a walk over its tree.

    Example:
        >>> list(docstrings("def f(): 'Say no.'"))
        ['Say no.']
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def python_files(module: str) -> Iterator[Path]:
    """Yield the files of a module of the standard library, its tests left out."""
    library = Path(sysconfig.get_path("stdlib"))
    file = library / f"{module}.py"
    if file.is_file():
        yield file
    for file in sorted((library / module).rglob("*.py")):
        if not {"test", "tests", "idle_test"} & set(file.relative_to(library).parts):
            yield file


def texts_by_topic() -> dict[str, dict[str, list[str]]]:
    """Return first paragraphs of docstrings by part and topic, none of them twice."""
    known: set[str] = set()
    parts: dict[str, dict[str, list[str]]] = {"train": {}, "validation": {}, "test": {}}
    for topics, shares in (
        (SEEN, {"train": _TRAIN}),
        (OTHERS, {"validation": _VALIDATION, "test": _TEST}),
    ):
        for topic, modules in topics.items():
            found = [text for module in modules for text in _new_paragraphs(module, known)]
            order = np.random.default_rng(0).permutation(len(found))
            start = 0
            for part, count in shares.items():
                parts[part][topic] = [found[row] for row in order[start : start + count]]
                start += count
    return parts


def _new_paragraphs(module: str, known: set[str]) -> Iterator[str]:
    """Yield the first paragraph of each docstring of a module, where it is prose and not known."""
    for file in python_files(module):
        for docstring in docstrings(file.read_bytes()):
            text = " ".join(docstring.split("\n\n")[0].split())
            prose = len(text.split()) >= FEWEST_WORDS and not text.startswith(">>>")
            if prose and text not in known:
                known.add(text)
                yield text


class PythonTopics(tfds.core.GeneratorBasedBuilder):
    """Texts of Python's standard library by topic, prepared without a network."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    # Another Python has other texts.
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=f"python{platform.python_version()}", version=VERSION)
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=list(SEEN)),
                }
            ),
            supervised_keys=("text", "label"),
            homepage="https://docs.python.org/3/library/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {part: self._generate_examples(topics) for part, topics in texts_by_topic().items()}

    def _generate_examples(self, topics: dict[str, list[str]]) -> Iterator[tuple[str, dict]]:
        for topic, texts in topics.items():
            for number, text in enumerate(texts):
                yield f"{topic}-{number}", {"text": text, "label": topic}
