"""A store outlives the processes that use it, at whatever moment they are killed."""

import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from reusekit.features import FeatureKey, FeatureStore

SIZE, WIDTH, BATCH = 400, 25, 10
KEY = FeatureKey("k", ("x",), SIZE)
SHARD_BYTES = 20 * WIDTH * 4

# What a child does is its arguments' choice; a line of output says how far it is.
CHILD = """
import glob, os, resource, signal, sys, time
import numpy as np
from reusekit.features import FeatureKey, FeatureStore

path, doing, size, width, batch, shard_bytes = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])

def compute(start, stop):
    print("computing", start, flush=True)
    for at in range(start, stop, batch):
        if doing == "slowly":
            time.sleep(0.02)
            print(at, flush=True)
        rows = np.arange(at, at + batch, dtype="float32")
        yield {"x": np.tile(rows[:, None], (1, width))}

store = FeatureStore(path, shard_bytes=shard_bytes)
if doing == "die":
    fsync = os.fsync
    def die(file):
        fsync(file)
        if len(glob.glob(path + "/drafts/k/manifest.json*")) == 2:  # the second time
            os.kill(os.getpid(), signal.SIGKILL)
    os.fsync = die
if doing == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (shard_bytes // 2, shard_bytes // 2))
if doing == "together":
    print("ready", flush=True)
    sys.stdin.readline()
try:
    entry = store.get_or_compute(FeatureKey("k", ("x",), size), compute)
except ValueError as error:
    print(type(error).__name__, error, flush=True)
else:
    print("sum", int(np.asarray(entry["x"]).sum()), flush=True)
    if doing == "hold":
        time.sleep(600)
"""
SUM = WIDTH * SIZE * (SIZE - 1) // 2


@contextmanager
def child(path, doing):
    numbers = map(str, (SIZE, WIDTH, BATCH, SHARD_BYTES))
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), doing, *numbers],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def lines_until(process, word):
    """What the child says, up to the line that begins with a word."""
    said = []
    for line in process.stdout:
        said.append(line.split()[0])
        if said[-1] == word:
            return said
    raise AssertionError(f"The child ended without {word!r}: {said}")


def fill(store):
    runs = []

    def compute(start, stop):
        runs.append((start, stop))
        for at in range(start, stop, BATCH):
            rows = np.arange(at, at + BATCH, dtype="float32")
            yield {"x": np.tile(rows[:, None], (1, WIDTH))}

    return store.get_or_compute(KEY, compute), runs


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "store", shard_bytes=SHARD_BYTES)


@pytest.mark.parametrize("at", ["10", "150"])
def test_what_a_killed_process_left_is_taken_over(at, store):
    with child(store.path, "slowly") as process:
        lines_until(process, at)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert store.get(KEY) is None
    entry, runs = fill(store)
    assert np.asarray(entry["x"]).sum() == SUM
    # The batch that was asked for last is not written, and up to a shard before it is lost.
    (run,) = runs
    assert run[1] == SIZE
    assert int(at) - 20 <= run[0] <= int(at) + 20
    assert store.verify() == {"k": 0}
    assert not list(store.path.glob("entries/*/*.part"))


def test_what_a_process_killed_within_the_manifest_left_is_removed(store):
    with child(store.path, "die") as process:
        assert process.wait() == -signal.SIGKILL
    assert list(store.path.glob("drafts/k/manifest.json.*.part"))
    assert np.asarray(fill(store)[0]["x"]).sum() == SUM
    assert not list(store.path.rglob("*.part"))


def test_of_two_processes_one_computes_and_both_read(store):
    with child(store.path, "together") as one, child(store.path, "together") as other:
        for process in (one, other):
            lines_until(process, "ready")
        for process in (one, other):
            process.stdin.write("\n")
            process.stdin.flush()
        said = [line.split() for p in (one, other) for line in p.stdout]
    assert [words for words in said if words[0] == "sum"] == [["sum", str(SUM)]] * 2
    assert [words for words in said if words[0] == "computing"] == [["computing", "0"]]


def test_what_another_process_makes_or_reads_is_not_removed_until_it_ends(store):
    with child(store.path, "slowly") as process:
        lines_until(process, "100")
        assert store.clear() == []
        lines_until(process, "sum")
        process.wait()
    with child(store.path, "hold") as process:
        lines_until(process, "sum")
        assert store.clear() == []
        process.kill()
        process.wait()
        assert [entry.digest for entry in store.clear()] == ["k"]


def test_a_full_disk_leaves_nothing_and_says_so(store):
    with child(store.path, "full") as process:
        said = process.stdout.read().splitlines()
    assert said[0] == "computing 0"
    assert said[1].startswith(f"CacheError The feature store {store.path} cannot be used: File too")
    assert "its disk is not full" in said[1]
    assert store.entries() == []
    assert not list(store.path.glob("*/k*/*"))


def test_features_larger_than_the_disk_are_refused_before_they_are_written(store, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match=r"need 40,000 bytes, and the disk of .* has 1,000"):
        fill(store)
    assert store.entries() == []
