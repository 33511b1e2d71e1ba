"""Put a head on a bottom."""

import keras

from reusekit.errors import SurgeryError
from reusekit.surgery import prepend


def attach(bottom: keras.Model, head: keras.Model) -> keras.Model:
    """Join a bottom and a head into one model, flat, sharing the weights of both.

    Every layer of the two keeps its name as its address, so that the result can be cut again
    anywhere, and a saved copy needs nothing but Keras.

    Args:
        bottom: From input to features.
        head: From features to predictions, such as `rk.heads.classifier` makes.

    Returns:
        A model from the bottom's input to the head's output.

    Raises:
        SurgeryError: The bottom's output is not what the head takes.

    Example:
        >>> import reusekit as rk
        >>> bottom = rk.load_backbone("reusekit/glyphnet", weights=None).model
        >>> head = rk.heads.classifier(bottom.output_shape[1:], classes=10)
        >>> rk.attach(bottom, head).output_shape
        (None, 10)
    """
    made, taken = bottom.output_shape, head.input_shape
    fits = (
        isinstance(made, tuple)
        and len(made) == len(taken)
        and all(m is None or t is None or m == t for m, t in zip(made[1:], taken[1:], strict=True))
    )
    if not fits:
        raise SurgeryError(
            f"The head {head.name!r} takes {taken}. Received a bottom whose output is {made}."
        )
    return prepend(head, bottom)
