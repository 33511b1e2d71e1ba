"""Pretrained models from several sources, each with its own preprocessing."""

from reusekit.backbones.backbone import Backbone
from reusekit.backbones.load import load_backbone, sources

__all__ = ["Backbone", "load_backbone", "sources"]
