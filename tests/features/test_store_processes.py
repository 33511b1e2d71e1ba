"""A store outlives the processes that use it, at whatever moment they are killed."""

import signal

import numpy as np
import pytest
from features import storing
from features.storing import BATCH, BLOCK_BYTES, KEY, SIZE, WIDTH, rows
from processes import forked

from reusekit.features import FeatureStore

SUM = WIDTH * SIZE * (SIZE - 1) // 2


def fill(store):
    runs = []

    def compute(start, stop):
        runs.append((start, stop))
        for at in range(start, stop, BATCH):
            yield rows(at)

    return store.get_or_compute(KEY, compute), runs


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "store", block_bytes=BLOCK_BYTES)


@pytest.mark.parametrize("at", [10, 150])
def test_what_a_killed_process_left_is_taken_over(at, store):
    with forked(storing.fill, store.path, "slowly") as (process, said):
        said.until(at)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert store.get(KEY) is None
    entry, runs = fill(store)
    assert np.asarray(entry["x"]).sum() == SUM
    # The batch that was asked for last is not written, and up to a block before it is lost.
    (run,) = runs
    assert run[1] == SIZE
    assert at - 20 <= run[0] <= at + 20
    assert store.verify() == {"k": 0}
    assert not list(store.path.glob("entries/*/*.part"))


def test_what_a_process_killed_within_the_manifest_left_is_removed(store):
    with forked(storing.fill, store.path, "die") as (process, _):
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert list(store.path.glob("drafts/k/manifest.json.*.part"))
    assert np.asarray(fill(store)[0]["x"]).sum() == SUM
    assert not list(store.path.rglob("*.part"))


def test_of_two_processes_one_computes_and_both_read(store):
    with (
        forked(storing.fill, store.path, "together") as (_, one),
        forked(storing.fill, store.path, "together") as (_, other),
    ):
        for said in (one, other):
            said.until("ready")
        for said in (one, other):
            said.answer()
        words = [*one.all(), *other.all()]
    assert [said for said in words if said[0] == "sum"] == [("sum", SUM)] * 2
    assert [said for said in words if said[0] == "computing"] == [("computing", 0)]


def test_what_another_process_makes_or_reads_is_not_removed_until_it_ends(store):
    with forked(storing.fill, store.path, "slowly") as (process, said):
        said.until(100)
        assert store.clear() == []
        said.until("sum")
        process.join()
    with forked(storing.fill, store.path, "hold") as (process, said):
        said.until("sum")
        assert store.clear() == []
        process.kill()
        process.join()
        assert [entry.digest for entry in store.clear()] == ["k"]


def test_a_full_disk_leaves_nothing_and_says_so(store):
    with forked(storing.fill, store.path, "full") as (_, said):
        begun, (error, message) = said.all()
    assert begun == ("computing", 0)
    assert error == "CacheError"
    assert message.startswith(
        f"Expected a feature store that can be used. Received: {store.path}: File too"
    )
    assert "its disk is not full" in message
    assert store.entries() == []
    assert not list(store.path.glob("*/k*/*"))


def test_features_larger_than_the_disk_are_refused_before_they_are_written(store, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match=r"40,000 bytes on the disk of .* Received: 1,000"):
        fill(store)
    assert store.entries() == []
