"""A search whose folder is in object storage goes on on any machine, one driver at a time."""

import dataclasses
import os
import re
import signal
import threading

import pytest
from processes import forked
from search.killed_search import machine, run, search, search_elsewhere
from storage import BUCKET

import reusekit.objects
from reusekit.errors import ConfigError
from reusekit.objects import Objects
from reusekit.search import remote_folder
from reusekit.search.folder import write_state
from reusekit.search.remote_folder import KeptSearch, RemoteFolder


@pytest.fixture
def url(s3, request):
    """An address of its own for each test."""
    return f"s3://{BUCKET}/{request.node.name.translate({91: '-', 93: ''})}"


@pytest.fixture(scope="module")
def whole(s3, tmp_path_factory):
    """The same search, left in peace on one machine."""
    folder = tmp_path_factory.mktemp("whole")
    one = search(folder)
    one.run()
    return told(one), weights_in(folder / "search")


def told(one):
    """All of the records but the seconds."""
    records = []
    for record in one.result.trials:
        fit = dataclasses.replace(record.fit, seconds=0.0)
        records.append((dataclasses.replace(record, fit=fit), record.weights))
    return records


def weights_in(folder):
    return {file.name: file.read_bytes() for file in sorted((folder / "weights").iterdir())}


def in_storage(s3, url):
    """Return the objects at the address of the search, by their names."""
    prefix = f"{url.split('/', 3)[3]}/search/"
    return {key.removeprefix(prefix): one for key, one in s3.objects(prefix).items()}


def died(folder, url, s3, put):
    """Run a search until it dies, and return the numbers of its trials."""
    with forked(search_elsewhere, folder, url, s3.variables, put) as (process, said):
        said.all()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    return [int(words[1]) for words in said if words[0] == "trial"]


def test_killed_on_one_machine_it_goes_on_on_another(whole, url, s3, tmp_path):
    # The first group is kept; of the second the weights were written, and not the state.
    assert died(tmp_path / "one", url, s3, put=2) == [0, 1, 2, 3]
    assert set(in_storage(s3, url)) >= {"state.json", "lease/000001"}
    # A machine that dies while it fetches does not take its half for the newest.
    assert died(tmp_path / "other", url, s3, put=-1) == []
    said = []
    with machine(tmp_path / "other"):
        last = search(tmp_path / "other", url=url)
        run(last, said.append)
    assert [one for one in said if one.startswith("trial")] == [f"trial {n}" for n in (2, 3, 4, 5)]
    assert (told(last), weights_in(last.folder)) == whole
    kept = in_storage(s3, url)
    weights = {f"weights/{name}" for name in whole[1]}
    lease = max(one for one in kept if one.startswith("lease/"))
    assert set(kept) == {"state.json", "plan.json", lease, *weights}
    assert kept[lease] == b""  # it is given up
    for name, content in whole[1].items():
        assert kept[f"weights/{name}"] == content
    # On a third machine nothing is left to do, and models are there.
    with machine(tmp_path / "third"):
        third = search(tmp_path / "third", url=url)
        assert told(third) == whole[0]
        assert third.best_model().output_shape == last.best_model().output_shape
        said.clear()
        run(third, said.append)
        assert said == []
    assert max(one for one in in_storage(s3, url) if one.startswith("lease/")) > lease


def test_killed_it_goes_on_in_the_same_folder_at_once(whole, url, s3, tmp_path, monkeypatch):
    died(tmp_path / "one", url, s3, put=2)
    monkeypatch.setattr(remote_folder.time, "sleep", lambda seconds: pytest.fail("it waited"))
    said = []
    with machine(tmp_path / "one"):
        last = search(tmp_path / "one", url=url)
        run(last, said.append)
    # What was written on this machine alone is not lost.
    assert [one for one in said if one.startswith("trial")] == ["trial 4", "trial 5"]
    assert (told(last), weights_in(last.folder)) == whole


def test_a_second_driver_is_refused_and_one_that_was_taken_over_stops(url, s3, tmp_path):
    with forked(search_elsewhere, tmp_path / "one", url, s3.variables, 0) as (process, said):
        said.until("waiting")
        before = in_storage(s3, url)["state.json"]
        with machine(tmp_path / "other"):
            other = search(tmp_path / "other", url=url)
            with pytest.raises(
                ConfigError, match=rf"held by process {process.pid} on .*, since 20"
            ):
                other.run()
            assert in_storage(s3, url)["state.json"] == before
            # As a machine that sleeps: it renews nothing, and another goes on.
            os.kill(process.pid, signal.SIGSTOP)
            other.run()
            os.kill(process.pid, signal.SIGCONT)
        state = in_storage(s3, url)["state.json"]
        said.answer()
        said.all()
        process.join()
        assert process.exitcode not in (0, -signal.SIGKILL)
        assert ["ended"] not in said
        assert in_storage(s3, url)["state.json"] == state


def test_of_many_at_the_same_moment_one_has_the_lease(url, tmp_path, monkeypatch):
    both, taken, refused = threading.Barrier(4), [], []

    def take(number):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        one = RemoteFolder(f"{url}/search")
        one.folder = tmp_path / str(number)
        one.folder.mkdir()
        both.wait()
        try:
            with one.held():
                taken.append(number)
                ended.wait(20)
        except ConfigError as error:
            refused.append(str(error))
            if len(refused) == 3:
                ended.set()

    ended = threading.Event()
    monkeypatch.setattr(remote_folder, "RENEWAL", 1.2)
    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1 and len(refused) == 3
    assert all(re.search("no search is running.* held by process", one) for one in refused)


def test_a_storage_that_goes_away_ends_the_search_and_nothing_is_lost(
    whole, url, s3, tmp_path, monkeypatch
):
    monkeypatch.setattr(reusekit.objects, "PATIENCE", 0.5)
    with machine(tmp_path / "one"):
        one = search(tmp_path / "one", url=url)

        def stop(record):
            if record.number == 3:
                s3.stop()

        try:
            with pytest.raises(ConfigError, match=r"did not answer for \d+ s.*kept"):
                one.run(report=stop)
        finally:
            s3.start()
        said = []
        again = search(tmp_path / "one", url=url)
        run(again, said.append)
    assert [one for one in said if one.startswith("trial")] == ["trial 4", "trial 5"]
    assert told(again) == whole[0]


def kept_at(url, monkeypatch, tmp_path):
    """Put a folder with a state and two files of weights into the storage, and return it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine"))
    kept = {"state.json": b"{}", "weights/0000.npz": b"one", "weights/0001.npz": b"two"}
    objects = Objects(f"{url}/search", ConfigError)
    for name, content in kept.items():
        objects.put(name, content)
    one = RemoteFolder(f"{url}/search")
    one.folder.mkdir(parents=True)
    return one, kept


def test_a_folder_that_cannot_be_marked_is_not_held(url, tmp_path, monkeypatch):
    one, _ = kept_at(url, monkeypatch, tmp_path)
    (one.folder / "lease.json").mkdir()
    for _ in range(2):
        with pytest.raises(ConfigError, match="Expected the folder of a search"), one.held():
            pytest.fail("it is held")


def test_who_was_taken_over_while_it_writes_leaves_the_state_alone(url, s3, tmp_path, monkeypatch):
    one, _ = kept_at(url, monkeypatch, tmp_path)
    put = Objects.put

    def taken_over(self, name, content):
        put(self, name, content)
        if name == "weights/0001.npz":
            put(self, "lease/000002", b"another's")

    with pytest.raises(ConfigError, match="taken over"), one.held():
        monkeypatch.setattr(Objects, "put", taken_over)
        (one.folder / "weights" / "0001.npz").write_bytes(b"new")
        (one.folder / "state.json").write_bytes(b"new")
        one.put()
    assert in_storage(s3, url)["state.json"] == b"{}"


def test_no_name_in_the_storage_leads_out_of_the_folder(url, s3, tmp_path, monkeypatch):
    one, _ = kept_at(url, monkeypatch, tmp_path)
    outside = tmp_path / "outside"
    for slashes in ("", "/"):  # two of them, and three
        s3.put(f"{url.split('/', 3)[3]}/search/{slashes}{outside}", b"not here")
    with one.held():
        assert not outside.exists()


def test_an_address_that_cannot_be_used_is_refused_before_any_work(s3):
    with pytest.raises(ConfigError, match="bucket does not exist") as raised:
        RemoteFolder("s3://no-such-bucket/a")
    assert "\n" not in str(raised.value)


def test_another_search_is_refused_by_its_address(url, tmp_path, whole):
    with machine(tmp_path / "one"):
        search(tmp_path / "one", url=url, epochs=1).run()
        with pytest.raises(ConfigError, match=f"the search that {url}/search holds"):
            search(tmp_path / "one", url=url, epochs=2).run()
        search(tmp_path / "one", url=url, epochs=2).run(fresh=True)


def test_a_disk_that_is_full_is_named_as_that_of_the_machine(url, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = KeptSearch(url)
    with pytest.raises(ConfigError, match=re.escape(str(kept.folder))), kept.alone():
        write_state(kept.folder / "away" / "state.json", {})
