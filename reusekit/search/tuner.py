"""A tuner that runs trials together, stores what they trained, and goes on after a kill."""

import itertools
import os
import shutil
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import keras_tuner
from keras_tuner.engine import base_tuner
from keras_tuner.engine import trial as trial_module
from keras_tuner.src.engine import hypermodel as hypermodel_module
from keras_tuner.src.engine import oracle as oracle_module
from pydantic import PositiveInt

from reusekit.arguments import AnyPath, checked, expanded
from reusekit.errors import ConfigError, ReusekitError, nearest
from reusekit.exports import Figures
from reusekit.sealed_json import Encoded, encoded
from reusekit.search.config import Limits
from reusekit.search.description import description, options_as_data
from reusekit.search.execution import (
    MOST_TOGETHER,
    GroupTrainer,
    Outcome,
    QueuedTrial,
    groups,
    with_weights,
)
from reusekit.search.folder import (
    STATE_FILE,
    Checkpoints,
    folder_errors_explained,
    load,
    read_state,
    refuse_other,
    write_state,
)
from reusekit.search.hypermodel import CutHyperModel
from reusekit.search.oracle import CutGridOracle
from reusekit.search.results import Status, TrialRecord, ranked
from reusekit.search.sizes import Sizes, exceeded
from reusekit.search.space import BEFORE, FROZEN_UP_TO, NamedCut, Shape, renamed
from reusekit.workers import HERE, Workers

_PROJECT = "keras_tuner"
_LEARNING = (keras_tuner.oracles.BayesianOptimizationOracle, keras_tuner.oracles.HyperbandOracle)
# Of these no trial follows from what became of others; one of a class that derives from them may.
_INDEPENDENT = (CutGridOracle, keras_tuner.oracles.RandomSearchOracle)
_DONE = trial_module.TrialStatus.COMPLETED
_FAILED = trial_module.TrialStatus.FAILED
_UNWRITTEN = 0.01  # the share of the finished trials that a kill may cost


Report = Callable[[TrialRecord], None]
Progress = Callable[[str], None]


def _say_nothing(*told: Any) -> None:
    """Pass over what is told."""


class CutTuner(base_tuner.BaseTuner):
    """Runs the trials of a cut search, with any oracle of keras-tuner.

    It asks the oracle for several trials at a time, as many workers would, and trains those
    together that see the same examples. Of a trial nothing is stored but the weights it trained,
    and those of the best few only. After each group of trials the state of the search is written,
    so that the same search, killed and started again, goes on with what was not finished. Past 100
    finished trials it is written whenever 1 % more are finished, which is then the most that a kill
    costs: each trial takes the same time however many there are.

    Args:
        hypermodel: Knows the features and builds what trials train. Of its settings `ask`, `keep`
            and `limits` are heeded here. `ask` of None asks for what the oracle's `at_a_time()`
            says, for 1 trial if it learns, else for as many as go together; what is over the limits
            is not trained, and its trial has failed.
        oracle: Any oracle of keras-tuner; its objective is a metric that trials report.
        folder: Where the search is kept. The same search goes on with what lies there.
        fresh: Whether to discard what lies there instead.
        together: The number of trials that may be trained at a time, by where they begin and batch
            size.
        latencies: Seconds by cut, for a limit of latency; of several backbones by the pair of the
            backbone's name and the cut.
        files: Figures of whole models as files by their shapes, which limits are then about, or the
            reason why one cannot be a file.

    Attributes:
        records: The finished trials, in the order of their numbers.
        on_saved: Called when the state was written, and the folder is as it is to be kept.

    Raises:
        ConfigError: The folder holds another search, or the oracle has several objectives.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from reusekit.data.task import Task
        >>> from reusekit.search import CutSweepOracle, SearchConfig, SearchSpace, TrialData
        >>> features = {"shallow": np.zeros((8, 4)), "deep": np.eye(8)}
        >>> labels = np.arange(8)
        >>> task = Task("classification", tuple("abcdefgh"))
        >>> data = TrialData.of_arrays(features, labels, features, labels, task)
        >>> space = SearchSpace(cuts=["shallow", "deep"])
        >>> hypermodel = CutHyperModel(data, space, SearchConfig(epochs=30))
        >>> oracle = CutSweepOracle(["shallow", "deep"], max_trials=2, objective="val_accuracy")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tuner = CutTuner(hypermodel, oracle, folder)
        ...     tuner.search()
        >>> [record.cut for record in tuner.records]
        ['shallow', 'deep']
    """

    hypermodel: CutHyperModel

    @checked(ConfigError)
    def __init__(
        self,
        hypermodel: CutHyperModel,
        oracle: keras_tuner.Oracle,
        folder: AnyPath,
        *,
        fresh: bool = False,
        together: Callable[[Any, int], int] = lambda features, batch_size: MOST_TOGETHER,
        latencies: Mapping[NamedCut, float] | None = None,
        files: Mapping[Shape, Figures | str] | None = None,
    ) -> None:
        if hasattr(oracle.objective, "objectives"):
            raise ConfigError("Expected one metric as the objective. Received: several.")
        oracle.verbose = 0
        # A failed trial is recorded and the search goes on; only if all fail that is an error.
        oracle.max_consecutive_failed_trials = float("inf")
        self.folder = expanded(folder, ConfigError)
        self._file = self.folder / STATE_FILE
        state = None if fresh else read_state(self._file)
        if state is not None and BEFORE[FROZEN_UP_TO] in state["search"]["space"]:
            state = renamed(state)
        described = description(hypermodel, oracle)
        if state is not None:
            own = hypermodel.space.heads
            for name, told in (state["search"]["space"].get("heads") or {}).items():
                if isinstance(told, str):  # as it was written before
                    state["search"]["space"]["heads"][name] = options_as_data(told, own or {})
            refuse_other(state["search"], described, self.folder)
        with folder_errors_explained(self.folder):
            if fresh:
                self._file.unlink(missing_ok=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob("*.part"):  # of a process that was killed while it wrote
                left.unlink()
            checkpoints = Checkpoints(self.folder / "weights")
        # keras-tuner would write all of the oracle at each trial, and look at all trials.
        oracle.save = oracle._save_trial = oracle._check_consecutive_failures = _say_nothing
        project = self.folder / _PROJECT
        if project.is_symlink():
            project.unlink()
        shutil.rmtree(project, ignore_errors=True)
        super().__init__(
            oracle, hypermodel, directory=os.fspath(self.folder), project_name=_PROJECT
        )
        self.records: list[TrialRecord] = []
        self._described = described
        self._checkpoints = checkpoints
        self._written = 0  # how many records are in the file
        # Trials as they are written, by what they were then, and records.
        self._told: tuple[dict[str, tuple[str, Encoded]], dict[int, Encoded]] = {}, {}
        self._leading: list[TrialRecord] = []
        self._together, self._latencies, self._files = together, latencies or {}, files or {}
        self._report: Report = _say_nothing
        self._unfinished = 0
        self._directions: dict[str, str] = {}  # of metrics; keras-tuner makes one to find it out
        self._askers = itertools.count()  # one that has no trial yet, or it is told its own again
        self.on_saved: Callable[[], None] = lambda: None
        if state is not None:
            self._restore(state)
        self._checkpoints.keep([record.number for record in self._best()])

    def _populate_initial_space(self) -> None:
        """Tell the oracle the space; keras-tuner builds a model for each condition in it."""
        hypermodel = self.hypermodel
        self.hypermodel = hypermodel_module.get_hypermodel(hypermodel.spec)
        super()._populate_initial_space()
        self.hypermodel = hypermodel

    def _how_many(self) -> int:
        """Return the number of trials to ask for now."""
        if self._unfinished:
            # They come first, and alone: further ones follow from what becomes of these.
            unfinished, self._unfinished = self._unfinished, 0
            return unfinished
        if self.hypermodel.config.ask is not None:
            return self.hypermodel.config.ask
        if hasattr(self.oracle, "at_a_time"):
            return self.oracle.at_a_time()
        return 1 if isinstance(self.oracle, _LEARNING) else MOST_TOGETHER

    def search(
        self,
        report: Report = _say_nothing,
        progress: Progress = _say_nothing,
        workers: Workers = HERE,
    ) -> None:
        """Run trials until the oracle has no more.

        Args:
            report: Called with the record of each trial, once, when it is finished.
            progress: Called after each epoch of trials that are trained here with a text.
            workers: Where groups of trials are trained. The oracle hears of them in one order,
                wherever that is.

        Raises:
            ConfigError: The objective is none of the metrics that trials report.
            ReusekitError: Every trial failed; the first cause is named.
        """
        self._report = report
        try:
            trainer = GroupTrainer(self.hypermodel, self.oracle.objective, progress)
            while trials := self._next_trials():
                self._run(trials, trainer, workers)
            if self._written < len(self.records):
                self._save()
        finally:
            self._report = _say_nothing
            for held in (oracle_module.LOCKS, oracle_module.THREADS):
                held.pop(self.oracle, None)  # keras-tuner keeps it for good, with all trials
        failed = [record for record in self.records if record.status != "completed"]
        if self.records and len(failed) == len(self.records):
            raise ReusekitError(
                f"Expected a trial that can be trained. Received: {len(failed)} that failed. Mend "
                f"what the first says: {failed[0].error}"
            )

    def _next_trials(self) -> dict[str, QueuedTrial]:
        """Return the next trials of the oracle, by number."""
        found: dict[str, QueuedTrial] = {}
        for _ in range(self._how_many()):
            trial = self.oracle.create_trial(f"worker{next(self._askers)}")
            if trial.status != trial_module.TrialStatus.RUNNING:
                break
            values = trial.hyperparameters.values
            before = values.get("tuner/trial_id")  # Hyperband goes on with an earlier trial
            found[trial.trial_id] = QueuedTrial(
                number=int(trial.trial_id),
                spec=self.hypermodel.spec(trial.hyperparameters),
                epochs=values.get("tuner/epochs", self.hypermodel.config.epochs),
                initial_epoch=values.get("tuner/initial_epoch", 0),
                weights=None if before is None else self._sound_weights(int(before)),
            )
        return found

    def _run(self, trials: dict[str, QueuedTrial], trainer: GroupTrainer, workers: Workers) -> None:
        """Run trials in groups, and those that follow from none of them; then write the state."""
        numbered: dict[int, tuple[str, QueuedTrial]] = {}
        ended: list[list[TrialRecord]] = []  # of each group, those that are not trained

        def allowed() -> Iterator[list[QueuedTrial]]:
            coming, count = trials, workers.count
            while coming:
                numbered.update({one.number: (trial_id, one) for trial_id, one in coming.items()})
                listed = list(coming.values())
                for group in groups(listed, self.hypermodel, self._together, count):
                    over = [self._over_the_limit(one, numbered[one.number][0]) for one in group]
                    ended.append([record for record in over if record is not None])
                    left = [one for one, record in zip(group, over, strict=True) if record is None]
                    yield left if workers is HERE else list(map(with_weights, left))
                coming = self._next_trials() if type(self.oracle) in _INDEPENDENT else {}

        for outcomes in workers.map(trainer, allowed()):
            for record in ended.pop(0):
                self._end(numbered[record.number][0], record)
            for outcome in outcomes:
                trial_id, trial = numbered[outcome.number]
                record = self._record(outcome, trial, trial_id)
                if outcome.error is None and self._leads(record):
                    digest = self._checkpoints.save(record.number, outcome.weights)
                    record = replace(record, weights=digest)
                self._end(trial_id, record)
            if len(self.records) - self._written > _UNWRITTEN * self._written:
                self._save()

    def _over_the_limit(self, trial: QueuedTrial, trial_id: str) -> TrialRecord | None:
        limits, file = self.hypermodel.config.limits, self._files.get(trial.spec.shape)
        sizes = Sizes()
        if isinstance(file, str):
            why = file
        else:
            if limits == Limits():
                return None
            try:
                model = self.hypermodel.build_for(trial.spec)
            except Exception:  # it will fail again, and be recorded, where it is run
                return None
            sizes = self.hypermodel.counters[trial.spec.backbone].whole(trial.spec, model)
            over = exceeded(limits, sizes, self._latencies.get(trial.spec.named_cut), file)
            if over is None:
                return None
            _, why = over
        values = dict(self.oracle.get_trial(trial_id).hyperparameters.values)
        return TrialRecord(
            trial.number, trial.spec, values, "over the limit", sizes=sizes, error=why
        )

    def _record(self, outcome: Outcome, trial: QueuedTrial, trial_id: str) -> TrialRecord:
        values = dict(self.oracle.get_trial(trial_id).hyperparameters.values)
        status: Status = "completed" if outcome.error is None else "failed"
        objective = self.oracle.objective.name
        if outcome.fit is not None and objective not in outcome.fit.metrics:
            raise ConfigError(
                "Expected the objective to be a metric that trials report. Received: "
                f"{objective!r}. {nearest(objective, outcome.fit.metrics)}"
            )
        told = outcome.fit, outcome.sizes, outcome.trained, outcome.error
        return TrialRecord(trial.number, trial.spec, values, status, *told)

    def _end(self, trial_id: str, record: TrialRecord) -> None:
        """Tell the oracle, and whoever watches."""
        trial = self.oracle.get_trial(trial_id)
        if record.status == "completed" and record.fit is not None:
            told = trial.metrics
            for name in record.metrics:
                if name in self._directions and not told.exists(name):
                    told.register(name, self._directions[name])
            self.oracle.update_trial(trial_id, record.metrics, step=record.fit.best_epoch)
            self._directions.update({name: told.get_direction(name) for name in record.metrics})
            trial.status = _DONE
        else:
            trial.status, trial.message = _FAILED, record.error
        self.oracle.end_trial(trial)
        insort(self.records, record, key=lambda one: one.number)
        self._report(record)

    @checked(ConfigError)
    def keeps(self, number: int) -> bool:
        """Return whether the weights that a trial has trained are in the folder."""
        return self._checkpoints.file(number).exists()

    def _best(self) -> list[TrialRecord]:
        """Return the trials whose weights are kept: the best, and those Hyperband may resume."""
        if isinstance(self.oracle, keras_tuner.oracles.HyperbandOracle):
            return self._ranked()
        return self._leading

    def _leads(self, record: TrialRecord) -> bool:
        """Take a completed trial among the best, and return whether its weights are kept."""
        if isinstance(self.oracle, keras_tuner.oracles.HyperbandOracle):
            return True
        found = self._ordered(sorted([*self._leading, record], key=lambda one: one.number))
        self._leading = found[: self.hypermodel.config.kept]
        return record in self._leading

    def _ranked(self) -> list[TrialRecord]:
        return self._ordered(record for record in self.records if record.status == "completed")

    def _ordered(self, completed: Iterable[TrialRecord]) -> list[TrialRecord]:
        objective = self.oracle.objective
        return ranked(completed, objective.name, objective.direction == "max")

    def _save(self) -> None:
        """Write the state, and drop the weights that it has no use for."""
        oracle, (trials, records) = self.oracle.get_state(), self._told
        space = oracle["hyperparameters"]["space"]
        for trial_id, trial in self.oracle.trials.items():
            if trials.get(trial_id, (None,))[0] != trial.status:
                told = trial.get_state()
                if told["hyperparameters"]["space"] == space:
                    del told["hyperparameters"]["space"]
                trials[trial_id] = trial.status, encoded(told)
        for record in self.records:
            if record.number not in records:
                records[record.number] = encoded(record.to_dict())
        write_state(
            self._file,
            {
                "search": self._described,
                "oracle": oracle,
                "trials": {trial_id: trials[trial_id][1] for trial_id in self.oracle.trials},
                "records": [records[record.number] for record in self.records],
            },
        )
        self._written = len(self.records)
        self._checkpoints.keep([record.number for record in self._best()])
        self.on_saved()

    def _restore(self, state: dict[str, Any]) -> None:
        """Go on where the file says, as if keras-tuner itself had left it."""
        oracle = self.oracle
        space = state["oracle"]["hyperparameters"]["space"]
        for trial_id, told in state["trials"].items():
            # A copy for each, since keras-tuner puts its own objects in the place of what it reads.
            told["hyperparameters"].setdefault("space", deepcopy(space))
            oracle.trials[trial_id] = trial_module.Trial.from_state(told)
        oracle.set_state(state["oracle"])
        oracle._retry_queue += [trial.trial_id for trial in oracle.ongoing_trials.values()]
        oracle.ongoing_trials = {}
        if isinstance(oracle, keras_tuner.oracles.GridSearchOracle):
            # It does not write down which combinations it has tried.
            for before, trial_id in itertools.pairwise([None, *oracle.start_order]):
                oracle._ordered_ids.insert(trial_id, before)
            oracle._populate_next = list(oracle.end_order)
        self._unfinished = len(oracle.trials) - len(oracle.end_order)
        self.records = [TrialRecord.from_dict(record) for record in state["records"]]
        self._leading = self._ranked()[: self.hypermodel.config.kept]
        self._written = len(self.records)

    @checked(ConfigError)
    def get_best_models(self, num_models: PositiveInt = 1) -> list[keras.Model]:
        """Return the models of the best trials, in the order of `ranked`."""
        return [self.trained(record.number) for record in self._ranked()[:num_models]]

    @checked(ConfigError)
    def get_best_hyperparameters(
        self, num_trials: PositiveInt = 1
    ) -> list[keras_tuner.HyperParameters]:
        """Return the hyperparameters of the best trials, in the order of `ranked`."""
        trials = {int(trial_id): trial for trial_id, trial in self.oracle.trials.items()}
        return [trials[record.number].hyperparameters for record in self._ranked()[:num_trials]]

    def load_model(self, trial: trial_module.Trial) -> keras.Model:
        """Return a finished trial's trained part with its weights, if among the best."""
        return self.trained(int(trial.trial_id))

    @checked(ConfigError)
    def trained(self, number: int) -> keras.Model:
        """Return a finished trial's trained part, from the features to the outputs.

        Raises:
            ReusekitError: Its weights were not kept, or are damaged.
        """
        record = next((one for one in self.records if one.number == number), None)
        if record is None or not self.keeps(number):
            best = [one.number for one in self._best() if self.keeps(one.number)]
            kept = ", ".join(map(str, best))
            raise ReusekitError(
                f"Expected a trial whose weights are kept: {kept or 'none'}. Received: {number}. "
                "Keep more of them with keep=."
            )
        model = self.hypermodel.build_for(record.spec)
        load(model, self._sound_weights(number))
        return model

    def _sound_weights(self, number: int) -> Path:
        """Return the file of what a finished trial trained, compared with the trial's record."""
        record = next((one for one in self.records if one.number == number), None)
        return self._checkpoints.sound(number, record.weights if record else None)
