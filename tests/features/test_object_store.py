"""A feature store in object storage: shared by machines, checked, and patient."""

import json
import threading
from contextlib import nullcontext
from datetime import timedelta

import numpy as np
import pytest
import requests
from features import storing
from features.storing import BATCH, KEY, SIZE, WIDTH, rows
from processes import forked
from s3fs import S3FileSystem
from storage import BUCKET

import reusekit.objects
from reusekit.cli import cache
from reusekit.errors import CacheError
from reusekit.features import FeatureKey, FeatureStore
from reusekit.features import remote as remote_module
from reusekit.launch import launch_one_of

BLOCK = 50
BLOCK_BYTES = BLOCK * WIDTH * 4
SUM = WIDTH * SIZE * (SIZE - 1) // 2


@pytest.fixture
def url(s3, request):
    """An address of its own for each test."""
    return f"s3://{BUCKET}/{request.node.name.translate({91: '-', 93: ''})}/features"


def opened(url, folder, **options):
    """The store as a machine has it whose cache is a folder."""
    return FeatureStore(url, cache=folder, block_bytes=BLOCK_BYTES, **options)


def fill(store, key=KEY, until=None):
    """Fill a store, and return the entry and where computing began; `until` stops it there."""
    began = []

    def compute(start, stop):
        began.append(start)
        for at in range(start, stop, BATCH):
            if at == until:
                raise RuntimeError("stopped")
            yield rows(at)

    return store.get_or_compute(key, compute), began


def begun(url, folder, until):
    """Have a machine compute up to an example, and lose the machine."""
    with pytest.raises(RuntimeError):
        fill(opened(url, folder), until=until)


def total(entry):
    return int(np.asarray(entry["x"]).sum())


def test_another_machine_fetches_what_one_has_computed(url, tmp_path):
    one = opened(url, tmp_path / "one")
    assert fill(one)[1] == [0]
    other = opened(url, tmp_path / "other")
    entry, began = fill(other)
    assert began == [] and total(entry) == SUM
    for name in ("0.npy", "manifest.json"):
        first, second = (tmp_path / m / "entries" / "k" / name for m in ("one", "other"))
        assert first.read_bytes() == second.read_bytes()
    assert total(opened(url, tmp_path / "third").get(KEY)) == SUM
    assert opened(url, tmp_path / "third").get(FeatureKey("other", ("x",), SIZE)) is None


def test_the_cache_serves_without_asking_for_blocks(url, s3, tmp_path):
    fill(opened(url, tmp_path / "one"))
    for key in s3.objects(f"{url.split('/', 3)[3]}/blocks"):
        s3.client().delete_object(Bucket=BUCKET, Key=key)
    assert fill(opened(url, tmp_path / "one"))[1] == []


def test_another_machine_goes_on_after_the_last_whole_block(url, tmp_path):
    begun(url, tmp_path / "one", until=150)
    entry, began = fill(opened(url, tmp_path / "other"))
    assert began == [150] and total(entry) == SUM
    assert [one.whole for one in opened(url, tmp_path / "third").entries()] == [True]
    assert total(opened(url, tmp_path / "third").get(KEY)) == SUM


def test_of_two_beginnings_the_longer_one_is_gone_on_with(url, tmp_path):
    begun(url, tmp_path / "one", until=50)
    begun(url, tmp_path / "other", until=250)
    # The first machine has one block of its own and fetches the others.
    assert fill(opened(url, tmp_path / "one"))[1] == [250]


def test_a_killed_process_leaves_its_blocks_to_another_machine(url, s3, tmp_path):
    with forked(storing.fill_shared, url, tmp_path / "one", s3.variables) as (process, said):
        said.until(200)
        process.kill()
        process.join()
    entry, (began,) = fill(opened(url, tmp_path / "other"))
    assert 150 <= began <= 200 and total(entry) == SUM


def test_two_machines_at_a_time_end_with_one_sound_entry(url, tmp_path):
    first, second = opened(url, tmp_path / "one"), opened(url, tmp_path / "other")
    both, found = threading.Barrier(2), []

    def compute(start, stop):
        both.wait(30)
        for at in range(start, stop, BATCH):
            yield rows(at)

    makers = [
        threading.Thread(target=lambda s=s: found.append(total(s.get_or_compute(KEY, compute))))
        for s in (first, second)
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert found == [SUM, SUM]
    assert opened(url, tmp_path / "third").verify() == {"k": 0}


def test_makers_whose_numbers_round_differently_do_not_mix(url, tmp_path):
    begun(url, tmp_path / "one", until=50)

    def compute(start, stop):
        for at in range(start, stop, BATCH):
            yield {"x": np.nextafter(rows(at)["x"], np.float32(-1))}

    # As another machine that began before it could see the first one's blocks.
    alone = FeatureStore(tmp_path / "other", block_bytes=BLOCK_BYTES)
    expected = np.asarray(alone.get_or_compute(KEY, compute)["x"])
    opened(url, tmp_path / "other").get_or_compute(KEY, compute)
    found = opened(url, tmp_path / "third").get(KEY)
    np.testing.assert_array_equal(np.asarray(found["x"]), expected)


@pytest.mark.parametrize("damage", ["missing", "altered", "short", "manifest"])
def test_damage_in_the_storage_is_found_and_mended(url, s3, tmp_path, damage):
    fill(opened(url, tmp_path / "one"))
    folder = url.split("/", 3)[3]
    key = sorted(s3.objects(f"{folder}/blocks"))[3]
    content = s3.objects(key)[key]
    if damage == "missing":
        s3.client().delete_object(Bucket=BUCKET, Key=key)
    elif damage == "altered":
        s3.put(key, content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "short":
        s3.put(key, content[:-4])
    else:
        s3.put(f"{folder}/entries/k.json", b"{}")
    other = opened(url, tmp_path / "other")
    assert other.verify() == {"k": 1}
    if damage == "missing":
        assert other.get(KEY) is None
    entry, began = fill(other)
    # Up to the damaged block it is fetched; a manifest is all that tells where blocks are.
    assert began == [0 if damage == "manifest" else 150] and total(entry) == SUM
    assert opened(url, tmp_path / "third").verify() == {"k": 0}
    assert total(opened(url, tmp_path / "third").get(KEY)) == SUM


def test_an_entry_for_another_key_is_not_taken(url, s3, tmp_path):
    fill(opened(url, tmp_path / "one"))
    folder = url.split("/", 3)[3]
    s3.put(f"{folder}/entries/other.json", s3.objects(f"{folder}/entries/k.json").popitem()[1])
    key = FeatureKey("other", ("x",), SIZE)
    assert opened(url, tmp_path / "other").get(key) is None
    assert opened(url, tmp_path / "other").get(FeatureKey("k", ("x",), SIZE + 1)) is None


def test_what_was_computed_without_the_storage_is_brought_there(url, tmp_path):
    fill(FeatureStore(tmp_path / "one", block_bytes=BLOCK_BYTES))
    assert fill(opened(url, tmp_path / "one"))[1] == []
    assert total(opened(url, tmp_path / "other").get(KEY)) == SUM


def test_the_cache_keeps_to_its_budget(url, tmp_path):
    keys = [FeatureKey(f"k{number}", ("x",), SIZE) for number in range(3)]
    need = SIZE * WIDTH * 4
    store = opened(url, tmp_path / "one", budget=2 * need)
    for key in keys:
        fill(store, key)[0].close()
    in_cache = {one.digest for one in FeatureStore(tmp_path / "one").entries()}
    assert in_cache == {"k1", "k2"}
    assert {one.digest for one in store.entries()} == {"k0", "k1", "k2"}
    assert fill(store, keys[0])[1] == []  # fetched again, and another one has made room
    assert sum(one.bytes for one in FeatureStore(tmp_path / "one").entries()) == 2 * need
    with pytest.raises(CacheError, match="a budget of at least"):
        opened(url, tmp_path / "small", budget=need - 1).get(keys[0])


def test_entries_are_listed_verified_and_removed_by_the_command(url, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    fill(opened(url, tmp_path / "one"), FeatureKey("k", ("x",), SIZE, {"cut": "block7_out"}))
    fill(opened(url, tmp_path / "one"), FeatureKey("later", ("x",), SIZE))

    def run(*words):
        with pytest.raises(SystemExit) if "nowhere" in words[1] else nullcontext():
            launch_one_of({"cache": cache}, ["cache", *words])
        return " ".join("".join(capsys.readouterr()).split())

    assert "block7_out" in run("list", f"--path={url}")
    assert "block7_out" in run("verify", f"--path={url}")
    assert "1 entries stay" in run("gc", f"--path={url}", f"--budget={SIZE * WIDTH * 4}")
    assert [one.digest for one in opened(url, tmp_path / "one").entries()] == ["later"]
    assert "0 entries stay" in run("clear", f"--path={url}")
    assert "Expected the folder of a feature store" in run("list", f"--path={url}/nowhere")
    assert len(FeatureStore(tmp_path / "one").entries()) == 2  # the cache has them still


def test_what_was_left_unfinished_is_collected_after_a_day(url, s3, tmp_path, monkeypatch):
    begun(url, tmp_path / "one", until=100)
    store = opened(url, tmp_path / "one")
    assert store.gc() == [] and [one.whole for one in store.entries()] == [False]
    monkeypatch.setattr(remote_module, "UNFINISHED", timedelta(seconds=-1))
    assert [one.digest for one in store.gc()] == ["k"]
    assert list(s3.objects(url.split("/", 3)[3])) == [f"{url.split('/', 3)[3]}/feature_store.json"]


def test_a_storage_that_goes_away_for_a_while_costs_nothing(url, s3, tmp_path):
    back = threading.Event()

    def compute(start, stop):
        for at in range(start, stop, BATCH):
            if at == 200:
                s3.stop()
                threading.Timer(1, lambda: (s3.start(), back.set())).start()
            yield rows(at)

    try:
        entry = opened(url, tmp_path / "one").get_or_compute(KEY, compute)
        assert back.is_set() and total(entry) == SUM
    finally:
        assert back.wait(10)
    assert opened(url, tmp_path / "other").verify() == {"k": 0}


def test_a_storage_that_stays_away_ends_in_one_sentence_and_nothing_is_lost(
    url, s3, tmp_path, monkeypatch
):
    monkeypatch.setattr(reusekit.objects, "PATIENCE", 0.5)

    def compute(start, stop):
        for at in range(start, stop, BATCH):
            if at == 200:
                s3.stop()
            yield rows(at)

    try:
        with pytest.raises(CacheError, match=r"did not answer for \d+ s: .*kept") as raised:
            opened(url, tmp_path / "one").get_or_compute(KEY, compute)
    finally:
        s3.start()
    assert "\n" not in str(raised.value) and "secret-of-one" not in str(raised.value)
    entry, began = fill(opened(url, tmp_path / "one"))
    assert began == [250] and total(entry) == SUM  # the block that was not taken is on the disk
    assert opened(url, tmp_path / "other").verify() == {"k": 0}


def test_a_full_disk_ends_in_one_sentence(url, tmp_path, monkeypatch):
    fill(opened(url, tmp_path / "one"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("U", (), {"free": 100})())
    with pytest.raises(CacheError, match="40,000 bytes on the disk of"):
        opened(url, tmp_path / "other").get(KEY)


@pytest.mark.parametrize(
    ("address", "variables", "message"),
    [
        ("s3://no-such-bucket/a", [], "bucket"),
        ("s3://", [], "a bucket"),
        (f"s33://{BUCKET}/a", [], "Protocol not known"),
        (f"gs://{BUCKET}/a", [], "not installed"),
        (
            f"s3://{BUCKET}/a",
            ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
            "credentials",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(
    s3, tmp_path, monkeypatch, address, variables, message
):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in variables:
        monkeypatch.delenv(name)
    S3FileSystem.clear_instance_cache()  # which keeps credentials
    with pytest.raises(CacheError, match=message) as raised:
        FeatureStore(address, cache=tmp_path)
    S3FileSystem.clear_instance_cache()
    assert "\n" not in str(raised.value)


def test_a_storage_without_rights_is_refused_before_anything_is_computed(s3, tmp_path):
    requests.post(f"{s3.variables['AWS_ENDPOINT_URL']}/moto-api/reset-auth", data=b"0", timeout=5)
    try:
        with pytest.raises(CacheError, match="may list, read and write") as raised:
            FeatureStore(f"s3://{BUCKET}/denied", cache=tmp_path)
        assert "\n" not in str(raised.value) and "secret-of-one" not in str(raised.value)
    finally:
        everything = str(10**9).encode()
        requests.post(
            f"{s3.variables['AWS_ENDPOINT_URL']}/moto-api/reset-auth", data=everything, timeout=5
        )


@pytest.mark.parametrize("kind", ["s3", "memory", "file"])
def test_signs_in_a_name_stand_for_themselves(url, s3, tmp_path, kind):
    address = {"s3": url, "memory": "memory://signs", "file": f"file://{tmp_path}/signs"}[kind]
    objects, names = reusekit.objects.Objects(address, CacheError), ["a*", "a[1]", "a1", "a?", "ab"]
    for name in names:
        objects.put(name, name.encode())
    assert objects.get_all(names) == [name.encode() for name in names]
    objects.delete(["a*", "a[1]", "a?", "none", "n*ne"])
    assert list(objects.under()) == ["a1", "ab"]


def test_something_else_at_the_address_is_left_alone(url, s3, tmp_path):
    folder = url.split("/", 3)[3]
    s3.put(f"{folder}/mine.txt", b"mine")
    with pytest.raises(CacheError, match="holds something else"):
        opened(url, tmp_path / "one")
    s3.put(f"{folder}/feature_store.json", json.dumps({"format": 9}).encode())
    with pytest.raises(CacheError, match="Choose another address"):
        opened(url, tmp_path / "one")
    with pytest.raises(CacheError, match="a cache with the address"):
        FeatureStore(tmp_path / "one", cache=tmp_path / "two")
