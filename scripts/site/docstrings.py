"""An extension of Griffe that has `Example:` of a docstring shown as code."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Read `Example:`, a free heading to Griffe, as its section `Examples:`."""

    def on_instance(self, *, obj: griffe.Object, **given: Any) -> None:
        """Rename the heading where an object's docstring has one."""
        if obj.docstring is not None:
            said = obj.docstring.value
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", said, flags=re.MULTILINE)
