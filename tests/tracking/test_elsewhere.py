"""Registered models in other processes, through plain MLflow and a real server."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
import requests
from servers import free_port
from small_models import CUT, X, backbone, sent, with_head

import reusekit as rk
from reusekit.tracking.registry import logged_model_id

TOKENS = np.arange(14).reshape(2, 7).astype("int32")


def language_model() -> keras.Model:
    """Its output is its embedding; a cut parts the two ends."""
    keras.utils.set_random_seed(1)
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    embedding = keras.layers.Embedding(20, 4, name="embedding")
    x = keras.layers.Dense(4, name=CUT)(embedding(tokens))
    return keras.Model(tokens, rk.layers.TiedDense(embedding, name="logits")(x), name="language")


@pytest.fixture(scope="module")
def expected(module_tracking, server, tmp_path_factory):
    """What each registered model gives; two are stored by reference, two of them tied."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server.uri)
    body, language, folder = backbone(7), language_model(), tmp_path_factory.mktemp("written")
    plain = with_head(body, 5)
    tied = rk.Backbone(language, None, "tests/language", None)
    for name, model, source in (("plain", plain, body), ("tied", language, tied)):
        for way in ("joined", "alone"):
            sent(
                folder / f"{name}-{way}", model, source, f"{name}-{way}", "elsewhere",
                standalone=way == "alone",
            )  # fmt: skip
    np.save("x.npy", X)
    np.save("tokens.npy", TOKENS)
    yield {"plain": plain.predict(X, verbose=0), "tied": language.predict(TOKENS, verbose=0)}
    mlflow.set_tracking_uri(before)


def outside(code: str, before: str = "") -> None:
    """Run it in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", f"{before}\nimport mlflow, numpy as np\n{code}"],
        env=os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_plain_mlflow_joins_what_is_stored_by_reference_and_keeps_ties(expected):
    made = mlflow.MlflowClient().get_model_version("tied-alone", "1")
    by_id = f"models:/{logged_model_id(made)}"
    outside(
        "assert 'keras' not in __import__('sys').modules\n"
        "inputs = {'plain-joined': 'x', 'tied-joined': 'tokens', 'tied-alone': 'tokens'}\n"
        "for name, x in inputs.items():\n"
        "    model = mlflow.keras.load_model(f'models:/{name}@champion')\n"
        "    served = mlflow.pyfunc.load_model(f'models:/{name}/1')\n"
        "    values = np.load(x + '.npy')\n"
        "    np.save(name, [model.predict(values, verbose=0), served.predict(values)])\n"
        "    assert 'tied' not in name or len(model.weights) == 4, model.weights\n"
        f"assert mlflow.keras.load_model('{by_id}').count_params() == model.count_params()\n"
    )
    for name in ("plain-joined", "tied-joined", "tied-alone"):
        for found in np.load(f"{name}.npy"):
            assert np.array_equal(found, expected[name.split("-")[0]])


def test_a_self_contained_version_needs_no_reusekit(expected):
    outside(
        "model = mlflow.keras.load_model('models:/plain-alone@champion')\n"
        "np.save('alone.npy', model.predict(np.load('x.npy'), verbose=0))\n",
        # Importing them is an ImportError.
        before="import sys; sys.modules['reusekit'] = sys.modules['reusekit_mlflow'] = None",
    )
    assert np.array_equal(np.load("alone.npy"), expected["plain"])
    needed = {
        name: Path(
            mlflow.artifacts.download_artifacts(f"models:/{name}/1/requirements.txt")
        ).read_text()
        for name in ("plain-alone", "plain-joined", "tied-alone")
    }
    assert {name for name, text in needed.items() if "reusekit==" in text} == {
        "plain-joined",
        "tied-alone",
    }


def test_a_served_model_answers_with_the_same_numbers(expected):
    port = free_port()
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with open("served.log", "w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "models", "serve"),
                *("--model-uri=models:/tied-joined@champion", "--env-manager=local"),
                *(f"--port={port}", "--host=127.0.0.1"),
            ],
            env=os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "PATH": programs},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        answer = asked(f"http://127.0.0.1:{port}", process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    np.testing.assert_allclose(np.float32(answer), expected["tied"], rtol=1e-6)


def asked(uri: str, process: subprocess.Popen) -> list:
    """What a model server answers, once it does."""
    while True:
        assert process.poll() is None, Path("served.log").read_text()
        try:
            if requests.get(f"{uri}/ping", timeout=1).ok:
                break
        except requests.RequestException:
            time.sleep(0.1)
    answer = requests.post(f"{uri}/invocations", json={"inputs": TOKENS.tolist()}, timeout=60)
    assert answer.ok, answer.text
    return answer.json()["predictions"]
