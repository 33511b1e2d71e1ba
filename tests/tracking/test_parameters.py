"""Parameters that are too long for MLflow are kept whole beside."""

from pathlib import Path

import mlflow

from reusekit.tracking import log_params


def test_a_long_parameter_is_shortened_and_kept_whole(tracking):
    cuts = [f"block{number}_out" for number in range(1000)]
    with mlflow.start_run() as run:
        log_params({"search.cuts": cuts, "odd/name": "x" * 6001, "seed": 1, "just": "y" * 6000})
    run_id = run.info.run_id
    params = tracking.get_run(run_id).data.params
    assert params["seed"] == "1"
    assert params["just"] == "y" * 6000
    assert params["search.cuts"].startswith("['block0_out', 'block1_out'")
    assert params["search.cuts"].endswith("whole in parameters/search.cuts.txt)")
    assert len(params["search.cuts"]) < 600
    (whole, odd) = sorted(
        tracking.list_artifacts(run_id, "parameters"), key=lambda file: -file.file_size
    )
    assert odd.path == "parameters/odd%2Fname.txt"
    kept = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=whole.path))
    assert kept.read_text() == str(cuts)
