"""The benchmark of tables, on a few rows."""

import json
import sys

import benchmark_table


def test_a_table_is_written_and_read_in_this_process(monkeypatch, capsys, tmp_path):
    for kind in ("csv", "parquet"):
        path = tmp_path / f"rows.{kind}"
        benchmark_table.write_table(path, 300, kind)
        monkeypatch.setattr(sys, "argv", ["benchmark_table.py", f"--read={path}"])
        benchmark_table.main()
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert told["train"] == 210 and told["peak_mib"] > 0
