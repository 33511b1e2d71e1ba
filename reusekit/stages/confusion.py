"""The confusions of a model: a table of the classes, and a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

_MOST_NUMBERED = 20  # classes, beyond which numbers in the squares cannot be read
_MOST_NAMED = 60  # classes, beyond which their names cannot be read


def class_table(
    labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]
) -> pd.DataFrame:
    """Return the scores of each class, and the class it was most often taken for.

    Args:
        labels: True classes, shape (examples,).
        predicted: Predicted classes, likewise.
        class_names: In label order.

    Returns:
        A row for each class: its name, `precision` (0 where it was never predicted), `recall` (0
        where it does not occur), `f1`, `examples`, and `most_taken_for` (empty where it never was
        taken for another).

    Example:
        >>> class_table(np.array([0, 0, 1]), np.array([0, 1, 1]), ["cat", "dog"])
          class  precision  recall        f1  examples most_taken_for
        0   cat        1.0     0.5  0.666667         2            dog
        1   dog        0.5     1.0  0.666667         1
    """
    classes = np.arange(len(class_names))
    precision, recall, f1, examples = precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    mistaken = confusion_matrix(labels, predicted, labels=classes)
    np.fill_diagonal(mistaken, 0)
    return pd.DataFrame(
        {
            "class": class_names,
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "examples": examples,
            "most_taken_for": [class_names[row.argmax()] if row.any() else "" for row in mistaken],
        }
    )


def draw_confusion(
    labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str], title: str
) -> Figure:
    """Draw how many examples of each class were taken for each.

    Args:
        labels: True classes, shape (examples,).
        predicted: Predicted classes, likewise.
        class_names: In label order.
        title: What to write above.

    Returns:
        A figure of its own, which belongs to no window. Colours are shares of the true class, so
        that rare classes are seen as well as frequent ones; numbers are examples, and are left out
        where there are too many classes to read them.
    """
    count = len(class_names)
    matrix = confusion_matrix(labels, predicted, labels=np.arange(count))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = 3 + 0.35 * min(count, _MOST_NUMBERED)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")
    axes.set(xlabel="predicted class", ylabel="true class")
    # Names are no formulas, whatever is in them.
    axes.set_title(title, parse_math=False)
    if count <= _MOST_NAMED:
        text: dict[str, Any] = {
            "fontsize": 8 if count <= _MOST_NUMBERED else 5,
            "parse_math": False,
        }
        axes.set_xticks(range(count), class_names, rotation=90, **text)
        axes.set_yticks(range(count), class_names, **text)
    if count <= _MOST_NUMBERED:
        for (row, column), examples in np.ndenumerate(matrix):
            if examples:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, examples, ha="center", va="center", color=color, fontsize=8)
    return figure
