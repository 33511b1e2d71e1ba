"""Parameters as MLflow takes them: text of limited length; what is longer is kept whole beside."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

FOLDER = "parameters"
"""Of the artifacts of a run, in which long parameters are kept whole."""

_LONGEST = 6000  # characters that MLflow takes
_SHOWN = 500  # characters of a longer one, which is as much as its pages show well


def file_of(name: str) -> str:
    """Return the name of the file in which a parameter is kept whole.

    Example:
        >>> file_of("search.cuts")
        'search.cuts.txt'
        >>> file_of("a/b")
        'a%2Fb.txt'
    """
    return f"{quote(name, safe=' ')}.txt"


def shortened(params: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return parameters as text that MLflow takes.

    Args:
        params: Any values.

    Returns:
        All of them, where too long a value is cut and says where the whole of it is; and those that
        were cut, whole.

    Example:
        >>> told, whole = shortened({"seed": 1, "cuts": "block " * 1001})
        >>> told["seed"], list(whole), len(whole["cuts"])
        ('1', ['cuts'], 6006)
        >>> told["cuts"][-60:]
        'block bl... (6,006 characters; whole in parameters/cuts.txt)'
    """
    texts = {name: str(value) for name, value in params.items()}
    whole = {name: text for name, text in texts.items() if len(text) > _LONGEST}
    cut = {
        name: f"{text[:_SHOWN]}... ({len(text):,} characters; whole in {FOLDER}/{file_of(name)})"
        for name, text in whole.items()
    }
    return texts | cut, whole
