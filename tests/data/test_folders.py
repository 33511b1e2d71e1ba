"""Folders of pictures, sounds and texts by class, as people have them."""

import gc
import hashlib
import os
import shutil
import struct
import tempfile
import wave
import zlib
from pathlib import Path

import keras
import numpy as np
import psutil
import pytest
import simplejpeg
import tensorflow as tf
from PIL import Image

import reusekit as rk
from reusekit.data import Shares, Treatment, from_folder, opened_files, pictures
from reusekit.features.batches import example_batches

RNG = np.random.default_rng(0)
TO_6 = Treatment(image_size=(6, 6), channels=3)
HALF = Shares(train=0.5, validation=0.25, test=0.25)


@pytest.fixture(autouse=True)
def same_pixels_whatever_ran_before(monkeypatch):
    """Each test draws the same, since the content of files decides their split."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(0))


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape or (6, 6, 3), "uint8")


def save(path: Path, image: np.ndarray | Image.Image | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels() if image is None else image
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(path, **options)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def pets(tmp_path):
    for number in range(20):
        save(tmp_path / "pets" / ("cat", "dog")[number % 2] / f"{number}.png")
    return tmp_path / "pets"


def test_class_folders_are_parted_and_nothing_is_written(pets):
    before = contents(pets)
    parts = {part: from_folder(pets, part, shares=HALF) for part in ("train", "validation", "test")}
    assert {part: split.size for part, split in parts.items()} == {
        "train": 10,
        "validation": 5,
        "test": 5,
    }
    train = parts["train"]
    assert (train.name, train.task.names, train.input_shape) == ("pets", ("cat", "dog"), (6, 6, 3))
    images, labels = train.arrays()
    truth = {bytes(np.asarray(Image.open(file))): Path(file).parent.name for file in before}
    assert [train.task.names[label] for label in labels] == [
        truth[bytes(image)] for image in images.astype("uint8")
    ]
    assert train.check().tolist() == [5, 5]
    assert not train.overlaps(parts["test"])
    assert train.overlaps(from_folder(pets, "train[:2]+test", shares=HALF))
    assert contents(pets) == before


def test_names_and_places_do_not_count_but_content_and_treatment_do(pets, tmp_path):
    first = from_folder(pets, "train")
    (pets / "cat" / "0.png").rename(pets / "cat" / "zero.png")
    pets.rename(tmp_path / "animals")
    again = from_folder(tmp_path / "animals", "train")
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.arrays()[0], first.arrays()[0])
    prints = {
        first.fingerprint,
        from_folder(tmp_path / "animals", "test").fingerprint,
        from_folder(tmp_path / "animals", "train", treatment=TO_6).fingerprint,
        from_folder(tmp_path / "animals", "train", shares=Shares(seed=1)).fingerprint,
    }
    save(tmp_path / "animals" / "cat" / "zero.png")
    prints.add(from_folder(tmp_path / "animals", "train+validation+test").fingerprint)
    assert len(prints) == 5


def test_split_folders_keep_their_parts_and_share_their_classes(tmp_path, capsys):
    for part, names in {"train": ["cat", "dog"], "test": ["cat", "owl"]}.items():
        for name in names:
            for number in range(4):
                save(tmp_path / part / name / "more" / f"{number}.bmp")
    train, test = from_folder(tmp_path, "train[:75%]"), from_folder(tmp_path, "test")
    assert train.task == test.task == rk.data.Task("classification", ("cat", "dog", "owl"))
    assert (train.size, test.size) == (6, 8)
    assert not train.overlaps(from_folder(tmp_path, "train[75%:]"))
    assert capsys.readouterr().err == ""
    twin = tmp_path / "test" / "cat" / "twin.bmp"
    twin.write_bytes((tmp_path / "train" / "dog" / "more" / "1.bmp").read_bytes())
    assert from_folder(tmp_path, "test").overlaps(from_folder(tmp_path, "train"))
    both = from_folder(tmp_path, "all")
    assert "1 files whose content another one has. Of two classes, too:" in capsys.readouterr().err
    few = from_folder(tmp_path, "all", treatment=Treatment(examples_per_class=2))
    assert (both.size, few.check().tolist()) == (17, [2, 2, 2])


# pictures: item 2 of issue 13
def test_pictures_of_every_kind_become_what_a_person_sees(tmp_path):
    colour, alpha, grey = pixels(), pixels(6, 6, 4), pixels(6, 6)
    deep = RNG.integers(0, 65536, (6, 6), "uint16")
    on_white = alpha[..., :3] * (alpha[..., 3:] / 255) + 255 - alpha[..., 3:].astype(float)
    palette = Image.fromarray(colour).convert("P")
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: turn it clockwise
    inks = Image.fromarray(255 - alpha, "CMYK")
    frames = [Image.fromarray(pixels()).convert("P") for _ in range(3)]
    expected = {
        "colour.webp": (colour, {"lossless": True}, colour),
        "colour.gif": (palette, {}, np.asarray(palette.convert("RGB"))),
        "moving.gif": (
            frames[0],
            {"save_all": True, "append_images": frames[1:]},
            np.asarray(frames[0].convert("RGB")),
        ),
        "palette.png": (palette, {}, np.asarray(palette.convert("RGB"))),
        "alpha.png": (alpha, {}, on_white),
        "grey.tiff": (grey, {}, np.repeat(grey[..., None], 3, -1)),
        "one_bit.png": (
            Image.fromarray(grey).convert("1"),
            {},
            np.repeat(np.asarray(Image.fromarray(grey).convert("1"))[..., None] * 255.0, 3, -1),
        ),
        "deep.png": (deep, {}, np.repeat(deep[..., None] / 257, 3, -1)),
        "turned.png": (colour, {"exif": turned}, np.rot90(colour, -1)),
        "inks.tiff": (inks, {}, np.asarray(inks.convert("RGB"))),
    }
    for name, (image, options, _) in expected.items():
        save(tmp_path / name.replace(".", "_") / name, image, **options)
    jpeg = save(tmp_path / "turned_jpeg" / "photo.jpg", colour, exif=turned, quality=100)
    expected["turned_jpeg"] = None, None, np.rot90(np.asarray(Image.open(jpeg)), -1)
    plain = save(tmp_path / "plain_jpeg" / "no_suffix", colour, format="JPEG")
    expected["plain_jpeg"] = None, None, tf.io.decode_jpeg(plain.read_bytes()).numpy()
    everything = Shares(train=1, validation=0, test=0)
    part = from_folder(tmp_path, "train", shares=everything, treatment=TO_6)
    images, labels = part.arrays()
    truth = {name.replace(".", "_"): right for name, (*_, right) in expected.items()}
    assert len(images) == len(truth)
    for image, label in zip(images, labels, strict=True):
        name = part.task.names[label]
        np.testing.assert_allclose(image, truth[name], atol=1e-2, err_msg=name)


def test_grey_pictures_stay_grey_and_sizes_may_differ(tmp_path):
    for name, image in (("a", pixels(6, 6)), ("b", pixels(4, 8))):
        save(tmp_path / name / "1.png", image)
        save(tmp_path / name / "2.jpg", image[::-1])
    every = Shares(train=1, validation=0, test=0)
    part = from_folder(tmp_path, "train", shares=every)
    assert part.input_shape == (None, None, 1)
    with pytest.raises(rk.DataError, match="image_size"):
        part.arrays()
    padded = Treatment(image_size=(8, 8), resize="pad")
    assert from_folder(tmp_path, "train", shares=every, treatment=padded).arrays()[0].shape == (
        4, 8, 8, 1,
    )  # fmt: skip


@pytest.mark.parametrize("resizer", ["cykooz_resizer", "pillow"])
def test_jpegs_are_resized_with_antialiasing_at_most_a_grey_level_off(
    tmp_path, resizer, monkeypatch
):
    if resizer == "pillow":
        monkeypatch.setattr(pictures, "cykooz_resizer", None)
    for number, shape in enumerate([(60, 40, 3), (17, 90, 3), (25, 20, 3), (45, 30), (31, 21, 3)]):
        save(tmp_path / "a" / f"{number}.jpg", pixels(*shape))
    every = Shares(train=1, validation=0, test=0)
    layer = keras.layers.Resizing(31, 21, antialias=True, data_format="channels_last")
    contents = _contents_in_order(tmp_path / "a")
    for channels in (3, 1):  # TensorFlow and Keras have libjpeg make colours grey, too
        treatment = Treatment(image_size=(31, 21), channels=channels)
        opened = from_folder(tmp_path, "train", shares=every, treatment=treatment)
        read = [tf.io.decode_jpeg(one, channels=channels) for one in contents]
        expected = [layer(tf.cast(image, tf.float32)) for image in read]
        assert np.abs(opened.arrays()[0] - np.stack(expected)).max() <= 1
    monkeypatch.setattr(opened_files, "RESIZER", "another")
    again = from_folder(tmp_path, "train", shares=every, treatment=treatment)
    assert again.fingerprint != opened.fingerprint
    assert again.contents.treatment != opened.contents.treatment


@pytest.mark.parametrize("resize", ["crop", "pad"])
def test_jpegs_that_are_not_stretched_become_grey_as_tensorflow_has_it(tmp_path, resize):
    for number, shape in enumerate([(60, 40, 3), (17, 90, 3), (200, 150, 3)]):
        save(tmp_path / "a" / f"{number}.jpg", pixels(*shape))
    treatment = Treatment(image_size=(31, 21), channels=1, resize=resize)
    every = Shares(train=1, validation=0, test=0)
    images, _ = from_folder(tmp_path, "train", shares=every, treatment=treatment).arrays()
    finish = treatment.resizing()
    for image, content in zip(images, _contents_in_order(tmp_path / "a"), strict=True):
        ratio = 2 if len(tf.io.decode_jpeg(content)) == 200 else 1
        read = tf.io.decode_jpeg(content, channels=1, ratio=ratio)
        grey = finish(tf.cast(read, tf.float32))
        assert np.abs(image - grey).max() <= 0.501  # rounded once, at the end


def test_jpegs_with_wrong_bytes_are_read_as_tensorflow_reads_them(tmp_path):
    whole, wrong = save(tmp_path / "whole.jpg", pixels(60, 40, 3)).read_bytes(), {}
    for place in range(700, len(whole)):
        data = whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
        try:
            simplejpeg.decode_jpeg(data)
        except ValueError as error:
            for kind in ("extraneous", "premature end of data"):
                if kind in str(error):
                    wrong[kind] = data
    assert len(wrong) == 2
    (tmp_path / "a").mkdir()
    for number, data in enumerate(wrong.values()):
        (tmp_path / "a" / f"{number}.jpg").write_bytes(data)
    every = Shares(train=1, validation=0, test=0)
    images, _ = from_folder(tmp_path, "train", shares=every).arrays()
    for image, content in zip(images, _contents_in_order(tmp_path / "a"), strict=True):
        np.testing.assert_array_equal(image, tf.io.decode_jpeg(content))
    cut = wrong["extraneous"][:-60]  # and cut off, which comes to light later
    (tmp_path / "a" / "1.jpg").write_bytes(cut)
    with pytest.raises(rk.DataError, match=r"1 of 2 files that cannot be read.*1\.jpg"):
        from_folder(tmp_path, "train", shares=every)


def _contents_in_order(folder):
    """The contents of files, as a split has them."""
    contents = [file.read_bytes() for file in folder.iterdir()]
    return sorted(contents, key=lambda one: hashlib.blake2b(one, digest_size=16).digest())


def test_a_jpeg_is_the_same_beside_pictures_of_other_formats(tmp_path):
    save(tmp_path / "a" / "1.jpg", pixels(60, 40, 3))
    every, size = Shares(train=1, validation=0, test=0), Treatment(image_size=(31, 21))
    alone = from_folder(tmp_path, "train", shares=every, treatment=size)
    save(tmp_path / "b" / "1.png", pixels(60, 40, 3))
    both = from_folder(tmp_path, "train", shares=every, treatment=size)
    images, labels = both.arrays()
    np.testing.assert_array_equal(images[labels == 0], alone.arrays()[0])


def test_pictures_that_memory_does_not_hold_are_decoded_once(pets, tmp_path, monkeypatch):
    decode, seen = opened_files.pixels_of, []
    monkeypatch.setattr(opened_files, "pixels_of", lambda *given: seen.append(1) or decode(*given))
    expected = from_folder(pets, "train", treatment=TO_6).arrays()[0]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0}))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    for passes in (1, 3):  # on the disk, and where there is no room either
        seen.clear()
        found = from_folder(pets, "train", treatment=TO_6)
        for _ in range(2):
            np.testing.assert_array_equal(found.arrays()[0], expected)
        assert len(seen) == passes * found.size
        del found
        gc.collect()
        assert not any((tmp_path / "scratch").iterdir())
        monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Disk", (), {"free": 0}))


@pytest.mark.parametrize("room", ["memory", "disk", ""])
def test_batches_of_jpegs_are_those_of_single_examples(tmp_path, monkeypatch, room):
    for number in range(9):
        save(tmp_path / "pets" / "ab"[number % 2] / f"{number}.jpg", pixels(12, 20, 3) ^ number)
    if room != "memory":
        none = type("Room", (), {"available": 0, "free": 0})
        monkeypatch.setattr(psutil, "virtual_memory", lambda: none)
        if not room:
            monkeypatch.setattr(shutil, "disk_usage", lambda _: none)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    treatment = Treatment(image_size=(8, 6), channels=3)
    split = from_folder(tmp_path / "pets", "train", shares=HALF, treatment=treatment)
    scratch = tmp_path / "scratch"
    assert len(list(scratch.glob("reusekit-*"))) == (room == "disk")
    tf.random.set_seed(0)
    shuffled = split.examples.shuffle(split.size, seed=3)
    for expected, found in (
        (split.examples.batch(2), split.batches(2)),
        (shuffled.batch(2), split.batches(2, shuffle_seed=3)),
        (split.examples.skip(1).take(2).batch(3), example_batches(split, 1, 3, None, 3)),
    ):
        for one, other in zip(expected, found, strict=True):
            tf.nest.map_structure(np.testing.assert_array_equal, one, other)
            assert other[0].dtype == tf.float32
    for kept in (split.balanced(), split.augmented(["RandomFlip"])):
        assert [len(batch[1]) for batch in kept.batches(4)] == [4, 1]
    del split, kept, shuffled, expected, found, one, other
    gc.collect()
    assert not any(scratch.glob("reusekit-*"))


def test_files_that_cannot_be_read_are_named_and_left_out_only_where_that_is_asked(pets, capsys):
    jpeg = save(pets / "cat" / "cut.jpg", pixels(40, 40, 3))
    jpeg.write_bytes(jpeg.read_bytes()[:-300])
    png = save(pets / "dog" / "cut.png", pixels(40, 40, 3))
    png.write_bytes(png.read_bytes()[:-300])
    (pets / "dog" / "page.jpg").write_text("<html>404</html>")
    (pets / "dog" / "empty.jpg").touch()
    (pets / "dog" / "noise.png").write_bytes(b"\0\1\2\3")
    (pets / "dog" / ".DS_Store").write_bytes(b"\0\1")
    every = Shares(train=1, validation=0, test=0)
    names = {"page.jpg (text, and no picture)", "empty.jpg (empty)", "noise.png (no picture"}
    with pytest.raises(rk.DataError) as caught:
        from_folder(pets, "train", shares=every)
    assert "3 of 25 files that cannot be read" in str(caught.value)
    assert all(name in str(caught.value) for name in names)
    assert "skip_unreadable" in str(caught.value)
    assert "\n" not in str(caught.value)
    skipping = Treatment(skip_unreadable=True)
    part = from_folder(pets, "train", shares=every, treatment=skipping)
    said = capsys.readouterr().err
    assert part.check().tolist() == [10, 10]
    assert all(name in said for name in (*names, "cut.jpg (", "cut.png (", "truncated"))
    assert part.fingerprint != from_folder(pets, "test", treatment=skipping).fingerprint
    five = skipping.changed(examples_per_class=10)
    assert from_folder(pets, "train", shares=every, treatment=five).check().tolist() == [10, 10]


def test_texts_and_sounds_by_class(tmp_path):
    for number in range(8):
        name = ("good", "bad")[number % 2]
        (tmp_path / "texts" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name / f"{number}.txt").write_text(
            f"Grüße {number}", "utf-8-sig" if number else "utf-8"
        )
        (tmp_path / "sounds" / name).mkdir(parents=True, exist_ok=True)
        with wave.open(str(tmp_path / "sounds" / name / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes((np.arange(50 + number, dtype="<i2") * 50 * number).tobytes())
    texts = from_folder(tmp_path / "texts", "train", shares=HALF)
    found = [(text.decode(), int(label)) for text, label in texts.examples.as_numpy_iterator()]
    assert len(found) == 4
    assert all(text == f"Grüße {text[-1]}" for text, _ in found)
    assert all(texts.task.names[y] == ("good", "bad")[int(text[-1]) % 2] for text, y in found)
    sounds = from_folder(tmp_path / "sounds", "train", shares=HALF)
    assert sounds.input_shape == (None, 1)
    for sound, label in sounds.examples.as_numpy_iterator():
        number = len(sound) - 50
        assert label == sounds.task.names.index(("good", "bad")[number % 2])
        np.testing.assert_allclose(sound[:, 0], np.arange(len(sound)) * 50 * number / 32768)


def test_sounds_of_nothing_and_pipes_are_refused(tmp_path):
    for number, (rate, count) in enumerate([(8000, 9), (8000, 0), (0, 9)]):
        header = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
        data = struct.pack("<4sI", b"data", 2 * count) + bytes(2 * count)
        file = tmp_path / "sounds" / f"{number}.wav"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"RIFF" + bytes(4) + b"WAVEfmt " + header + data)
    every = Shares(train=1, validation=0, test=0)
    with pytest.raises(rk.DataError) as caught:
        from_folder(tmp_path, "train", shares=every, treatment=Treatment(length=9))
    assert "2 of 3 files" in str(caught.value)
    assert all(f"{n}.wav (a WAV file without a sound)" in str(caught.value) for n in (1, 2))
    os.mkfifo(tmp_path / "sounds" / "pipe.wav")  # which nobody writes into
    with pytest.raises(rk.DataError, match=r"pipe\.wav': a pipe"):
        from_folder(tmp_path, "train", shares=every)


@pytest.mark.parametrize(
    ("make", "split", "says"),
    [
        (lambda f: None, "train", "which holds nothing"),
        (lambda f: save(f / "1.png"), "train", "1 files and no folder"),
        (lambda f: (f / "cat").mkdir(), "train", "none in"),
        (lambda f: save(f / "cat" / "1.png"), "train", "too few"),
        (lambda f: save(f / "train" / "cat" / "1.png"), "validation", "train[80%:]"),
        (lambda f: save(f / "train" / "cat" / "1.png"), "trian", "Did you mean 'train'?"),
        (lambda f: save(f / "train" / "cat" / "1.png"), "train[:0]", "has none of 'train'"),
        (lambda f: save(f / "train" / "cat" / "1.png"), "train[:x]", "such as train[:80%]"),
        (lambda f: [save(f / "cat" / f"{n}.png") for n in range(9)], "tset", "mean 'test'?"),
        (lambda f: save(f / "all" / "cat" / "1.png"), "all", "other names than 'all'"),
    ],
)
def test_a_folder_that_will_not_do_gets_one_clear_error(make, split, says, tmp_path):
    make(tmp_path)
    with pytest.raises(rk.DataError) as caught:
        from_folder(tmp_path, split)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(rk.DataError, match="which is no folder"):
        from_folder(tmp_path / "nowhere", split)


def png_of_16_bits(image: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG with more chunks behind its header."""
    data = tf.io.encode_png(image.astype("uint16") * 257).numpy()
    more = b""
    for name, body in chunks:
        crc = zlib.crc32(name + body).to_bytes(4)
        more += len(body).to_bytes(4) + name + body + crc
    return data[:33] + more + data[33:]


def test_turned_pictures_of_rare_formats_are_upright_and_clear_on_white(tmp_path):
    image = pixels(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    folder = tmp_path / "pictures" / "a"
    save(folder / "1.tiff", image, exif=exif)
    chunk = b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")
    clear = b"tRNS", b"".join((int(one) * 257).to_bytes(2) for one in image[0, 0])
    (folder / "2.png").write_bytes(png_of_16_bits(image, chunk))
    (folder / "3.png").write_bytes(png_of_16_bits(image, clear, chunk))
    found = from_folder(
        tmp_path / "pictures", "train", shares=Shares(train=1, validation=0, test=0)
    )
    upright = np.rot90(image, -1).astype("float32")
    white = upright.copy()
    white[(upright == image[0, 0]).all(axis=-1)] = 255
    images = sorted(found.arrays()[0], key=lambda one: one.sum())
    np.testing.assert_allclose(images, [upright, upright, white], atol=1e-3)


def test_each_drawn_part_has_the_channels_of_all(tmp_path):
    for number in range(20):
        save(tmp_path / "pets" / "ab"[number % 2] / f"{number}.png", pixels(6, 6))
    grey = from_folder(tmp_path / "pets", "test", shares=HALF)
    assert grey.input_shape == (6, 6, 1)
    save(tmp_path / "pets" / "a" / "colour.png")
    parts = [from_folder(tmp_path / "pets", part, shares=HALF) for part in ("train", "test")]
    assert {part.input_shape for part in parts} == {(6, 6, 3)}


def test_sounds_of_one_length_are_brought_to_the_length_that_is_asked_for(tmp_path):
    for number, size in enumerate((9, 9, 9, 7)):
        path = (
            tmp_path / "sounds" / ("test" if number < 2 else "train") / "ab"[number % 2] / "1.wav"
        )
        path.parent.mkdir(parents=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8_000)
            file.writeframes(bytes([number]) * 2 * size)
    for part in ("train", "test"):
        found = from_folder(tmp_path / "sounds", part, treatment=Treatment(length=8))
        assert found.input_shape == (8, 1)


def test_folders_in_some_classes_only_are_no_parts(pets):
    (pets / "cat" / "young").mkdir()
    save(pets / "cat" / "young" / "1.png")
    with pytest.raises(rk.DataError, match=r"Received: 'cat' with folders, 'dog' without"):
        from_folder(pets, "train")
    assert from_folder(pets, "train+validation+test", shares=HALF).size == 21


def test_links_are_followed_and_never_round_in_circles(pets, tmp_path):
    save(tmp_path / "elsewhere" / "1.png")
    (pets / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (pets / "cat" / "again").symlink_to(pets / "cat")
    assert from_folder(pets, "train+validation+test", shares=HALF).size == 21


def test_names_that_are_no_text(pets):
    (pets / "cat" / os.fsdecode(b"\xff.png")).write_bytes((pets / "cat" / "0.png").read_bytes())
    assert from_folder(pets, "train+validation+test", shares=HALF).size == 21
