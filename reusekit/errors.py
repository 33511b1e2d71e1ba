"""The errors reusekit raises, and the sentence that names the nearest valid choice.

Every error a user can cause derives from `ReusekitError`, so that a pipeline can print it as one
line and leave tracebacks to real defects. There are five families, for models, backbones, data,
settings and the tracker; the rest are kinds of these.
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
    """A model cannot be read, cut, built or frozen as asked. Nothing was changed."""


class NoGraphError(SurgeryError):
    """The model has no functional graph, so there are no tensors to address."""


class AddressError(SurgeryError):
    """An address, or what was passed in place of one, names no tensor of the model."""


class UnknownAddressError(AddressError):
    """No tensor of the model has this address."""


class AmbiguousAddressError(AddressError):
    """Several tensors answer to this address."""


class ForeignTensorError(AddressError):
    """A Keras tensor that is not part of the model."""


class WideCutError(SurgeryError):
    """A strict cut was asked for where more than one tensor crosses."""


class CutOrderError(SurgeryError):
    """Cuts that must follow one another, or stand side by side, do not."""


class DisconnectedError(SurgeryError):
    """The result would need a tensor that nothing in it computes."""


class ShapeError(SurgeryError):
    """A tensor does not fit where it would be fed."""


class EditError(SurgeryError):
    """An edit, or a set of edits, that makes no sense for the model."""


class CertificateError(SurgeryError):
    """The parts of a model do not do what the whole does."""


class CopyError(SurgeryError):
    """A layer cannot be made again from its configuration."""


class TieError(SurgeryError):
    """Weights cannot be tied as asked, or a tie would be lost. Nothing was changed."""


class HeadError(SurgeryError):
    """A head cannot be made as asked."""


class TrainingError(SurgeryError):
    """A model cannot be frozen, thawed or trained as asked. Nothing was changed."""


class ExportError(SurgeryError):
    """A model cannot be written for another runtime as asked. Nothing half-written is left."""


class BackboneError(ReusekitError):
    """A pretrained backbone cannot be loaded as asked."""


class DataError(ReusekitError):
    """Examples, or features made of them, cannot be read as asked."""


class CacheError(DataError):
    """Features cannot be named, stored or read back as asked. Nothing half-written is left."""


class ConfigError(ReusekitError):
    """A pipeline's configuration does not fit its data, model or machine."""


class ClusterError(ConfigError):
    """A cluster cannot be reached, or cannot do what was asked of it."""


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
        received: The value that the caller passed.
        valid: All the valid choices.
        most: The most near matches to name.

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


def reason(error: Exception) -> str:
    r"""Return the line of an error, one of Keras's for the most part, that says what is wrong.

    Example:
        >>> reason(ValueError("Exception encountered when calling Mine.call().\n\nNo table."))
        'No table.'
    """
    lines = [re.sub(r"\x1b\[\d*m", "", line).strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith("Exception encountered")]
    return told[0] if told else repr(error)


_RENAMED = {"freeze": "frozen_up_to", "unfreeze_from": "frozen_up_to", "pixels": "linear"}
"""Settings by the names that they had before, and may have in a file that was written then."""


def nearest_setting(name: str, settings: Iterable[str]) -> str:
    """Return a sentence that names the settings nearest to a dotted name.

    Example:
        >>> nearest_setting("search.freeze", ["search.cuts", "search.frozen_up_to"])
        "It is called 'search.frozen_up_to' now."
    """
    group, dot, last = name.rpartition(".")
    now = f"{group}{dot}{_RENAMED.get(last, last)}"
    known = list(settings)
    return f"It is called {now!r} now." if name != now and now in known else nearest(name, known)
