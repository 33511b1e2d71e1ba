import json
import signal
from itertools import pairwise

import keras
import numpy as np
import pytest
from processes import run_python
from zoo import ZOO

import reusekit as rk
from reusekit.errors import TrainingError
from reusekit.training import GradualUnfreezing, freeze

# JAX optimizers train all the weights they know or none, so that the callback refuses JAX.
pytestmark = pytest.mark.skipif(keras.backend.backend() == "jax", reason="refused on JAX")

STAGES = {0: "pool", 2: "out0", 3: ["out0", "relu0"], 4: None}  # the second and third are one


def values(variables):
    return [keras.ops.convert_to_numpy(variable).copy() for variable in variables]


def residual(seed=0):
    keras.utils.set_random_seed(seed)
    model = ZOO["residual"]()
    rng = np.random.default_rng(seed)
    return model, rng.random((8, 8, 8, 3), dtype="float32"), rng.random((8, 2), dtype="float32")


def trained_paths(model):
    return {variable.path for variable in model.trainable_variables}


class Diary(keras.callbacks.Callback):
    """What is trainable, what moved and how often the model was traced, epoch by epoch."""

    def __init__(self):
        super().__init__()
        self.trainable, self.moved, self.functions = [], [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.before = {v.path: value for v, value in self._values()}

    def on_epoch_end(self, epoch, logs=None):
        moved = {v.path for v, new in self._values() if (new != self.before[v.path]).any()}
        self.moved.append(moved)
        self.trainable.append(trained_paths(self.model))
        self.functions.append(self.model.train_function)

    def _values(self):
        return zip(self.model.weights, values(self.model.weights), strict=True)


@pytest.fixture(scope="module")
def diary():
    """What six epochs of unfreezing did."""
    model, x, y = residual()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    diary = Diary()
    model.fit(x, y, epochs=6, verbose=0, callbacks=[GradualUnfreezing(STAGES), diary])
    return diary


def test_blocks_are_taken_in_at_their_epochs(diary):
    head = {"head/kernel", "head/bias"}
    block = {"conv1/kernel", "bn1/gamma", "bn1/beta"}
    below = {"stem/kernel", "stem/bias", "conv0/kernel", "bn0/gamma", "bn0/beta"}
    everything = head | block | below
    assert diary.trainable == [head, head, head | block, head | block, everything, everything]
    statistics = [{f"bn{n}/moving_mean", f"bn{n}/moving_variance"} for n in range(2)]
    assert diary.moved[0] == diary.moved[1] == head
    assert diary.moved[2] == diary.moved[3] == head | block | statistics[1]
    assert diary.moved[4] == diary.moved[5] == everything | statistics[0] | statistics[1]


def test_the_training_function_is_made_anew_only_where_more_is_trained(diary):
    same = [a is b for a, b in pairwise(diary.functions)]
    assert same == [True, False, True, False, True]


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.SGD(0.05, momentum=0.9),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(0.01)),
    ],
    ids=["momentum", "adam with a loss scale"],
)
def test_momentum_goes_on_over_a_stage(make):
    """The head of a model whose bottom has no gradient is trained as if nothing had happened."""

    def run(callbacks):
        keras.utils.set_random_seed(0)
        x = keras.Input((4,), name="x")
        frozen = keras.layers.Dense(3, name="frozen")(x)
        blocked = keras.layers.Lambda(keras.ops.stop_gradient, name="blocked")(frozen)
        model = keras.Model(x, keras.layers.Dense(1, name="head")(blocked))
        model.compile(make(), "mse")
        rng = np.random.default_rng(0)
        data = rng.random((8, 4)), rng.random((8, 1))
        model.fit(*data, epochs=6, shuffle=False, verbose=0, callbacks=callbacks)
        return values(model.get_layer("head").weights)

    straight = run([])
    staged = run([GradualUnfreezing({0: "frozen", 3: None})])
    for one, two in zip(straight, staged, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_stage_is_what_freezing_and_training_by_hand_is():
    """Two stages equal two fits with one optimizer built for everything."""
    model, x, y = residual()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    staged = GradualUnfreezing({0: "out0", 2: None})
    model.fit(x, y, epochs=4, shuffle=False, verbose=0, callbacks=[staged])

    other, x, y = residual()
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(other.trainable_variables)
    for at in ("out0", None):
        freeze(other, at)
        other.compile(optimizer, "mse")
        other.fit(x, y, epochs=2, shuffle=False, verbose=0)
    for one, two in zip(values(model.weights), values(other.weights), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_second_fit_begins_at_the_first_stage_again():
    model, x, y = residual()
    model.compile("sgd", "mse")
    diary = Diary()
    callbacks = [GradualUnfreezing({0: "pool", 1: None}), diary]
    for _ in range(2):
        model.fit(x, y, epochs=2, verbose=0, callbacks=callbacks)
    assert diary.moved[0] == diary.moved[2] == {"head/kernel", "head/bias"}
    assert diary.trainable[1] == diary.trainable[3] != diary.trainable[0]


def test_batch_norm_policy_and_state():
    model, x, y = residual()
    model.compile("sgd", "mse")
    callback = GradualUnfreezing({0: "out1"}, batch_norm="statistics")
    assert callback.state is None
    model.fit(x, y, epochs=1, verbose=0, callbacks=[callback])
    states = {variable.path: variable.state for variable in callback.state.variables}
    assert states["bn0/gamma"] == "frozen"
    assert states["bn0/moving_mean"] == "statistics"


# --- killed and resumed --------------------------------------------------------------------------

# Each training is a process of its own, forked where Keras is imported and nothing has run yet, so
# that it starts as a fresh one does, only sooner.
SCRIPT = """
import json, os, signal, sys
from reusekit.training import GradualUnfreezing
import keras, numpy as np
from zoo import ZOO

def train(folder, kill, backup_first):
    keras.utils.set_random_seed(0)
    model = ZOO["residual"]()
    rng = np.random.default_rng(0)
    x, y = rng.random((8, 8, 8, 3), dtype="float32"), rng.random((8, 2), dtype="float32")
    model.compile(keras.optimizers.Adam(0.01), "mse")

    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(model.optimizer.iterations) == kill:
                os.kill(os.getpid(), signal.SIGKILL)

    backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
    callbacks = [backup, GradualUnfreezing({0: "pool", 2: "out0", 4: "stem"})]
    callbacks = [*(callbacks if backup_first else reversed(callbacks)), Kill()]
    model.fit(x, y, batch_size=4, epochs=6, shuffle=False, verbose=0, callbacks=callbacks)
    np.savez(folder + "/result.npz", *[np.asarray(v.numpy()) for v in model.weights],
             *[np.asarray(v.numpy()) for v in model.optimizer.variables])
    with open(folder + "/trainable.json", "w") as file:
        json.dump([v.path for v in model.trainable_variables], file)

statuses = []
for settings in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        train(*settings)
        os._exit(0)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(statuses))
"""


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """Where a training left its results: one uninterrupted, two killed and begun again."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("straight", "first", "last")}
    # Two batches an epoch: killed in the middle of the fourth.
    runs = [("straight", -1, True)]
    runs += [(name, kill, name == "first") for name in ("first", "last") for kill in (7, -1)]
    done = run_python(SCRIPT, json.dumps([(str(folders[n]), *how) for n, *how in runs]))
    killed = -signal.SIGKILL
    assert json.loads(done.stdout) == [0, killed, 0, killed, 0]
    return folders


@pytest.mark.parametrize("backup", ["first", "last"])
def test_killed_and_resumed_it_goes_on_as_if_never_interrupted(trainings, backup):
    """Whether the backup's callback comes before that which unfreezes or after."""
    straight, resumed = (
        (np.load(trainings[name] / "result.npz"), (trainings[name] / "trainable.json").read_text())
        for name in ("straight", backup)
    )
    assert resumed[1] == straight[1]
    assert "conv0/kernel" in resumed[1]
    assert "stem/kernel" not in resumed[1]
    assert resumed[0].files == straight[0].files
    for name in straight[0].files:
        np.testing.assert_array_equal(resumed[0][name], straight[0][name])


# --- choosing stages, and bad input --------------------------------------------------------------


def test_even_stages_go_from_the_last_clean_cut_to_nothing():
    model = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), classes=3)
    points = rk.cut_points(model)
    stages = GradualUnfreezing.evenly(model, blocks=4, every=3).stages
    assert list(stages) == [0, 3, 6, 9, 12]
    assert stages[0] == points[-1].at
    assert stages[12] is None
    depths = [points[at].depth for at in list(stages.values())[:-1]]
    np.testing.assert_allclose(depths, [1.0, 0.75, 0.5, 0.25], atol=0.1)


@pytest.mark.parametrize("blocks", [1, 7])
def test_even_stages_differ_however_many(blocks):
    x = y = keras.Input((4,), name="x")
    for number in range(8):
        y = keras.layers.Dense(4 ** (number % 3), name=f"d{number}")(y)
    stages = GradualUnfreezing.evenly(keras.Model(x, y), blocks, every=1).stages
    assert len(set(stages.values())) == blocks + 1


def test_bad_stages():
    for stages in ({1: "a"}, {}, {0: "a", -1: None}, {0: "a", "2": None}, ["a", "b"]):
        with pytest.raises(TrainingError, match=r"Expected (each key of )?stages"):
            GradualUnfreezing(stages)
    for blocks, every in ((99, 1), (0, 1), (1, 0), ("2", 1), (1, 0.5)):
        with pytest.raises(TrainingError, match=r"Expected (blocks|every) to be"):
            GradualUnfreezing.evenly(ZOO["linear"](), blocks, every)


@pytest.mark.parametrize(
    ("stages", "error", "message"),
    [
        (
            {0: "stem", 1: "out1"},
            TrainingError,
            "Received: 'stem' from epoch 0 and 'out1' .* again",
        ),
        ({0: "outt1"}, rk.errors.UnknownAddressError, "Did you mean 'out1'"),
    ],
)
def test_bad_stages_change_nothing(stages, error, message):
    model, x, y = residual()
    model.compile("sgd", "mse")
    before = values(model.weights)
    with pytest.raises(error, match=message):
        model.fit(x, y, verbose=0, callbacks=[GradualUnfreezing(stages)])
    assert len(model.trainable_variables) == 10
    for old, new in zip(before, values(model.weights), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_backend_that_cannot_train_some_of_the_weights_is_refused(monkeypatch):
    model, *_ = residual()
    model.compile("sgd", "mse")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(TrainingError, match="Received: JAX"):
        GradualUnfreezing(STAGES).set_model(model)


def test_an_optimizer_made_for_fewer_weights_is_refused():
    model, x, y = residual()
    freeze(model, "pool")
    model.compile("adam", "mse")
    model.fit(x, y, verbose=0)
    with pytest.raises(TrainingError, match="lacks 8, such as 'stem/kernel'"):
        model.fit(x, y, verbose=0, callbacks=[GradualUnfreezing(STAGES)])
    model.compile("adam", "mse")
    model.fit(x, y, epochs=5, verbose=0, callbacks=[GradualUnfreezing(STAGES)])
    assert len(model.trainable_variables) == 10
