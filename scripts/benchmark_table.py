"""Measure the memory and time that a table of many rows takes, beside one of fewer.

    python scripts/benchmark_table.py --rows 100000 1000000

For each number of rows a process of its own opens the training share of a CSV or Parquet file of 20
numbers and passes over it once. Prints peak memory and seconds as JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

_BLOCK = 50_000  # rows that are written at a time
COLUMNS = [f"x{number}" for number in range(20)]


def write_table(path: Path, rows: int, kind: str) -> None:
    """Write a table of numbers with a label of three words."""
    numbers = np.random.default_rng(0)
    writer = None
    for start in range(0, rows, _BLOCK):
        count = min(_BLOCK, rows - start)
        frame = pd.DataFrame(numbers.normal(size=(count, 20)).round(6), columns=COLUMNS)
        frame["label"] = numbers.choice(["low", "middle", "high"], count)
        block = pa.Table.from_pandas(frame, preserve_index=False)
        if writer is None:
            make = pq.ParquetWriter if kind == "parquet" else pyarrow.csv.CSVWriter
            writer = make(path, block.schema)
        writer.write_table(block)
    if writer is not None:
        writer.close()


def read_table(path: Path) -> dict[str, float]:
    """Open the training share of a table, pass over it, and return its rows and what that took."""
    import reusekit as rk

    start = perf_counter()
    split = rk.data.from_table(path, "train", input=COLUMNS, label="label")
    opened = perf_counter()
    rows = sum(len(labels) for _, labels in split.batches(256))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "train": rows,
        "peak_mib": round(peak),
        "open_s": round(opened - start, 1),
        "pass_s": round(perf_counter() - opened, 1),
    }


def main() -> None:
    """Write the tables, read each in a process of its own, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", default=["csv", "parquet"])
    parser.add_argument("--read", type=Path, help="Read this one, in this process.")
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read_table(options.read)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        for kind in options.kinds:
            for rows in options.rows:
                path = Path(scratch) / f"{rows}.{kind}"
                write_table(path, rows, kind)
                found = subprocess.run(
                    [sys.executable, __file__, "--read", path],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                print(json.dumps({"kind": kind, "rows": rows} | json.loads(found.stdout)))


if __name__ == "__main__":
    main()
