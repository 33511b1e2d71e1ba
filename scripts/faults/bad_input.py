"""Bad input, made from the signatures of what is public: one wrong argument a try, the rest valid.

An argument is nonsense where its type stands nowhere in the annotation, and where it is no finite
number; that must be refused. What else may do or not, and no try may end in another's error.
"""

import contextlib
import inspect
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import keras
import numpy as np

import reusekit as rk
from faults.outcome import Outcome, tried
from reusekit.data import load_split
from reusekit.features import FeatureKey, Trials
from reusekit.search import CutHyperModel, TrialData, measure_latency, rank_cuts, ridge_probe

TRIES = 800

_BAD = [
    None, True, False, 0, -1, -(2**70), 10**30, 1.5, -0.5, float("nan"), float("inf"), "", "x", "3",
    "a/b", "\0", "é\u202e", "a" * 5_000, b"bytes", [], ["x", 5], [[]], [float("nan")], (), {},
    {"x": object()}, {5: "x"}, {1, 2}, object(), object, len, range(3), np.float32("nan"),
    np.array([1, 2]), np.array(3), np.array("x"), Path("\0"), 1j, ..., NotImplemented,
]  # fmt: skip

_KINDS = {float: (int, float), int: (int,), bool: (bool,), str: (str,)}


def run(generator: np.random.Generator, tries: int, folder: Path) -> Iterator[Outcome]:
    """Call each public name in turn, with a bad value in one of its parameters."""
    calls = _calls(folder)
    names = sorted(calls)
    with contextlib.chdir(folder):  # text may be a path
        yield from _tries(generator, tries, calls, names)


def _tries(
    generator: np.random.Generator, tries: int, calls: Mapping[str, Any], names: Sequence[str]
) -> Iterator[Outcome]:
    for number in range(tries):
        name = names[number % len(names)]
        function, valid = calls[name]
        hints = _hints(function)
        parameter = str(generator.choice(sorted(hints)))
        value = _BAD[generator.integers(len(_BAD))]
        nonsense = not _may_fit(hints[parameter], value)
        detail = f"{number}: {name}({parameter}={repr(value)[:60]})"
        yield tried("E", _call(function, {**valid, parameter: value}), nonsense, detail)


def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Callable[[], Any]:
    """Return the call, each argument in the way its parameter takes it."""
    by_position = [
        arguments[name]
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.POSITIONAL_ONLY
    ]
    by_name = dict(list(arguments.items())[len(by_position) :])
    return lambda: function(*by_position, **by_name)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the parameters that can be passed by name, with their annotations."""
    annotated = function
    if inspect.isclass(function) and not is_dataclass(function):
        annotated = function.__init__
    hints = get_type_hints(annotated, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: hints.get(p.name, Any)
        for p in parameters
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def _may_fit(annotation: Any, value: Any) -> bool:
    """Return whether a value's type stands in the annotation, and no more than that.

    Example:
        >>> _may_fit(int | None, None), _may_fit(int, True), _may_fit(float, float("nan"))
        (True, False, False)
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin is Annotated:
        return _may_fit(arguments[0], value)
    if origin in (Union, types.UnionType):
        return any(_may_fit(one, value) for one in arguments)
    if origin is Literal:
        return value in arguments if isinstance(value, str | int) else False
    if isinstance(value, np.generic):
        value = value.item()
    if annotation in (int, float):
        finite = isinstance(value, int | float) and abs(value) < float("inf")
        return isinstance(value, _KINDS[annotation]) and type(value) is not bool and finite
    if origin in (list, tuple, Sequence, Collection, Iterable):
        return isinstance(value, Iterable) and not isinstance(value, str | bytes)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if get_origin(annotation) is Callable or annotation is Callable:
        return callable(value)
    return isinstance(value, _KINDS.get(annotation, origin or annotation))


def _model() -> keras.Model:
    tokens = keras.Input((4,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(8, 6, name="embedding")(tokens)
    x = keras.layers.Dense(6, name="hidden")(x)
    x = keras.layers.Dropout(0.5, name="drop")(x)
    return keras.Model(tokens, keras.layers.Dense(8, name="head")(x), name="m")


def _calls(folder: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Return a valid call of each public name, by name. What is valid must not take long."""
    model, layer = _model(), keras.layers.Dense(6, name="new")
    bottom, top = rk.split(_model(), "hidden")
    digits = load_split("sklearn_digits", "test[:20]", image_size=(32, 32))
    glyphnet = rk.load_backbone("reusekit/glyphnet", weights=None).model
    store = rk.FeatureStore(folder / "store")
    features, labels = {"a": np.eye(8), "b": np.eye(8)}, np.arange(8) % 2
    data = TrialData.of_arrays(features, labels, features, labels, 2)
    space = rk.SearchSpace(["a", "b"])
    at, on = {"model": model, "at": "hidden"}, {"model": model}
    heads = rk.heads
    return {
        "split": (rk.split, at),
        "segment": (rk.segment, {"model": model, "at": ["hidden"]}),
        "extract": (rk.extract, at),
        "insert": (rk.insert, {"model": model, "layer": layer, "after": "hidden"}),
        "replace": (rk.replace, {**at, "layer": layer}),
        "remove": (rk.remove, {"model": model, "at": "drop"}),
        "edit": (rk.edit, on),
        "Insert": (rk.Insert, {"layer": layer, "after": "hidden"}),
        "Replace": (rk.Replace, {"at": "hidden", "layer": layer}),
        "Remove": (rk.Remove, {"at": "drop"}),
        "clone": (rk.clone, on),
        "flatten": (rk.flatten, on),
        "expand": (rk.expand, at),
        "prepend": (rk.prepend, {"model": top, "preprocessing": bottom}),
        "join": (rk.join, {"bottom": bottom, "top": top}),
        "tie": (rk.tie, {**on, "a": "embedding", "b": "head", "transform": "transpose"}),
        "tied_weights": (rk.tied_weights, on),
        "count_params": (rk.count_params, on),
        "cut_points": (rk.cut_points, on),
        "freeze": (rk.freeze, {"model": model, "up_to": "hidden"}),
        "attach": (rk.attach, {"bottom": bottom, "head": heads.classifier(3)}),
        "layerwise_optimizer": (rk.layerwise_optimizer, {**on, "optimizer": "sgd"}),
        "draw_cut": (rk.draw_cut, {**at, "title": "a cut"}),
        "GradualUnfreezing": (rk.GradualUnfreezing, {"stages": {0: "hidden"}}),
        "evenly": (rk.GradualUnfreezing.evenly, {**on, "blocks": 1, "every": 1}),
        "TiedDense": (rk.layers.TiedDense, {"source": keras.layers.Embedding(5, 4)}),
        "classifier": (heads.classifier, {"classes": 3}),
        "multilabel": (heads.multilabel, {"labels": 3}),
        "regression": (heads.regression, {}),
        "siamese": (heads.siamese, {}),
        "multitap": (heads.multitap, {"classes": 3}),
        "multitask": (heads.multitask, {"tasks": {"a": heads.regression()}}),
        "masked_language_model": (heads.masked_language_model, {}),
        "Limits": (rk.Limits, {}),
        "Padding": (rk.Padding, {"length": 4}),
        "Trials": (rk.Trials, {"at": "hidden"}),
        "SearchSpace": (rk.SearchSpace, {"cuts": ["a", "b"]}),
        "FeatureStore": (rk.FeatureStore, {"path": folder / "other"}),
        "gc": (store.gc, {}),
        "FeatureKey": (FeatureKey, {"digest": "a1", "arrays": ("x",), "size": 3}),
        "load_split": (load_split, {"name": "sklearn_digits", "split": "test[:20]"}),
        "load_backbone": (rk.load_backbone, {"source": "reusekit/glyphnet", "weights": None}),
        "stored_features": (
            rk.stored_features,
            {"store": store, "model": glyphnet, "cuts": ["stem_out"], "data": digits},
        ),
        "plan": (
            rk.plan,
            {
                "model": glyphnet,
                "trials": [Trials("stem_out", "avg")],
                "train": digits,
                "validation": digits,
                "store": store,
            },
        ),
        "CutHyperModel": (CutHyperModel, {"data": data, "space": space}),
        "CutSearch": (
            rk.CutSearch,
            {"model": glyphnet, "train": digits, "validation": digits, "directory": folder / "s"},
        ),
        "rank_cuts": (rank_cuts, {"features": features, "labels": labels}),
        "ridge_probe": (ridge_probe, {"features": np.eye(8), "labels": labels, "folds": 2}),
        "measure_latency": (measure_latency, {"models": [model], "runs": 1}),
    }
