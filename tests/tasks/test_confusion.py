"""Confusions of classes, in a table and in a picture."""

import numpy as np
import pytest
from sklearn.metrics import precision_score, recall_score

from reusekit.tasks.classes import class_table, draw_confusion

NAMES = ["cat", "dog", "owl", "emu"]
LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 1, 1, 1, 2, 2])


def test_the_table_has_each_class_those_that_do_not_occur_among_them():
    table = class_table(LABELS, PREDICTED, NAMES).set_index("class")
    assert list(table.index) == NAMES
    assert list(table["examples"]) == [3, 2, 1, 0]
    for number, name in enumerate(NAMES[:3]):
        true, found = (classes == number for classes in (LABELS, PREDICTED))
        assert table["precision"][name] == pytest.approx(precision_score(true, found))
        assert table["recall"][name] == pytest.approx(recall_score(true, found))
    assert list(table["most_taken_for"]) == ["dog", "owl", "", ""]
    assert table.loc["emu", ["precision", "recall", "f1"]].tolist() == [0, 0, 0]


def test_the_picture_shows_counts_by_true_and_predicted_class():
    axes, _ = draw_confusion(LABELS, PREDICTED, NAMES, "pets").axes
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "1", (1, 0): "2", (1, 1): "1", (2, 1): "1", (2, 2): "1"}
    np.testing.assert_allclose(axes.images[0].get_array()[0], [1 / 3, 2 / 3, 0, 0])
    assert [label.get_text() for label in axes.get_xticklabels()] == NAMES


def test_a_thousand_classes_make_a_picture_of_the_same_size(tmp_path):
    labels = np.arange(1000)
    figure = draw_confusion(labels, labels[::-1], [str(n) for n in labels], "many")
    assert not figure.axes[0].texts
    assert max(figure.get_size_inches()) < 12
    figure.savefig(tmp_path / "many.png")


def test_names_are_no_formulas(tmp_path):
    # pipeline E: class names with $ or a backslash, a traceback after training
    names = ["$\\frac", "a$b$c", "C:\\x_{", ""]
    figure = draw_confusion(LABELS, PREDICTED, names, "costs $5 or $6_")
    figure.savefig(tmp_path / "names.png")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names
