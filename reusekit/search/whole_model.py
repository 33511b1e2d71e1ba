"""The whole model of a trial: its trained part behind a copy of the frozen one."""

from collections.abc import Iterator, Mapping, Sequence

import keras

from reusekit.errors import ConfigError, CopyError
from reusekit.graph import read
from reusekit.search.hypermodel import CutHyperModel
from reusekit.search.space import TrialSpec
from reusekit.search.trial_data import TrialData
from reusekit.surgery import clone
from reusekit.surgery.certificate import prove_copy
from reusekit.training import attach

Weights = Mapping[str, Sequence[keras.Variable]]
"""The weights of a model's calls, by address."""


def whole_model(
    spec: TrialSpec, trained: keras.Model, hypermodel: CutHyperModel, bare: TrialData
) -> keras.Model:
    """Return a trial's trained part behind a copy of the frozen one.

    Args:
        spec: The trial.
        trained: Its trained model.
        hypermodel: The hypermodel that built it.
        bare: The same backbone without features, from whose inputs on a model can be built.
    """
    data = hypermodel.data_of(spec)
    bottom = clone(data.frozen(spec), weights="copy")
    for layer in bottom.layers:
        layer.trainable = False
    joined = attach(bottom, trained)
    trunk = data.trunk(spec)
    if trunk is None:
        return joined
    # Cut inside a nested model, the two halves of it do not make that model again; nor is a weight
    # one again that both halves have.
    backbone = _weights(bare.trunk(spec))
    if backbone.keys() <= _weights(joined).keys() and not data.shared(spec)[1]:
        return joined
    if spec.adaptation is not None:
        raise ConfigError(
            f"Expected merged=True for {spec.adaptation!r} of a cut inside a nested model. "
            "Received: merged=False."
        )
    whole = CutHyperModel(bare, hypermodel.space, hypermodel.config).build_for(spec)
    pairs = _counterparts(_weights(trunk), _weights(trained), backbone, _weights(whole))
    for old, new in pairs:
        new.assign(old)
    try:
        prove_copy(joined, whole)
    except CopyError:
        return joined  # of a search of before, which trained such a weight apart
    return whole


def _weights(model: keras.Model | None) -> Weights:
    """Return the weights of each call that has any, by its address."""
    return {call.address: call.variables for call in read(model).calls if call.variables}


def _counterparts(
    trunk: Weights, trained: Weights, backbone: Weights, whole: Weights
) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """Yield each weight that a trial trained, and the one of a whole model that stands for it.

    Args:
        trunk: The part of the backbone that it trained, before it was copied.
        trained: Its trained model: a copy of that part, and a head.
        backbone: All of the backbone up to the cut, with the same weights as `trunk`.
        whole: A copy of that, and the same head.
    """
    at = {id(weight): (at, i) for at, those in backbone.items() for i, weight in enumerate(those)}
    for address, weights in trunk.items():
        for weight, old in zip(weights, trained[address], strict=True):
            found, number = at[id(weight)]
            yield old, whole[found][number]
    heads = [
        [weight for address, those in every.items() if address not in part for weight in those]
        for every, part in ((trained, trunk), (whole, backbone))
    ]
    yield from zip(*heads, strict=True)
