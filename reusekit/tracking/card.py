"""The model card: what a person should know of a registered version, in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from reusekit.sharing import ParameterCounts

DESCRIPTION_LIMIT = 5000
"""Characters of a description that every store of MLflow takes: its column is that wide."""

_SHORTENED = "\n\n*Shortened: a description in the registry has no room for more.*\n"


@dataclass(frozen=True)
class CardData:
    """A part of a data set, as the card names it.

    Attributes:
        name: Data set and version, such as `sklearn_digits:1.0.0`.
        split: Which part of it, such as `train[:80%]`.
        examples: How many examples it has.
        fingerprint: Names its content, selection and treatment.
    """

    name: str
    split: str
    examples: int
    fingerprint: str


@dataclass(frozen=True)
class CardScore:
    """A score of a model: one line of the card's table.

    Attributes:
        model: What it is, such as `same network from scratch` or `runner-up: cut block6_out`.
        test: Accuracy on the test split; None where it was not tested.
        validation: Accuracy on the validation split; None where that is not known.
        choice: What was chosen by it, in words.
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
        task: What it is for, in a sentence, such as `Classifies images into 10 classes.`
        source: The backbone it was made from, such as `keras.applications/ResNet50`.
        cut: Where that was cut.
        frozen_up_to: The address up to which no weight was trained: the cut where the head alone
            was trained; None where everything was trained.
        train: What it was trained on.
        test: What it was tested on.
        parameters: How many it has.
        flops: For one example.
        bytes: What its weights take.
        latency: Seconds for one example; None where it was not measured.
        latency_conditions: What that was measured on.
        scores: This model first, then what it is to be compared with: the same network from
            scratch, a linear model on the pixels, the runner-up.
        input_shape: Of one example, without the batch axis; of several inputs, by name.
        input_range: Which values it takes, such as `pixels from 0 to 255`.
        limits: What else it was not tested on or is not good for, a sentence each.
        bottom: The registered version or logged model that is its bottom.
        top: The same of its top.
        parent: What the bottom was made from, where that is registered itself.
        requirements: What has to be installed where it is loaded.
    """

    name: str
    alias: str
    task: str
    source: str
    cut: str
    frozen_up_to: str | None
    train: CardData
    test: CardData
    parameters: ParameterCounts
    flops: float
    bytes: int
    latency: float | None
    latency_conditions: str
    scores: Sequence[CardScore]
    input_shape: Sequence[int | None] | Mapping[str, Sequence[int | None]]
    input_range: str
    bottom: str
    top: str
    limits: Sequence[str] = ()
    parent: str | None = None
    requirements: Sequence[str] = ()


def model_card(card: ModelCard, limit: int | None = DESCRIPTION_LIMIT) -> str:
    """Write a model card in Markdown.

    What a person needs first comes first, since a card that is too long loses its end.

    Args:
        card: What it says.
        limit: At most that many characters, as fit into a description of MLflow; None for all.

    Returns:
        Markdown, with a line at its end that says so where it was shortened.

    Example:
        >>> train = CardData("sklearn_digits:1.0.0", "train", 897, "2b0c")
        >>> test = CardData("sklearn_digits:1.0.0", "test", 600, "97fe")
        >>> card = ModelCard(
        ...     name="digits", alias="champion", task="Classifies images into 10 classes.",
        ...     source="reusekit/glyphnet", cut="block5_out", frozen_up_to="block3_out",
        ...     train=train, test=test, parameters=ParameterCounts(90, 60, 20, 10, 0), flops=1.5e6,
        ...     bytes=360, latency=0.002, latency_conditions="2 processor cores, batch of 1",
        ...     scores=[CardScore("this model", 0.95, 0.97)], input_shape=(32, 32, 1),
        ...     input_range="pixels from 0 to 255", bottom="models:/m-1", top="models:/m-2")
        >>> print(model_card(card))  # doctest: +ELLIPSIS
        Classifies images into 10 classes. Made from `reusekit/glyphnet`, cut at `block5_out`.
        Frozen up to `block3_out`; what lies between that and the cut was trained with the head.
        <BLANKLINE>
        ## How to load it
        ...
    """
    uri = f"models:/{card.name}@{card.alias}"
    counts = card.parameters
    sizes = {
        "parameters": f"{counts.total:,}",
        "trainable": f"{counts.trainable:,}",
        "frozen": f"{counts.frozen:,}",
        "statistics": f"{counts.state:,}",
        "tied": f"{counts.tied:,}",
        "FLOPs": f"{card.flops:,.0f}",
        "bytes": f"{card.bytes:,}",
    }
    sections = {
        "How to load it": [
            "```python",
            f'model = mlflow.keras.load_model("{uri}")     # whole, from raw input on',
            f'backbone = rk.load_backbone("{uri}")         # to be cut again',
            "```",
            "",
            f"`{uri}` is whichever version has the alias now.",
            *([f"Needs {', '.join(card.requirements)}."] if card.requirements else []),
        ],
        "Results": _table(
            ("accuracy", "test", "validation", "chosen on the validation split"),
            [(s.model, _share(s.test), _share(s.validation), s.choice) for s in card.scores],
        ),
        "Size": [*_table(tuple(sizes), [tuple(sizes.values())]), "", _latency(card)],
        "Limits": [
            f"- It takes {card.input_range}, shape {_shape(card.input_shape)} for one example; "
            "what comes in otherwise was not tested.",
            f"- It was tested on the split {card.test.split} of {card.test.name} alone. How good "
            "it is on other data is not known.",
            *(f"- {limit}" for limit in card.limits),
        ],
        "Data": _table(
            ("for", "data set", "split", "examples", "fingerprint"),
            [
                (use, data.name, data.split, f"{data.examples:,}", f"`{data.fingerprint}`")
                for use, data in (("training", card.train), ("test", card.test))
            ],
        ),
        "Lineage": _table(
            ("part", "where it is"),
            [
                ("bottom", card.bottom),
                ("top", card.top),
                ("made from", card.parent or card.source),
            ],
        ),
    }
    lines = [
        # No heading: a list of versions shows the first line of each.
        f"{card.task} Made from `{card.source}`, cut at `{card.cut}`.",
        _trained(card),
    ]
    for title, content in sections.items():
        lines += ["", f"## {title}", "", *content]
    text = "\n".join(lines) + "\n"
    if limit is None or len(text) <= limit:
        return text
    kept = text[: limit - len(_SHORTENED)]
    return (kept.rpartition("\n")[0] or kept) + _SHORTENED


def _trained(card: ModelCard) -> str:
    if card.frozen_up_to is None:
        return "Nothing was frozen: all of it was trained."
    if card.frozen_up_to == card.cut:
        return "Frozen up to the cut: the head alone was trained."
    return (
        f"Frozen up to `{card.frozen_up_to}`; what lies between that and the cut was trained with "
        "the head."
    )


def _latency(card: ModelCard) -> str:
    if card.latency is None:
        return "Its latency was not measured."
    return f"{1000 * card.latency:.3g} ms for one example ({card.latency_conditions})."


def _shape(shape: Sequence[int | None] | Mapping[str, Sequence[int | None]]) -> str:
    if isinstance(shape, Mapping):
        return ", ".join(f"{_shape(one)} of {name}" for name, one in shape.items())
    return " x ".join("any" if size is None else str(size) for size in shape)


def _share(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.3f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; whatever a cell holds stays in it."""
    cells = [[" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *cells)]
