"""Registered models with altered descriptions, files, links and sources; secrets in addresses.

Each try alters one thing of a small registry, loads from it, and puts it back. A file outside and
an empty scratch folder must stay as they are, and a file that appears where code ran must not.
"""

import hashlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import keras
import mlflow
import numpy as np
import requests
import tensorflow as tf
from mlflow.exceptions import MlflowException

import reusekit as rk
from faults.outcome import Outcome, tried
from reusekit.backbones import Backbone
from reusekit.secrets import shown
from reusekit.tracking import (
    ROLES,
    Registration,
    connect,
    find_version,
    load_version,
    prepare,
    send,
    take_ledgers,
    ui_command,
)
from reusekit.tracking.names import REFERENCE
from reusekit.tracking.network import cause_of, explained
from reusekit.tracking.registry import logged_model_id

TRIES = 240

_SECRET = "S3CRET0DD"
_SHAPES = (
    "postgresql://me:{}@localhost:9/db", "postgresql+psycopg2://me:{}@127.0.0.1:9/db?sslmode=require",
    "postgresql://127.0.0.1:9/db?password={}", "postgresql://me:a/{}@127.0.0.1:9/db",
    "mysql://{}@127.0.0.1:9/db", "mysql+pymysql://root:{}@127.0.0.1:9/x?ssl_key={}",
    "mssql+pyodbc://me:{}@127.0.0.1:9/db?driver=x", "mssql+pyodbc:///?odbc_connect=PWD%3D{}",
    "http://{}@127.0.0.1:9", "http://me:{}@127.0.0.1:9/", "https://{}:x-oauth@127.0.0.1:9",
    "http://127.0.0.1:9/?token={}", "http://127.0.0.1:9/p?a=1&token={}&b=2", "http://127.0.0.1:9/#{}",
    "http://me:{}@[::1]:9/x", "nope://me:{}@h/db", "databricks://me:{}@h", "sqlite:///no/x.db?key={}",
    "s3://KEY:{}@bucket/x", "ftp://me:{}@127.0.0.1:9/x", "http:/me:{}@h", "http://me:{}@[bad",
)  # fmt: skip
_X = np.linspace(-1, 1, 24, dtype="float32").reshape(4, 6)


@dataclass(frozen=True)
class Registry:
    """A registry with a whole by reference, `ships`, and one that stands alone, `alone`.

    Attributes:
        folder: Where its database and its files are.
        outside: A folder next to it, with a file and a model that nobody may touch or read.
        expected: What both models give.
        sources: What each version is made of.
    """

    folder: Path
    outside: Path
    expected: np.ndarray
    sources: dict[str, str]

    @property
    def marker(self) -> Path:
        """A file that is there once code ran."""
        return self.outside / "it-ran"

    def artifacts(self, name: str) -> Path:
        """Return the folder of the model of a version."""
        client = mlflow.MlflowClient()
        model_id = logged_model_id(client.get_model_version(name, "1"))
        return Path(client.get_logged_model(model_id).artifact_location.removeprefix("file://"))

    def execute(self, statement: str, *values: str) -> None:
        """Change the database, as someone might who has it."""
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as opened, opened:
            opened.execute(statement, values)

    def forget(self, old: str, new: str) -> None:
        """Call the tags of one name by another."""
        for table, column in (("logged_model_tags", "tag_key"), ("model_version_tags", "key")):
            self.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", new, old)

    def restore(self) -> None:
        """Put the database back."""
        for name, source in self.sources.items():
            self.execute("UPDATE model_versions SET source = ? WHERE name = ?", source, name)
        self.forget("gone", REFERENCE)

    def state(self) -> str:
        """Return a digest of everything outside, by name and content."""
        found = hashlib.sha256()
        for path in sorted(self.outside.rglob("*")):
            found.update(str(path).encode())
            if path.is_file():
                found.update(path.read_bytes())
        return found.hexdigest()


def run(generator: np.random.Generator, tries: int, folder: Path) -> Iterator[Outcome]:
    """Try them, a fifth of the tries for secrets."""
    before = mlflow.get_tracking_uri()
    (folder / "scratch").mkdir(parents=True)
    silent = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    with chdir(folder), _scratch(folder / "scratch"), patch.dict(os.environ, silent):
        try:
            registry = _made(folder)
            attacks = sorted(_ATTACKS)
            for number in range(tries):
                if number % 5 == 4:
                    yield _secret(generator)
                else:
                    yield _attacked(registry, attacks[number % len(attacks)], generator)
        finally:
            mlflow.set_tracking_uri(before)


@contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _made(folder: Path) -> Registry:
    outside = folder / "outside"
    outside.mkdir()
    (outside / "canary.txt").write_text("untouched")
    _model(9).save(outside / "model.keras")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_experiment("security")
    model = _model(0)
    body = Backbone(keras.Model(model.input, model.get_layer("cut").output), None, "body", None)
    parts = rk.split(model, "cut")
    ledgers = dict(zip(ROLES, take_ledgers((parts.bottom, parts.top, model)), strict=True))
    for name in ("ships", "alone"):
        written = folder / "scratch" / name
        registration = Registration(name, "f00d", standalone=name == "alone")
        prepare(written, parts, body, ledgers, registration)
        with mlflow.start_run() as active:
            send(written, mlflow.MlflowClient(), active.info.run_id)
        shutil.rmtree(written)
    versions = mlflow.MlflowClient().search_model_versions()
    sources = {version.name: version.source for version in versions}
    return Registry(folder, outside, model.predict(_X, verbose=0), sources)


def _model(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(4, name="cut")(keras.layers.Dense(5, activation="relu")(inputs))
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))


def _attacked(registry: Registry, attack: str, generator: np.random.Generator) -> Outcome:
    """Alter one thing, load, and put it back."""
    name = str(generator.choice(["ships", "alone"]))
    kept = registry.folder / "kept"
    shutil.copytree(registry.folder / "mlruns", kept, symlinks=True)
    before = registry.state()
    try:
        case, detail = attack, _ATTACKS[attack](registry, name, generator)
        scratch = registry.folder / "scratch"
        shutil.rmtree(scratch)  # of what the attack was made with
        scratch.mkdir()
        # Plain MLflow reads by itself what is no model of reusekit's any more.
        ways = _WAYS if attack not in ("D4", "D5", "D9") else _WAYS[:-1]
        way, load = ways[generator.integers(len(ways))]
        found: list[np.ndarray] = []
        outcome = tried(
            case,
            lambda: found.append(load(name).predict(_X, verbose=0)),
            nonsense=False,
            detail=f"{name} by {way}: {detail}",
        )
        if outcome.end == "right" and not np.array_equal(found[0], registry.expected):
            outcome = Outcome(case, "wrong", outcome.detail)
        # MLflow needs what it has fetched for as long as the process lives.
        left = any(scratch.iterdir()) and (way, outcome.end) != ("mlflow", "right")
        if registry.state() != before or left:
            outcome = Outcome(case, "outside", outcome.detail)
            registry.marker.unlink(missing_ok=True)
        shutil.rmtree(scratch)
        scratch.mkdir()
        return outcome
    finally:
        shutil.rmtree(registry.folder / "mlruns")
        kept.rename(registry.folder / "mlruns")
        registry.restore()


_WAYS: tuple[tuple[str, Callable[[str], keras.Model]], ...] = (
    ("version", lambda name: rk.load_backbone(f"models:/{name}/1").model),
    ("alias", lambda name: rk.load_backbone(f"models:/{name}@champion").model),
    ("latest", lambda name: rk.load_backbone(f"models:/{name}/latest").model),
    ("id", lambda name: rk.load_backbone(f"models:/{_id(name)}").model),
    ("promotion", lambda name: load_version(find_version(name, 1))),
    ("mlflow", lambda name: mlflow.keras.load_model(f"models:/{name}/1")),
)


def _id(name: str) -> str:
    version = mlflow.MlflowClient().get_model_version(name, "1")
    return logged_model_id(version) or "m-" + "0" * 32


def _flag(registry: Registry, name: str, generator: np.random.Generator) -> str:
    """Point the description at a program that writes a file when it is read."""
    folder = registry.artifacts(name)

    class Writes(tf.Module):
        @tf.function(input_signature=[])
        def __call__(self) -> tf.Tensor:
            tf.io.write_file(str(registry.marker), "x")
            return tf.constant(1)

    tf.saved_model.save(Writes(), str(folder / "data" / "model"))
    return _described(folder, "save_exported_model: .*", "save_exported_model: true")


def _path(registry: Registry, name: str, generator: np.random.Generator) -> str:
    """Point the description at another folder, or at other code."""
    data = generator.choice([str(registry.outside), "../../../../outside", "..", "/", "data/../.."])
    pattern, new = [
        ("  keras:\n    data: data", f"  keras:\n    data: {data}"),
        ("  python_function:", f"  python_function:\n    code: {data}"),
        ("loader_module: .*", f"loader_module: {generator.choice(['antigravity', 'os.path'])}"),
    ][generator.integers(3)]
    return _described(registry.artifacts(name), pattern, new)


def _described(folder: Path, pattern: str, new: str) -> str:
    file = folder / "MLmodel"
    file.write_text(re.sub(pattern, lambda _: new, file.read_text(), count=1))
    return new


def _exchanged(registry: Registry, name: str, generator: np.random.Generator) -> str:
    """Swap a part or the whole for another model, or alter one byte of it."""
    of = "alone" if name == "alone" else str(generator.choice(["body-bottom", "ships-top"]))
    file = registry.artifacts(of) / "data" / "model.keras"
    content = bytearray(file.read_bytes())
    if generator.random() < 0.5:
        shutil.copy(registry.outside / "model.keras", file)
        return f"{of} exchanged"
    place = int(generator.integers(len(content)))
    content[place] ^= int(generator.integers(1, 256))
    file.write_bytes(content)
    return f"byte {place} of {of}"


def _source(registry: Registry, name: str, generator: np.random.Generator) -> str:
    """Have the version claim to be another."""
    sources = (
        f"reusekit:/{name}", f"models:/{name}/1", f"models:/{name}@champion", "reusekit:/m-1",
        "runs:/0/x", f"models:/{_id(name)}/../x", "http://127.0.0.1:9/x", "mlflow-artifacts://h/x",
        "", "x" * 400, "models:/", "\0",
    )  # fmt: skip
    source = str(generator.choice(sources))
    registry.execute("UPDATE model_versions SET source = ? WHERE name = ?", source, name)
    return f"source {source[:40]!r}"


def _folder(registry: Registry, name: str, generator: np.random.Generator) -> str:
    """Have the version claim to be somebody's folder."""
    registry.execute(
        "UPDATE model_versions SET source = ? WHERE name = ?", registry.outside.as_uri(), name
    )
    return "source outside"


def _damaged(registry: Registry, name: str, generator: np.random.Generator) -> str:
    """Damage the description or the reference, with its hash off the record."""
    registry.forget(REFERENCE, "gone")
    folder = registry.artifacts(name)
    of = "MLmodel" if name == "alone" else str(generator.choice(["MLmodel", "data/reference.json"]))
    file = folder / of
    deep = "[" * int(generator.integers(1, 100_000))
    tag = f"!!python/object/apply:os.system ['touch {registry.marker}']"
    whole = file.read_text()
    told = json.loads(whole) if of.endswith("json") else {}
    told |= {"bottom": {**told.get("bottom", {}), "model_id": f"{name}/1"}}
    place = int(generator.integers(len(whole)))
    contents = (deep, tag, "null", "", "{}", whole[:place], json.dumps(told), "\ufffe", whole * 2)
    chosen = int(generator.integers(len(contents)))
    file.write_text(contents[chosen])
    return f"{of} damaged in way {chosen} at {place}"


def _linked(registry: Registry, name: str, generator: np.random.Generator) -> str:
    """Replace a file or folder of the model by a link that leads out."""
    inside = ["data", "data/model.keras", "MLmodel", "data/reference.json"]
    of = str(generator.choice(inside))
    path = registry.artifacts(name) / of
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    target = registry.outside if of == "data" else registry.outside / "model.keras"
    path.symlink_to(target)
    return f"{of} is a link"


def _long(registry: Registry, name: str, generator: np.random.Generator) -> str:
    """Give the name thousands of characters."""
    long = "x" * int(generator.integers(300, 6000))
    registry.execute("UPDATE model_versions SET source = ?", f"models:/{long}/1")
    return f"source of {len(long)} characters"


_ATTACKS: dict[str, Callable[[Registry, str, np.random.Generator], str]] = {
    "D1": _flag,
    "D2": _path,
    "D3": _exchanged,
    "D4": _source,
    "D5": _folder,
    "D6": _damaged,
    "D9": _long,
    "L1": _linked,
}


def _secret(generator: np.random.Generator) -> Outcome:
    """Have an address shown in one of the places where it is; its secret must not be there."""
    shape = _SHAPES[generator.integers(len(_SHAPES))]
    address = shape.replace("{}", _SECRET)
    place, tell = _PLACES[generator.integers(len(_PLACES))]
    try:
        told = tell(address)
    except rk.ReusekitError as error:
        told = _chain(error)
    except Exception as error:
        return Outcome("D7", "foreign", f"{shape} in {place}: {type(error).__name__}")
    end = "wrong" if _SECRET in told else "right"
    return Outcome("D7", end, f"{shape} in {place}: {told[:200]}")


def _chain(error: BaseException | None) -> str:
    """Return an error's traceback, with those that led to it."""
    told = ""
    while error is not None:
        told += f"{error}\n"
        error = error.__cause__ or error.__context__
    return told


def _connected(address: str) -> str:
    before = mlflow.get_tracking_uri()
    try:
        return connect(address, "m") and ""
    finally:
        mlflow.set_tracking_uri(before)


def _explained(error: Callable[[str], Exception]) -> Callable[[str], str]:
    def tell(address: str) -> str:
        with explained(address):
            raise error(address)

    return tell


_PLACES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("an address shown", shown),
    ("the command of MLflow's pages", ui_command),
    ("a connection", _connected),
    ("an error of MLflow", _explained(lambda a: MlflowException(f"got unsupported URI '{a}'"))),
    (
        "an error of requests",
        _explained(lambda a: requests.ConnectionError(f"no answer from {a}/api/2.0?x=1")),
    ),
    ("a backbone", lambda a: cause_of(ValueError(f"{a} is no backbone"), a)),
)
