"""Splits of tables: every format, kinds of columns, parts, and what is said of bad ones."""

import gzip
import json
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image

import reusekit as rk
from reusekit.data import Shares, Treatment, from_table
from reusekit.settings import DataSettings

SIZE = 60
RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "text": [f'review {number}, "quoted"\nand long' for number in range(SIZE)],
        "title": [f"title {number}" for number in range(SIZE)],
        "width": RNG.normal(size=SIZE).round(6),
        "height": RNG.integers(1, 9, SIZE),
        "word": RNG.choice(["cat", "dog", "NA"], SIZE),
        "whole": RNG.integers(3, 6, SIZE),
        "price": RNG.normal(size=SIZE).round(6),
        "old": RNG.choice([True, False], SIZE),
        "red": RNG.integers(0, 2, SIZE),
        "blue": RNG.integers(0, 2, SIZE),
        "part": ["train", "test", "train"] * (SIZE // 3),
        "patient": np.arange(SIZE) // 4,
        "heavy": RNG.uniform(0, 2, SIZE).round(6),
    }
)


def written(folder, kind: str, frame: pd.DataFrame = FRAME):
    """Write a table under a name that says nothing of its format."""
    path = folder / "table"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif kind == "csv.gz":
        frame.to_csv(path, index=False, compression="gzip")
    else:
        frame.to_csv(path, index=False, sep={"csv": ",", "tsv": "\t", "semicolon": ";"}[kind])
    return path


def values(split):
    inputs, labels, *_ = split.arrays()
    return tf.nest.map_structure(np.asarray, inputs), labels


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolon", "csv.gz", "parquet", "jsonl", "frame"])
@pytest.mark.parametrize(
    ("input", "label", "task", "names"),
    [
        (["width", "height"], "word", "classification", ("NA", "cat", "dog")),
        ("text", "whole", "classification", ("3", "4", "5")),
        ("text", "price", "regression", ("price",)),
        (["title", "text"], "old", "classification", ("False", "True")),
        ({"a": "height", "b": ["width", "price"]}, ["red", "blue"], "multilabel", ("red", "blue")),
    ],
)
def test_every_format_gives_the_same_examples(tmp_path, kind, input, label, task, names):
    table = FRAME if kind == "frame" else written(tmp_path, kind)
    split = from_table(table, "train", input=input, label=label, parts="part")
    rows = FRAME[FRAME.part == "train"]
    assert (split.task.kind, split.task.names, split.size) == (task, names, len(rows))
    found, labels = values(split)
    if isinstance(input, str):
        assert [text.decode() for text in found] == rows[input].tolist()
    elif input == ["title", "text"]:
        assert [text.decode() for text in found["text"]] == rows.text.tolist()
    else:
        by_name = input if isinstance(input, dict) else {None: input}
        for name, columns in by_name.items():
            numbers = found if name is None else found[name]
            expected = rows[[columns] if isinstance(columns, str) else columns].to_numpy()
            np.testing.assert_allclose(numbers, expected, rtol=1e-6)
    told = rows[label].to_numpy()
    if task == "classification":
        told = np.array([names.index(str(one)) for one in told])
    np.testing.assert_allclose(labels, told, rtol=1e-6)


def test_parts_are_drawn_from_content_and_keep_groups_together(tmp_path):
    shuffled = FRAME.sample(frac=1, random_state=1)
    for shares in (Shares(), Shares(group="patient", seed=3)):
        found = []
        for table in (FRAME, shuffled, written(tmp_path, "csv", shuffled)):
            parts = [
                from_table(table, part, input=["width"], label="patient", parts=shares)
                for part in ("train", "validation", "test")
            ]
            assert not any(
                one.overlaps(other) for one in parts for other in parts if one is not other
            )
            assert sum(part.size for part in parts) == SIZE
            found.append([sorted(values(part)[0][:, 0].tolist()) for part in parts])
        assert found[0] == found[1] == found[2]
    patients = [set(values(part)[1].tolist()) for part in parts]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 15


def test_equal_inputs_are_reported_and_lie_in_one_part(capsys):
    twice = pd.concat([FRAME, FRAME])
    train = from_table(twice, "train", input=["width", "price"], label="word")
    assert "DataFrame has 60 of 120 examples whose input" in capsys.readouterr().err
    assert np.unique(train.keys).size * 2 == train.size


def test_classes_are_those_of_the_whole_table():
    rare = FRAME.assign(word=["bird", *FRAME.word[1:]])
    test = from_table(rare, "test", input="text", label="word", parts="part")
    assert test.class_names == ("NA", "bird", "cat", "dog")
    secret = FRAME.assign(whole=FRAME.whole.where(FRAME.part == "train").astype("Int64"))
    train = from_table(secret, "train", input="text", label="whole", parts="part")
    assert train.task.kind == "classification"
    with pytest.raises(rk.DataError, match="in 20 rows, the first at position 1"):
        from_table(secret, "test", input="text", label="whole", parts="part")


def test_the_fingerprint_follows_whatever_changes_the_numbers(tmp_path):
    def found(table=FRAME, split="train", **changed):
        options = {"input": ["width", "height"], "label": "word", "parts": "part"} | changed
        return from_table(table, split, **options).fingerprint

    same = [found(), found(FRAME.copy()), found(written(tmp_path, "csv"))]
    assert len(set(same)) == 1
    others = [
        found(),
        found(split="test"),
        found(parts=None),
        found(input=["height", "width"]),
        found(label="whole"),
        found(weight="heavy"),
        found(FRAME.assign(width=FRAME.width.where(FRAME.index > 0, 9.5))),
        found(FRAME.assign(word=FRAME.word.where(FRAME.index > 0, "cow"))),
        found(treatment=Treatment(examples_per_class=3)),
    ]
    assert len(set(others)) == len(others)


def test_weights_selection_and_tasks_that_are_asked_for():
    weighed = from_table(
        FRAME, "train", input=["width"], label="word", weight="heavy", parts="part"
    )
    rows = FRAME[FRAME.part == "train"]
    np.testing.assert_allclose(weighed.arrays()[2], rows.heavy, rtol=1e-6)
    few = from_table(
        FRAME,
        "all",
        input="text",
        label="word",
        parts=None,
        treatment=Treatment(examples_per_class=4),
    )
    np.testing.assert_array_equal(np.bincount(values(few)[1]), [4, 4, 4])
    asked = Treatment(task="regression")
    number = from_table(FRAME, "all", input="text", label="whole", parts=None, treatment=asked)
    assert (number.task.kind, number.task.names) == ("regression", ("whole",))
    np.testing.assert_array_equal(values(number)[1], FRAME.whole)
    several = from_table(FRAME, "all", input="text", label=["price", "heavy"], parts=None)
    assert several.task.kind == "regression"
    assert values(several)[1].shape == (SIZE, 2)


def test_lists_of_numbers_are_series(tmp_path):
    series = RNG.normal(size=(SIZE, 12)).astype("float32")
    steps = RNG.normal(size=(SIZE, 5, 2)).astype("float32")
    frame = FRAME.assign(series=list(series), steps=[one.tolist() for one in steps])
    for kind in ("parquet", "jsonl"):
        path = written(tmp_path, kind, frame)
        for name, expected in (("series", series), ("steps", steps)):
            split = from_table(path, "all", input=name, label="word", parts=None)
            np.testing.assert_allclose(values(split)[0], expected, rtol=1e-5)
    ragged = frame.assign(series=[one[: 3 + place % 2] for place, one in enumerate(series)])
    with pytest.raises(rk.DataError, match="Expected lists of numbers in column 'series', all of"):
        from_table(ragged, "all", input="series", label="word", parts=None)


def test_lists_of_words_are_the_labels_that_apply(tmp_path):
    tags = [["old", "red"], [], ["red"]] * (SIZE // 3)
    frame = FRAME.assign(tags=tags, box=[[one, 2.0 * one] for one in FRAME.price])
    for kind in ("parquet", "jsonl", "frame"):
        table = frame if kind == "frame" else written(tmp_path, kind, frame)
        split = from_table(table, "all", input="text", label="tags", parts=None)
        assert (split.task.kind, split.task.names) == ("multilabel", ("old", "red"))
        assert values(split)[1].tolist() == [[1, 1], [0, 0], [0, 1]] * (SIZE // 3)
        boxes = from_table(table, "all", input="text", label="box", parts=None)
        assert (boxes.task.kind, boxes.task.names) == ("regression", ("0", "1"))
        np.testing.assert_allclose(values(boxes)[1][:, 1], 2 * FRAME.price, rtol=1e-6)
    part = from_table(frame, "train", input="text", label={"kind": "word", "tags": "tags"})
    assert part.task.by_name["tags"].names == ("old", "red")
    with pytest.raises(rk.DataError, match=r"Expected lists of the names.*Received: 'old'"):
        told = frame.tags.to_numpy()
        rk.data.from_arrays(np.zeros((SIZE, 2)), told, names=["red", "blue"])


def test_paths_of_pictures_lie_beside_the_table(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(12):
        colour = (number // 2 * 20, 0, 0)  # each picture twice
        Image.new("RGB", (6, 4), colour).save(tmp_path / "pictures" / f"{number}.png")
    frame = pd.DataFrame(
        {"path": [f"pictures/{n}.png" for n in range(12)], "kind": ["a", "a", "b", "b"] * 3}
    )
    small = Treatment(image_size=(8, 8), channels=3)
    path = written(tmp_path, "csv", frame)
    shares = Shares(train=0.5, validation=0.25, test=0.25)
    split = from_table(path, "train", input="path", label="kind", parts=shares, treatment=small)
    assert split.input_shape == (8, 8, 3)
    reds = values(split)[0][:, 0, 0, 0]
    assert len(reds) == 2 * len(np.unique(reds)) == 6
    (tmp_path / "pictures" / "1.png").write_bytes(b"\0")
    few = small.changed(examples_per_class=5, skip_unreadable=True)
    split = from_table(path, "all", input="path", label="kind", parts=None, treatment=few)
    np.testing.assert_array_equal(np.bincount(values(split)[1]), [5, 5])
    few = few.changed(examples_per_class=6)
    with pytest.raises(rk.DataError, match="at most 5, as class 'a' has"):
        from_table(path, "all", input="path", label="kind", parts=None, treatment=few)
    (tmp_path / "pictures" / "3.png").unlink()
    with pytest.raises(rk.DataError, match=r"3.png.*the path of one, .* of column 'path' of table"):
        from_table(path, "train", input="path", label="kind", treatment=small)
    (tmp_path / "pictures" / "3.png").mkdir()
    with pytest.raises(rk.DataError, match=r"3\.png': a folder\. Give the path"):
        from_table(path, "train", input="path", label="kind", treatment=small)


def test_texts_with_a_length_are_paths_in_each_row_or_in_none(tmp_path):
    names = [f"{number}.wav" for number in range(4)]
    sound = tf.audio.encode_wav(np.zeros((8, 1), "float32"), 8_000).numpy()
    for name in names[1:]:
        (tmp_path / name).write_bytes(sound)
    frame = pd.DataFrame({"file": names, "kind": ["a", "b"] * 2})
    path = written(tmp_path, "csv", frame)
    asked = {"input": "file", "label": "kind", "parts": None, "treatment": Treatment(length=6)}
    with pytest.raises(rk.DataError, match=r"'1.wav' at position 1, which is one, and '0.wav' at"):
        from_table(path, "all", **asked)
    (tmp_path / "0.wav").write_bytes(sound)
    assert from_table(path, "all", **asked).input_shape == (6, 1)
    texts = frame.assign(file=[f"said {name}" for name in names])
    assert from_table(texts, "all", **asked).input_shape == ()


def test_a_file_that_changes_is_not_read_on(tmp_path):
    path = written(tmp_path, "csv")
    split = from_table(path, "all", input=["width"], label="word", parts=None)
    FRAME.iloc[:-1].to_csv(path, index=False)
    with pytest.raises(rk.DataError, match="table as it was when it was opened"):
        split.check()


def numbers(**columns):
    return pd.DataFrame({"x": [1.5, 2.5, 3.5], "y": ["a", "b", "a"]} | columns)


@pytest.mark.parametrize(
    ("table", "options", "says"),
    [
        (
            FRAME,
            {"input": "txt"},
            "Expected a column of DataFrame. Received: 'txt'. Did you mean 'text'?",
        ),
        (FRAME, {"label": "wrd"}, "Did you mean 'word'"),
        (FRAME, {"parts": Shares(group="patiant")}, "Did you mean 'patient'?"),
        (FRAME, {"parts": "part", "split": "trian"}, "Received: none. Did you mean 'train'?"),
        (FRAME, {"split": "tset"}, "Did you mean 'test'?"),
        (FRAME, {"input": "word"}, "as input that are for nothing else. Received: 'word'"),
        (FRAME, {"input": ["text", "width"]}, "'text' holds text, 'width' holds number"),
        (FRAME, {"input": {"a": ["text", "title"]}}, "or one of text or lists"),
        (FRAME, {"label": "title"}, "Expected words that repeat as classes"),
        (FRAME, {"label": ["word", "red"]}, "Expected a word, a number or several numbers"),
        (numbers(y=[["a"], [], None]), {}, "column 'y' of DataFrame. Received: none"),
        (numbers(y=[[]] * 3), {}, "Received: 'empty ones alone'"),
        (numbers(y=[[1], [1, 2], []]), {}, "or of as many numbers each"),
        (numbers(y=[["a"]] * 3), {"treatment": Treatment(task="regression")}, "Received: text"),
        (numbers(g=[["a"]] * 3), {"parts": Shares(group="g")}, "Received: lists"),
        (FRAME, {"label": "word", "treatment": Treatment(task="regression")}, "Received: text"),
        (FRAME, {"input": ["width"], "treatment": Treatment(channels=3)}, "Expected images of"),
        (FRAME, {"weight": "price"}, "numbers of at least 0"),
        (numbers(x=[1.0, np.nan, np.inf]), {}, "in 2 rows, the first at position 1"),
        (numbers(y=["a", None, ""]), {}, "column 'y' of DataFrame. Received: none"),
        (numbers(x=["a", "", "b"]), {}, "column 'x'. Received: none"),
        (numbers(x=[1.5, "a", None]), {}, "Received: mixed"),
        (numbers(x=pd.to_datetime(["2020"] * 3)), {}, "Received: datetime64"),
        (numbers(y=[0.5, np.nan, 1]), {}, "column 'y' of DataFrame. Received: none"),
        (numbers(x=[1j, 2, 3]), {}, "Received: complex"),
        (numbers(w=["1", "p", "2"]), {"weight": "w"}, "as weights. Received: text"),
        (numbers(y=["1,5", "2,5", "1,5"]), {}, "without commas"),
        (numbers(), {"parts": Shares()}, "too few for test=0.15"),
        (pd.concat([FRAME, FRAME[["text"]]], axis=1), {}, "one column 'text'"),
        (FRAME.iloc[:0], {}, "Received: none."),
    ],
)
def test_bad_tables_get_one_clear_sentence(table, options, says):
    options = {"split": "train", "parts": None} | options
    own = {"input": "text", "label": "word"} if "text" in table else {"input": ["x"], "label": "y"}
    if "x" in table and table.x.dtype == object:
        own["input"] = "x"
    if options.get("split") == "tset":
        options["parts"] = Shares()
    with pytest.raises(rk.DataError) as caught:
        from_table(table, options.pop("split"), **own | options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "Received: an empty file"),
        (b"PK\x03\x04 something", "Received: something else"),
        ("x,label\n1,a\n".encode("utf-16"), "Received: text in UTF-16. Save it in UTF-8"),
        ("x,y\n1,ü\n".encode("latin-1"), "Save it in UTF-8, or pass a DataFrame"),
        (b'[{"x": 1, "y": 2}]', "an object on each line"),
        (b'{"x": 1, "y": "a"}\n{"x": ', "Expected a table that can be read"),
        (b'{"x": 1, "y": "a"}\n3\n', "Expected an object on each line"),
        (b"PAR1 something", "Expected a table that can be read"),
        (b"x,y\n1,a\n2,b,c\n", "Expected a table that can be read"),
        (b"x,y\n1,a,b\n2,b,c\n", "as many fields as its header"),
        (b"x,y\n1,a\nNA,b\n", "the first at position 1"),
        (b"y,z\n1,a\n", "Received: 'x'. Valid"),
        (b"y,z\r1,a\r", "Received: 'x'. Valid"),
        (gzip.compress(b"x,y\n1,a\n", mtime=0)[:-9], "Expected a table that can be read"),
        (b'x\ty\tz\n1\ta\t"so\n2\tb\tso"\n', "quotation marks of table in pairs"),
    ],
)
def test_bad_files_get_one_clear_sentence(tmp_path, content, says):
    (tmp_path / "table").write_bytes(content)
    with pytest.raises(rk.DataError) as caught:
        from_table(tmp_path / "table", "train", input=["x"], label="y", parts=None)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_file(tmp_path):
    (tmp_path / "reviews.csv").touch()
    with pytest.raises(rk.DataError, match=r"Did you mean 'reviews.csv'"):
        from_table(tmp_path / "review.csv", "train", input="x", label="y")
    with pytest.raises(rk.DataError, match=r"a folder; see rk.data.from_folder"):
        from_table(tmp_path, "train", input="x", label="y")


def test_numbers_and_then_words_in_csv_are_words(tmp_path):
    rows = [*range(9_000), "x7"]
    frame = pd.DataFrame({"id": rows, "kind": ["a", "b"] * 4_500 + ["a"]})
    split = from_table(written(tmp_path, "csv", frame), "all", input="id", label="kind", parts=None)
    [(found, _)] = split.batches(len(rows))
    assert [text.decode() for text in found.numpy()] == list(map(str, rows))
    assert json.loads(json.dumps(dict(split.origin))) == dict(split.origin)


def test_padded_numbers_in_csv_are_words(tmp_path):
    (tmp_path / "table").write_text("x,y,z\n1,007,1\n2,7,2\n3,007,1\n4,01,2\n")
    split = from_table(tmp_path / "table", "all", input="x", label="y", parts=None)
    assert split.class_names == ("007", "01", "7")
    np.testing.assert_array_equal(split.arrays()[1], [0, 2, 0, 1])
    part = from_table(tmp_path / "table", "01", input="x", label="z", parts="y")
    np.testing.assert_array_equal(part.arrays()[0], [[4]])


def test_numbers_are_alike_in_each_part(tmp_path):
    # all of train are whole, in a block of their own
    frame = pd.DataFrame({"x": ["1"] * 8_192 + ["0.5"] * 2, "y": ["a", "b"] * 4_097})
    frame["part"] = ["train"] * 8_192 + ["test"] * 2
    path = written(tmp_path, "csv", frame)
    specs = {
        from_table(path, part, input="x", label="y", parts="part").examples.element_spec
        for part in ("train", "test")
    }
    assert len(specs) == 1


def test_words_between_numbers_of_a_wide_csv(tmp_path):
    # pandas reads wide tables in pieces, and guesses types for each
    frame = pd.DataFrame({f"c{number}": ["1"] * 1_200 for number in range(1_000)})
    frame.loc[1_100, "c0"] = "x7"
    split = from_table(written(tmp_path, "csv", frame), "all", input="c0", label="c1", parts=None)
    assert split.examples.element_spec[0].dtype == tf.string


def test_rows_without_a_part_are_reported(capsys):
    frame = FRAME.assign(part=["train", None, "test"] * (SIZE // 3))
    assert from_table(frame, "train", input="text", label="word", parts="part").size == SIZE // 3
    assert "20 rows without a value in column 'part'" in capsys.readouterr().err


def test_columns_wherever_a_frame_has_them(tmp_path):
    FRAME.set_index("word").to_parquet(tmp_path / "table")
    split = from_table(tmp_path / "table", "all", input="text", label="word", parts=None)
    assert split.class_names == ("NA", "cat", "dog")
    plain = pd.DataFrame([[1, "a"], [2, "b"]])
    assert from_table(plain, "all", input="0", label="1", parts=None).class_names == ("a", "b")


def test_numbers_in_the_other_order_of_bytes():
    frame = pd.DataFrame({"x": np.arange(40.0), "whole": np.arange(40), "y": np.arange(40) % 2})
    swapped = frame.astype({"x": ">f8", "whole": ">i4", "y": ">i8"})
    one, other = (from_table(f, "train", input=["x", "whole"], label="y") for f in (frame, swapped))
    assert swapped["x"].dtype == ">f8"
    for expected, found in zip(one.arrays(), other.arrays(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_memory_does_not_follow_the_number_of_rows(tmp_path):
    # scripts/benchmark_table.py measures whole processes with 100,000 and 1,000,000 rows
    columns = [f"x{number}" for number in range(40)]
    peaks = {}
    for rows in (8_000, 24_000):
        frame = pd.DataFrame(np.repeat(RNG.normal(size=(rows, 1)), 40, axis=1), columns=columns)
        frame.assign(y=["a", "b"] * (rows // 2)).to_parquet(
            tmp_path / "table", row_group_size=4_000
        )
        tracemalloc.start()
        split = from_table(tmp_path / "table", "all", input=columns, label="y", parts=None)
        assert sum(len(labels) for _, labels in split.batches(2_000)) == rows
        peaks[rows] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[24_000] - peaks[8_000] < 100 * 16_000  # bytes a row; its numbers alone take 320


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "Expected one of data.name, data.folder, data.table. Received: none of them"),
        ({"table": "a.csv", "folder": "b"}, "Received: folder and table"),
        ({"table": "a.csv", "input": "x"}, "Expected input and label to name columns"),
        ({"table": "a.csv", "data_dir": "b"}, "Expected no data_dir for data.table"),
        ({"name": "mnist", "part": "part"}, "Expected no part for data.name"),
        ({"name": "mnist", "input": {"a": "b"}}, "Expected input as a feature"),
        ({"table": "a.csv", "input": "x", "label": []}, "name a feature or a column. Received: []"),
        ({"table": "a.csv", "input": {"a": []}, "label": "y"}, "Received: {'a': []}"),
        (
            {"table": "a.csv", "input": "x", "label": "y", "part": "p", "shares": Shares()},
            "Expected part, a column, or shares",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, says):
    with pytest.raises(rk.ConfigError) as caught:
        DataSettings(**settings)
    assert says in str(caught.value)
