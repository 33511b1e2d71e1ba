"""A digest names what a model computes, and nothing else about it."""

import keras
import pytest

from reusekit.backbones.digest import model_digest


def build(name="a", dtype=None, units=3, activation="relu"):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), name=f"{name}_input")
    layer = keras.layers.Dense(units, activation=activation, dtype=dtype, name=f"{name}_dense")
    return keras.Model(inputs, keras.layers.BatchNormalization(name=name)(layer(inputs)), name=name)


def test_names_compilation_and_freezing_do_not_enter_it():
    digest = model_digest(build())
    assert model_digest(build("relu")) == digest  # a name that means something elsewhere
    frozen = build()
    frozen.trainable = False
    assert model_digest(frozen) == digest
    compiled = build()
    compiled.compile("sgd", "mse")
    assert model_digest(compiled) == digest


@pytest.mark.parametrize(
    "changed", [{"dtype": "mixed_bfloat16"}, {"units": 4}, {"activation": "tanh"}]
)
def test_whatever_changes_the_numbers_changes_it(changed):
    assert model_digest(build(**changed)) != model_digest(build())


def test_one_changed_weight_changes_it():
    model = build()
    kernel = model.layers[1].kernel
    kernel.assign(kernel.value + 1e-6)
    assert model_digest(model) != model_digest(build())


def test_another_vocabulary_changes_it_even_if_it_was_adapted():
    def words(adapted=(), **options):
        lookup = keras.layers.StringLookup(name="words", **options)
        if adapted:
            lookup.adapt(list(adapted))
        inputs = keras.Input((3,), dtype="string")
        return keras.Model(inputs, lookup(inputs))

    found = [words("ab"), words("bc"), words(), words(vocabulary=["a"])]
    assert len({model_digest(model) for model in found}) == len(found)
    assert model_digest(words("ab")) == model_digest(words("ab"))
