"""Two processes that promote version 2 and version 3 of each name at the same moment.

python promoting.py NAME ...    prints what became of each as JSON: {name: {candidate: what}}
"""

import json
import multiprocessing
import sys

import reusekit as rk
from reusekit.tracking import promote


def work(candidate: int, names: list[str], together, results) -> None:
    """Promote one candidate of each name, once the other process is ready to do so, too."""
    for name in names:
        together.wait()
        try:
            promote(name, "champion", candidate, champion=1, why="it was told to")
            results.put((name, candidate, "promoted"))
        except rk.TrackingError as error:
            results.put((name, candidate, str(error)))


def main(names: list[str]) -> None:
    # Forked before any database is opened, so that the libraries are imported only once.
    processes = multiprocessing.get_context("fork")
    together, results = processes.Barrier(2), processes.SimpleQueue()
    workers = [
        processes.Process(target=work, args=(candidate, names, together, results))
        for candidate in (2, 3)
    ]
    for worker in workers:
        worker.start()
    said = {name: {} for name in names}
    for _ in range(2 * len(names)):
        name, candidate, what = results.get()
        said[name][candidate] = what
    for worker in workers:
        worker.join()
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1:])
