"""Refusal of a built site whose pages load anything from elsewhere.

python scripts/site/offline.py site
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

_LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|<link\b(?![^>]*rel=["']?canonical)[^>]*\bhref=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|url\(["']?((?:https?:)?//[^"')\s]+)|@import\s+["']((?:https?:)?//[^"']+)""",
    re.IGNORECASE,
)


def loaded(folder: Path) -> Iterator[str]:
    """Yield each address elsewhere that a page or a style sheet loads, with its file."""
    for path in sorted([*folder.rglob("*.html"), *folder.rglob("*.css")]):
        for found in _LOADS.finditer(path.read_text("utf-8")):
            yield f"{path}: {next(filter(None, found.groups()))}"


if __name__ == "__main__":
    elsewhere = list(loaded(Path(sys.argv[1])))
    print("\n".join(elsewhere) or "No page loads anything from elsewhere.")
    sys.exit(bool(elsewhere))
