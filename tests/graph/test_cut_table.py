import keras
import pytest
from zoo import ZOO

from reusekit.errors import AddressError
from reusekit.graph import CutPoint, cut_points, read


@pytest.fixture(scope="module")
def resnet():
    return keras.applications.ResNet50(weights=None)


def test_the_block_outputs_of_a_resnet_are_clean_cuts(resnet):
    points = cut_points(resnet)
    found = [point.at for point in points if point.at.endswith("_out")]
    blocks = {2: 3, 3: 4, 4: 6, 5: 3}
    assert found == [f"conv{s}_block{b + 1}_out" for s, n in blocks.items() for b in range(n)]
    # 41 tensors of 177 lie on every path; the input and the output are two of them.
    assert len(points) == 39
    assert len(cut_points(resnet, max_width=None)) == 177


def test_numbers_of_a_resnet(resnet):
    point = cut_points(resnet)["conv4_block6_out"]
    assert point.shape == (None, 14, 14, 1024)
    assert (point.stride, point.width, point.bytes) == (16, 1, 14 * 14 * 1024 * 4)
    assert point.params_before + point.params_after == resnet.count_params() == 25_636_712
    # He et al. give 3.8e9 multiply-adds, without biases, normalisation and activations.
    assert (point.flops_before + point.flops_after) / 2e9 == pytest.approx(3.87, rel=0.01)


def test_points_go_from_shallow_to_deep(resnet):
    points = cut_points(resnet)
    depths = [point.depth for point in points]
    assert depths == sorted(depths)
    assert [p.params_before for p in points] == sorted(p.params_before for p in points)


def test_a_padding_mask_does_not_make_a_cut_wide():
    points = cut_points(ZOO["masked_lstm"]())
    for at in ("embed", "lstm"):
        (mask,) = points[at].free
        assert mask.startswith("not_equal")
        assert points[at].width == 1


def test_wider_cuts_on_request():
    model = ZOO["residual"]()
    narrow = {point.at for point in cut_points(model)}
    wide = cut_points(model, max_width=2)
    assert narrow < {point.at for point in wide}
    assert wide["conv0"].tensors == ("conv0", "stem")


def test_a_weight_used_on_both_sides_counts_on_both():
    point = cut_points(ZOO["layer_called_twice"]())["scale0"]
    assert (point.params_before, point.params_after) == (20, 25)


def test_open_sizes_are_taken_at_a_nominal_one():
    ours, theirs = (
        cut_points(
            keras.applications.MobileNetV2(
                weights=None, include_top=False, input_shape=(size, size, 3)
            )
        )
        for size in (None, 224)
    )
    assert [point.stride for point in ours] == [point.stride for point in theirs]
    assert [p.depth for p in ours] == pytest.approx([p.depth for p in theirs], abs=0.02)


def test_a_layer_that_does_not_show_what_it_does_is_named():
    class Strange(keras.layers.Layer):
        def call(self, x):
            return keras.ops.convert_to_tensor(keras.ops.convert_to_numpy(x))

        def compute_output_shape(self, shape):
            return shape

    x = keras.Input((4,), name="x")
    y = keras.layers.TimeDistributed(Strange(), name="each")(Strange(name="s")(x)[:, None])
    points = cut_points(keras.Model(x, keras.layers.Flatten()(y)))
    assert points.uncounted == ("Strange", "TimeDistributed")
    assert "FLOPs not counted: Strange, TimeDistributed" in str(points)


def test_a_sequence_by_place_slice_and_address():
    points = cut_points(ZOO["linear"]())
    assert [point.at for point in points[:1]] == ["a"]
    assert points["drop"] is points[1]
    with pytest.raises(AddressError, match="Did you mean 'drop'"):
        points["dorp"]


def test_a_frame_has_a_row_for_each_point():
    pytest.importorskip("pandas")
    frame = cut_points(ZOO["linear"]()).to_frame()
    assert list(frame["at"]) == ["a", "drop"]
    assert list(frame["params_before"]) == [15, 15]


def test_a_cut_point_is_checked_where_it_is_made():
    point = cut_points(ZOO["linear"]())[0]
    values = {name: getattr(point, name) for name in point.__dataclass_fields__}
    with pytest.raises(ValueError, match="width"):
        CutPoint(**values | {"width": 2})
    with pytest.raises(ValueError, match="share"):
        CutPoint(**values | {"depth": 1.5})


def test_a_graph_that_was_read_serves_as_well():
    model = ZOO["residual"]()
    assert cut_points(read(model)) == cut_points(model)
