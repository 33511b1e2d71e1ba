"""KerasHub's models, built small: what the zoo has no stand-in for."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import keras
import pytest

from reusekit.surgery import expand

HUB = {}


@dataclass(frozen=True)
class Member:
    """A model of KerasHub and what is known about it.

    Attributes:
        build: Makes it.
        blocks: The addresses of its blocks' outputs, shallow to deep.
        not_rebuilt: The classes of those of its layers that KerasHub cannot make again from their
            own configurations. What is made of them cannot be copied or loaded, unless a class of
            KerasHub makes the whole.
    """

    build: Callable[[], keras.Model]
    blocks: tuple[str, ...]
    not_rebuilt: tuple[str, ...] = ()


def member(*blocks, **known):
    """Enters a builder under its own name."""

    def enter(build):
        HUB[build.__name__] = Member(build, blocks, **known)
        return build

    return enter


def models():
    """KerasHub's models, imported when the first member is built: that takes seconds.

    The tests on JAX skip them, since KerasHub brings TensorFlow.
    """
    return pytest.importorskip("keras_hub").models


@member("transformer_layer_0", "transformer_layer_1")
def bert():
    return models().BertBackbone(
        vocabulary_size=11,
        num_layers=2,
        num_heads=2,
        hidden_dim=4,
        intermediate_dim=6,
        max_sequence_length=8,
        name="bert",
    )


@member("transformer_layer_0", "transformer_layer_1")
def gpt2():
    return models().GPT2Backbone(
        vocabulary_size=11,
        num_layers=2,
        num_heads=2,
        hidden_dim=4,
        intermediate_dim=6,
        max_sequence_length=8,
        name="gpt2",
    )


@member("decoder_block_0", "decoder_block_1")
def gemma():
    return models().GemmaBackbone(
        vocabulary_size=11,
        num_layers=2,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=4,
        intermediate_dim=6,
        head_dim=2,
        name="gemma",
    )


@member(not_rebuilt=("ViTPatchingAndEmbedding",))
def vit():
    """Its encoder is one layer, so that no block has an address."""
    return models().ViTBackbone(
        image_shape=(8, 8, 3),
        patch_size=4,
        num_layers=2,
        num_heads=2,
        hidden_dim=4,
        mlp_dim=6,
        dropout_rate=0.5,
        name="vit",
    )


@member(
    "vit_encoder/transformer_block_1",
    "vit_encoder/transformer_block_2",
    not_rebuilt=("ViTPatchingAndEmbedding", "ViTEncoderBlock"),
)
def vit_expanded():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The expansion of 'vit'")
        return expand(vit(), "vit_encoder")


@member("stack0_block0_out", "stack1_block0_out")
def resnet():
    """KerasHub wants 64 filters."""
    return models().ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(8, 8, 3),
        name="resnet",
    )
