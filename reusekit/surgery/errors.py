"""The kinds of `SurgeryError` that building raises; those of reading are in `reusekit.graph`."""

import re

from reusekit.errors import SurgeryError


class ShapeError(SurgeryError):
    """A tensor does not fit where it would be fed."""


class EditError(SurgeryError):
    """An edit, or a set of edits, that makes no sense for the model."""


class CertificateError(SurgeryError):
    """The parts of a model do not do what the whole does."""


class CopyError(SurgeryError):
    """A layer cannot be made again from its configuration."""


def reason(error: Exception) -> str:
    r"""Return the line of an error, one of Keras's for the most part, that says what is wrong.

    Example:
        >>> reason(ValueError("Exception encountered when calling Mine.call().\n\nNo table."))
        'No table.'
    """
    lines = [re.sub(r"\x1b\[\d*m", "", line).strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith("Exception encountered")]
    return told[0] if told else repr(error)
