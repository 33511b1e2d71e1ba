"""The kinds of `SurgeryError` that building raises; those of reading are in `reusekit.graph`."""

from reusekit.errors import SurgeryError


class ShapeError(SurgeryError):
    """A tensor does not fit where it would be fed."""


class EditError(SurgeryError):
    """An edit, or a set of edits, that makes no sense for the model."""


class CertificateError(SurgeryError):
    """The parts of a model do not do what the whole does."""


class CopyError(SurgeryError):
    """A layer cannot be made again from its configuration."""
