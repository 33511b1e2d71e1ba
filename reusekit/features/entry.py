"""An entry of the store that is being read."""

from collections.abc import Iterator, Mapping
from types import TracebackType

import numpy as np

from reusekit.features.key import FeatureKey
from reusekit.features.locks import Lease
from reusekit.features.manifest import Manifest
from reusekit.features.sharded_array import ShardedArray


class Entry(Mapping[str, ShardedArray]):
    """The arrays of an entry by the names in its key, mapped into memory.

    The store keeps the entry for as long as it, or one of its arrays, is referred to, and at most
    until the process ends; `close`, or the end of a `with` statement, lets it go before.

    Attributes:
        key: The key it was asked for by.
        manifest: What it says of itself.
    """

    def __init__(
        self,
        key: FeatureKey,
        manifest: Manifest,
        shards: list[list[np.ndarray]],
        lease: Lease,
    ) -> None:
        self.key, self.manifest, self._lease = key, manifest, lease
        self._arrays = {
            name: ShardedArray(parts, np.dtype(array.dtype), lease)
            for name, parts, array in zip(key.arrays, shards, manifest.arrays, strict=True)
        }

    def __getitem__(self, name: str) -> ShardedArray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def close(self) -> None:
        """Let the store remove the entry when it needs room."""
        self._lease.close()

    def __enter__(self) -> "Entry":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Entry({', '.join(f'{name!r}: {array}' for name, array in self.items())})"
