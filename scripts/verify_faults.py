"""Inject faults for real, and count how each ends: kills, bytes, links, secrets, bad input.

Each campaign is a module of `faults`; the same seed makes the same tries. Prints a table with a row
a case, then each try that did not end well. The exit code is 1 where there is any.

    python scripts/verify_faults.py                        # everything, about 20 minutes
    python scripts/verify_faults.py --campaign store --tries 50 --seed 7
"""

import reusekit  # isort: skip  # noqa: F401  (first: it starts Keras quietly)

import argparse
import sys
import tempfile
from collections import Counter
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import get_args

import faults
import numpy as np
from faults.outcome import GOOD, End, Outcome

ENDS = get_args(End)


def main() -> None:
    """Run the campaigns asked for and print the table."""
    options = parse()
    outcomes: list[Outcome] = []
    for name in options.campaign or campaigns():
        generator = np.random.default_rng(options.seed)
        module = import_module(f"faults.{name}")
        with tempfile.TemporaryDirectory(prefix=f"faults-{name}-") as folder:
            for outcome in module.run(generator, options.tries or module.TRIES, Path(folder)):
                outcomes.append(outcome)
                if outcome.end not in GOOD or options.verbose:
                    print(f"{outcome.case} {outcome.end}: {outcome.detail}", flush=True)
    print(table(outcomes))
    sys.exit(any(outcome.end not in GOOD for outcome in outcomes))


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--campaign", action="append", choices=campaigns(), metavar="NAME")
    parser.add_argument(
        "--tries", type=int, metavar="N", help="a campaign; its own number by default"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print each try")
    return parser.parse_args()


def campaigns() -> list[str]:
    """Return the names of all campaigns."""
    return sorted(
        one.name for one in iter_modules(faults.__path__) if one.name not in ("outcome", "files")
    )


def table(outcomes: list[Outcome]) -> str:
    """Return the number of tries of each case by how they ended."""
    counts: dict[str, Counter] = {}
    for outcome in outcomes:
        counts.setdefault(outcome.case, Counter())[outcome.end] += 1
    rows = [("case", "tries", *ENDS)]
    rows += [(c, sum(n.values()), *(n[end] for end in ENDS)) for c, n in sorted(counts.items())]
    total = sum(counts.values(), Counter())
    rows.append(("all", len(outcomes), *(total[end] for end in ENDS)))
    return "\n".join("  ".join(f"{cell!s:>9}" for cell in row) for row in rows)


if __name__ == "__main__":
    main()
