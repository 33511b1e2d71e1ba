"""Whatever happens to the files of a store, it gives right features, or says what to do."""

import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from reusekit.errors import CacheError
from reusekit.features import FeatureKey, FeatureStore

SIZE = 40
KEYS = {name: FeatureKey(name, ("x",), SIZE) for name in ("a", "b", "c")}


def rows(name):
    """Features that no other key has."""
    return np.arange(SIZE * 8, dtype="float32").reshape(SIZE, 8) + 1000 * ord(name)


def computed(store, name):
    """The features of a key as the store gives them, and how many rows were computed for it."""
    made = []

    def compute(start, stop):
        made.append(stop - start)
        for at in range(start, stop, 10):
            yield {"x": rows(name)[at : at + 10]}

    with store.get_or_compute(KEYS[name], compute) as entry:
        return np.asarray(entry["x"]), sum(made)


def is_right(store, name, made=None):
    found, count = computed(store, name)
    np.testing.assert_array_equal(found, rows(name))
    assert made is None or count == made
    assert store.verify()[name] == 0


@pytest.fixture
def store(tmp_path):
    """A store with two entries of four blocks."""
    store = FeatureStore(tmp_path / "store", block_bytes=10 * 32)
    for name in "ab":
        computed(store, name)
    return store


@pytest.fixture
def outside(tmp_path):
    """A folder that a store may not touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("0.part", "0.npy", "manifest.json"):
        (folder / name).write_text("precious")
    return folder


def is_untouched(folder):
    return {path.read_text() for path in folder.iterdir()} == {"precious"}


@pytest.mark.parametrize("way", ["moved", "copied", "draft", "renamed in the manifest"])
def test_an_entry_answers_to_no_other_key(way, store):  # faults B1
    entries = store.path / "entries"
    if way == "moved":
        shutil.rmtree(entries / "b")
        (entries / "a").rename(entries / "b")
    elif way == "copied":
        shutil.rmtree(entries / "b")
        shutil.copytree(entries / "a", entries / "b")
    elif way == "draft":
        shutil.rmtree(entries / "b")
        shutil.copytree(entries / "a", store.path / "drafts" / "b")
    else:
        file = entries / "a" / "manifest.json"
        file.write_text(file.read_text().replace('"digest": "a"', '"digest": "b"'))
    if way in ("moved", "copied"):
        assert store.get(KEYS["b"]) is None
        assert store.verify()["b"] == 1
    is_right(store, "b")
    is_right(store, "a")


def test_a_manifest_of_before_that_names_no_key_is_no_manifest(store):  # faults B1
    file = store.path / "entries" / "a" / "manifest.json"
    told = json.loads(file.read_text())
    del told["digest"]
    file.write_text(json.dumps(told))
    is_right(store, "a", made=SIZE)


def test_an_altered_file_is_seen_though_its_time_was_set_back(store):  # faults B2
    store.get(KEYS["a"]).close()
    file = store.path / "entries" / "a" / "0.npy"
    before = file.stat()
    with file.open("r+b") as opened:
        opened.seek(-4, os.SEEK_END)
        opened.write(b"\0\0\0\0")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.get(KEYS["a"]) is None
    is_right(store, "a", made=SIZE)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b"null", b"{}", b"[" * 100_000, b'{"format": 3}', None]
)
def test_a_damaged_mark_is_one_sentence_with_a_way_out(content, store):  # faults B4
    mark = store.path / "feature_store.json"
    mark.unlink()
    if content is None:
        mark.mkdir()
    else:
        mark.write_bytes(content)
    with pytest.raises(CacheError, match="Write that into the file") as raised:
        FeatureStore(store.path)
    assert len(str(raised.value)) < 500
    if content is None:
        mark.rmdir()
    mark.write_text('{"format": 2}\n')
    is_right(FeatureStore(store.path), "a", made=0)


def test_a_store_that_lost_its_mark_says_how_it_comes_back(store):
    (store.path / "feature_store.json").unlink()
    with pytest.raises(CacheError, match=r"write .*format.* into its feature_store"):
        FeatureStore(store.path)


@pytest.mark.parametrize(
    "content",
    [
        b"[]", b"7", b"null", b"\xff", b"[" * 100_000, b'{"checksum": 3}', b'{"digest": []}',
        "folder", "link", "loop",
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_computed_again(content, store, outside):  # faults B4, B5
    file = store.path / "entries" / "a" / "manifest.json"
    file.unlink()
    if content == "folder":
        file.mkdir()
    elif content == "link":
        file.symlink_to(outside / "manifest.json")
    elif content == "loop":
        file.symlink_to(file)
    else:
        file.write_bytes(content)
    assert [entry.digest for entry in store.entries()] == ["b", "a"]
    assert store.verify() == {"a": 1, "b": 0}
    is_right(store, "a", made=SIZE)
    assert is_untouched(outside)


@pytest.mark.parametrize("what", ["folder", "full folder", "link", "loop"])
@pytest.mark.parametrize("kind", ["entries", "drafts"])
def test_what_lies_in_the_place_of_a_file_gives_way(what, kind, store, outside):  # faults B5
    if kind == "drafts":
        (store.path / "entries" / "a").rename(store.path / "drafts" / "a")
    file = store.path / kind / "a" / "0.npy"
    file.unlink()
    if what.endswith("folder"):
        file.mkdir()
        if what == "full folder":
            (file / "notes").write_text("here")
    else:
        file.symlink_to(file if what == "loop" else outside / "0.npy")
    is_right(store, "a", made=SIZE)
    file = store.path / "entries" / "a" / "0.npy"
    assert file.is_file()
    assert not file.is_symlink()
    assert is_untouched(outside)


@pytest.mark.parametrize("kind", ["lock", "lease"])
@pytest.mark.parametrize("what", ["folder", "link", "bytes"])
def test_what_lies_in_the_place_of_a_lock_gives_way(kind, what, store, outside):  # faults B5
    for name in ("a", "c", "budget"):
        if (name, kind) == ("budget", "lease"):
            continue
        file = store.path / "locks" / f"{name}.{kind}"
        file.unlink(missing_ok=True)
        if what == "folder":
            (file / "inner").mkdir(parents=True)
        elif what == "link":
            file.symlink_to(outside / "manifest.json")
        else:
            file.write_bytes(b"\xff" * 5000)
    is_right(store, "a", made=0)
    is_right(store, "c", made=SIZE)
    assert {entry.digest for entry in store.clear()} == {"a", "b", "c"}
    assert is_untouched(outside)


def test_stray_files_stop_nothing_and_stay(store, outside):  # faults B5
    for kind in ("entries", "drafts"):
        (store.path / kind / ".DS_Store").write_text("stray")
        (store.path / kind / "my notes").mkdir()
        (store.path / kind / "link").symlink_to(outside)
    assert {entry.digest for entry in store.entries()} == {"a", "b"}
    assert store.verify() == {"a": 0, "b": 0}
    is_right(store, "c", made=SIZE)
    assert store.gc() == []
    assert len(store.clear()) == 3
    for kind in ("entries", "drafts"):
        found = {path.name for path in (store.path / kind).iterdir()}
        assert found == {".DS_Store", "my notes", "link"}
    assert is_untouched(outside)


@pytest.mark.parametrize("kind", ["drafts", "entries"])
@pytest.mark.parametrize("sound", [True, False])
def test_a_link_is_no_draft_and_no_entry(kind, sound, store, outside):  # faults B6
    if sound:  # a manifest and a file that fits
        for path in outside.iterdir():
            path.unlink()
        for path in (store.path / "entries" / "a").iterdir():
            shutil.copy(path, outside)
    shutil.rmtree(store.path / "entries" / "a")
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    link = store.path / kind / "a"
    if sound:
        outside = outside.rename(outside.with_name("a"))
    link.symlink_to(outside)
    is_right(store, "a", made=SIZE)
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before
    assert not (store.path / "entries" / "a").is_symlink()


def test_links_on_their_way_out_are_removed_and_not_followed(store, outside):  # faults B6
    (store.path / "removed" / "link").symlink_to(outside)
    (store.path / "removed" / "inner").mkdir()
    (store.path / "removed" / "inner" / "link").symlink_to(outside)
    store.gc()
    assert list((store.path / "removed").iterdir()) == []
    assert is_untouched(outside)


@pytest.mark.parametrize("name", ["removed", "entries", "drafts", "locks"])
def test_a_link_in_the_place_of_a_folder_is_refused(name, store, outside):  # faults B6
    shutil.rmtree(store.path / name)
    (store.path / name).symlink_to(outside)
    with pytest.raises(CacheError, match="Received: a link"):
        FeatureStore(store.path)
    assert is_untouched(outside)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o755, 0o700])
def test_what_is_made_is_for_whoever_may_use_the_folder(mode, tmp_path):  # faults B7
    before = os.umask(0o077)
    try:
        folder = tmp_path / "shared"
        folder.mkdir()
        folder.chmod(mode)
        store = FeatureStore(folder)
        computed(store, "a")
        assert len(store.entries()) == 1
    finally:
        os.umask(before)
    locks = [*(folder / "locks").iterdir()]
    assert {path.suffix for path in locks} == {".lock", ".lease"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in locks} == {mode & 0o666}
    folders = [path for path in folder.rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {mode}
    files = [*folder.glob("entries/a/*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode & 0o666}


def other_user(work):
    """Do some work as a user who owns nothing here, in a process of its own."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("mode", [0o777, 0o755])
def test_two_users_share_a_store(mode, tmp_path):  # faults B7
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_mode & 0o005 != 0o005 and str(parent).startswith("/tmp"):
            parent.chmod(0o755)
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    is_right(FeatureStore(folder, block_bytes=320), "a", made=SIZE)

    def read_and_make():
        store = FeatureStore(folder, block_bytes=320)
        is_right(store, "a", made=0)
        assert len(store.entries()) == 1
        if mode == 0o777:
            is_right(store, "b", made=SIZE)
            (folder / "entries" / "a" / "0.npy").unlink()
            is_right(store, "a", made=SIZE)
            return
        with pytest.raises(CacheError, match="Permission denied"):
            computed(store, "b")
        assert store.clear() == []

    assert other_user(read_and_make) == 0
    assert sum(path.name in "ab" for path in Path(folder, "entries").iterdir()) == (
        2 if mode == 0o777 else 1
    )
