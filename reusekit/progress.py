"""Progress a person can see: bars on a terminal, plain lines elsewhere, no bars in CI."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar

import keras
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

T = TypeVar("T")

console = Console(stderr=True, highlight=False)


def bars_wanted() -> bool:
    """Return whether moving bars make sense: a terminal, and no CI."""
    return console.is_terminal and not os.environ.get("CI")


def say(line: str) -> None:
    """Print a line to standard error, whatever signs are in it, unbroken."""
    console.print(line, soft_wrap=True, markup=False)


def tracked(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Pass the items on and show how far along they are.

    Args:
        items: What is worked through.
        description: The work, such as `Extracting features`.
        total: How many items there are, where `len(items)` does not tell.

    Example:
        >>> sum(tracked([1, 2, 3], "Adding"))
        6
    """
    return iter(track(items, description, total=total, console=console, disable=not bars_wanted()))


@contextmanager
def counted(description: str, total: int | None) -> Iterator:
    """Show a bar to advance by hand; gives a function to call at each step.

    The function takes what the bar is to say, and how many steps were made: 1 unless it is told.

    Args:
        description: What is being done.
        total: How many steps there will be; None where nobody knows.
    """
    with Progress(console=console, disable=not bars_wanted()) as progress:
        task = progress.add_task(description, total=total)
        yield lambda text=description, steps=1: progress.update(
            task, advance=steps, description=text
        )


class EpochProgress(keras.callbacks.Callback):
    """A Keras callback that is a progress bar over epochs; use it as a context manager.

    Args:
        description: The training.
        epochs: At most how many epochs there will be.
    """

    def __init__(self, description: str, epochs: int) -> None:
        super().__init__()
        self._counted = counted(description, epochs)
        self._description = description

    def __enter__(self) -> "EpochProgress":
        self._advance = self._counted.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._counted.__exit__(*raised)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Advance the bar and show the validation loss."""
        loss = (logs or {}).get("val_loss")
        self._advance(self._description + ("" if loss is None else f" (val_loss {loss:.3f})"))


class StageClock:
    """A display of the running stage that remembers how long each took.

    Example:
        >>> clock = StageClock()
        >>> with clock.stage("Load"):
        ...     pass
        >>> list(clock.seconds)
        ['Load']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside; the seconds are kept where it fails, too."""
        console.print(f"[bold]{name}[/bold] ...")
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    def table(self) -> Table:
        """Return the seconds of each stage as a table."""
        table = Table("stage", "seconds", title="Where the time went")
        table.columns[1].justify = "right"
        for name, seconds in self.seconds.items():
            table.add_row(name, f"{seconds:.1f}")
        table.add_row("total", f"{sum(self.seconds.values()):.1f}", style="bold")
        return table
