"""The tensors that addresses name, while a model is being read."""

from collections.abc import Sequence

from reusekit.graph.graph import Tensor


class NameTable:
    """Collects the addresses of tensors, and the shorter names that would fit several."""

    def __init__(self):
        self._names: dict[str, Tensor] = {}
        self._short: dict[str, list[str]] = {}

    def enter(self, address: str, outputs: Sequence[Tensor]) -> None:
        """Enter the outputs of one call under its address.

        Args:
            address: The address of the call, with `@` and a number where its layer is called
                several times.
            outputs: What the call returns. Several are told apart by `:` and a number.
        """
        if len(outputs) == 1:
            full = [address]
            self._names.setdefault(address, outputs[0])
        else:
            full = [f"{address}:{place}" for place in range(len(outputs))]
            self._short.setdefault(address, []).extend(full)
            for name, tensor in zip(full, outputs, strict=True):
                self._names.setdefault(name, tensor)
        stem, _, number = address.rpartition("@")
        if stem and number.isdecimal():
            self._short.setdefault(stem, []).extend(full)

    def among(self, tensors: set[Tensor]) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
        """Return the addresses of some tensors, and those that each shorter name may mean."""
        names = {name: tensor for name, tensor in self._names.items() if tensor in tensors}
        short = {
            name: tuple(address for address in found if address in names)
            for name, found in self._short.items()
            if name not in names
        }
        return names, short
