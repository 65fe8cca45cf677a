"""Images of every kind: decoded, or dropped for all and named."""

import csv
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rankckpt_jax.data import corrupt_images, decode, image_cache, preprocess, tasks
from rankckpt_jax.errors import InputError
from rankckpt_jax.features import extract

PIXELS = np.add.outer(np.arange(40), np.arange(50))[..., None] * [1, 2, 0.5]
PIXELS = PIXELS.astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(file, format=kind, **options)
    return file.getvalue()


def in_mode(mode: str, kind: str) -> bytes:
    return encoded(Image.fromarray(PIXELS).convert(mode), kind)


def deep() -> bytes:
    """A PNG of 16 bits a sample."""
    return encoded(PIXELS[..., 0].astype(np.uint16) * 256 + 99, "PNG")


def animated() -> bytes:
    frames = [Image.fromarray(p).convert("P") for p in (PIXELS, 255 - PIXELS)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def flipped() -> bytes:
    data = bytearray(encoded(PIXELS, "PNG"))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


GREY = np.repeat(np.asarray(Image.fromarray(PIXELS).convert("L"))[..., None], 3, -1)
PALETTE = np.asarray(Image.fromarray(PIXELS).convert("P").convert("RGB"))

DECODED: dict[str, tuple[bytes, np.ndarray]] = {
    "a PNG with alpha": (in_mode("RGBA", "PNG"), PIXELS),
    "a PNG with a palette": (in_mode("P", "PNG"), PALETTE),
    "a greyscale PNG": (in_mode("L", "PNG"), GREY),
    "a greyscale JPEG": (in_mode("L", "JPEG"), GREY),
    "a JPEG in CMYK": (in_mode("CMYK", "JPEG"), PIXELS),
    "a PNG of 16 bits": (deep(), np.repeat(PIXELS[..., :1], 3, -1)),
    "an animated GIF": (animated(), PALETTE),
    "a BMP": (encoded(PIXELS, "BMP"), PIXELS),
    "1 x 1 pixel": (encoded(PIXELS[:1, :1], "PNG"), PIXELS[:1, :1]),
}
"""Encoded images and their pixels; the first frame of an animation."""


@pytest.mark.parametrize("case", DECODED)
def test_decode_returns_the_displayed_pixels(case):
    data, pixels = DECODED[case]
    decoded = decode.decode(data)
    assert decoded.dtype == np.uint8 and decoded.shape == pixels.shape
    # JPEG is lossy; the others are not.
    lossy = 30 if "JPEG" in case else 0
    np.testing.assert_allclose(decoded.astype(int), pixels, atol=lossy)
    assert np.abs(decoded.astype(int) - pixels).mean() <= lossy / 10
    for how in preprocess.names():
        resized = preprocess.resize(decoded, 32, how)
        assert resized.shape == (32, 32, 3) and resized.dtype == preprocess.DTYPE


def test_from_folder_accepts_any_file_name(image_folder):
    folder = image_folder / "train" / "red"
    names = ["with space.jpg", "größe 图像.JPG", "two\nlines.jpg", "a,b;'\"$(x).jpg"]
    for i, name in enumerate(names):
        (folder / f"{i}.jpg").rename(folder / name)
    # Not valid text.
    os.rename(folder / "4.jpg", os.fsencode(folder) + b"/\xff\xfe.jpg")
    split = tasks.from_folder(str(image_folder)).splits["train"]
    assert not split.unreadable and len(list(split.examples(None, 0, 1, 0))) == 24


def place(data: bytes) -> Callable[[pathlib.Path], Any]:
    return lambda path: path.write_bytes(data)


BIG = 10_000
CORRUPT: dict[str, tuple[Callable[[pathlib.Path], Any], str]] = {
    "a JPEG cut short": (place(encoded(PIXELS, "JPEG")[:-300]), "JPEG file: Truncated"),
    "a PNG cut short": (place(encoded(PIXELS, "PNG")[:-50]), "is truncated"),
    "a PNG cut after its first bytes": (place(encoded(PIXELS, "PNG")[:12]), ""),
    "a flipped bit": (place(flipped()), "broken"),
    "a GIF cut short": (place(animated()[:500]), "GIF file: image file is truncated"),
    "100 megapixels in a small file": (
        place(encoded(Image.new("1", (BIG, BIG)), "PNG")),
        "an image of more than 64 megapixels",
    ),
    "nothing": (place(b""), "empty"),
    "a text": (place(b"once upon a time"), "not a JPEG, PNG, GIF, BMP, WebP or TIFF"),
    "another format": (place(in_mode("RGB", "PPM")), "not a JPEG, PNG"),
    "a format that is not read": (
        place(b"\0\0\0 ftypheic" + bytes(20)),
        "a HEIC file, which is not read; convert it to JPEG or PNG",
    ),
    "a link to nothing": (lambda path: path.symlink_to("none"), "No such file"),
    "a link to itself": (lambda path: path.symlink_to(path), "symbolic links"),
    "a directory": (lambda path: path.mkdir(), "not a regular file"),
    "a pipe": (lambda path: os.mkfifo(path), "not a regular file"),
}
"""How to create a corrupt file, and the reason in the message. A directory and a
dangling link stand for files without read permission, which root can read."""


def test_drop_corrupt_names_every_corrupt_image(image_folder, tmp_path):
    before = tasks.from_folder(str(image_folder)).splits["train"]
    for i, (write, _) in enumerate(CORRUPT.values()):
        write(image_folder / "train" / "red" / f"bad{i}.jpg")
    task = tasks.from_folder(str(image_folder), max_unreadable=0.5)
    task = corrupt_images.drop_corrupt(
        task, tmp_path / "stored", most=0.5, look_in=["train"]
    )
    split = task.splits["train"]
    for i, (case, (_, reason)) in enumerate(CORRUPT.items()):
        why = split.unreadable[f"train/red/bad{i}.jpg"]
        assert reason in why and len(why) < 100, case
    count = len(CORRUPT)
    assert len(split.unreadable) == count
    message = f"{count} of {24 + count} images of train cannot be read"
    assert message in task.warnings["images"]
    # The other images have not changed.
    assert split.fingerprint == before.fingerprint and split.num_examples == 24
    images, labels = image_cache.open_cache().get(split, 16, "vtab")
    assert images.shape == (24, 16, 16, 3)
    assert list(labels) == [0] * 8 + [1] * 8 + [2] * 8


@pytest.mark.filterwarnings("default")  # TFDS's writer, which users do not run.
def test_drop_corrupt_drops_images_of_tfds(tmp_path):
    import tensorflow_datasets as tfds

    bad = {3, 4, 11}

    class BrokenImages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["even", "odd"])
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
            found = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(
                builder=self, features=found, disable_shuffling=True
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(40):
                data = encoded(np.full((4, 4, 3), 6 * i, np.uint8), "PNG")
                file = io.BytesIO(data[:-26] if i in bad else data)
                yield i, {"image": file, "label": i % 2}

    BrokenImages(data_dir=tmp_path).download_and_prepare()
    task = tasks.from_tfds(
        "broken_images", {"train": "train", "test": "train[30:]"}, str(tmp_path)
    )
    assert "10 of 10 test images are training images too" in task.warnings["splits"]
    split = corrupt_images.drop_corrupt(task, tmp_path, look_in=["train"]).splits[
        "train"
    ]
    assert list(split.unreadable) == [f"train, example {i}" for i in sorted(bad)]
    assert split.num_examples == 37
    kept = [i for i in range(40) if i not in bad]
    for process in (0, 1):
        examples = list(split.examples(None, process, 2, 0))
        assert [e.index for e in examples] == list(range(process, 37, 2))
        assert [e.read()[0, 0, 0] // 6 for e in examples] == kept[process::2]
    with pytest.raises(InputError, match="3 of 40"):
        corrupt_images.drop_corrupt(task, tmp_path, most=0.05)
    with pytest.raises(InputError, match=r"config.task.train[\s\S]*no_such"):
        tasks.from_tfds("broken_images", {"train": "no_such[:3]"}, str(tmp_path))


def test_run_drops_the_same_images_for_all_checkpoints(scene, caplog, monkeypatch):
    with monkeypatch.context() as patched:
        # Without corrupt images only the test images are decoded to search for them.
        searched = []
        patched.setattr(
            corrupt_images, "find", lambda split: searched.append(split.name) or {}
        )
        clean = scene.run(workdir=str(scene.folder / "clean"))
        assert searched == ["test"]
    # An empty file, and one whose damage is found only by decoding it.
    folder = scene.images / "train" / "green"
    (folder / "a.jpg").write_bytes(b"")
    (folder / "c <b>.jpg").write_bytes(encoded(PIXELS, "JPEG")[:-300])
    caplog.clear()
    with caplog.at_level("INFO"):
        ranking = scene.run()
    message = (
        "2 of 26 images of train cannot be read and are left out for all checkpoints: "
        "'train/green/a.jpg' (empty), 'train/green/c <b>.jpg' (JPEG file: Truncated"
    )
    assert message in caplog.text
    place = scene.folder / "runs" / "images"
    for row in ranking.rows:
        assert row.warnings["images"].startswith(message) and row.extract_images == 24
        manifest = json.loads(
            (place / row.checkpoint / "features/train/manifest.json").read_text()
        )
        assert manifest["request"]["count"] == 24
        assert manifest["request"]["orientation"] == "EXIF"
        assert set(manifest["result"]["images_left_out"]) == {
            "train/green/a.jpg",
            "train/green/c <b>.jpg",
        }
        # The features of the other images have not changed.
        stored = place / row.checkpoint / "features/train/features.npy"
        before = scene.folder / "clean/images" / row.checkpoint
        np.testing.assert_array_equal(
            np.load(stored), np.load(before / "features/train/features.npy")
        )
    assert [r.scores for r in ranking.rows] == [r.scores for r in clean.rows]
    page = (place / "report.html").read_text()
    assert "2 of 26 images of train" in page and "c &lt;b&gt;.jpg" in page
    with (place / "ranking.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            assert "2 of 26 images of train" in line["warnings"]

    # A later run loads the stored result and computes nothing.
    with monkeypatch.context() as patched:
        patched.setattr(extract, "extract", lambda *a, **k: pytest.fail("extracted"))
        again = scene.run()
    assert [r.scores for r in again.rows] == [r.scores for r in ranking.rows]
    # Repaired images are used again.
    for name in ("a.jpg", "c <b>.jpg"):
        shutil.copy(folder / "0.jpg", folder / name)
    repaired = scene.run()
    assert all("images" not in row.warnings for row in repaired.rows)
    assert all(row.extract_images == 26 for row in repaired.rows)


def test_run_names_unreadable_test_images_before_ranking(scene, caplog):
    damaged = scene.images / "test" / "green" / "a.jpg"
    damaged.write_bytes(encoded(PIXELS, "JPEG")[:-300])
    with caplog.at_level("INFO"):
        ranking = scene.run()
    message = "1 of 13 images of test cannot be read"
    assert message in caplog.text
    assert caplog.text.index(message) < caplog.text.index("[1/2]")
    assert all(message in row.warnings["images"] for row in ranking.rows)
    assert "12 test images" in ranking.task_description
    # Too many of them end the run before any long work.
    for i in range(4):
        (damaged.parent / f"b{i}.jpg").write_bytes(damaged.read_bytes())
    with pytest.raises(InputError, match="Too many images of test"):
        scene.run()


def test_drop_corrupt_refuses_too_many_corrupt_images(image_folder, tmp_path):
    for i in range(3):
        (image_folder / f"train/red/{i}.jpg").write_bytes(flipped())
    task = tasks.from_folder(str(image_folder))
    with pytest.raises(InputError, match=r"3 of 24[\s\S]*max_unreadable"):
        corrupt_images.drop_corrupt(task, tmp_path, look_in=["train"])

    # The stored result is used, until an image changes.
    def num_examples(task):
        task = corrupt_images.drop_corrupt(task, tmp_path, most=0.2)
        return task.splits["train"].num_examples

    assert num_examples(task) == 21
    for i in range(3):
        (image_folder / f"train/red/{i}.jpg").write_bytes(encoded(PIXELS, "PNG"))
    repaired = tasks.from_folder(str(image_folder))
    assert repaired.splits["train"].fingerprint != task.splits["train"].fingerprint
    assert num_examples(repaired) == 24
