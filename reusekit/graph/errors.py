"""The kinds of `SurgeryError`: one class for each reason a model cannot be read or cut."""

from reusekit.errors import SurgeryError


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
