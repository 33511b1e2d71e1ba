"""The check of pooled text, on a sample: its table, and that it sees what follows the length."""

import numpy as np
import pytest

pytest.importorskip("keras_hub")
import verify_text

SAMPLE = ["--texts", "120", "--blocks", "1", "--lengths", "16", "20"]
ARGUMENTS = ["verify_text.py", *SAMPLE, "--poolings", "max", "attention"]


def test_pooling_passes_over_the_filling(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ARGUMENTS)
    verify_text.main()
    said, titles, *rows, total = capsys.readouterr().out.splitlines()
    assert said.startswith("96 texts to train on, 24 to validate")
    assert titles.split() == [
        "cut",
        "pooling",
        "difference",
        "length",
        "16",
        "length",
        "20",
        "same",
    ]
    *judged, unmasked = rows
    assert [row.split()[1] for row in judged] == ["max", "attention"]
    assert all(row.endswith("yes") for row in judged)
    assert unmasked.endswith("no")
    assert float(unmasked[38:50]) > 0.01  # the filling counts where no mask is wanted
    assert total.startswith("2 of 2:")


@pytest.mark.parametrize(
    ("features", "accuracies", "same"),
    [
        ((0.0, 0.9e-5), (0.5, 0.5), True),
        ((0.0, 1.1e-5), (0.5, 0.5), False),
        ((0.0, 0.0), (0.5, 0.25), False),
        ((0.0, np.nan), (0.5, 0.5), False),
    ],
)
def test_neither_features_nor_accuracies_may_follow_the_length(features, accuracies, same):
    by_length = {16: np.array([features[0]]), 32: np.array([features[1]])}
    assert verify_text.Row(by_length, dict(zip((16, 32), accuracies, strict=True))).same is same


def test_what_differs_ends_in_an_error(monkeypatch, capsys):
    def differing(model, train, validation, lengths, poolings):
        features = {length: np.array([float(length)]) for length in lengths}
        return {("block", "avg"): verify_text.Row(features, dict.fromkeys(lengths, 0.5))}

    monkeypatch.setattr("sys.argv", ARGUMENTS)
    monkeypatch.setattr(verify_text, "verify", differing)
    with pytest.raises(SystemExit) as ended:
        verify_text.main()
    assert ended.value.code == 1
    assert "0 of 1" in capsys.readouterr().out
