"""Models that are ill in known ways, and models that are well."""

import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import applications
from keras import layers as L

import reusekit as rk
from reusekit.errors import ConfigError
from reusekit.stages import examine, write_mended


def convolutions(norm_trains: bool = False, drop: float = 0.0, training: Any = None) -> Any:
    """Return a base of two convolutions, with a normalisation and perhaps dropout between."""
    x = keras.Input((8, 8, 3), name="pixels")
    y = L.Conv2D(4, 3, name="a")(x)
    y = L.BatchNormalization(name="norm")(y, training=training)
    y = L.Dropout(drop, name="drop")(y) if drop else y
    base = keras.Model(x, L.Conv2D(4, 3, name="b")(y), name="base")
    base.trainable = False
    base.get_layer("norm").trainable = norm_trains
    return base


def headed(base: Any, augmented: bool = False, units: int = 3, **call: Any) -> keras.Model:
    x = keras.Input((8, 8, 3), name="image")
    y = L.RandomFlip(name="flip")(x) if augmented else x
    y = L.GlobalAveragePooling2D(name="pool")(base(y, **call))
    y = L.Dropout(0.5, name="head_drop")(L.BatchNormalization(name="head_norm")(y))
    return keras.Model(x, L.Dense(units, name="head")(y), name="model")


def language(tied: bool = False) -> keras.Model:
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    embedding = L.Embedding(20, 4, name="embedding")
    y = L.Dense(4, name="hidden")(embedding(tokens))
    last = rk.layers.TiedDense(embedding, name="logits") if tied else L.Dense(20, name="logits")
    return keras.Model(tokens, last(y), name="language")


def untied() -> keras.Model:
    model = language()
    model.get_layer("logits").kernel.assign(
        keras.ops.transpose(model.get_layer("embedding").embeddings)
    )
    return model


def tied_by_hand(constant: bool) -> keras.Model:
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    embedding = L.Embedding(20, 4, name="embedding")
    y = L.Dense(4, name="hidden")(embedding(tokens))
    weight = embedding.embeddings
    if constant:
        logits = keras.ops.matmul(y, keras.ops.transpose(weight))
    else:
        logits = keras.ops.einsum("btc,vc->btv", y, weight)
    return keras.Model(tokens, logits, name="by_hand")


def shared_with_a_nested_model() -> keras.Model:
    x = keras.Input((4,), name="x")
    shared = L.Dense(4, name="shared")
    inner = keras.Sequential([keras.Input((4,)), shared], name="inner")
    return keras.Model(x, shared(inner(x)))


def texts() -> keras.Model:
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    y = L.Embedding(20, 4, trainable=False, name="embedding")(tokens)
    return keras.Model(tokens, L.Dense(2)(L.LSTM(3, dropout=0.3, name="lstm")(y)))


def frozen_after_compiling() -> keras.Model:
    model = headed(convolutions(), training=False)
    model.get_layer("base").trainable = True
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    model.get_layer("base").trainable = False
    return model


def rated(thawed: bool) -> keras.Model:
    model = headed(convolutions(), training=False)
    model.compile(rk.layerwise_optimizer(model, "adam", decay=0.5), "mse")
    if not thawed:
        return model
    with tempfile.NamedTemporaryFile(suffix=".keras") as file:
        model.save(file.name)
        loaded = keras.saving.load_model(file.name)
    loaded.get_layer("base").trainable = True
    return loaded


def compiled(from_logits: bool, activation: str | None) -> keras.Model:
    x = keras.Input((4,), name="x")
    model = keras.Model(x, L.Dense(3, activation=activation, name="out")(x))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits))
    return model


def by_name(activation: str | None) -> keras.Model:
    x = keras.Input((4,), name="x")
    model = keras.Model(x, L.Dense(3, activation=activation, name="out")(x))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def sequential_with_scores() -> Path:
    model = keras.Sequential([keras.Input((4,)), L.Dense(1, name="out")])
    model.compile("sgd", "binary_crossentropy")
    path = Path(tempfile.mkdtemp()) / "scores.keras"
    model.save(path)
    return path


def compiled_file(suffix: str) -> Path:
    """Return a file whose optimizer was never used."""
    path = Path(tempfile.mkdtemp()) / f"compiled{suffix}"
    by_name("softmax").save(path)
    return path


class Sampling(L.Layer):
    """A draw around a mean, as in a variational autoencoder."""

    def call(self, mean, spread):
        return mean + spread * keras.random.normal(keras.ops.shape(mean))


def random_inside() -> keras.Model:
    x = keras.Input((4,), name="x")
    drawn = Sampling(name="drawn")(L.Dense(2, name="mean")(x), L.Dense(2, name="spread")(x))
    return keras.Model(x, L.Dense(4, name="out")(drawn))


def two_towers() -> keras.Model:
    table = keras.initializers.RandomNormal(seed=1)
    sides = [keras.Input((5,), dtype="int32", name=name) for name in ("one", "other")]
    towers = [
        L.Embedding(20, 4, embeddings_initializer=table, trainable=False, name=f"in_{side.name}")(
            side
        )
        for side in sides
    ]
    return keras.Model(sides, L.Dense(1, name="out")(L.Add(name="add")(towers)))


def trained_on(scale: float) -> keras.Model:
    """Return a model whose normalisation remembers pixels that were multiplied by a number."""
    x = keras.Input((8, 8, 3), name="pixels")
    y = L.BatchNormalization(name="norm")(L.Conv2D(4, 3, name="a")(x))
    model = keras.Model(x, L.Dense(3, name="out")(L.GlobalAveragePooling2D()(y)), name="trained")
    seen = np.asarray(keras.Model(x, model.get_layer("a").output)(scale * pixels()))
    norm = model.get_layer("norm")
    norm.moving_mean.assign(seen.mean((0, 1, 2)))
    norm.moving_variance.assign(seen.var((0, 1, 2)))
    return model


def pixels() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (30, 8, 8, 3)).astype("float32")


def labelled(classes: int = 3) -> Any:
    return rk.data.from_arrays(pixels(), np.arange(30) % classes)


def scaled_twice() -> keras.Model:
    x = keras.Input((8, 8, 3), name="pixels")
    y = L.Rescaling(1 / 255, name="again")(L.Rescaling(1 / 255, name="once")(x))
    return keras.Model(x, L.Conv2D(2, 3, name="a")(y))


class Odd(L.Layer):
    """A layer that is registered nowhere."""

    def call(self, x):
        return x * 2


def foreign(path: Path) -> Path:
    x = keras.Input((4,), name="x")
    keras.Model(x, Odd(name="odd")(x)).save(path / "odd.keras")
    return path / "odd.keras"


def between_operations() -> keras.Model:
    """Return a frozen base with operations, and stochastic depth, on its branches."""
    x = keras.Input((8, 8, 3), name="pixels")
    y = L.Conv2D(4, 3, padding="same", name="a")(x)
    y = L.Dropout(0.2, noise_shape=(None, 1, 1, 1), name="depth")(y * 0.5) + y
    base = keras.Model(x, L.Conv2D(4, 3, name="b")(y), name="base")
    base.trainable = False
    return headed(base)


def norm_at_the_end(trains: bool) -> keras.Model:
    x = keras.Input((8, 8, 3), name="pixels")
    y = L.BatchNormalization(name="norm")(L.Conv2D(4, 3, name="a")(x))
    base = keras.Model(x, L.ReLU(name="relu")(y), name="base")
    base.trainable = False
    base.get_layer("norm").trainable = trains
    return headed(base)


class Subclassed(keras.Model):
    """A model that calls its base as it likes."""

    def __init__(self, base):
        super().__init__()
        self.base, self.pool, self.out = base, L.GlobalAveragePooling2D(), L.Dense(3)

    def call(self, x):
        return self.out(self.pool(self.base(x)))


def subclassed(norm_trains: bool) -> keras.Model:
    model = Subclassed(convolutions(norm_trains))
    model(np.zeros((1, 8, 8, 3), "float32"))
    return model


def augmented_by_a_model() -> keras.Model:
    varied = keras.Sequential(
        [keras.Input((8, 8, 3)), L.RandomFlip(name="flip"), L.RandomZoom(0.1, name="zoom")],
        name="varied",
    )
    x = keras.Input((8, 8, 3), name="image")
    y = L.GlobalAveragePooling2D(name="pool")(convolutions()(varied(x)))
    return keras.Model(x, L.Dense(3, name="head")(y))


def scaled_and(then: Any) -> keras.Model:
    x = keras.Input((8, 8, 3), name="pixels")
    y = L.Resizing(8, 8, name="size")(L.Rescaling(1 / 255, name="scaled")(x))
    base = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(2, 3)], name="base")
    return keras.Model(x, base(then(y)))


def bits_of_16() -> keras.Model:
    x = keras.Input((8, 8, 3), name="pixels")
    y = L.Normalization(mean=[0.5] * 3, variance=[0.05] * 3)(L.Rescaling(1 / 65535)(x))
    return keras.Model(x, L.Conv2D(2, 3)(y))


def with_input_dropout() -> keras.Model:
    x = keras.Input((4,), name="x")
    y = L.GaussianNoise(0.1, name="noise")(L.Dropout(0.2, name="visible")(x))
    return keras.Model(x, L.Dense(3)(y))


def two_headed(sizes: Any, activation: str = "softmax") -> keras.Model:
    x = keras.Input((4,), name="x")
    kind = L.Activation(activation, name="kind")(L.Dense(3, name="scores")(x))
    model = keras.Model(x, {"kind": kind, "size": L.Dense(1, name="size")(x)})
    model.compile("sgd", {"kind": "sparse_categorical_crossentropy", "size": sizes})
    return model


def one_number(activation: str, loss: str) -> keras.Model:
    x = keras.Input((4,), name="x")
    model = keras.Model(x, L.Dense(1, activation=activation, name="out")(x))
    model.compile("sgd", loss)
    return model


def by_patterns(pattern: str) -> keras.Model:
    model = by_name("softmax")
    chosen = {pattern: keras.optimizers.SGD()}
    optimizers = keras.optimizers.OptimizerMap(keras.optimizers.SGD(), chosen)
    model.compile(keras.optimizers.MultiOptimizer(optimizers), "sparse_categorical_crossentropy")
    return model


def thawed_with_rates_for_all() -> keras.Model:
    model = headed(convolutions())
    model.compile(rk.layerwise_optimizer(model, "adam", decay=0.5), "mse")
    model.optimizer.build(model.trainable_variables)
    model.get_layer("base").trainable = True
    return model


def own_loss(truth, said):
    return keras.ops.mean((truth - said) ** 2)


def file_with_a_loss_of_ones_own() -> Path:
    model = by_name("softmax")
    model.compile("sgd", own_loss)
    path = Path(tempfile.mkdtemp()) / "own_loss.keras"
    model.save(path)
    return path


def adapted() -> keras.Model:
    """Return a model whose frozen encoder drops, and trains what LoRA has added to it."""
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    y = L.Dropout(0.1, name="drop")(L.Embedding(20, 4, trainable=False, name="embedding")(tokens))
    attention = L.MultiHeadAttention(2, 2, dropout=0.1, name="attention")
    y = L.Dense(4, trainable=False, name="dense")(attention(y, y))
    model = keras.Model(tokens, L.Dense(2, name="head")(L.GlobalAveragePooling1D()(y)))
    attention.trainable = False
    attention.query_dense.trainable = True
    attention.query_dense.enable_lora(2)
    return model


def attentive_file() -> Path:
    """Return a file whose attention is frozen, until Keras makes its parts again."""
    x = keras.Input((6, 4), name="x")
    attention = L.MultiHeadAttention(2, 2, name="attention")
    model = keras.Model(x, L.Dense(2, name="head")(attention(x, x)))
    attention.trainable = False
    assert examine(model).is_well
    path = Path(tempfile.mkdtemp()) / "attentive.keras"
    model.save(path)
    return path


def wrapped_with_a_new_norm() -> keras.Model:
    """Return a model whose part has, behind a frozen base, a normalisation of its own."""
    x = keras.Input((8, 8, 3), name="image")
    pooled = L.GlobalAveragePooling2D(name="pool")(convolutions()(x))
    part = keras.Model(x, L.BatchNormalization(name="new")(pooled), name="part")
    y = keras.Input((8, 8, 3), name="outer")
    return keras.Model(y, L.Dense(3)(part(y)))


def siamese() -> keras.Model:
    tower = keras.Sequential([keras.Input((4,)), L.Dense(3, name="in_tower")], name="tower")
    one, other = keras.Input((4,), name="one"), keras.Input((4,), name="other")
    return keras.Model([one, other], L.Subtract(name="apart")([tower(one), tower(other)]))


ILL = {
    "freezing, of a file": attentive_file,
    "freezing, before it is built": lambda: keras.Model(
        x := keras.Input((6, 4)), L.MultiHeadAttention(2, 2, trainable=False)(x, x)
    ),
    "batch-norm": lambda: headed(convolutions(norm_trains=True)),
    "batch-norm, always": lambda: thawed(convolutions(training=True)),
    "batch-norm, at the end of a base": lambda: norm_at_the_end(trains=True),
    "batch-norm, in a subclassed model": lambda: subclassed(norm_trains=True),
    "training-mode": lambda: headed(convolutions(drop=0.3)),
    "training-mode, between operations": between_operations,
    "augmentation": lambda: headed(convolutions(), augmented=True, training=False),
    "augmentation, by a model": augmented_by_a_model,
    "scaling": scaled_twice,
    "scaling, by operations": lambda: scaled_and(applications.mobilenet_v2.preprocess_input),
    "scaling, and centred": lambda: scaled_and(applications.vgg16.preprocess_input),
    "scaling, and normalised": lambda: scaled_and(L.Normalization(mean=120.0, variance=3600.0)),
    "input-range, missing": lambda: (trained_on(1 / 255), labelled()),
    "labels": lambda: (headed(convolutions(), units=5, training=False), labelled()),
    "outputs": lambda: compiled(from_logits=True, activation="softmax"),
    "outputs, by the name of a loss": lambda: by_name(None),
    "outputs, of a sequential file": sequential_with_scores,
    "outputs, reverse": lambda: compiled(from_logits=False, activation=None),
    "outputs, one of two": lambda: two_headed("binary_crossentropy"),
    "outputs, softmax of one": lambda: one_number("softmax", "binary_crossentropy"),
    "outputs, classes of one": lambda: one_number("sigmoid", "sparse_categorical_crossentropy"),
    "ties": untied,
    "ties, by a constant": lambda: tied_by_hand(constant=True),
    "ties, by an operation": lambda: tied_by_hand(constant=False),
    "ties, with a nested model": shared_with_a_nested_model,
    "optimizer": frozen_after_compiling,
    "optimizer, with rates for all": thawed_with_rates_for_all,
    "classes, of a loss": file_with_a_loss_of_ones_own,
    "rates, by patterns": lambda: by_patterns("dense/.*"),
    "rates": lambda: rated(thawed=True),
}
MENDED = {
    "batch-norm", "batch-norm, at the end of a base", "training-mode", "augmentation", "scaling",
    "training-mode, between operations", "augmentation, by a model", "scaling, by operations",
    "scaling, and centred", "scaling, and normalised", "input-range, missing", "ties", "optimizer",
    "optimizer, with rates for all", "classes, of a loss",
}  # fmt: skip
WELL = {
    "frozen base": lambda: (headed(convolutions(), training=False), labelled()),
    "frozen base, called plainly": lambda: headed(convolutions()),
    "dropout behind the frozen part": texts,
    "frozen by rk.freeze": lambda: frozen_by_us(),
    "nothing frozen": lambda: thawed(convolutions(drop=0.3)),
    "tied": lambda: language(tied=True),
    "not tied": language,
    "rates": lambda: rated(thawed=False),
    "scores, by the name of a loss": lambda: by_name("softmax"),
    "random behind weights": random_inside,
    "compiled, and not trained": lambda: compiled_file(".keras"),
    "compiled, as HDF5": lambda: compiled_file(".h5"),
    "one table twice, frozen": two_towers,
    "probabilities": lambda: compiled(from_logits=False, activation="softmax"),
    "scores": lambda: compiled(from_logits=True, activation=None),
    "trained on pixels": lambda: (trained_on(1.0), labelled()),
    "siamese": siamese,
    "new normalisation behind a frozen base": wrapped_with_a_new_norm,
    "normalisation frozen with its base": lambda: norm_at_the_end(trains=False),
    "subclassed": lambda: subclassed(norm_trains=False),
    "centred, not scaled": lambda: keras.Model(
        x := keras.Input((8, 8, 3)), applications.vgg16.preprocess_input(x)
    ),
    "pixels of 16 bits": bits_of_16,
    "dropout of inputs": with_input_dropout,
    "normalised far from 0": lambda: keras.Model(
        x := keras.Input((4, 4, 1)), L.Normalization(mean=1e5, variance=1e6)(x)
    ),
    "adapted by LoRA": adapted,
    "two outputs": lambda: two_headed("mse"),
    "patterns": lambda: by_patterns("out/.*"),
}


def frozen_by_us() -> keras.Model:
    model = headed(convolutions(norm_trains=True, drop=0.3))
    rk.freeze(model, up_to="pool")
    return model


def thawed(base: keras.Model) -> keras.Model:
    base.trainable = True
    return headed(base)


def look(made: Any) -> tuple[Any, Any]:
    model, data = made if isinstance(made, tuple) else (made, None)
    return examine(model, data), data


@pytest.mark.parametrize("name", ILL)
def test_each_illness_is_found_alone_and_mended_where_it_can_be(name, tmp_path):
    examination, data = look(ILL[name]())
    assert {one.check for one in examination.findings} == {name.partition(",")[0]}
    assert all(one.mend is not None for one in examination.findings) == (name in MENDED)
    before = [np.array(weight) for weight in examination.model.weights]
    if name in MENDED:
        write_mended(examination, tmp_path / "mended.keras")
        assert examine(tmp_path / "mended.keras", data).is_well
        with pytest.raises(ConfigError, match="since nothing is ever written over"):
            write_mended(examination, tmp_path / "mended.keras")
    else:
        with pytest.raises(ConfigError, match="only you"):
            write_mended(examination, tmp_path / "mended.keras")
    after = [np.array(weight) for weight in examination.model.weights]
    assert all(map(np.array_equal, before, after))


@pytest.mark.parametrize("name", WELL)
def test_nothing_is_found_in_a_model_that_is_well(name):
    examination, _ = look(WELL[name]())
    assert examination.is_well, examination.findings


def test_a_file_is_examined_with_its_optimizer(tmp_path):
    frozen_after_compiling().save(tmp_path / "late.keras")
    found = examine(tmp_path / "late.keras").findings
    assert [one.check for one in found] == ["optimizer"]


def test_a_class_that_cannot_be_loaded_is_named(tmp_path):
    (found,) = examine(foreign(tmp_path)).findings
    assert found.check == "classes"
    assert "Odd" in found.what
    keras.Sequential([keras.Input((4,)), L.Lambda(lambda x: x)]).save(tmp_path / "lambda.keras")
    (found,) = examine(tmp_path / "lambda.keras").findings
    assert (found.check, "in the place of the Lambda" in found.remedy) == ("classes", True)
    with pytest.raises(ConfigError):
        write_mended(examine(foreign(tmp_path)), tmp_path / "mended.keras")


def test_layers_that_are_counted_twice_are_noted():
    assert "20 are counted twice" in examine(shared_with_a_nested_model()).notes[0]


def test_layers_with_the_same_fault_are_one_entry_in_print():
    base = keras.Sequential([keras.Input((8, 8, 3))], name="base")
    for number in range(6):
        base.add(L.Conv2D(2, 1, trainable=False))
        base.add(L.BatchNormalization(name=f"norm{number}"))
    found = examine(headed(base))
    assert len(found.findings) == 6
    (line,) = [line for line in str(found).splitlines() if line.startswith("- ")]
    assert line.startswith("- batch-norm, base/norm0, base/norm1, base/norm2 and 3 more: ")
    assert "model.get_layer('base').get_layer('norm0').trainable = False" in str(found)
