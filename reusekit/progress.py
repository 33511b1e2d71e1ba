"""Progress a person can see: bars on terminals and in notebooks, no bars elsewhere and in CI."""

import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar

import keras
from rich.console import Console
from rich.jupyter import JUPYTER_HTML_FORMAT
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

T = TypeVar("T")

console = Console(stderr=True, highlight=False)


_CELL_WIDTH = 100  # characters of a line in a notebook
_CELL_SECONDS = 0.2  # between two drawings there


def bars_wanted() -> bool:
    """Return whether bars of any library make sense: a terminal where they move, and no CI."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")


@contextmanager
def kept_to_terminals() -> Iterator[None]:
    """Keep Keras's own bars to terminals and notebooks: elsewhere each of their steps is a line."""
    wanted = keras.config.is_interactive_logging_enabled()
    if not sys.stdout.isatty() and not console.is_jupyter:
        keras.config.disable_interactive_logging()
    try:
        yield
    finally:
        if wanted:
            keras.config.enable_interactive_logging()


def say(line: str) -> None:
    """Print a line to standard error, whatever signs are in it, unbroken."""
    console.print(line, soft_wrap=True, markup=False)


class _CellProgress(Progress):
    """Bars in the cell of a notebook: one output that is drawn anew, kept as it was at the end.

    Rich's own needs ipywidgets, and leaves nothing that can be read in a notebook that is kept.
    """

    def __init__(self) -> None:
        # No thread: what is drawn in a cell belongs to the one that runs it.
        super().__init__(console=console, auto_refresh=False)
        self._output: Any = None
        self._drawn = 0.0

    def start(self) -> None:
        """Begin an output."""
        from IPython.display import display  # type: ignore[import-not-found]  # a notebook has it

        self._output = display(self._bundle(), raw=True, display_id=True)

    def refresh(self) -> None:
        """Draw it anew, unless that was done a moment ago."""
        if self._output is not None and perf_counter() > self._drawn + _CELL_SECONDS:
            self._draw()

    def stop(self) -> None:
        """Draw it for the last time."""
        self._draw()

    def update(self, *task: Any, **values: Any) -> None:
        """Change a task, and draw it."""
        super().update(*task, **values)
        self.refresh()

    def _draw(self) -> None:
        self._output.update(self._bundle(), raw=True)
        self._drawn = perf_counter()

    def _bundle(self) -> dict[str, str]:
        """Return the bars as HTML, and as text without escape sequences."""
        drawn = Console(record=True, width=_CELL_WIDTH, file=io.StringIO(), force_jupyter=False)
        drawn.print(self.get_renderable())
        return {
            "text/plain": drawn.export_text(clear=False),
            "text/html": drawn.export_html(inline_styles=True, code_format=JUPYTER_HTML_FORMAT),
        }


def _progress() -> Progress:
    """Return bars for where the process runs; disabled ones where nobody looks."""
    if console.is_jupyter and not os.environ.get("CI"):
        return _CellProgress()
    return Progress(console=console, disable=not bars_wanted())


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
    with _progress() as progress:
        yield from progress.track(items, total, description=escape(description))


@contextmanager
def counted(description: str, total: int | None) -> Iterator:
    """Show a bar to advance by hand; gives a function to call at each step.

    The function takes what the bar is to say, and how many steps were made: 1 unless it is told.

    Args:
        description: What is being done.
        total: How many steps there will be; None where nobody knows.
    """
    with _progress() as progress:
        task = progress.add_task(escape(description), total=total)
        yield lambda text=description, steps=1: progress.update(
            task, advance=steps, description=escape(text)
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
