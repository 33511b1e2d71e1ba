"""The check of pooled text, on a sample: its table, and that it sees what follows the length."""

import keras
import numpy as np
import pytest

pytest.importorskip("keras_hub")
import verify_text

import reusekit as rk

LENGTHS = (16, 20)
POOLINGS = (*verify_text.STORED, *verify_text.IN_HEADS)
ARGUMENTS = ["verify_text.py", "--texts", "120", "--blocks", "1", "--lengths", *map(str, LENGTHS)]


@pytest.fixture
def precision():
    before = keras.config.floatx(), keras.config.dtype_policy()
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


def test_pooling_passes_over_the_filling(monkeypatch, capsys, precision):
    monkeypatch.setattr("sys.argv", ARGUMENTS)
    reached = {("transformer_layer_0", pooling): 0.5 for pooling in POOLINGS}
    monkeypatch.setattr(verify_text, "accuracies", lambda *_: reached)
    verify_text.main()
    said, titles, *rows, total = capsys.readouterr().out.splitlines()
    assert said.startswith("96 texts to train on, 24 to validate")
    assert " ".join(titles.split()) == "cut pooling float32 float64 length 16 length 20 same"
    *judged, unmasked = [row.split(maxsplit=1)[1] for row in rows]
    assert [row.split()[0] for row in judged] == list(POOLINGS)
    for row in judged:
        _, single, double, *_, same = row.split()
        assert float(single) <= 1e-5 and float(double) <= 1e-9 and same == "yes"
    assert unmasked.endswith("no")
    assert float(unmasked.split()[3]) > 0.01  # the filling counts where no mask is wanted
    assert total.startswith("5 of 5:")


def test_a_mask_that_is_lost_is_seen(monkeypatch, tmp_path):
    monkeypatch.setattr("reusekit.graph.padding_mask._all_told", lambda *_: {})
    monkeypatch.setattr("reusekit.graph.padding_mask._doubt", lambda *_: "")
    _, validation, words = verify_text.splits(120)
    model, store = verify_text.transformer(words, 1, LENGTHS[1]), rk.FeatureStore(tmp_path)
    others = [pooling for pooling in POOLINGS if pooling != "token"]  # the first is never filling
    one, other = (
        verify_text.pooled_features(store, model, validation, length, others) for length in LENGTHS
    )
    assert all(np.abs(one[key] - other[key]).max() > 1e-3 for key in one)


def test_heads_of_each_block_are_trained(tmp_path):
    train, validation, words = verify_text.splits(120)
    model, store = verify_text.transformer(words, 1, 16), rk.FeatureStore(tmp_path)
    found = verify_text.accuracies(store, model, train, validation, 16, ["attention"])
    assert found.keys() == {("transformer_layer_0", "attention")}
    assert all(0 < accuracy <= 1 for accuracy in found.values())


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
    exact = dict.fromkeys((16, 32), np.zeros(1))
    row = verify_text.Row(
        {"float32": by_length, "float64": exact}, dict(zip((16, 32), accuracies, strict=True))
    )
    assert row.same is same


def test_what_differs_ends_in_an_error(monkeypatch, capsys):
    def differing(size, train, validation, lengths, poolings):
        features = {length: np.array([2e-9 * length]) for length in lengths}
        seen = {"float32": features, "float64": features}
        return {("block", "avg"): verify_text.Row(seen, dict.fromkeys(lengths, 0.5))}

    monkeypatch.setattr("sys.argv", ARGUMENTS)
    monkeypatch.setattr(verify_text, "verify", differing)
    with pytest.raises(SystemExit) as ended:
        verify_text.main()
    assert ended.value.code == 1
    assert "0 of 1" in capsys.readouterr().out
