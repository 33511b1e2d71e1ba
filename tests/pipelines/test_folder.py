"""A folder of one's own pictures, from a configuration file to a registered model."""

import mlflow
import numpy as np
from PIL import Image

SUFFIXES = ("jpg", "png", "gif", "bmp", "webp", "tiff")


def photos(folder):
    """200 pictures of stripes, each of another size, kind and colours."""
    numbers = np.random.default_rng(0)
    for number in range(200):
        name = ("across", "upright")[number % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        height, width = numbers.integers(24, 48, 2)
        rows, columns = np.indices((height, width)) // 5 % 2
        grey = (
            (rows, columns)[number % 2] * 160 + numbers.integers(0, 90, (height, width))
        ).astype("uint8")
        image = Image.fromarray(grey).convert(("L", "RGB", "P", "RGBA")[number % 4])
        suffix = SUFFIXES[number % len(SUFFIXES)]
        if suffix == "jpg":
            image = image.convert("RGB")
        image.save(folder / name / f"{number}.{suffix}")
    (folder / "across" / "notes.txt").write_text("taken in May")
    return folder


def test_a_folder_of_many_kinds_of_pictures_ends_in_a_registered_model(
    run_pipeline, tracking, tmp_path, capsys
):
    folder = photos(tmp_path / "photos")
    before = sorted(folder.rglob("*"))
    (tmp_path / "photos.yaml").write_text(
        """
data:
  folder: photos
  shares: {train: 0.5, validation: 0.25, test: 0.25}
  skip_unreadable: true
search: {max_cuts: 1, max_trials: 1, epochs: 4}
finetune: {share: 0, epochs: 1}
tracking: {model: stripes}
"""
    )
    run_pipeline("cut_search", "--config=photos.yaml")
    assert sorted(folder.rglob("*")) == before
    said = capsys.readouterr().err
    assert said.splitlines()[0] == "Data set photos"
    assert "notes.txt (text, and no picture)" in said
    assert mlflow.keras.load_model("models:/stripes@champion").output_shape == (None, 2)
    version = tracking.get_model_version_by_alias("stripes", "champion")
    run = tracking.get_run(version.run_id)
    assert run.data.metrics["test_accuracy"] > 0.7
    contexts = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    assert set(contexts) == {"training", "validation", "test"}
    assert {one.source_type for one in contexts.values()} == {"folder"}
    recorded = next(one for one in run.inputs.dataset_inputs if one.tags[0].value == "training")
    again = mlflow.data.get_source(recorded).load_split(path=folder)
    assert again.fingerprint == contexts["training"].digest == version.tags["reusekit.data"]
