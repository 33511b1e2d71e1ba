"""The model card: what a person should know of a registered version, in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from reusekit.data import DataSplit
from reusekit.exports import Exports
from reusekit.tracking.ledger import Ledger

DESCRIPTION_LIMIT = 5000
"""Characters of a description that every store of MLflow takes: its column is that wide."""

_SHORTENED = "\n\n*Shortened: a description in the registry has no room for more.*\n"

_NAMES = 20  # of classes or labels that are listed

_EXPORTS = "\n## Exports\n\n"


@dataclass(frozen=True)
class CardScore:
    """A score of a model: one line of the card's table.

    Attributes:
        model: Its name, such as `same network from scratch` or `runner-up: cut block6_out`.
        test: The measure of the task on the test split; None where it was not tested.
        validation: The same on the validation split; None where that is not known.
        choice: The choice made by it, in words.
    """

    model: str
    test: float | None
    validation: float | None
    choice: str = ""


@dataclass(frozen=True)
class ModelCard:
    """The content of a model card.

    Attributes:
        name: The name in the registry.
        alias: The alias that it is loaded by.
        task: Its purpose in a sentence, such as `Classifies images into 10 classes.`
        source: The backbone it was made from, such as `keras.applications/ResNet50`.
        cut: Where that was cut.
        frozen_up_to: The address up to which no weight was trained; the cut where the head alone
            was.
        train: The split that it was trained on.
        test: The split that it was tested on.
        costs: Parameters, FLOPs, bytes and latency.
        scores: This model first, then what it is to be compared with: the same network from
            scratch, a linear model on the pixels, the runner-up.
        input_shape: Of one example, without the batch axis; of several inputs, by name.
        input_range: The values that it takes, such as `pixels from 0 to 255`.
        bottom: The registered version or logged model that is its bottom.
        top: The same of its top.
        requirements: The packages that it needs where it is loaded.
        parent: The model that the bottom was made from, where that is registered itself.
        measure: The measure of the task, such as `accuracy`.
        numbers: The format of its values.
    """

    name: str
    alias: str
    task: str
    source: str
    cut: str
    frozen_up_to: str
    train: DataSplit
    test: DataSplit
    costs: Ledger
    scores: Sequence[CardScore]
    input_shape: Sequence[int | None] | Mapping[str, Sequence[int | None]]
    input_range: str
    bottom: str
    top: str
    requirements: Sequence[str]
    parent: str | None = None
    measure: str = "accuracy"
    numbers: str = ".3f"


def model_card(card: ModelCard) -> str:
    """Write a model card in Markdown, of as many characters as a description in MLflow may have.

    The most needed facts come first, since a card that is too long loses its end, and then says so.

    Args:
        card: Its content.

    Example:
        >>> import reusekit as rk
        >>> from reusekit.sharing import ParameterCounts
        >>> train, test = (rk.data.load("sklearn_digits", split) for split in ("train", "test"))
        >>> counts = ParameterCounts(total=90, trainable=60, frozen=20, state=10, tied=0)
        >>> card = ModelCard(
        ...     name="digits", alias="champion", task="Classifies images into 10 classes.",
        ...     source="reusekit/glyphnet", cut="block5_out", frozen_up_to="block3_out",
        ...     train=train, test=test, costs=Ledger(counts, 1500000, 360, 0.002, "batch of 1"),
        ...     scores=[CardScore("this model", 0.95, 0.97)], input_shape=(32, 32, 1),
        ...     input_range="pixels from 0 to 255", bottom="models:/m-1", top="models:/m-2",
        ...     requirements=["keras"])
        >>> print(model_card(card))  # doctest: +ELLIPSIS
        Classifies images into 10 classes. Made from `reusekit/glyphnet`, cut at `block5_out`.
        Frozen up to `block3_out`; what lies between that and the cut was trained with the head.
        It answers with `0`, `1`, `2`, `3`, `4`, `5`, `6`, `7`, `8`, `9`.
        <BLANKLINE>
        ## How to load it
        ...
    """
    uri = f"models:/{card.name}@{card.alias}"
    costs, counts = card.costs, card.costs.parameters
    sizes = {
        "parameters": f"{counts.total:,}",
        "trainable": f"{counts.trainable:,}",
        "frozen": f"{counts.frozen:,}",
        "statistics": f"{counts.state:,}",
        "tied": f"{counts.tied:,}",
        "FLOPs": f"{costs.flops:,}",
        "bytes": f"{costs.bytes:,}",
    }
    latency = f"{1000 * costs.latency:.3g} ms for one example ({costs.conditions})."
    sections = {
        "How to load it": [
            "```python",
            f'model = mlflow.keras.load_model("{uri}")     # whole, from raw input on',
            f'backbone = rk.load_backbone("{uri}")         # to be cut again',
            "```",
            "",
            f"`{uri}` is whichever version has the alias now.",
            f"Needs {', '.join(card.requirements)}.",
        ],
        "Results": _table(
            (
                card.measure.replace("_", " "),
                "test",
                "validation",
                "chosen on the validation split",
            ),
            [
                (s.model, _score(s.test, card), _score(s.validation, card), s.choice)
                for s in card.scores
            ],
        ),
        "Size": [*_table(tuple(sizes), [tuple(sizes.values())]), "", latency],
        "Limits": [
            f"- It takes {card.input_range}, shape {_shape(card.input_shape)} for one example; "
            "what comes in otherwise was not tested.",
            f"- It was tested on the split {card.test.split} of {card.test.name} alone. How good "
            "it is on other data is not known.",
        ],
        "Data": _table(
            ("for", "data set", "split", "examples", "fingerprint"),
            [
                (use, data.name, data.split, f"{data.size:,}", f"`{data.fingerprint}`")
                for use, data in (("training", card.train), ("test", card.test))
            ],
        ),
        "Lineage": _table(
            ("part", "where it is"),
            [
                ("bottom", _linked(card.bottom)),
                ("top", _linked(card.top)),
                ("made from", card.parent or card.source),
            ],
        ),
    }
    lines = [
        # No heading: a list of versions shows the first line of each.
        f"{card.task} Made from `{card.source}`, cut at `{card.cut}`.",
        _trained(card),
        *_augmented(card.train),
        *_named(card.train),
    ]
    for title, content in sections.items():
        lines += ["", f"## {title}", "", *content]
        if content[-1].startswith("|"):
            lines += ["", "<br>"]  # since MLflow leaves no space behind a table
    return _shortened("\n".join(lines) + "\n", DESCRIPTION_LIMIT)


def with_picture(text: str, lines: Sequence[str]) -> str:
    """Return a model card with more lines before its first heading.

    Args:
        text: The card.
        lines: Markdown, such as a link and a picture.
    """
    card, mark, exports = text.partition(_EXPORTS)
    first, heading, rest = card.removesuffix(_SHORTENED).partition("\n\n## ")
    more = "\n".join([first, "", *lines]) + heading + rest
    return _shortened(more, DESCRIPTION_LIMIT - len(mark + exports)) + mark + exports


def with_exports(text: str, exports: Exports, run_id: str) -> str:
    """Return a model card with a section of exports, in the place of an earlier one.

    Args:
        text: The card.
        exports: The exports.
        run_id: The run that has the files.
    """
    first = exports[0]
    said = [("keras", f"{first.keras.bytes:,}", _ms(first.keras.latency), "-", "-")]
    for one in exports:
        loss = "-" if one.lost is None else f"{one.lost:+.4g}"
        agreed = "-" if one.agreement is None else f"{one.agreement:.2%}"
        said.append((one.name, f"{one.file.bytes:,}", _ms(one.file.latency), loss, agreed))
    header = ("format", "bytes", "one example", f"{first.measure or 'measure'} lost", "same labels")
    lines = [
        *_table(header, said),
        "",
        f"Compared on {first.examples:,} examples; the files are artifacts of run `{run_id}`.",
    ]
    section = _EXPORTS + "\n".join(lines) + "\n"
    before = text.partition(_EXPORTS)[0].removesuffix(_SHORTENED)
    return _shortened(before, DESCRIPTION_LIMIT - len(section)) + section


def _named(train: DataSplit) -> list[str]:
    """Return the line with the names that it answers with."""
    if train.task.kind not in ("classification", "multilabel"):
        return []
    names = [f"`{' '.join(name.split()).replace('`', chr(39))}`" for name in train.task.names]
    more = f" and {len(names) - _NAMES:,} more" if len(names) > _NAMES else ""
    return [f"It answers with {', '.join(names[:_NAMES])}{more}."]


def _linked(part: str) -> str:
    """Return a registered model as a link to its page in MLflow."""
    return part if ":" in part else f"[{part}](#/models/{quote(part, safe='')})"


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    kept = text[: limit - len(_SHORTENED)]
    return (kept.rpartition("\n")[0] or kept) + _SHORTENED


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _trained(card: ModelCard) -> str:
    if card.frozen_up_to == card.cut:
        return "Frozen up to the cut: the head alone was trained."
    return (
        f"Frozen up to `{card.frozen_up_to}`; what lies between that and the cut was trained with "
        "the head."
    )


def _augmented(train: DataSplit) -> list[str]:
    if train.augmentation is None:
        return []
    return ["", f"Its training examples were augmented by `{train.augmentation}`."]


def _shape(shape: Sequence[int | None] | Mapping[str, Sequence[int | None]]) -> str:
    if isinstance(shape, Mapping):
        return ", ".join(f"{_shape(one)} of {name}" for name, one in shape.items())
    return " x ".join("any" if size is None else str(size) for size in shape) or "()"


def _score(value: float | None, card: ModelCard) -> str:
    return "-" if value is None else f"{value:{card.numbers}}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; whatever a cell holds stays in it."""
    cells = [[" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in rows]
    first, *others = (f"| {'&emsp; | '.join(row)} |" for row in (header, *cells))  # else MLflow
    return [first, f"|{'---|' * len(header)}", *others]  # shows no space between columns
