"""The description of a search, by which one that goes on with it is the same."""

import ast
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import keras_tuner

from reusekit.search.hypermodel import CutHyperModel
from reusekit.training import heads as all_heads
from reusekit.training.heads import Head


def description(hypermodel: CutHyperModel, oracle: keras_tuner.Oracle) -> dict[str, Any]:
    """Describe a search as plain data, in which another must agree to be the same."""
    space = hypermodel.space.model_dump(mode="json", exclude={"heads"})
    if hypermodel.space.heads is not None:
        own = hypermodel.space.heads
        space["heads"] = {name: options_as_data(repr(head), own) for name, head in own.items()}
    config = hypermodel.config
    described = {name: data.described() for name, data in hypermodel.by_backbone.items()}
    return {
        "space": space,
        "epochs": config.epochs,
        "patience": config.patience,
        "seed": config.seed,
        "objective": [oracle.objective.name, oracle.objective.direction],
        "oracle": type(oracle).__name__,
        "data": described.get(None, described),
    }


def options_as_data(told: str, own: Mapping[str, Head]) -> Any:
    """Return the kind and options of a head that is told as it prints, as plain data.

    Options at their defaults are left out, since a head that was told earlier may lack them.
    """
    every = [*map(type, own.values()), *(getattr(all_heads, name) for name in all_heads.__all__)]
    kinds = {
        kind.__qualname__: {one.name: repr(one.default) for one in fields(kind)} for kind in every
    }

    def plain(node: ast.expr) -> Any:
        if isinstance(node, ast.Dict):
            keys = [ast.unparse(key) for key in node.keys if key]
            return dict(zip(keys, map(plain, node.values), strict=True))
        words = ast.unparse(node)
        if not isinstance(node, ast.Call) or (kind := ast.unparse(node.func)) not in kinds:
            return words
        given = {option.arg: plain(option.value) for option in node.keywords if option.arg}
        usual = kinds[kind]
        return {"kind": kind} | {n: v for n, v in given.items() if v != usual.get(n)}

    try:
        return plain(ast.parse(told, mode="eval").body)
    except SyntaxError:  # some of it has no words of its own
        return told
