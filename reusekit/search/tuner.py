"""A tuner whose trials train a head on features and store nothing but that head."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import keras
import keras_tuner
from keras_tuner.engine import base_tuner
from keras_tuner.engine import trial as trial_module

from reusekit.search.hypermodel import CutHyperModel
from reusekit.search.results import TrialRecord
from reusekit.search.space import CUT

Report = Callable[[TrialRecord], None]


@contextmanager
def unwatched(number: int, values: Mapping[str, Any]) -> Iterator[Report]:
    """Watches nothing."""
    yield lambda record: None


class CutTuner(base_tuner.BaseTuner):
    """Runs the trials of a cut search in this process.

    Nothing of a trial goes into keras-tuner's checkpoints but the head it trained: the backbone is
    the same for all of them.

    Args:
        hypermodel: Knows the features and builds the heads.
        oracle: Any oracle of keras-tuner; its objective is one of `val_accuracy`, `val_loss`.
        directory: Where the trials are kept, in `trials`; what lies there from before is erased.
        watch: Entered around each trial with its number and hyperparameters; what it yields is
            called with the record of the finished trial.

    Attributes:
        records: The finished trials, in order.
        failures: What the others raised, in order. A failed trial does not end the search; three
            in a row do.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from reusekit.search import CutSweepOracle, SearchSpace, TrialData
        >>> features = {"shallow": np.zeros((8, 4)), "deep": np.eye(8)}
        >>> labels = np.arange(8)
        >>> data = TrialData(features, labels, features, labels, classes=8)
        >>> hypermodel = CutHyperModel(data, SearchSpace(cuts=["shallow", "deep"]), epochs=30)
        >>> oracle = CutSweepOracle(["shallow", "deep"], max_trials=2, objective="val_accuracy")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tuner = CutTuner(hypermodel, oracle, folder)
        ...     tuner.search()
        >>> [record.cut for record in tuner.records]
        ['shallow', 'deep']
    """

    def __init__(
        self,
        hypermodel: CutHyperModel,
        oracle: keras_tuner.Oracle,
        directory: str | os.PathLike,
        watch: Callable[[int, Mapping[str, Any]], AbstractContextManager[Report]] = unwatched,
    ) -> None:
        oracle.verbose = 0
        super().__init__(
            oracle,
            hypermodel,
            directory=os.fspath(directory),
            project_name="trials",
            overwrite=True,
        )
        self.records: list[TrialRecord] = []
        self.failures: list[Exception] = []
        self._watch = watch

    def run_trial(self, trial: trial_module.Trial, *args: object, **kwargs: object) -> dict:
        """Train the head that this trial asks for; returns its metrics at the best epoch."""
        hp = trial.hyperparameters
        number = int(trial.trial_id)
        try:
            with self._watch(number, hp.values) as report:
                head = self.hypermodel.build(hp)
                fit = self.hypermodel.train(hp, head)
                self.save_model(trial.trial_id, head)
                record = TrialRecord(number, hp.get(CUT), dict(hp.values), fit, head.count_params())
                self.records.append(record)
                report(record)
        except Exception as error:
            self.failures.append(error)  # keras-tuner keeps the trial and drops the exception
            raise
        return fit.metrics

    def save_model(self, trial_id: str, model: keras.Model, step: int = 0) -> None:
        """Keep a trained head."""
        self._head_file(trial_id).parent.mkdir(parents=True, exist_ok=True)
        model.save_weights(self._head_file(trial_id))

    def load_model(self, trial: trial_module.Trial) -> keras.Model:
        """The trained head of a finished trial."""
        head = self.hypermodel.build(trial.hyperparameters)
        head.load_weights(self._head_file(trial.trial_id))
        return head

    def _head_file(self, trial_id: str) -> Path:
        return Path(self.get_trial_dir(trial_id)) / "head.weights.h5"
