"""Several models trained at once on the same batches, each as it would be alone."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reusekit.errors import ReusekitError, TrainingError
from reusekit.search.traces import Trace, structure
from reusekit.training.fit import MONITORED, Fit, Stopping, best_epoch, make_variables

_UNOPTIMIZED = "disable_meta_optimizer"


@dataclass(frozen=True)
class Member:
    """One of the models that are trained together.

    Attributes:
        model: A compiled model.
        features: The name of its inputs in the batches.
        epochs: The epoch to end at, at the latest.
        callbacks: Its own Keras callbacks, called where training and each epoch begin and end, but
            not at each batch; one that sets `model.stop_training` stops it alone.
        monitored: The metric whose best epoch counts.
        maximize: Whether more of it is better.
    """

    model: keras.Model
    features: str
    epochs: int
    callbacks: Sequence[keras.callbacks.Callback] = field(default=())
    monitored: str = MONITORED
    maximize: bool = False


def fit_together(
    members: Sequence[Member],
    train: tf.data.Dataset,
    validation: tf.data.Dataset,
    *,
    initial_epoch: int = 0,
    progress: Callable[[int, int], None] = lambda epoch, active: None,
    optimized: bool = True,
) -> list[Fit | TrainingError]:
    """Train models on the same batches in one pass over them each epoch.

    Each keeps its own weights, optimizer state, rate, metrics and callbacks, and does what its own
    `train_step` says, so its numbers are those of `fit` on it alone. They share the reading of the
    data, the overhead of a step, and processor cores that the small operations of one model leave
    idle. For TensorFlow only.

    Args:
        members: Compiled models. No weight that one of them trains may belong to another.
        train: Batches of (inputs by name, labels), freshly shuffled at each pass; with weights as
            a third part where examples have some.
        validation: The same in a fixed order.
        initial_epoch: The number of the first epoch.
        progress: Called after each epoch with its number and with how many models go on.
        optimized: Whether TensorFlow optimizes the graphs of steps. Of many small heads that takes
            longer than it saves, and their numbers are the same without.

    Returns:
        The fit of each, or the reason why it came to nothing. The models hold the weights that
        their callbacks leave them with.

    Raises:
        ReusekitError: A model would train a weight that belongs to another as well.

    Example:
        >>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
        >>> batches = tf.data.Dataset.from_tensors(({"x": x}, y))
        >>> members = []
        >>> for rate in (0.1, 1.0):
        ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        ...     loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        ...     model.compile(keras.optimizers.SGD(rate), loss)
        ...     members.append(Member(model, "x", epochs=3))
        >>> [len(fit.history["val_loss"]) for fit in fit_together(members, batches, batches)]
        [3, 3]
    """
    _refuse_shared(members)
    began = perf_counter()
    batch = next(iter(validation))  # not of the training batches, whose passes are counted
    for member in members:
        make_variables(member.model, (batch[0][member.features], *batch[1:]))
    histories = [keras.callbacks.History() for _ in members]
    callbacks = [
        keras.callbacks.CallbackList([history, *member.callbacks], model=member.model)
        for member, history in zip(members, histories, strict=True)
    ]
    active = [tf.Variable(True) for _ in members]
    longest = max(member.epochs for member in members)
    stay = [_goes_to_the_end(member, initial_epoch, longest) for member in members]
    switches = [None if stays else on for stays, on in zip(stay, active, strict=True)]
    train_step = _step(members, switches, train, "train_step")
    test_step = _step(members, switches, validation, "test_step")
    for each, member in zip(callbacks, members, strict=True):
        member.model.stop_training = False
        each.on_train_begin()

    for epoch in range(initial_epoch, longest):
        going = [n for n, on in enumerate(active) if on]
        if not going:
            break
        for number in going:
            callbacks[number].on_epoch_begin(epoch)
        with nullcontext() if optimized else _unoptimized:
            logs = _pass(members, going, train_step, train, "")
            validated = _pass(members, going, test_step, validation, "val_")
        for number in going:
            member = members[number]
            callbacks[number].on_epoch_end(epoch, logs[number] | validated[number])
            if member.model.stop_training or epoch + 1 >= member.epochs:
                active[number].assign(False)
                callbacks[number].on_train_end()
        progress(epoch, sum(bool(on) for on in active))
    seconds = (perf_counter() - began) / len(members)
    return [
        _result(each.history, member, seconds)
        for each, member in zip(histories, members, strict=True)
    ]


def _result(history: dict[str, list[float]], member: Member, seconds: float) -> Fit | TrainingError:
    try:
        best = best_epoch(history, member.monitored, member.maximize)
        return Fit(history, best, seconds)
    except TrainingError as error:
        return error


def _refuse_shared(members: Sequence[Member]) -> None:
    users = Counter(id(v) for member in members for v in member.model.weights)
    for member in members:
        for variable in member.model.trainable_variables:
            if users[id(variable)] > 1:
                raise ReusekitError(
                    "Expected models that train weights of their own. Received: two with "
                    f"{variable.path!r}. Build each of them anew."
                )


def _goes_to_the_end(member: Member, initial_epoch: int, longest: int) -> bool:
    """Return whether nothing can stop a member before the others."""
    patient = (
        type(callback) is Stopping and callback.patience >= longest - initial_epoch
        for callback in member.callbacks
    )
    return member.epochs == longest and all(patient)


def _step(
    members: Sequence[Member],
    switches: Sequence[tf.Variable | None],
    batches: tf.data.Dataset,
    name: str,
) -> Callable:
    """Return one step of every member that is not switched off, compiled.

    Members of one structure share a trace of theirs.
    """
    x_spec, *told_spec = batches.element_spec
    traces: dict[Any, Trace] = {}
    calls = []
    for member in members:
        spec = (x_spec[member.features], *told_spec)
        alike = structure(member.model)
        key = id(member) if alike is None else (alike, repr(spec))
        trace = traces.get(key)
        if trace is None or not trace.shared:
            traces[key] = trace = Trace(member.model, name, spec)
        calls.append(trace.call_of(member.model))

    def step(x: Any, *told: tf.Tensor) -> None:
        for member, call, on in zip(members, calls, switches, strict=True):
            if on is None or len(members) == 1:
                call(x[member.features], *told)  # a condition would take longer to compile
            else:
                tf.cond(
                    on,
                    lambda c=call, m=member: c(x[m.features], *told),
                    lambda: tf.constant(False),
                )

    # As in Keras, whose layers need no conversion of Python's own control flow. Made concrete here,
    # since TensorFlow warns of functions that are made again and again.
    compiled = tf.function(step, input_signature=batches.element_spec, autograph=False)
    return compiled.get_concrete_function()


class _Unoptimized(AbstractContextManager):
    """Has TensorFlow run graphs as they are for as long as anybody is in it.

    The switch is one for the process: the last one out, of several threads, puts it back.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                options = tf.config.optimizer.get_experimental_options()
                self._before = options.get(_UNOPTIMIZED, False)
                tf.config.optimizer.set_experimental_options({_UNOPTIMIZED: True})
            self._inside += 1

    def __exit__(self, *_: Any) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                tf.config.optimizer.set_experimental_options({_UNOPTIMIZED: self._before})


_unoptimized = _Unoptimized()


def _pass(
    members: Sequence[Member],
    going: Sequence[int],
    step: Callable,
    batches: tf.data.Dataset,
    prefix: str,
) -> dict[int, dict[str, float]]:
    """Make one pass over the data; returns the metrics of each member that goes on."""
    for number in going:
        members[number].model.reset_metrics()
    for batch in batches:
        step(*batch)
    return {
        number: {
            prefix + name: float(np.asarray(value))
            for name, value in members[number].model.get_metrics_result().items()
        }
        for number in going
    }
