"""The end of one try, and the sandbox that all tries of a campaign run in."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from reusekit.errors import ReusekitError

End = Literal["right", "refused", "wrong", "foreign", "accepted", "running", "outside"]
"""How a try ended.

"right" and "refused" (in one clear sentence) are good. "wrong" is another answer than the right
one, "foreign" an error in another's words, "accepted" nonsense that was taken, "running" a run or
process that never ends, "outside" a file touched outside its folder.
"""
GOOD = ("right", "refused")
LONGEST = 1500  # characters of a message


@dataclass(frozen=True)
class Outcome:
    """One try.

    Attributes:
        case: The letter and number of the kind of fault, such as "B1".
        end: How it ended.
        detail: A line that is enough to try it again.
    """

    case: str
    end: End
    detail: str = ""


def is_clear(message: str) -> bool:
    """Return whether a message says what was expected and what was received, and is no novel."""
    told = re.match(r"Expected .*[.?] Received: .", message, re.DOTALL)
    return told is not None and len(message) <= LONGEST


def tried(case: str, call: Callable[[], object], nonsense: bool, detail: str) -> Outcome:
    """Call once and judge the end: nonsense must be refused in one sentence of reusekit's.

    Args:
        case: As in `Outcome`.
        call: The call.
        nonsense: Whether the call must be refused; else it may return or be refused.
        detail: As in `Outcome`.
    """
    try:
        call()
    except ReusekitError as error:
        end: End = "refused" if is_clear(str(error)) else "foreign"
        return Outcome(case, end, f"{detail}: {str(error)[:200]}")
    except Exception as error:
        return Outcome(case, "foreign", f"{detail}: {type(error).__name__}: {str(error)[:200]}")
    return Outcome(case, "accepted" if nonsense else "right", detail)
