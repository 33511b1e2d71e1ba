"""Errors in how a model is to be trained."""

from reusekit.errors import ReusekitError


class TrainingError(ReusekitError):
    """A model cannot be frozen, thawed or trained as asked. Nothing was changed."""
