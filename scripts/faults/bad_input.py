"""Bad input, made from the signatures of what is public: one wrong argument a try, the rest valid.

Every public name takes part, methods included: one without a valid call here fails the campaign.
An argument is nonsense where its type stands nowhere in the annotation, where it is no finite
number, or where it counts something and is no whole number above 0; that must be refused. What else
may do or not, and no try may end in another's error.
"""

import contextlib
import inspect
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import keras
import keras_tuner
import numpy as np
import pandas as pd
import tensorflow as tf

import reusekit as rk
import reusekit.cluster
import reusekit.data
import reusekit.features
import reusekit.planning
import reusekit.search
from faults.outcome import Outcome, tried
from reusekit.arguments import Settings
from reusekit.cluster import Cluster, ClusterSettings
from reusekit.data import (
    Shares,
    Task,
    Treatment,
    from_arrays,
    from_dataset,
    from_folder,
    from_table,
)
from reusekit.features import Extraction, FeatureKey, Padding
from reusekit.planning import Plan, Resources, Trials
from reusekit.search import (
    CutGridOracle,
    CutHyperModel,
    CutSweepOracle,
    Limits,
    SearchConfig,
    SearchResult,
    TrialData,
    TrialSpec,
    measure_latency,
)
from reusekit.surgery import expand, prepend
from reusekit.training import GradualUnfreezing
from reusekit.training.drawing import draw_cut
from reusekit.workers import HERE

TRIES = 1_600

_BAD = [
    None, True, False, 0, -1, -(2**70), 10**30, 1.5, -0.5, float("nan"), float("inf"), "", "x", "3",
    "a/b", "\0", "é\u202e", "a" * 5_000, b"bytes", [], ["x", 5], ["x", "x"], [[]], [None],
    [float("nan")], [-1], [0, 0], (), (0, 0), {}, {"x": object()}, {"x": -1}, {5: "x"}, {1, 2},
    object(), object, range(3), slice(None), np.float32("nan"), np.int64(-1), np.True_,
    np.array([1, 2]), np.array(3), np.array("x"), np.zeros((0, 4)), Path("\0"), 1j, ...,
    NotImplemented, keras.Input((3,)), keras.Sequential(), keras.layers.Dense(2), iter("x"),
]  # fmt: skip

_KINDS = {float: (int, float), int: (int,), bool: (bool,), str: (str,)}
# Of these there is no number below 1 that makes sense, whatever the annotation says.
_COUNTS = {
    "batch_size", "blocks", "classes", "count", "epochs", "every", "folds", "length", "max_trials",
    "max_width", "num_models", "num_trials", "outputs", "runs", "block_bytes", "size",
}  # fmt: skip
_ROOMS = (
    rk,
    rk.heads,
    rk.layers,
    reusekit.cluster,
    reusekit.data,
    reusekit.features,
    reusekit.planning,
    reusekit.search,
)
# Nobody but reusekit makes these; their methods are public all the same.
_RESULTS = {
    "Certificate", "Costs", "CutPoint", "CutPoints", "CutResult", "DataSplit", "Edited", "Entry",
    "EntryInfo", "FeatureSource", "Freezing", "Frontier", "Head", "MappedArray",
    "ParameterCounts", "Plan", "PlannedFeatures", "PlannedGroup", "RankCorrelation", "SearchResult",
    "Sizes", "Split", "StoredSource", "Tie", "TrialRecord",
}  # fmt: skip

Arguments = Mapping[str, Any] | Callable[[], Mapping[str, Any]]


def run(generator: np.random.Generator, tries: int, folder: Path) -> Iterator[Outcome]:
    """Call each public name in turn, with a bad value in one of its parameters."""
    calls = _calls(folder)
    for name in sorted(public().difference(calls)):
        yield Outcome("E", "wrong", f"{name} is public, and has no valid call here")
    places = [(name, parameter) for name in sorted(calls) for parameter in _hints(calls[name][0])]
    with contextlib.chdir(folder):  # text may be a path
        for number in range(tries):
            name, parameter = places[number % len(places)]
            value = _BAD[generator.integers(len(_BAD))]
            yield attempt(name, *calls[name], parameter, value)


def attempt(
    name: str, function: Callable[..., Any], arguments: Arguments, parameter: str, value: Any
) -> Outcome:
    """Call a function with one argument exchanged, and judge how that ends."""
    arguments = arguments() if callable(arguments) else arguments
    hint = _hints(function)[parameter]
    if callable(value) and get_origin(hint) is Callable:
        return Outcome("E", "right", f"{name}({parameter}=) is the caller's own function")
    nonsense = not _may_fit(hint, value) or (
        parameter in _COUNTS and isinstance(value, int | float | np.number) and not value >= 1
    )
    detail = f"{name}({parameter}={repr(value)[:60]})"
    return tried("E", _call(function, {**arguments, parameter: value}), nonsense, detail)


def public() -> set[str]:
    """Return the names of public functions and classes, and of methods that take arguments.

    What a class of Keras's or keras-tuner's declares is called by those, and is left out.
    """
    found: set[str] = set()
    for room in _ROOMS:
        for name in room.__all__:
            value = getattr(room, name)
            if inspect.isfunction(value) and _hints(value):
                found.add(name)
            elif inspect.isclass(value) and not issubclass(value, Exception):
                found |= {name} - _RESULTS
                found |= {method.__qualname__ for method in _methods(value)}
    return found


def _methods(of: type) -> Iterator[Callable[..., Any]]:
    """Yield the public methods of a class that take arguments."""
    for name in dir(of):
        owner = next(base for base in of.__mro__ if name in vars(base))
        others = [b for b in of.__mro__ if name in vars(b) and not _is_own(b)]
        method = inspect.unwrap(getattr(of, name)) if callable(getattr(of, name)) else None
        if name.startswith("_") or not _is_own(owner) or others or not inspect.isroutine(method):
            continue
        if _hints(getattr(of, name)).keys() - {"self", "cls"}:
            yield method


def _is_own(of: type) -> bool:
    return of.__module__.startswith("reusekit")


def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Callable[[], Any]:
    """Return the call, each argument in the way its parameter takes it."""
    by_name = dict(arguments)
    by_position = [
        by_name.pop(name)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.POSITIONAL_ONLY
    ]
    return lambda: function(*by_position, **by_name)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the parameters that can be passed by name, with their annotations."""
    annotated = function
    if inspect.isclass(function) and issubclass(function, Settings):
        fields = function.model_fields
        return {name: field.rebuild_annotation() for name, field in fields.items()}
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
        return isinstance(value, str | int) and value in arguments and type(value) is not bool
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return isinstance(value, annotation | Mapping)
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


def _calls(folder: Path) -> dict[str, tuple[Callable[..., Any], Arguments]]:
    """Return a valid call of each public name, by name. What is valid must not take long."""
    model, layer = _model(), keras.layers.Dense(6, name="new")
    split = rk.split(_model(), "hidden")
    bottom, top = split
    texts = folder / "texts"
    for number in range(40):
        text = texts / ("even", "odd")[number % 2] / f"{number}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(str(number))
    table = pd.DataFrame({"n": range(40), "kind": ["even", "odd"] * 20})
    small = rk.data.Treatment(image_size=(32, 32))
    digits = rk.data.load("sklearn_digits", "test[:20]", treatment=small)
    glyphnet = rk.load_backbone("reusekit/glyphnet", weights=None).model
    store = rk.FeatureStore(folder / "store")
    features, labels = {"a": np.eye(8), "b": np.eye(8)}, np.arange(8) % 2
    of_arrays = {
        "train": features, "labels": labels, "validation": features, "validation_labels": labels,
        "task": Task("classification", ("even", "odd")),
    }  # fmt: skip
    data = TrialData.of_arrays(**of_arrays)
    space = rk.SearchSpace(["a", "b"], units=[0], learning_rates=[0.1])
    planned = {
        "model": glyphnet, "trials": [Trials("stem_out", "avg")], "train": digits,
        "validation": digits, "store": store,
    }  # fmt: skip
    plan = rk.plan(**planned)
    obtained = {"plan": plan, "model": glyphnet, "store": store, "split": digits}
    source = reusekit.planning.obtain(**obtained)["stem_out", "avg"]
    search = rk.CutSearch(
        glyphnet,
        digits,
        digits,
        rk.SearchSpace(["stem_out"], units=[0], learning_rates=[0.1]),
        rk.SearchConfig(epochs=1, max_trials=1),
        folder=folder / "search",
        store=store,
    )
    search.run()
    hypermodel = CutHyperModel(data, space, SearchConfig(epochs=1))
    spec, hp = TrialSpec("a", "a"), keras_tuner.HyperParameters()
    key = FeatureKey("a1", ("x",), 3)
    freezing, adapted = rk.freeze(_model(), up_to="hidden"), _model()
    adapting = rk.adapt(adapted, "biases")
    frontier = reusekit.features.frontier(glyphnet, "stem_out", "avg")
    stored = reusekit.features.stored_features(store, glyphnet, ["stem_out"], digits)[0]
    heads, at, on = rk.heads, {"model": model, "at": "hidden"}, {"model": model}
    answering = rk.attach(rk.split(_model(), "hidden").bottom, heads.Classifier(2))
    explained = {"model": answering, "inputs": np.ones((2, 4), "int32"), "method": "gradient"}
    head, record = heads.Classifier(3), search.tuner.records[0]

    def calls_of_heads() -> Iterator[tuple[str, tuple[Callable[..., Any], Arguments]]]:
        flat = keras.KerasTensor((None, 6))
        several = {"a": heads.Multilabel(2)}
        made = (
            head, heads.Multilabel(3), heads.Regression(), heads.Multitask(several),
            heads.Multitap(3), heads.Siamese(), heads.MaskedLanguageModel(),
        )  # fmt: skip
        for one in (heads.Head, *map(type, made)):
            for method in _methods(one):
                arguments = {
                    "build": {"input_shape": (6,)}, "build_like": {"features": flat},
                    "connect": {"features": flat}, "attach_to": {"bottom": bottom},
                    "bound_to": {"bottom": bottom}, "smoothed_loss": {"smoothing": 0.1},
                    "select": {"features": np.eye(8), "labels": labels, "fraction": 0.5},
                }[method.__name__]  # fmt: skip
                of = next((h for h in made if type(h) is one), head)
                yield method.__qualname__, (getattr(of, method.__name__), arguments)

    return {
        "split": (rk.split, at),
        "Split.verify": (split.verify, {}),
        "segment": (rk.segment, {"model": model, "at": ["hidden"]}),
        "extract": (rk.extract, at),
        "explain": (rk.explain, {**at, **explained}),
        "insert": (rk.insert, {"model": model, "layer": layer, "after": "hidden"}),
        "replace": (rk.replace, {**at, "layer": layer}),
        "remove": (rk.remove, {"model": model, "at": "drop"}),
        "edit": (rk.edit, on),
        "Insert": (rk.Insert, {"layer": layer, "after": "hidden"}),
        "Replace": (rk.Replace, {"at": "hidden", "layer": layer}),
        "Remove": (rk.Remove, {"at": "drop"}),
        "clone": (rk.clone, on),
        "flatten": (rk.flatten, on),
        "expand": (expand, at),
        "prepend": (prepend, {"model": top, "preprocessing": bottom}),
        "join": (rk.join, {"bottom": bottom, "top": top}),
        "tie": (
            rk.tie,
            lambda: {"model": _model(), "a": "embedding", "b": "head", "transform": "transpose"},
        ),
        "tied_weights": (rk.tied_weights, on),
        "count_params": (rk.count_params, on),
        "cut_points": (rk.cut_points, on),
        "find_layers": (rk.graph.find_layers, {**on, "kind": keras.layers.Dense}),
        "export": (
            rk.export,
            {**on, "format": "saved_model", "folder": folder / "exports"},
        ),
        "freeze": (rk.freeze, lambda: {"model": _model(), "up_to": "hidden"}),
        "Freezing.undo": (freezing.undo, on),
        "adapt": (rk.adapt, lambda: {"model": _model(), "adaptation": "lora:2"}),
        "Adaptation.undo": (adapting.undo, {"model": adapted}),
        "Adaptation.merge": (adapting.merge, {"model": adapted}),
        "attach": (rk.attach, {"bottom": bottom, "head": head}),
        "layerwise_optimizer": (rk.layerwise_optimizer, {**on, "optimizer": "sgd"}),
        "draw_cut": (draw_cut, {**at, "title": "a cut"}),
        "GradualUnfreezing": (GradualUnfreezing, {"stages": {0: "hidden"}}),
        "GradualUnfreezing.evenly": (
            GradualUnfreezing.evenly,
            {**on, "blocks": 1, "every": 1},
        ),
        "TiedDense": (rk.layers.TiedDense, {"source": keras.layers.Embedding(5, 4)}),
        "TiedDense.tied_to": (
            rk.layers.TiedDense(keras.layers.Embedding(5, 4)).tied_to,
            {"source": keras.layers.Embedding(5, 4)},
        ),
        "Classifier": (heads.Classifier, {"classes": 3}),
        "Multilabel": (heads.Multilabel, {"labels": 3}),
        "Regression": (heads.Regression, {}),
        "Siamese": (heads.Siamese, {}),
        "Multitap": (heads.Multitap, {"classes": 3}),
        "Multitask": (heads.Multitask, {"tasks": {"a": heads.Regression()}}),
        "MaskedLanguageModel": (heads.MaskedLanguageModel, {}),
        **dict(calls_of_heads()),
        "Backbone": (
            rk.backbones.Backbone,
            {"model": model, "preprocessing": None, "source": "m", "weights": None},
        ),
        "Limits": (Limits, {}),
        "SearchConfig": (rk.SearchConfig, {}),
        "Padding": (Padding, {"length": 4}),
        "Padding.batch": (
            Padding(4).batch,
            {"examples": digits.examples, "batch_size": 4},
        ),
        "Trials": (Trials, {"at": "hidden"}),
        "SearchSpace": (rk.SearchSpace, {"cuts": ["a", "b"]}),
        "SearchSpace.head": (space.head, {"spec": spec, "rules": data.rules}),
        "SearchSpace.sample": (space.sample, {"hp": hp}),
        "SearchSpace.parts": (space.parts, {"cut": "a"}),
        "SearchSpace.shapes": (space.shapes, {"backbone": None}),
        "SearchSpace.targets_of": (space.targets_of, {"adaptation": "lora:2"}),
        "TrialData": (
            TrialData,
            {"train": data.train, "validation": data.validation, "task": data.task},
        ),
        "TrialData.of_arrays": (TrialData.of_arrays, of_arrays),
        **{
            f"TrialData.{name}": (getattr(data, name), {"spec": spec})
            for name in ("begin", "placed", "trunk", "shared", "head_mask", "frozen")
        },
        "TrialData.is_before": (data.is_before, {"address": "a", "cut": "b"}),
        "TrialSpec": (TrialSpec, {"cut": "a", "frozen_up_to": "a"}),
        "TrialSpec.from_dict": (TrialSpec.from_dict, {"values": spec.to_dict()}),
        "TrialRecord.from_dict": (type(record).from_dict, {"values": record.to_dict()}),
        "SearchResult.pareto": (SearchResult((record,), {"stem_out": 0.5}).pareto, {}),
        "SearchResult.cost": (
            SearchResult((record,), {"stem_out": 0.5}).cost,
            {"trial": record, "name": "flops"},
        ),
        "FeatureStore": (rk.FeatureStore, {"path": folder / "other"}),
        "FeatureStore.gc": (store.gc, {}),
        "FeatureStore.get": (store.get, {"key": key}),
        "FeatureStore.exists": (rk.FeatureStore.exists, {"path": folder / "store"}),
        "FeatureStore.get_or_compute": (
            store.get_or_compute,
            {"key": key, "compute": lambda start, stop: [{"x": np.zeros((stop - start, 2))}]},
        ),
        "FeatureStore.get_or_compute_all": (
            store.get_or_compute_all,
            {"keys": [key], "compute": lambda keys, a, b: [[{"x": np.zeros((b - a, 2))}]]},
        ),
        "FeatureKey": (FeatureKey, {"digest": "a1", "arrays": ("x",), "size": 3}),
        "load": (rk.data.load, {"name": "sklearn_digits", "split": "test[:20]"}),
        "Task": (Task, {"kind": "classification", "names": ("a", "b")}),
        "Task.joint": (
            Task.joint,
            {"parts": {name: Task("regression", (name,)) for name in ("a", "b")}},
        ),
        "Treatment": (Treatment, {}),
        "Treatment.of": (Treatment().of, {"spec": digits.examples.element_spec[0]}),
        "Treatment.fitting": (Treatment(length=4).fitting, {"spec": tf.TensorSpec((None, 2))}),
        "Treatment.shortens": (Treatment(length=4).shortens, {"spec": tf.TensorSpec((None, 2))}),
        "Shares": (Shares, {}),
        "from_arrays": (from_arrays, {"inputs": np.eye(8), "labels": labels}),
        "from_dataset": (
            from_dataset,
            {"dataset": tf.data.Dataset.from_tensor_slices((np.eye(8), labels)), "batched": False},
        ),
        "from_folder": (from_folder, {"path": texts, "split": "train"}),
        "from_table": (
            from_table,
            {"table": table, "split": "train", "input": "n", "label": "kind"},
        ),
        "predict": (rk.predict, {"model": glyphnet, "inputs": np.zeros((1, 32, 32, 1))}),
        "DataSplit.augmented": (digits.augmented, {"layers": ["MixUp"]}),
        "DataSplit.balanced": (digits.balanced, {}),
        "DataSplit.batches": (digits.batches, {"batch_size": 4}),
        "DataSplit.arrays": (digits.arrays, {}),
        "DataSplit.treated": (digits.treated, {"treatment": rk.data.Treatment()}),
        "DataSplit.equal_examples": (digits.equal_examples, {"other": digits}),
        "DataSplit.overlaps": (digits.overlaps, {"other": digits}),
        "load_backbone": (rk.load_backbone, {"source": "reusekit/glyphnet", "weights": None}),
        "stored_features": (
            reusekit.features.stored_features,
            {"store": store, "model": glyphnet, "cuts": ["stem_out"], "data": digits},
        ),
        "StoredSource.batches": (stored.batches, {"batch_size": 4}),
        "frontier": (reusekit.features.frontier, {"model": glyphnet, "at": "stem_out"}),
        "feature_keys": (
            reusekit.features.feature_keys,
            {"frontiers": [frontier], "data": digits},
        ),
        "Extraction": (Extraction, {}),
        "Resources": (Resources, {}),
        "feed": (
            reusekit.features.feed,
            {"inputs": np.eye(8), "labels": labels, "batch_size": 4},
        ),
        "FeatureSource.batches": (source.batches, {"batch_size": 4}),
        "plan": (rk.plan, planned),
        "obtain": (reusekit.planning.obtain, obtained),
        "FeatureStore.computed_by": (store.computed_by, {"workers": HERE}),
        "ClusterSettings": (ClusterSettings, {}),
        "Cluster": (Cluster, {"address": "local"}),
        # One that is not connected, since nothing bad may reach a worker.
        "Cluster.map": (Cluster().map, {"function": str, "items": [1]}),
        "Cluster.expect": (Cluster().expect, {"function": str, "item": 1}),
        "Cluster.together": (Cluster().together, {"function": str, "items": [1]}),
        "Cluster.check_folder": (Cluster().check_folder, {"folder": folder}),
        "PlannedGroup.tasks": (plan.groups[0].tasks, {}),
        "KeptPlan.save": (plan.save, {"path": folder / "plan.json"}),
        "KeptPlan.load": (Plan.load, {"path": folder / "plan.json"}),
        "CutHyperModel": (CutHyperModel, {"data": data, "space": space}),
        **{
            f"CutHyperModel.{name}": (getattr(hypermodel, name), arguments)
            for name, arguments in {
                "spec": {"hp": hp},
                "build_for": {"spec": spec},
                "batches": {"spec": spec},
                "stopping": {"objective": keras_tuner.Objective("val_loss", "min")},
                "train": lambda: {"spec": spec, "model": hypermodel.build_for(spec)},
            }.items()
        },
        "CutSweepOracle": (CutSweepOracle, {"cuts": ["a"], "max_trials": 1}),
        "CutGridOracle": (CutGridOracle, {}),
        "CutTuner": (
            rk.CutTuner,
            lambda: {
                "hypermodel": hypermodel,
                "folder": folder / "tuner",
                "fresh": True,
                "oracle": CutSweepOracle(["a"], 1, objective="val_loss"),
            },
        ),
        "CutTuner.trained": (search.tuner.trained, {"number": 0}),
        "CutTuner.keeps": (search.tuner.keeps, {"number": 0}),
        "CutSearch": (
            rk.CutSearch,
            {"backbones": glyphnet, "train": digits, "validation": digits, "folder": folder / "s"},
        ),
        "CutSearch.best_model": (search.best_model, {}),
        "CutSearch.rank_correlation": (search.rank_correlation, {"by": "size"}),
        "CutSearch.plan_of": (search.plan_of, {"backbone": None}),
        "CutHyperModel.begin": (hypermodel.begin, {"spec": spec}),
        "CutHyperModel.data_of": (hypermodel.data_of, {"spec": spec}),
        "SearchSpace.of": (space.of, {"backbone": None}),
        "SearchSpace.narrowed": (space.narrowed, {"cuts": ["a"]}),
        "CutSearch.pareto": (search.pareto, {}),
        "CutSearch.run": (search.run, {}),
        "get_best_models": (search.tuner.get_best_models, {}),
        "get_best_hyperparameters": (search.tuner.get_best_hyperparameters, {}),
        "rank_cuts": (reusekit.search.rank_cuts, {"features": features, "labels": labels}),
        "ridge_probe": (
            reusekit.search.ridge_probe,
            {"features": np.eye(8), "labels": labels, "folds": 2},
        ),
        "logme": (reusekit.search.logme, {"features": np.eye(8), "labels": labels}),
        "knn_probe": (reusekit.search.knn_probe, {"features": np.eye(8), "labels": labels}),
        "tmi": (reusekit.search.tmi, {"features": np.eye(8), "labels": labels}),
        "rank_correlation": (
            reusekit.search.rank_correlation,
            {"scores": [0.1, 0.2], "results": [0.3, 0.4]},
        ),
        "measure_latency": (measure_latency, {"models": [model], "runs": 1}),
        "measure": (reusekit.planning.measure, {"store": store}),
    }
