"""One linear classifier on the features of several cuts."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import keras
from keras import layers

from reusekit.arguments import checked
from reusekit.errors import HeadError
from reusekit.training.heads.dense import Classifier
from reusekit.training.heads.head import Classes, Features, Head
from reusekit.training.heads.pooling import Pooling, pool


@checked(HeadError)
@dataclass(frozen=True)
class Multitap(Head):
    """A linear classifier on the features of several cuts at once, as `rk.extract` gives them.

    Each cut's features are pooled, brought to mean 0 and variance 1 in each example, and put side
    by side. An earlier layer may still have what the last one of a backbone has lost. After
    Head2Toe (Evci et al., ICML 2022), without its selection of features.

    Args:
        classes: The number of classes to tell apart. Labels are their numbers, from 0.
        logits: Whether to give logits rather than probabilities; the loss then takes them.
        pooling: As of `Classifier`, for each cut.
        name: The name of the head; its layers' names begin with it.

    Raises:
        HeadError: Fewer than two classes, or an unknown pooling.

    Example:
        >>> import reusekit as rk
        >>> backbone = rk.load_backbone("reusekit/glyphnet", weights=None).model
        >>> taps = rk.extract(backbone, ["block2_out", "block4_out", "block7_out"])
        >>> model = rk.attach(taps, rk.heads.Multitap(classes=10))
        >>> model.get_layer("head_features").output.shape
        (None, 144)
        >>> model.output_shape
        (None, 10)
    """

    classes: Classes
    _: KW_ONLY
    logits: bool = False
    pooling: Pooling = "avg"

    @property
    def compile_args(self) -> dict[str, Any]:
        """Those of a classifier."""
        return Classifier(self.classes, logits=self.logits).compile_args

    @checked(HeadError)
    def connect(self, features: Features) -> keras.KerasTensor:
        """Call the head's layers on the features of one or several cuts; see `Head.connect`."""
        head = Classifier(self.classes, logits=self.logits, name=self.name)
        return head.connect(self._joined(features))

    def _joined(self, features: Any) -> keras.KerasTensor:
        """Return all features, pooled and normalized for each cut, side by side.

        Unit norm, as in the paper, would leave the features of a wide cut so small that training
        takes ten times as long.
        """
        taps = []
        for number, tap in enumerate(keras.tree.flatten(features)):
            name = f"{self.name}_tap_{number}"
            vector = pool(tap, self.pooling, name)
            normalization = layers.LayerNormalization(
                center=False, scale=False, name=f"{name}_normalization"
            )
            taps.append(normalization(vector))
        if len(taps) == 1:
            return taps[0]
        return layers.Concatenate(name=f"{self.name}_features")(taps)
