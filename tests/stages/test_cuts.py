"""Candidate cuts: the block outputs of real networks, once each, in order."""

from dataclasses import replace

import pytest

import reusekit as rk
from reusekit.stages import candidate_cuts, clean_cut


@pytest.fixture(scope="module")
def resnet():
    return rk.load_backbone("keras.applications/ResNet50", weights=None, input_shape=(64, 64, 3))


def test_resnets_cuts_are_its_stem_and_its_blocks(resnet):
    blocks = [
        f"conv{stage}_block{block}_out"
        for stage, count in ((2, 3), (3, 4), (4, 6), (5, 3))
        for block in range(1, count + 1)
    ]
    points = candidate_cuts(resnet)
    assert [point.at for point in points] == ["pool1_pool", *blocks]
    depths = [point.depth for point in points]
    assert depths == sorted(depths)
    assert depths[-1] == pytest.approx(1.0)


def test_fewer_are_spread_evenly_and_named_ones_are_kept(resnet):
    assert [p.at for p in candidate_cuts(resnet, most=2)] == ["pool1_pool", "conv5_block3_out"]
    wanted = ["conv4_block1_out", "conv2_block1_out", "conv4_block1_out"]
    assert [p.at for p in candidate_cuts(resnet, wanted)] == wanted[1::-1]
    points = candidate_cuts(resnet, most=2, including=["conv1_relu"])
    assert [p.at for p in points] == ["conv1_relu", "pool1_pool", "conv5_block3_out"]
    points = candidate_cuts(resnet, ["conv4_block1_out"], including=["conv1_relu"])
    assert [p.at for p in points] == ["conv1_relu", "conv4_block1_out"]


@pytest.mark.parametrize("at", ["conv4_block1_ou", "conv2_block1_1_conv"])
def test_what_is_no_clean_cut_is_refused_with_the_nearest(resnet, at):
    with pytest.raises(rk.ConfigError, match=f"Received: '{at}'. Did you mean"):
        candidate_cuts(resnet, [at])


def test_the_end_of_a_registered_classifier_is_no_candidate():  # pipeline W3
    glyphnet = rk.load_backbone("reusekit/glyphnet", weights=None)
    plain = [point.at for point in candidate_cuts(glyphnet)]
    assert plain[-1] == "block7_out"
    whole = rk.attach(glyphnet.model, rk.heads.Classifier(10))
    assert [point.at for point in candidate_cuts(replace(glyphnet, model=whole))] == plain
    hidden = rk.attach(glyphnet.model, rk.heads.Classifier(10, units=32))
    offered = [point.at for point in candidate_cuts(replace(glyphnet, model=hidden))]
    assert offered == [*plain, "head_hidden"]  # the features just before the old softmax


def test_what_is_unfrozen_must_lie_before_the_cut(resnet):  # pipeline W7
    assert clean_cut(resnet, "conv2_block1_out", before="conv4_block1_out").at == "conv2_block1_out"
    for at in ("conv4_block1_out", "conv5_block1_out"):
        with pytest.raises(rk.ConfigError, match=f"before 'conv4_block1_out'.*Received: '{at}'"):
            clean_cut(resnet, at, before="conv4_block1_out")
