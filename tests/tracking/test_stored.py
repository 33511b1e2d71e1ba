"""Models are read from fixed names, by hash; what describes them leads nowhere (faults D)."""

import json
import re
import shutil
import sqlite3
import zipfile
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from small_models import X, backbone, sent, with_head

import reusekit as rk
from reusekit.secrets import hide, shown
from reusekit.tracking import load_version
from reusekit.tracking.registry import logged_model_id


@pytest.fixture(scope="module")
def model():
    return with_head(backbone(), 0)


@pytest.fixture(scope="module")
def registry(module_tracking, model, tmp_path_factory):
    """A whole by reference, `ships`, and one that stands alone."""
    for name in ("ships", "alone"):
        folder = tmp_path_factory.mktemp("w") / "w"
        sent(folder, model, backbone(), name, "stored", standalone=name == "alone")
    return module_tracking


@pytest.fixture
def folder_of(registry):
    """The folder of a version's model; what a test does to it is undone."""
    altered = []

    def find(name: str, number: int = 1) -> Path:
        version = registry.get_model_version(name, str(number))
        logged = registry.get_logged_model(logged_model_id(version))
        folder = Path(logged.artifact_location.removeprefix("file://"))
        kept = folder.with_name("kept")
        shutil.copytree(folder, kept)
        altered.append((folder, kept))
        return folder

    yield find
    for folder, kept in altered:
        shutil.rmtree(folder)
        kept.rename(folder)


def edit(file: Path, pattern: str, new: str) -> None:
    """Replace what a pattern finds, which has to be there."""
    text, found = re.subn(pattern, new, file.read_text())
    assert found
    file.write_text(text)


def expected(model):
    return model.predict(X, verbose=0)


def test_a_flag_in_the_description_runs_no_code(registry, folder_of, model, tmp_path):
    # faults D1: MLmodel says that data/model is an exported model, whose start writes a file
    folder, marker = folder_of("alone"), tmp_path / "it-ran"

    class Writes(tf.Module):
        @tf.function(input_signature=[])
        def __call__(self):
            tf.io.write_file(str(marker), "x")
            return tf.constant(1)

    tf.saved_model.save(Writes(), str(folder / "data" / "model"))
    edit(folder / "MLmodel", "save_exported_model: .*", "save_exported_model: true")
    found = rk.load_backbone("models:/alone@champion").model
    assert np.array_equal(found.predict(X, verbose=0), expected(model))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["alone", "ships"])
@pytest.mark.parametrize("data", ["absolute", "../../.."])
def test_a_path_in_the_description_is_not_followed(
    registry, folder_of, model, name, data, tmp_path
):
    # faults D2
    folder = folder_of(name)
    with_head(backbone(5), 5).save(tmp_path / "model.keras")
    data = str(tmp_path) if data == "absolute" else data
    edit(folder / "MLmodel", "  keras:\n    data: data", f"  keras:\n    data: {data}")
    found = rk.load_backbone(f"models:/{name}/1").model
    assert np.array_equal(found.predict(X, verbose=0), expected(model))
    with pytest.raises(rk.TrackingError, match=r"to read .* and no more"):
        mlflow.keras.load_model(f"models:/{name}/1")


@pytest.mark.parametrize(
    ("pattern", "new"),
    [
        ("save_exported_model: .*", "save_exported_model: true"),
        ("loader_module: .*", "loader_module: antigravity"),
        ("loader_module:", "code: code\n    loader_module:"),
        ("loader_module:", "data: elsewhere\n    loader_module:"),
        ("  keras:\n", "  other:\n"),
        ("keras_backend: .*", "keras_backend: !!python/object/apply:os.system ['true']"),
    ],
)
def test_mlflow_is_not_handed_a_description_that_asks_for_more(registry, folder_of, pattern, new):
    # faults D1, D6, for what is fetched through reusekit by plain MLflow
    edit(folder_of("ships") / "MLmodel", pattern, new)
    with pytest.raises(rk.TrackingError, match=r"MLmodel .*(and no more|damaged)"):
        mlflow.keras.load_model("models:/ships/1")
    assert rk.load_backbone("models:/ships/1").model.count_params()


@pytest.mark.parametrize("address", ["alone/1", "body-bottom/1", "ships-top/1"])
def test_a_file_that_was_exchanged_is_refused_wherever_it_is_loaded(registry, folder_of, address):
    # faults D3
    name = address.partition("/")[0]
    file = folder_of(name) / "data" / "model.keras"
    keras.Sequential([keras.Input((6,)), keras.layers.Dense(8)]).save(file)
    version = registry.get_model_version(name, "1")
    loads = [
        lambda: rk.load_backbone(f"models:/{address}"),
        lambda: rk.load_backbone(f"models:/{logged_model_id(version)}"),
        lambda: load_version(version),
        lambda: mlflow.keras.load_model(f"models:/{address}"),
    ]
    for load in loads:
        with pytest.raises(rk.TrackingError, match=r"to be what was logged: .* SHA-256"):
            load()


@pytest.mark.parametrize(
    "source",
    ["reusekit:/loop", "models:/loop/1", "models:/loop@champion", "reusekit:/m-1", "runs:/x/y"],
)
def test_a_version_that_is_another_address_is_refused_at_once(registry, source):
    # faults D4
    name = f"loop {abs(hash(source))}"
    registry.create_registered_model(name)
    source = source.replace("loop", name)
    made = registry.create_model_version(name, "file:///nowhere")
    _set_source(name, source)
    with pytest.raises(rk.TrackingError, match="at another address"):
        rk.load_backbone(f"models:/{name}/{made.version}")


def _set_source(name: str, source: str) -> None:
    """Write a version's source into the database, as someone might who has it."""
    with sqlite3.connect("mlflow.db") as opened:
        opened.execute("UPDATE model_versions SET source = ? WHERE name = ?", (source, name))
    opened.close()


def test_a_part_that_is_no_logged_model_is_refused(registry, folder_of):
    # faults D4: the whole refers to itself, or to a version
    _forget_hashes()
    folder = folder_of("ships")
    file = folder / "data" / "reference.json"
    told = json.loads(file.read_text())
    for received in ("m/1", "ships/1", "m-" + "0" * 31):
        told["bottom"]["model_id"] = received
        file.write_text(json.dumps(told))
        for load in (rk.load_backbone, mlflow.keras.load_model):
            with pytest.raises(rk.TrackingError, match="the id of a model"):
                load("models:/ships/1")


def _forget_hashes() -> None:
    """Take the reference's hash off the record, as it is with models of earlier versions."""
    with sqlite3.connect("mlflow.db") as opened:
        for table in ("logged_model_tags", "model_version_tags"):
            column = "tag_key" if table == "logged_model_tags" else "key"
            opened.execute(f"DELETE FROM {table} WHERE {column} = 'reusekit.reference'")
    opened.close()


def test_nothing_but_the_model_is_copied_from_a_folder(registry, tmp_path, monkeypatch):
    # faults D5
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "letters.txt").write_text("secret")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    registry.create_registered_model("folder")
    registry.create_model_version("folder", (tmp_path / "private").as_uri())
    with pytest.raises(rk.TrackingError, match=r"of models:/folder/1. Received: none"):
        rk.load_backbone("models:/folder/1")
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"name": 5}',
        b'{"name": "m", "bottom": [], "top": null, "shared": 3}',
    ],
)  # fmt: skip
def test_a_damaged_reference_is_one_sentence(registry, folder_of, content):
    # faults D6
    _forget_hashes()
    (folder_of("ships") / "data" / "reference.json").write_bytes(content)
    for load in (rk.load_backbone, mlflow.keras.load_model):
        with pytest.raises(rk.TrackingError, match=r"reference\.json .* damaged") as caught:
            load("models:/ships/1")
        assert len(str(caught.value)) < 500


def test_a_configuration_of_any_depth_is_one_sentence(tmp_path):
    # faults D6
    file = tmp_path / "deep.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as read, zipfile.ZipFile(file, "w") as written:
        for name in read.namelist():
            deep = b"[" * 200_000 + b"]" * 200_000
            written.writestr(name, deep if name == "config.json" else read.read(name))
    with pytest.raises(rk.BackboneError, match="can be loaded"):
        rk.load_backbone(file)


@pytest.mark.parametrize("linked", ["data/model.keras", "data", "data/reference.json"])
def test_links_in_a_model_folder_are_not_followed(registry, folder_of, linked, tmp_path):
    name = "ships" if "reference" in linked else "alone"
    path = folder_of(name) / linked
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(rk.TrackingError, match="is a link"):
        rk.load_backbone(f"models:/{name}/1")
    with pytest.raises(rk.TrackingError, match="is a link"):
        mlflow.keras.load_model(f"models:/{name}/1")


def test_credentials_are_not_sent_to_an_address_in_the_registry(registry, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "S3CRET")
    for number, scheme in enumerate(("http", "mlflow-artifacts"), 1):
        if number == 1:
            registry.create_registered_model("away")
        registry.create_model_version("away", "file:///nowhere")
        _set_source("away", f"{scheme}://127.0.0.1:9/x")
        with pytest.raises(rk.TrackingError, match="another address"):
            rk.load_backbone(f"models:/away/{number}")


@pytest.mark.parametrize(
    "source",
    ["x" * 5000, "x" * 600, "a" * 600 + ".keras", "models:/" + "x" * 5000, "\0", "keras_hub/\0"],
)
def test_a_source_of_any_length_is_one_sentence(source):
    # faults D9
    with pytest.raises(rk.BackboneError) as caught:
        rk.load_backbone(source)
    assert len(str(caught.value)) < 1500


def test_by_the_latest_by_a_run_and_by_an_alias_that_looks_like_a_number(registry):
    # pipeline B5, F
    alone, ships = (registry.get_model_version(name, "1") for name in ("alone", "ships"))
    registry.create_registered_model("planes")
    for version in (alone, ships):
        registry.create_model_version("planes", version.source)
    registry.set_registered_model_alias("planes", "2", "1")
    found = {
        address: rk.load_backbone(address).source
        for address in (
            "models:/planes/latest", "models:/planes@latest", "models:/planes@2",
            "models:/planes/2", f"runs:/{alone.run_id}/alone",
        )
    }  # fmt: skip
    assert list(found.values()) == [
        "models:/planes/2", "models:/planes/2", "models:/planes/1", "models:/planes/2",
        f"models:/{logged_model_id(alone)}",
    ]  # fmt: skip
    with pytest.raises(rk.TrackingError, match=r"an alias of planes. Received: '1'"):
        rk.load_backbone("models:/planes@1")
    with pytest.raises(rk.TrackingError, match="Did you mean 'alone'"):
        rk.load_backbone(f"runs:/{alone.run_id}/alon")


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:S3CRET@host/db", "postgresql+psycopg2://me:a/S3CRET@host/db",
        "postgresql://me:S3CRET?x@host/db", "mysql://me:S3CRET@x@host/db",
        "http://S3CRET@host:5000", "http://me:S3CRET@host", "https://S3CRET:x-oauth@host",
        "http://host/?token=S3CRET", "http://host/p?a=1&token=S3CRET", "http://host/?S3CRET",
        "http://host/#S3CRET", "http://me:S3CRET@[::1]:5000/x", "http:/me:S3CRET@host",
        "//me:S3CRET@host", "nope://me:S3CRET@h/db", "databricks://me:S3CRET@x",
        "s3://KEY:S3CRET@bucket/x", "jdbc:sqlserver://h;password=S3CRET;x=1",
        "mssql+pyodbc:///?odbc_connect=PWD%3DS3CRET", "sqlite:////a/b.db?key=S3CRET",
    ],
)  # fmt: skip
def test_no_shape_of_an_address_shows_its_secret(address):
    # faults D7
    assert "S3CRET" not in shown(address)
    compound = "a/S3CRET" in address or "S3CRET?x" in address or "S3CRET@x" in address
    said = "it" if compound else "S3CRET"
    for text in (f"cannot open '{address}': no driver", f"{said} is wrong at {address}/api?x=1."):
        assert "S3CRET" not in hide(text, address)
        assert "S3CRET" not in hide(text.replace("S3CRET is", "it is"))


@pytest.mark.parametrize(
    "address",
    ["sqlite:////a folder/me@home#1.db", "http://host:5000/a@b", "runs@home/x"],
)  # fmt: skip
def test_an_address_without_secrets_is_shown_as_it_is(address):
    assert shown(address) == address
