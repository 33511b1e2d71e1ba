"""Models that ship: measured as files before training, limited by that, and the best file wins."""

from dataclasses import replace

import keras
import pytest
from keras import layers
from quick_files import quick_files
from search.textures import small_backbone

from reusekit.errors import ConfigError, ExportError
from reusekit.exports import Exporter, formats
from reusekit.features import FeatureStore, Padding
from reusekit.search import CutSearch, Limits, SearchConfig, SearchSpace

CUTS = ["stem", "out2"]


@pytest.fixture(scope="module")
def begin(train, validation, tmp_path_factory):
    """Begin a search whose models are shipped, always in the same folder unless it is named."""
    folder = tmp_path_factory.mktemp("shipped")
    backbone, store = small_backbone(), FeatureStore(folder / "store")

    def begun(name="search", model=backbone, cuts=CUTS, units=(0, 16), **settings):
        space = SearchSpace(cuts, units=units, dropout=(0.0,), learning_rates=(0.1,))
        config = SearchConfig(epochs=4, ship="litert-int8", **settings)
        return CutSearch(model, train, validation, space, config, folder / name, store)

    return begun


class Strange(keras.Layer):
    """Computes what LiteRT cannot."""

    def call(self, x):
        import tensorflow as tf

        return tf.math.betainc(1.0, 2.0, tf.sigmoid(x))


def test_a_cut_that_cannot_be_a_file_is_left_out_with_the_layer(begin):
    x = keras.Input((8, 8, 1), name="image")
    y = layers.Conv2D(2, 3, name="conv")(x)
    model = keras.Model(x, Strange(name="strange")(y))
    search = begin("strange", model, ["conv", "strange"], units=(0,))
    assert search.space.cuts == ["conv"]
    assert "its layer 'strange'" in search.left_out["strange"]
    (trial,) = search.run().trials
    export = search.result.exports[trial.number]
    assert export.file.value == pytest.approx(trial.accuracy, abs=0.1)
    with pytest.raises(ConfigError, match=r"a cut that can be shipped .* its layer 'strange'"):
        _ = begin("strange", model, ["strange"], units=(0,)).plan


@pytest.fixture(scope="module")
def calls():
    """Counts of models measured and exported; the second export is made the best."""
    counted = {"measure": 0, "export": 0}
    measure, export = Exporter.measure, Exporter.export

    def counted_measure(self, *args):
        counted["measure"] += 1
        return measure(self, *args)

    def counted_export(self, *args):
        made = export(self, *args)
        value = {0: 0.5, 1: 0.9}.get(counted["export"], 0.7)
        counted["export"] += 1
        return replace(made, file=replace(made.file, value=value))

    with quick_files(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exporter, "measure", counted_measure)
        patch.setattr(Exporter, "export", counted_export)
        yield counted


@pytest.fixture(scope="module")
def finished(begin, calls):
    search = begin()
    search.run()
    return search


def test_each_cut_and_head_is_measured_once_and_the_best_file_wins(finished, calls, begin):
    assert calls == {"measure": 4, "export": 3}
    result = finished.result
    assert len(result.exports) == 3
    _, second, *_ = result.by_objective
    assert result.best == second
    frame = finished.results().set_index("trial")
    told = frame.loc[second.number]
    assert told["shipped_accuracy"] == 0.9
    assert told["keras_accuracy"] == pytest.approx(second.accuracy)
    assert frame["shipped_accuracy"].notna().sum() == 3
    assert (frame["shipped_latency"] > 0).all()
    # A head with a hidden layer makes a larger file of the same cut.
    sizes = frame.sort_values(["cut", "units"]).groupby("cut", sort=False)["shipped_bytes"]
    assert all(one.is_monotonic_increasing and one.nunique() == 2 for _, one in sizes)
    front = finished.pareto("shipped_bytes")
    assert front["shipped_bytes"].is_monotonic_increasing
    # Gone on with, nothing is measured or exported again.
    again = begin()
    assert again.run().best == second
    assert again.best_model().output_shape == (None, 3)
    assert calls == {"measure": 4, "export": 3}


def test_limits_are_about_the_file(finished, begin):
    sizes = {shape: file.bytes for shape, file in finished.files.items()}
    narrow = begin(limits=Limits(bytes=sizes["stem", None, 16]))
    assert narrow.space.cuts == ["stem"]
    assert list(narrow.left_out) == ["out2"]
    assert "bytes of the file: " in narrow.left_out["out2"]
    least = min(sizes.values())
    nothing = rf"nearest 'stem' \(bytes of the file: {least:,}, and the limit is 9\)"
    with pytest.raises(ConfigError, match=nothing):
        _ = begin(limits=Limits(bytes=9)).plan
    with pytest.raises(ConfigError, match=r"nearest .*latency of the file: "):
        _ = begin(limits=Limits(latency=1e-12)).plan
    # A head that is too large is not trained where another on that cut is not.
    some = begin("limited", limits=Limits(bytes=least), cuts=["stem"]).run()
    assert {one.spec.units: one.status for one in some.trials} == {
        0: "completed",
        16: "over the limit",
    }


def test_what_cannot_be_shipped_is_refused_in_one_sentence(begin, monkeypatch):
    with pytest.raises(ConfigError, match="Did you mean 'litert-int8'"):
        SearchConfig(ship="litert-int")
    with pytest.raises(ConfigError, match=r"Expected padding=None with ship='onnx'"):
        SearchConfig(ship="onnx", padding=Padding(8))
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"pip install 'reusekit\[litert\]'"):
        begin()
