"""Layers that share a weight with another layer: `rk.layers`."""

from reusekit.sharing.tied_dense import TiedDense

__all__ = ["TiedDense"]
