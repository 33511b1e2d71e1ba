"""Registered models in other processes, through plain MLflow and a real server."""

from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from processes import run_python
from small_models import CUT, X, backbone, sent, with_head

import reusekit as rk
from reusekit.tracking import Usage
from reusekit.tracking.registry import logged_model_id

NAMES = Usage(kind="classification", names=("red", "white", "green"))
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
    """Return the outputs of each registered model; two are stored by reference, two tied."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server.uri)
    body, language, folder = backbone(7), language_model(), tmp_path_factory.mktemp("written")
    plain = with_head(body, 5)
    tied = rk.backbones.Backbone(language, None, "tests/language", None)
    for name, model, source in (("plain", plain, body), ("tied", language, tied)):
        for way in ("joined", "alone"):
            alone = way == "alone"
            usage = NAMES if alone and name == "plain" else None
            sent(
                folder / f"{name}-{way}", model, source, f"{name}-{way}", "elsewhere",
                standalone=alone, usage=usage,
            )  # fmt: skip
    np.save("x.npy", X)
    np.save("tokens.npy", TOKENS)
    yield {"plain": plain.predict(X, verbose=0), "tied": language.predict(TOKENS, verbose=0)}
    mlflow.set_tracking_uri(before)


# What `mlflow models serve` runs, asked for the model that was loaded last.
SERVE = """
import threading, time, requests, uvicorn
from mlflow.pyfunc.scoring_server import init
server = uvicorn.Server(uvicorn.Config(init(served), port=0, log_level="error"))
threading.Thread(target=server.run, daemon=True).start()
while not server.started:
    time.sleep(0.01)
host, port = server.servers[0].sockets[0].getsockname()
answer = requests.post(f"http://{host}:{port}/invocations", json={"inputs": values.tolist()})
np.save("served", answer.json()["predictions"])
"""


def outside(code: str, before: str = "") -> None:
    """Run it in a new process."""
    done = run_python(
        f"{before}\nimport mlflow, numpy as np\n{code}",
        environment={"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
    )
    assert done.returncode == 0, done.stderr


def test_plain_mlflow_joins_and_serves_what_is_stored_by_reference_and_keeps_ties(expected):
    made = mlflow.MlflowClient().get_model_version("tied-alone", "1")
    by_id = f"models:/{logged_model_id(made)}"
    outside(
        "assert 'reusekit' not in __import__('sys').modules\n"
        "inputs = {'plain-joined': 'x', 'tied-alone': 'tokens', 'tied-joined': 'tokens'}\n"
        "for name, x in inputs.items():\n"
        "    model = mlflow.keras.load_model(f'models:/{name}@champion')\n"
        "    served = mlflow.pyfunc.load_model(f'models:/{name}/1')\n"
        "    values = np.load(x + '.npy')\n"
        "    np.save(name, [model.predict(values, verbose=0), served.predict(values)])\n"
        "    assert 'tied' not in name or len(model.weights) == 4, model.weights\n"
        f"assert mlflow.keras.load_model('{by_id}').count_params() == model.count_params()\n"
        f"{SERVE}"
    )
    np.testing.assert_allclose(np.float32(np.load("served.npy")), expected["tied"], rtol=1e-6)
    for name in ("plain-joined", "tied-joined", "tied-alone"):
        for found in np.load(f"{name}.npy"):
            assert np.array_equal(found, expected[name.split("-")[0]])


def test_a_self_contained_version_needs_no_reusekit(expected):
    outside(
        "model = mlflow.keras.load_model('models:/plain-alone@champion')\n"
        "served = mlflow.pyfunc.load_model('models:/plain-alone@champion')\n"
        "x = np.load('x.npy')\n"
        "np.save('alone.npy', [model.predict(x, verbose=0), served.predict(x)])\n",
        # Importing them is an ImportError.
        before="import sys; sys.modules['reusekit'] = sys.modules['reusekit_mlflow'] = None",
    )
    for found in np.load("alone.npy"):
        assert np.array_equal(found, expected["plain"])
    here = mlflow.pyfunc.load_model("models:/plain-alone@champion").predict(X)
    assert here["label"].tolist() == [NAMES.names[one] for one in expected["plain"].argmax(axis=1)]
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
