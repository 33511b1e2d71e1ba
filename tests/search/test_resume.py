"""A search that is killed goes on where it was; another one, or two at once, are refused."""

import json
import re
import shutil
import signal
from pathlib import Path

import keras_tuner
import numpy as np
import pytest
from filelock import FileLock
from processes import forked
from search.killed_search import run, search, search_and_die
from search.textures import textures

from reusekit.errors import ConfigError, ReusekitError
from reusekit.features import FeatureStore
from reusekit.sealed_json import read_sealed, write_sealed
from reusekit.search import (
    CutGridOracle,
    CutHyperModel,
    CutSweepOracle,
    CutTuner,
    SearchConfig,
    SearchSpace,
)
from reusekit.training import heads

CUTS = ["shallow", "middle", "deep"]
SAME = ["trial", "status", "cut", "frozen_up_to", "learning_rate", "parameters", "trained"]


def killed(folder, moment, when):
    """Run a search in a process that kills itself; the trials that it reported."""
    with forked(search_and_die, folder, moment, when) as (process, said):
        said.all()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    return [int(words[1]) for words in said if words[0] == "trial"]


def finished(folder):
    state = folder / "search" / "state.json"
    return [record["number"] for record in json.loads(state.read_text())["records"]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The same search, left in peace: its trials as a table, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    one = search(folder)
    one.run()
    return one, folder


def test_killed_twice_it_goes_on_to_the_same_end(uninterrupted, tmp_path):
    whole, _ = uninterrupted
    # First in the middle of the second group, then when the state after the next is written.
    assert killed(tmp_path, "group", 2) == [0, 1]
    assert finished(tmp_path) == [0, 1]
    assert killed(tmp_path, "state", 2) == [2, 3, 4, 5]
    assert finished(tmp_path) == [0, 1, 2, 3]
    said = []
    last = search(tmp_path)
    run(last, said.append)
    assert [text for text in said if text.startswith("trial")] == ["trial 4", "trial 5"]
    found, expected = last.results(), whole.results()
    assert found[SAME].equals(expected[SAME])
    for column in ("val_loss", "val_accuracy", "loss", "best_epoch"):
        np.testing.assert_allclose(
            found[column].astype(float), expected[column].astype(float), rtol=1e-4
        )
    assert last.result.best.number == whole.result.best.number
    for one, other in zip(
        last.best_model(1).get_weights(), whole.best_model(1).get_weights(), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    # What was computed of the backbone is whole, and no half of a file is left.
    assert set(FeatureStore(tmp_path / "store").verify().values()) == {0}
    assert not [f for f in (tmp_path / "search").rglob("*") if "part" in f.name]
    assert len(list((tmp_path / "search").rglob("*.npz"))) == 2


def test_a_finished_search_runs_nothing(uninterrupted):
    whole, folder = uninterrupted
    said = []
    again = search(folder)
    run(again, said.append)
    assert said == []
    assert again.result.trials == whole.result.trials


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rates": (0.1, 0.5)}, r"space.learning_rates was \[0.1, 0.02\] and is"),
        ({"cuts": ["stem", "out2"]}, r'space.cuts was \["stem", "out1"\] and is'),
        ({"seed": 7}, "seed was 0 and is 7"),
        ({"epochs": 4}, "epochs was 3 and is 4"),
        ({"train": textures("train", 60, 5)}, 'data.train was .*"train 1".* and is .*"train 5"'),
        ({"objective": "val_loss"}, r"objective was .*val_accuracy.* and is .*val_loss"),
        ({"plain": True}, "data.plain was false and is true"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_search_is_refused_with_the_difference(uninterrupted, changed, message):
    _, folder = uninterrupted
    state = (folder / "search" / "state.json").read_bytes()
    with pytest.raises(ConfigError, match=message) as raised:
        search(folder, **changed).run()
    assert ";" not in str(raised.value)  # there is one difference
    assert "fresh" in str(raised.value)
    assert (folder / "search" / "state.json").read_bytes() == state


def test_a_search_of_before_is_read(uninterrupted, tmp_path):
    whole, folder = uninterrupted
    before = shutil.copytree(folder, tmp_path / "before")
    state = before / "search" / "state.json"
    written = json.dumps(read_sealed(state)).replace('"frozen_up_to"', '"freeze"')
    write_sealed(state, json.loads(written))
    said = []
    again = search(before)
    run(again, said.append)
    assert said == []
    assert again.result.trials == whole.result.trials
    assert again.tuner.get_best_hyperparameters()[0].values["frozen_up_to"]


def test_two_at_once_are_refused(uninterrupted):
    _, folder = uninterrupted
    with (
        FileLock(folder / "search" / "running.lock"),
        pytest.raises(ConfigError, match="is running"),
    ):
        search(folder).run()


# --- of the tuner alone -----------------------------------------------------------------------


class Killed(BaseException):
    """Ends a search as a kill would: nothing in the search catches it."""


ORACLES = {
    "grid": lambda: keras_tuner.oracles.GridSearchOracle("val_accuracy", 5, seed=1),
    "hyperband": lambda: keras_tuner.oracles.HyperbandOracle(
        "val_loss", max_epochs=2, factor=2, seed=3
    ),
    "sweep": lambda: CutSweepOracle(CUTS, 5, objective="val_loss", seed=1),
    "cut grid": lambda: CutGridOracle(objective="val_accuracy", max_trials=5),
}


@pytest.mark.parametrize("name", ["grid", "hyperband"])
def test_any_oracle_goes_on_to_the_same_end(data, name, tmp_path):
    space = SearchSpace(CUTS, units=(0,), dropout=(0.0, 0.5), learning_rates=(0.1, 0.3))

    def tuner(folder):
        hypermodel = CutHyperModel(data, space, SearchConfig(epochs=2, ask=2))
        return CutTuner(hypermodel, ORACLES[name](), tmp_path / folder)

    whole = tuner("whole")
    whole.search()
    before, reported = [], []

    def report(record):
        before.append(record.number)
        if len(before) > 3:
            raise Killed

    with pytest.raises(Killed):
        tuner("killed").search(report)
    kept = json.loads((tmp_path / "killed" / "state.json").read_text())["records"]
    assert 0 < len(kept) < len(before)
    after = tuner("killed")
    after.search(reported.append)
    # Each was finished before or after, none twice.
    numbers = [record["number"] for record in kept] + [record.number for record in reported]
    assert sorted(numbers) == [record.number for record in whole.records]
    assert [r.values for r in after.records] == [r.values for r in whole.records]
    for one, other in zip(after.records, whole.records, strict=True):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4)


def test_more_trials_may_be_asked_for_later(hypermodel, tmp_path):
    few = CutTuner(hypermodel, ORACLES["cut grid"](), tmp_path)
    few.search()
    reported = []
    oracle = CutGridOracle(objective="val_accuracy", max_trials=7)
    more = CutTuner(hypermodel, oracle, tmp_path)
    more.search(reported.append)
    assert [record.number for record in reported] == [5, 6]
    assert more.records[:5] == few.records


def test_a_head_of_before_is_the_same_without_the_options_that_came_since(data, tmp_path):
    def tuner(**options):
        head = heads.Multitask({"kind": heads.Classifier(2)}, **options)
        space = SearchSpace(["deep"], heads={"own": head}, learning_rates=[0.1])
        oracle = CutSweepOracle(["deep"], 1, objective="val_loss", seed=1)
        return CutTuner(CutHyperModel(data, space, SearchConfig(epochs=1)), oracle, tmp_path)

    with pytest.raises(ReusekitError):  # the labels are those of one task
        tuner().search()
    state = read_sealed(tmp_path / "state.json")
    assert state["search"]["space"]["heads"]["own"]["kind"] == "Multitask"
    classifier = "Classifier(classes=2, name='head')"
    before = f"Multitask(name='head', tasks={{'kind': {classifier}}}, weights=None)"
    state["search"]["space"]["heads"]["own"] = before
    write_sealed(tmp_path / "state.json", state)
    assert [record.status for record in tuner().records] == ["failed"]
    with pytest.raises(ConfigError, match=r'space\.heads\.own\.units was null and is "3"'):
        tuner(units=3)


def test_fresh_discards_what_is_there(hypermodel, data, tmp_path):
    CutTuner(hypermodel, CutSweepOracle(CUTS, 3, objective="val_loss", seed=1), tmp_path).search()
    other = CutHyperModel(data, SearchSpace(["deep"], units=(0,)), SearchConfig(epochs=1))
    oracle = CutSweepOracle(["deep"], 1, objective="val_loss", seed=1)
    tuner = CutTuner(other, oracle, tmp_path, fresh=True)
    assert tuner.records == []
    assert not list(tmp_path.rglob("*.npz"))
    tuner.search()
    assert [record.cut for record in tuner.records] == ["deep"]


def test_a_state_that_cannot_be_read_is_named(hypermodel, tmp_path):
    (tmp_path / "state.json").write_text('{"search": ')
    with pytest.raises(ConfigError, match=r"the state of a search in .*state\.json"):
        CutTuner(hypermodel, ORACLES["sweep"](), tmp_path)
    CutTuner(hypermodel, ORACLES["sweep"](), tmp_path, fresh=True)


@pytest.fixture(scope="module")
def searched(data, tmp_path_factory):
    """A finished search of the tuner alone: its folder, and the best trial's weights."""
    folder = tmp_path_factory.mktemp("searched")
    tuner = sweep(data, folder)
    tuner.search()
    return folder, [layer.get_weights() for layer in tuner.get_best_models()[0].layers]


def sweep(data, folder, **changed):
    hypermodel = CutHyperModel(data, SearchSpace(CUTS, units=(0,)), SearchConfig(epochs=1))
    oracle = CutSweepOracle(CUTS, 3, objective="val_loss", seed=1)
    return CutTuner(hypermodel, oracle, folder, **changed)


@pytest.fixture
def damaged(searched, tmp_path):
    """A copy of a finished search."""
    return Path(shutil.copytree(searched[0], tmp_path / "copy"))


def without(*keys):
    def alter(told):
        for key in keys:
            del told[key]

    return alter


def altered(change):
    """The state as someone edited it, who knows of no checksum."""

    def alter(content):
        told = json.loads(content)
        change(told)
        return json.dumps(told).encode()

    return alter


DAMAGES = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[:-9],
    "no text": lambda content: b"\xff\xfe",
    "list": lambda content: b"[]",
    "object": lambda content: b"{}",
    "null": lambda content: b"null",
    "deep": lambda content: b"[" * 100_000,
    "no records": altered(without("records")),
    "no trials": altered(without("trials")),
    "of before": altered(without("checksum")),
    "record lost": altered(lambda told: told["records"].pop()),
    "record twice": altered(lambda told: told["records"].append(told["records"][0])),
    "foreign trial": altered(lambda told: told["trials"].update(x={})),
    "digit": lambda content: re.sub(rb"(val_loss.*?\d\.)\d", rb"\g<1>0", content, flags=re.DOTALL),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_state_is_one_sentence(name, data, damaged):  # faults C6
    state = damaged / "state.json"
    before = state.read_bytes()
    state.write_bytes(DAMAGES[name](before))
    assert state.read_bytes() != before
    with pytest.raises(ConfigError, match=r"the state of a search.*as it was written.*--fresh"):
        sweep(data, damaged)
    assert sweep(data, damaged, fresh=True).records == []


@pytest.mark.parametrize("name", ["state.json", "weights"])
def test_what_is_in_the_way_is_named(name, data, damaged):  # faults C6
    if name == "weights":
        shutil.rmtree(damaged / name)
        (damaged / name).write_text("a file")
    else:
        (damaged / name).unlink()
        (damaged / name).mkdir()
    for fresh in (False, True):
        with pytest.raises(ConfigError, match=name):
            sweep(data, damaged, fresh=fresh)


@pytest.mark.parametrize("name", ["running.lock", "plan.json"])
def test_what_is_in_the_way_of_a_search_is_named(name, tmp_path):  # faults C6
    (tmp_path / "search" / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"can be (used|written).*{name}"):
        search(tmp_path).run()


WEIGHTS = {
    "byte": lambda files: flip(files[0]),
    "cut off": lambda files: files[0].write_bytes(files[0].read_bytes()[:-5]),
    "empty": lambda files: files[0].write_bytes(b""),
    "no text": lambda files: files[0].write_bytes(b"\xff" * 100),
    "of another trial": lambda files: shutil.copy(files[1], files[0]),
    "folder": lambda files: (files[0].unlink(), files[0].mkdir()),
}


def flip(file):
    content = bytearray(file.read_bytes())
    content[-200] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights_are_one_sentence(name, data, searched, damaged):  # faults C7
    tuner = sweep(data, damaged)
    (file,) = damaged.glob("weights/*.npz")
    for one, other in zip(tuner.get_best_models()[0].layers, searched[1], strict=True):
        assert all(map(np.array_equal, one.get_weights(), other))
    other = damaged / "other.h5"
    tuner.get_best_models()[0].save_weights(damaged / "other.weights.h5")
    (damaged / "other.weights.h5").rename(other)
    WEIGHTS[name]([file, other])
    with pytest.raises(ReusekitError, match=r"missing or damaged.*fresh"):
        sweep(data, damaged).get_best_models()


def test_hyperband_goes_on_from_no_damaged_weights(data, tmp_path):  # faults C7
    hypermodel = CutHyperModel(data, SearchSpace(["deep"], units=(0,)), SearchConfig(epochs=2))

    def report(record):
        flip(tmp_path / "search" / "weights" / f"{record.number:04d}.npz")

    tuner = CutTuner(hypermodel, ORACLES["hyperband"](), tmp_path / "search")
    with pytest.raises(ReusekitError, match="missing or damaged"):
        tuner.search(report)


def test_no_link_is_written_through(data, damaged, tmp_path):  # faults C8
    outside = tmp_path / "outside"
    outside.write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "9999.weights.h5").write_text("precious")
    for name in ("state.part", "state.json.part"):
        (damaged / name).symlink_to(outside)
    (damaged / "weights" / "part-0000.npz").symlink_to(outside)
    (damaged / "weights" / "0007.weights.h5").symlink_to(outside)
    shutil.rmtree(damaged / "keras_tuner")
    (damaged / "keras_tuner").symlink_to(folder)
    sweep(data, damaged, fresh=True).search()
    assert outside.read_text() == "precious"
    shutil.rmtree(damaged / "weights")
    (damaged / "weights").symlink_to(folder)
    with pytest.raises(ConfigError, match="Received: a link"):
        sweep(data, damaged)
    assert [path.read_text() for path in folder.iterdir()] == ["precious"]


def test_changed_features_in_memory_are_another_search(hypermodel, data, tmp_path):
    CutTuner(hypermodel, CutSweepOracle(CUTS, 1, objective="val_loss"), tmp_path).search()
    source = data.train["middle", "avg"]
    source.values[3, 2] += 1
    try:
        with pytest.raises(ConfigError, match=r"data\.features was"):
            CutTuner(hypermodel, CutSweepOracle(CUTS, 1, objective="val_loss"), tmp_path)
    finally:
        source.values[3, 2] -= 1
