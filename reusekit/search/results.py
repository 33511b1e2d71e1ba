"""The results of a cut search, as data."""

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from reusekit.arguments import AnyPath, checked, expanded
from reusekit.errors import ConfigError, nearest
from reusekit.exports import Export, Figures
from reusekit.progress import counted, say
from reusekit.search.folder import STATE_FILE, read_state
from reusekit.search.sizes import Sizes
from reusekit.search.space import BACKBONE, NamedCut, TrialSpec, label, named_cut, renamed
from reusekit.training.fit import Fit

Status = Literal["completed", "failed", "over the limit"]

COSTS = ("parameters", "flops", "bytes", "latency", "shipped_bytes", "shipped_latency")
"""What a model costs, by the columns of a frame of results."""


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial.

    Attributes:
        number: Its number, from 0.
        spec: Its specification.
        values: Its hyperparameters as keras-tuner has them.
        status: "completed", "failed", or "over the limit" where its model is larger than allowed.
        fit: Its training; None where it was not trained to the end.
        sizes: Of its whole model, from the backbone's inputs to the head's outputs.
        trained: The number of parameters that it trained.
        error: Why it failed; None where it did not.
        weights: SHA-256 of the file of what it trained; None where it failed.
    """

    number: int
    spec: TrialSpec
    values: Mapping[str, Any]
    status: Status
    fit: Fit | None = None
    sizes: Sizes = Sizes()  # noqa: RUF009  (immutable)
    trained: int = 0
    error: str | None = None
    weights: str | None = field(default=None, compare=False)

    @property
    def cut(self) -> str:
        """The address it cut at."""
        return self.spec.cut

    @property
    def named_cut(self) -> NamedCut:
        """The cut, and before it the backbone where there are several."""
        return self.spec.named_cut

    @property
    def label(self) -> str:
        """The cut as tables and figures show it."""
        return label(self.named_cut)

    @property
    def metrics(self) -> dict[str, float]:
        """Each metric at the best epoch; none where it failed."""
        return self.fit.metrics if self.fit else {}

    @property
    def accuracy(self) -> float:
        """Validation accuracy at the best epoch.

        Raises:
            ConfigError: The trial reports none: it failed, or its head is no classifier.
        """
        if "val_accuracy" not in self.metrics:
            raise ConfigError(
                f"Expected a trial that reports an accuracy. Received: one that reports "
                f"{', '.join(self.metrics) or 'nothing'}. See metrics."
            )
        return self.metrics["val_accuracy"]

    @property
    def loss(self) -> float:
        """Validation loss at the best epoch."""
        return self.metrics["val_loss"]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as what JSON can hold."""
        return asdict(self) | {"values": dict(self.values), "spec": self.spec.to_dict()}

    @classmethod
    @checked(ConfigError)
    def from_dict(cls, values: Mapping[str, Any]) -> "TrialRecord":
        """Return the record that was written down."""
        try:
            values = renamed(values)
            fit = values["fit"] and Fit(**values["fit"])
            parts = {"spec": TrialSpec(**values["spec"]), "sizes": Sizes(**values["sizes"])}
            return cls(**{**values, **parts, "fit": fit})
        except (KeyError, TypeError):
            raise ConfigError(f"Expected what to_dict gave. Received: {values!r}.") from None


@dataclass(frozen=True)
class CutResult:
    """The completed trials of one cut.

    Attributes:
        at: Its address.
        depth: The share of the backbone's FLOPs before it, from 0 to 1.
        trials: Its trials, best first.
        backbone: The name of its backbone, where a search has several.
    """

    at: str
    depth: float
    trials: tuple[TrialRecord, ...]
    backbone: str | None = None

    @property
    def named_cut(self) -> NamedCut:
        """The cut, and before it the backbone where there are several."""
        return named_cut(self.at, self.backbone)

    @property
    def best(self) -> TrialRecord:
        """Its best trial."""
        return self.trials[0]

    @property
    def seconds(self) -> float:
        """The seconds of all its trials together."""
        return sum(trial.fit.seconds for trial in self.trials if trial.fit is not None)


@dataclass(frozen=True)
class SearchResult:
    """All trials of a search.

    Attributes:
        trials: Every trial, in the order of their numbers.
        depths: Of each cut the share of the backbone's FLOPs before it, shallow to deep. Of several
            backbones a cut is the pair of the backbone's name and the address.
        latencies: Seconds that the model of a cut takes for one example, where that was measured.
        objective: The metric by which trials are compared.
        maximize: Whether more of it is better.
        files: The figures of trials' whole models as files, by number, measured before training.
        exports: The exports of the best trials, by number, compared on the validation examples;
            the best first.
    """

    trials: tuple[TrialRecord, ...]
    depths: Mapping[Any, float]
    latencies: Mapping[Any, float] = field(default_factory=dict)
    objective: str = "val_accuracy"
    maximize: bool = True
    files: Mapping[int, Figures] = field(default_factory=dict)
    exports: Mapping[int, Export] = field(default_factory=dict)

    def __repr__(self) -> str:
        done = self.completed
        best = "none completed"
        if done:
            reached = done[0].metrics[self.objective]
            best = f"best {self.objective} {reached:.4f} at cut {done[0].label}"
        return f"<SearchResult: {len(self.trials)} trials, {best}; to_frame() lists them>"

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)

    @property
    def completed(self) -> list[TrialRecord]:
        """The trials that can be compared, best first; of equals, the lower loss first.

        Those that were exported come before the others, in the order of what their files reach.
        """
        order = {number: position for position, number in enumerate(self.exports)}
        return sorted(self.by_objective, key=lambda one: order.get(one.number, len(order)))

    @property
    def by_objective(self) -> list[TrialRecord]:
        """The trials that can be compared, best first, as they were before any export."""
        return ranked(
            (trial for trial in self.trials if trial.status == "completed"),
            self.objective,
            self.maximize,
        )

    @property
    def best(self) -> TrialRecord:
        """The best trial.

        Raises:
            ConfigError: None was completed.
        """
        if not self.completed:
            raise ConfigError(
                "Expected a completed trial. Received: none, so none is the best. See "
                "to_frame() for what went wrong."
            )
        return self.completed[0]

    @property
    def cuts(self) -> tuple[CutResult, ...]:
        """One result for each cut with a completed trial, shallow to deep."""
        best_first = self.by_objective
        found = (
            CutResult(
                one if isinstance(one, str) else one[1],
                depth,
                tuple(trial for trial in best_first if trial.named_cut == one),
                None if isinstance(one, str) else one[0],
            )
            for one, depth in self.depths.items()
        )
        return tuple(cut for cut in found if cut.trials)

    def cuts_frame(self) -> pd.DataFrame:
        """Return the cuts as a table, one row each, shallow to deep."""
        return pd.DataFrame(
            {
                **({} if cut.backbone is None else {BACKBONE: cut.backbone}),
                "cut": cut.at,
                "depth": cut.depth,
                **_validation(cut.best),
                "parameters": cut.best.sizes.parameters,
                "flops": cut.best.sizes.flops,
                "trials": len(cut.trials),
                "seconds": cut.seconds,
            }
            for cut in self.cuts
        )

    def to_frame(self) -> pd.DataFrame:
        """Return the trials as a table, one row each, failed ones among them, in their order.

        Columns: `trial`, `status`, the specification (`backbone` where there are several, `cut`,
        `frozen_up_to`, `units` ...), `depth`, the metrics of the best epoch, `best_epoch`, the
        whole model's `parameters`, `flops`, `bytes` and `latency` (seconds, NaN where it was not
        measured), `trained` (parameters), `seconds` of training, and `error`. Of models that are
        shipped also `shipped_bytes` and `shipped_latency`, and of those that were exported the
        measure of the task as Keras has it and as the file has it, such as `keras_accuracy` and
        `shipped_accuracy`.
        """
        return pd.DataFrame(
            {
                "trial": trial.number,
                "status": trial.status,
                **_backbone_first(trial.spec),
                "depth": self.depths.get(trial.named_cut, float("nan")),
                **trial.metrics,
                "best_epoch": trial.fit.best_epoch if trial.fit else None,
                **asdict(trial.sizes),
                "latency": self.latencies.get(trial.named_cut, float("nan")),
                **self._shipped(trial.number),
                "trained": trial.trained,
                "seconds": trial.fit.seconds if trial.fit else float("nan"),
                "error": trial.error,
            }
            for trial in self.trials
        )

    def _shipped(self, number: int) -> dict[str, float]:
        """Return the columns of a trial that tell of its file; none where nothing is shipped."""
        if not self.files:
            return {}
        file, export = self.files.get(number), self.exports.get(number)
        told = {
            "shipped_bytes": float("nan") if file is None else file.bytes,
            "shipped_latency": float("nan") if file is None else file.latency_alone,
        }
        if export is not None and export.file.value is not None and export.keras.value is not None:
            told[f"keras_{export.measure}"] = export.keras.value
            told[f"shipped_{export.measure}"] = export.file.value
        return told

    @checked(ConfigError)
    def cost(self, trial: TrialRecord, name: str) -> float:
        """Return what the whole model of a trial costs, by the name of a column.

        Raises:
            ConfigError: Another cost, or one that was not measured.
        """
        self._check_cost(name)
        known = {**asdict(trial.sizes), **self._shipped(trial.number)}
        return self.latencies[trial.named_cut] if name == "latency" else known[name]

    def _check_cost(self, cost: str) -> None:
        if cost not in COSTS:
            raise ConfigError(
                f"Expected a cost, one of {', '.join(COSTS)}. Received: {cost!r}. "
                f"{nearest(cost, COSTS)}"
            )
        if cost == "latency" and not self.latencies:
            raise ConfigError(
                "Expected a cost that was measured. Received: 'latency', which was not measured. "
                "Ask for it with measure_latency()."
            )
        if cost.startswith("shipped_") and not self.files:
            raise ConfigError(
                f"Expected SearchConfig(ship=...), the format of files, for {cost!r}. Received: a "
                "search without."
            )

    @checked(ConfigError)
    def pareto(self, cost: str = "parameters") -> pd.DataFrame:
        """Return the completed trials that no other one beats in both the objective and a cost.

        Args:
            cost: "parameters", "flops", "bytes" or "latency"; "shipped_bytes" or "shipped_latency"
                of the file.

        Returns:
            Rows of `to_frame`, cheapest first; the objective gets better from row to row.

        Raises:
            ConfigError: Another cost, one that was not measured, or no completed trial.
        """
        self._check_cost(cost)
        if not self.completed:
            raise ConfigError(
                "Expected a completed trial. Received: none, so there is no front. See "
                "to_frame() for what went wrong."
            )
        frame = self.to_frame()
        frame = frame[frame["status"] == "completed"]
        sign = 1 if self.maximize else -1
        frame = frame.assign(_gain=sign * frame[self.objective])
        frame = frame.sort_values([cost, "_gain"], ascending=[True, False], kind="stable")
        best_before = frame["_gain"].cummax().shift(fill_value=float("-inf"))
        return frame[frame["_gain"] > best_before].drop(columns="_gain").reset_index(drop=True)


def ranked(
    trials: Iterable[TrialRecord], objective: str = "val_accuracy", maximize: bool = True
) -> list[TrialRecord]:
    """Rank completed trials by an objective; of equals, the lower loss comes first."""
    sign = -1 if maximize else 1
    return sorted(trials, key=lambda trial: (sign * trial.metrics[objective], trial.loss))


def _backbone_first(spec: TrialSpec) -> dict[str, Any]:
    values = spec.to_dict()
    return {BACKBONE: values.pop(BACKBONE), **values} if BACKBONE in values else values


def _validation(trial: TrialRecord) -> dict[str, float]:
    return {
        name.replace("val_", "validation_"): value
        for name, value in trial.metrics.items()
        if name.startswith("val_")
    }


def best_trials(folder: Path) -> list[TrialRecord]:
    """Return the completed trials of a search by its folder, the best first.

    Raises:
        ConfigError: No search is kept there.
    """
    state = read_state(folder / STATE_FILE)
    if state is None:
        raise ConfigError(f"Expected the folder of a search. Received: {str(folder)!r}.")
    records = (TrialRecord.from_dict(record) for record in state["records"])
    objective, direction = state["search"]["objective"]
    done = (record for record in records if record.status == "completed")
    return ranked(done, objective, direction == "max")


def best_before(
    start_from: AnyPath | None, folder: Path, cuts: Sequence[NamedCut]
) -> dict[NamedCut, Mapping[str, Any]]:
    """Return the best values of each cut in the search to start from, the best cut first.

    Args:
        start_from: The folder of that search; None for none.
        folder: The folder of the search that starts.
        cuts: The cuts that it searches.

    Raises:
        ConfigError: No search of these cuts is kept there, or it is the same one.
    """
    if start_from is None:
        return {}
    before = expanded(start_from, ConfigError)
    if before.resolve() == folder.resolve():
        raise ConfigError(
            "Expected start_from to be another folder than that of the search, which goes on "
            f"with its own trials. Received: {str(before)!r}."
        )
    found: dict[NamedCut, Mapping[str, Any]] = {}
    for record in best_trials(before):
        found.setdefault(record.named_cut, record.values)
    best = {one: values for one, values in found.items() if one in cuts}
    if not best:
        raise ConfigError(
            f"Expected start_from to be a search with completed trials of these cuts: "
            f"{reprlib.repr(list(map(label, cuts)))}. Received: {str(before)!r}, with trials "
            f"of {', '.join(map(label, found)) or 'none'}."
        )
    say(f"Each cut is tried first as it was best in {before}: {', '.join(map(label, best))}.")
    return best


@contextmanager
def listeners(
    trials: int | None,
    report: Callable[[TrialRecord], None] | None,
    progress: Callable[[str], None] | None,
) -> Iterator[Sequence[Callable[[Any], None]]]:
    """Yield the listeners to records and to progress: a bar where there is no other."""
    if report is not None or progress is not None:
        yield [one or (lambda told: None) for one in (report, progress)]
        return
    with counted("Trials", trials) as step:
        yield [
            lambda record: step(f"Trials (last: {record.label}, {record.status})"),
            lambda text: step(f"Trials ({text})", 0),
        ]
