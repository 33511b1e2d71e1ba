"""A bottom and a head in one model."""

from typing import Annotated, Any

import keras
from pydantic import Field

from reusekit.arguments import checked
from reusekit.errors import HeadError, SurgeryError
from reusekit.graph import may_agree, read
from reusekit.graph.addresses import At
from reusekit.graph.padding_mask import AUTO
from reusekit.surgery import prepend
from reusekit.training.heads import Head

AnyHead = Annotated[
    Head | keras.Model,
    Field(
        description="what rk.heads makes, such as rk.heads.Classifier(10), or a keras.Model",
    ),
]


@checked(HeadError)
def attach(bottom: keras.Model, head: AnyHead, mask: At = AUTO) -> keras.Model:
    """Join a bottom and a head into one model, not nested, sharing the weights of both.

    Every layer of the two keeps its address, so that the result can be cut again
    anywhere, and a saved copy needs nothing but Keras.

    Args:
        bottom: From input to features.
        head: A head of `rk.heads`, which is then built with new weights for the bottom's features;
            or a model from features to predictions, such as a head that was built and trained.
        mask: The positions of the features that the head's pooling passes over, as for
            `rk.extract`. A part that ends before any layer is told has the mask of its whole in
            this process; a saved one does not know it, and where an input may be the mask a warning
            says so. A head that is a model is called on the features as Keras would call it.

    Returns:
        A model from the bottom's input to the head's output, to be compiled with the head's loss
        and metrics, `head.compile_args`.

    Raises:
        HeadError: No head, or one that cannot take the bottom's features.
        SurgeryError: The features are not what the head was built for.
        NoGraphError: The bottom has no functional graph.

    Example:
        >>> import reusekit as rk
        >>> bottom = rk.load_backbone("reusekit/glyphnet", weights=None).model
        >>> head = rk.heads.Classifier(classes=10)
        >>> model = rk.attach(bottom, head)
        >>> model.output_shape
        (None, 10)
        >>> model.compile("adam", **head.compile_args)
    """
    if isinstance(head, Head):
        return head.attach_to(bottom, mask)
    made, taken = read(bottom).output_structure, read(head).input_structure
    tensors = keras.tree.flatten(made), keras.tree.flatten(taken)
    fits = len(tensors[0]) == len(tensors[1]) and all(
        may_agree(one.shape, other.shape) for one, other in zip(*tensors, strict=True)
    )
    if not fits:
        raise SurgeryError(
            f"Expected a bottom whose output is {_shapes(taken)}, as the head {head.name!r} takes "
            f"it. Received: {_shapes(made)}."
        )
    return prepend(head, bottom, name=f"{bottom.name}_{head.name}")


def _shapes(structure: Any) -> Any:
    return keras.tree.map_structure(lambda tensor: tensor.shape, structure)
