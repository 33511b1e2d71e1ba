"""The errors reusekit raises, and the sentence that names the nearest valid choice.

Every error a user can cause derives from `ReusekitError`, so that a pipeline can print it as one
line and leave tracebacks to real defects.
"""

import difflib
import re
from collections.abc import Iterable

_LONGEST, _LONGEST_WORD = 1_400, 300  # characters


class ReusekitError(ValueError):
    """Something the caller asked for cannot be done; the message says what can."""

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(str(message)))


class SurgeryError(ReusekitError):
    """A model cannot be cut, edited or cloned as asked. Nothing was changed."""


class TieError(SurgeryError):
    """Weights cannot be tied as asked, or a tie would be lost. Nothing was changed."""


class BackboneError(ReusekitError):
    """A pretrained backbone cannot be loaded as asked."""


class HeadError(ReusekitError):
    """A head cannot be made as asked."""


class DataError(ReusekitError):
    """A data set cannot be read as asked."""


class CacheError(ReusekitError):
    """Features cannot be named, stored or read back as asked. Nothing half-written is left."""


class ConfigError(ReusekitError):
    """A pipeline's configuration does not fit its data, model or machine."""


class TrackingError(ReusekitError):
    """The tracking server or registry does not answer, or refuses what was asked."""


def shortened(message: str) -> str:
    """Return a message that one can read: what is too long in it is cut in its middle.

    Example:
        >>> shortened("Received: '" + "a" * 5_000 + "'.")[:40], len(shortened("a b " * 5_000))
        ("Received: 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 1399)
    """
    message = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: _cut(word[0], _LONGEST_WORD), message)
    return _cut(message, _LONGEST)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    half = longest // 2 - 1
    return f"{text[:half]}…{text[-half:]}"


def nearest(received: str, valid: Iterable[str], most: int = 3) -> str:
    """Return a sentence that names the valid choices nearest to what was received.

    Args:
        received: What the caller passed.
        valid: All the valid choices.
        most: How many near matches to name at most.

    Returns:
        `Did you mean 'x'?` where something is near, else the valid choices themselves (the first
        dozen of them, or three of hundreds), else an empty string.

    Example:
        >>> nearest("resnet5", ["resnet50", "vgg16"])
        "Did you mean 'resnet50'?"
        >>> nearest("resnet50", ["keras.applications/ResNet50", "keras.applications/VGG16"])
        "Did you mean 'keras.applications/ResNet50'?"
        >>> nearest("zzz", ["resnet50", "vgg16"])
        "Valid choices: 'resnet50', 'vgg16'."
    """
    valid, received = list(valid), received[:200]
    # The last part of a path stands for the whole: `resnet50` for `keras.applications/ResNet50`.
    folded = {choice.rsplit("/", 1)[-1].lower(): choice for choice in reversed(valid)}
    folded |= {choice.lower(): choice for choice in valid}
    close = difflib.get_close_matches(received.lower(), folded, n=most, cutoff=0.6)
    if close:
        meant = dict.fromkeys(folded[match] for match in close)
        return f"Did you mean {' or '.join(map(repr, meant))}?"
    if not valid:
        return ""
    most_shown = 12 if len(valid) <= 50 else 3  # a dozen of hundreds tells no more than three
    shown = ", ".join(repr(choice) for choice in valid[:most_shown])
    rest = f" and {len(valid) - most_shown} more" if len(valid) > most_shown else ""
    return f"Valid choices: {shown}{rest}."
