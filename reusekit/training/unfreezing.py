"""Gradual unfreezing: training begins at the top and takes in one block after another."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import keras
from pydantic import NonNegativeInt, PositiveInt

from reusekit.arguments import checked
from reusekit.errors import TrainingError
from reusekit.graph import Graph, cut_points, keras_internals, read
from reusekit.graph.addresses import At
from reusekit.training.freezing import BatchNorm, FrozenPart
from reusekit.training.frozen_state import Freezing


class GradualUnfreezing(keras.callbacks.Callback):
    """A callback that freezes less and less of a model as epochs go by.

    The number of the epoch alone decides what is frozen, so that training which `BackupAndRestore`
    resumes goes on as it would have gone on. Only where another part becomes trainable is the
    training function made anew. The model is not compiled again, and the optimizer goes on with its
    momentum: it is built, before the first step, for all the weights that will be trained in the
    end.

    The idea is that of ULMFiT (Howard and Ruder, 2018, https://arxiv.org/abs/1801.06146).

    Args:
        stages: From the epoch at which it begins (the first is 0) to the cut up to which the model
            is frozen from then on: what `up_to` takes in `freeze`, with None for nothing. Each
            stage freezes less than the one before.
        batch_norm: As for `freeze`.
        layers: Layers that stay frozen throughout, as for `freeze`.

    Attributes:
        state: The `Freezing` of the present stage; None before training.

    Raises:
        TrainingError: No stage begins at epoch 0, or an epoch is no number; and, when `fit` is
            called, before anything is changed: a stage freezes what the one before did not, the
            optimizer has been built without a weight that will be trained, or the backend is JAX,
            whose optimizers train all their weights or none.
        AddressError: When `fit` is called: a stage names no tensor of the model.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> y = keras.layers.Dense(3, name="a")(x)
        >>> y = keras.layers.Dense(3, name="b")(y)
        >>> model = keras.Model(x, keras.layers.Dense(1, name="head")(y), name="m")
        >>> model.compile("adam", "mse")
        >>> unfreezing = GradualUnfreezing({0: "b", 2: "a", 4: None})
        >>> data = keras.ops.ones((8, 4)), keras.ops.ones((8, 1))
        >>> history = model.fit(*data, epochs=3, verbose=0, callbacks=[unfreezing])
        >>> [layer.name for layer in model.layers if layer.weights and layer.trainable]
        ['b', 'head']
    """

    @checked(TrainingError)
    def __init__(
        self,
        stages: Mapping[NonNegativeInt, At],
        batch_norm: BatchNorm = "frozen",
        layers: Any = None,
    ):
        super().__init__()
        if 0 not in stages:
            raise TrainingError(
                "Expected stages from the epochs at which they begin, 0 among them, to cuts, such "
                f"as {{0: 'block4', 3: 'block2', 6: None}}. Received: {stages!r}"
            )
        self.stages = dict(sorted(stages.items()))
        self.batch_norm = batch_norm
        self.layers = layers
        self.state: Freezing | None = None
        self._parts: dict[int, FrozenPart] = {}

    @classmethod
    @checked(TrainingError)
    def evenly(
        cls,
        model: keras.Model | Graph,
        blocks: PositiveInt,
        every: PositiveInt,
        batch_norm: BatchNorm = "frozen",
        layers: Any = None,
    ) -> "GradualUnfreezing":
        """Begin with the last clean cut and take in equal shares of the model's FLOPs.

        Args:
            model: The model that will be trained.
            blocks: The number of times to take in a block; after the last, nothing is frozen.
            every: After how many epochs to take in the next.
            batch_norm: As for `freeze`.
            layers: Layers that stay frozen throughout, as for `freeze`.

        Returns:
            The callback. Its `stages` tell which cuts were chosen.

        Raises:
            TrainingError: The model has fewer clean cuts than that.

        Example:
            >>> x = y = keras.Input((8,), name="x")
            >>> for number in range(8):
            ...     y = keras.layers.Dense(8, name=f"dense{number}")(y)
            >>> GradualUnfreezing.evenly(keras.Model(x, y), blocks=3, every=2).stages
            {0: 'dense6', 2: 'dense4', 4: 'dense1', 6: None}
        """
        points = list(cut_points(model))
        if len(points) < blocks:
            raise TrainingError(
                f"Expected blocks to be at most {len(points)}, the number of clean cuts. Received: "
                f"{blocks!r}."
            )
        chosen = [points.pop()]
        for number in range(1, blocks):
            # As many must be left as there are still to be chosen.
            wanted = chosen[0].depth * (1 - number / blocks)
            left = points[blocks - number - 1 :]
            point = min(left, key=lambda point: abs(point.depth - wanted))
            chosen.append(point)
            del points[points.index(point) :]
        stages = {number * every: point.at for number, point in enumerate(chosen)}
        return cls({**stages, blocks * every: None}, batch_norm, layers)

    def set_model(self, model: keras.Model) -> None:
        """See to it that every stage can be reached, before any callback hears that it begins."""
        super().set_model(model)
        graph = read(model)
        parts = {
            epoch: FrozenPart(graph, at, self.batch_norm, self.layers)
            for epoch, at in self.stages.items()
        }
        self._check_order(parts)
        if keras.backend.backend() == "jax":
            raise TrainingError(
                "Expected a backend whose optimizers can train some of the weights they know. "
                "Received: JAX. Call freeze, compile and fit for each stage."
            )
        *_, last = parts.values()
        if not model.optimizer.built:
            # Keras would build it for what is trained first.
            model.optimizer.build(last.to_train())
        self._check_optimizer(last.to_train())
        self._parts = parts

    def on_train_begin(self, logs: Any = None) -> None:
        """Forget the stage of an earlier fit."""
        self.state = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Freeze what the stage of this epoch says, where that has changed."""
        begun = max(start for start in self._parts if start <= epoch)
        part = self._parts[begun]
        part.apply()
        state = part.report()
        # The function of an earlier fit may have been made for other weights.
        if state != self.state:
            self.model.make_train_function(force=True)
        self.state = state

    def _check_order(self, parts: dict[int, FrozenPart]) -> None:
        for earlier, later in pairwise(parts):
            more = parts[later].frozen.keys() - parts[earlier].frozen.keys()
            if more:
                name = parts[later].frozen[more.pop()].name
                raise TrainingError(
                    "Expected each stage to freeze less than the one before. Received: "
                    f"{self.stages[earlier]!r} from epoch {earlier} and {self.stages[later]!r} "
                    f"from epoch {later}, which would freeze {name!r} again."
                )

    def _check_optimizer(self, to_train: list[keras.Variable]) -> None:
        optimizer = self.model.optimizer
        known = {id(variable) for variable in keras_internals.variables_of(optimizer)}
        missing = [variable.path for variable in to_train if id(variable) not in known]
        if missing:
            raise TrainingError(
                f"Expected an optimizer that knows every weight that will be trained. Received: "
                f"{optimizer.name!r}, which was made for the weights that were trainable at the "
                f"time and lacks {len(missing)}, such as {missing[0]!r}. Compile the model with a "
                "new optimizer."
            )
