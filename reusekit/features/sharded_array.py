"""An array in several files, of which rows are taken as of one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from reusekit.features.shards import let_go

RESIDENT_BYTES = 32 << 20
"""About so much memory the files of an array may take up, however large they are."""

# The system maps the surroundings of what is read, too: on Linux about eight times as much.
_SURROUNDINGS = 8


class ShardedArray:
    """An array mapped into memory, shard by shard.

    Takes rows by number, slice, list or mask, as an array of NumPy's does, and returns copies in
    memory. `np.asarray` reads all of it, which is the faster way to use a small one.

    Args:
        shards: Arrays of equal shapes but for the last's, which may be shorter.
        dtype: The dtype that their bytes mean.
        lease: Kept for as long as the array is.

    Attributes:
        shape: The shape of the whole; examples come first.
        dtype: Its dtype.

    Example:
        >>> array = ShardedArray([np.arange(4), np.arange(4, 7)], np.dtype(int))
        >>> array.shape, array[[6, 0, -3]].tolist(), array[2:5].tolist(), int(array[5])
        ((7,), [6, 0, 4], [2, 3, 4], 5)
    """

    def __init__(self, shards: Sequence[np.ndarray], dtype: np.dtype, lease: Any = None) -> None:
        self._shards = list(shards)
        self._rows = len(self._shards[0])
        self._lease = lease
        self._taken = 0
        self.dtype = dtype
        self.shape = (sum(map(len, self._shards)), *self._shards[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return sum(shard.nbytes for shard in self._shards)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, int | np.integer):
            return self[[rows]][0]
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows)
        if rows.dtype == bool:
            (rows,) = rows.nonzero()
        if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
            raise IndexError(f"Expected the numbers of rows. Received: {rows!r}.")
        if len(rows) and not (-len(self) <= rows.min() and rows.max() < len(self)):
            raise IndexError(
                f"Expected rows from 0 to {len(self) - 1}. Received rows from {rows.min()} to "
                f"{rows.max()}."
            )
        return self._take(np.where(rows < 0, rows + len(self), rows).astype(np.intp))

    def _take(self, rows: np.ndarray) -> np.ndarray:
        if len(self._shards) == 1:
            taken = self._shards[0][rows]
        else:
            taken = np.empty((len(rows), *self.shape[1:]), self._shards[0].dtype)
            shards, offsets = np.divmod(rows, self._rows)
            # Row by row, each is copied once; a gather for each shard would copy it twice.
            for place, (shard, row) in enumerate(
                zip(shards.tolist(), offsets.tolist(), strict=True)
            ):
                taken[place] = self._shards[shard][row]
        self._taken += taken.nbytes
        if self._taken * _SURROUNDINGS > RESIDENT_BYTES and self.nbytes > RESIDENT_BYTES:
            self._taken = 0
            for shard in self._shards:
                let_go(shard)
        return taken.view(self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("An array in several files cannot be read without copying it.")
        return np.concatenate(self._shards).view(self.dtype).astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        return f"ShardedArray(shape={self.shape}, dtype={self.dtype}, shards={len(self._shards)})"
