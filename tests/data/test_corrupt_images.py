"""Images of every kind: used as they look, or left out for all and named."""

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

from rankckpt_jax.data import corrupt_images as readable
from rankckpt_jax.data import pipeline, preprocess, tasks
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

USED: dict[str, tuple[bytes, np.ndarray]] = {
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
"""What is used, and the pixels it is taken for: of an animation the first frame."""


@pytest.mark.parametrize("case", USED)
def test_used_as_it_looks(case, scene):
    data, pixels = USED[case]
    decoded = preprocess.decode(data).numpy()
    assert decoded.dtype == np.uint8 and decoded.shape == pixels.shape
    # JPEG is lossy; the others are not.
    lossy = 30 if "JPEG" in case else 0
    np.testing.assert_allclose(decoded.astype(int), pixels, atol=lossy)
    assert np.abs(decoded.astype(int) - pixels).mean() <= lossy / 10
    for how in preprocess.names():
        resized = preprocess.resize(decoded, 32, how).numpy()
        assert resized.shape == (32, 32, 3) and np.isfinite(resized).all()


@pytest.mark.parametrize(
    "name", ["with space.jpg", "größe 图像.JPG", "two\nlines.jpg", "a,b;'\"$(x).jpg"]
)
def test_used_whatever_its_name(name, scene):
    folder = scene.images / "train" / "red"
    (folder / "0.jpg").rename(folder / name)
    split = tasks.from_folder(str(scene.images)).splits["train"]
    assert not split.unreadable and len(list(split.examples(None, 0, 1, 0))) == 24


def test_used_where_its_name_is_no_text(scene):
    folder = os.fsencode(scene.images / "train" / "red")
    os.rename(folder + b"/0.jpg", folder + b"/\xff\xfe.jpg")
    split = tasks.from_folder(str(scene.images)).splits["train"]
    assert not split.unreadable and len(list(split.examples(None, 0, 1, 0))) == 24


def place(data: bytes) -> Callable[[pathlib.Path], Any]:
    return lambda path: path.write_bytes(data)


BIG = 10_000
LEFT_OUT: dict[str, tuple[Callable[[pathlib.Path], Any], str]] = {
    "a JPEG cut short": (place(encoded(PIXELS, "JPEG")[:-300]), "Invalid JPEG data"),
    "a PNG cut short": (place(encoded(PIXELS, "PNG")[:-50]), "Invalid PNG data"),
    "a PNG cut after its first bytes": (place(encoded(PIXELS, "PNG")[:12]), ""),
    "a flipped bit": (place(flipped()), "Invalid PNG data"),
    "a GIF cut short": (place(animated()[:500]), "Invalid GIF data"),
    "100 megapixels in a small file": (
        place(encoded(Image.new("1", (BIG, BIG)), "PNG")),
        "an image of more than 64 megapixels",
    ),
    "nothing": (place(b""), "empty"),
    "a text": (place(b"once upon a time"), "not a JPEG, PNG, GIF or BMP file"),
    "another format": (place(in_mode("RGB", "WEBP")), "not a JPEG, PNG"),
    "a link to nothing": (lambda path: path.symlink_to("none"), "No such file"),
    "a link to itself": (lambda path: path.symlink_to(path), "symbolic links"),
    "a directory": (lambda path: path.mkdir(), "not a regular file"),
    "a pipe": (lambda path: os.mkfifo(path), "not a regular file"),
}
"""What is left out, and the reason that is told; a directory and a link to nothing
stand for files that a user other than root may not open."""


@pytest.mark.parametrize("case", LEFT_OUT)
def test_left_out_and_named(case, scene):
    write, reason = LEFT_OUT[case]
    before = tasks.from_folder(str(scene.images)).splits["train"]
    write(scene.images / "train" / "red" / "bad.jpg")
    task = tasks.from_folder(str(scene.images))
    task = readable.drop_corrupt(task, scene.folder / "found", look_in=["train"])
    split = task.splits["train"]
    [(name, why)] = split.unreadable.items()
    assert name == "train/red/bad.jpg" and reason in why and len(why) < 100
    assert "1 of 25 images of train cannot be read" in task.warnings["images"]
    # The others are what they were.
    assert split.fingerprint == before.fingerprint and split.num_examples == 24
    images, labels = pipeline.ImageCache(1.0).get(split, 16, "vtab")
    assert (
        images.shape == (24, 16, 16, 3) and list(labels) == [0] * 8 + [1] * 8 + [2] * 8
    )


def test_nothing_is_decoded_to_look_for_what_is_not_there(scene, monkeypatch):
    monkeypatch.setattr(readable, "find", lambda split: pytest.fail("decoded"))
    assert not scene.run().failed


@pytest.mark.filterwarnings("default")  # TFDS's writer, which users do not run.
def test_images_of_tfds_are_left_out_too(tmp_path):
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
                file = io.BytesIO(data[:-20] if i in bad else data)
                yield i, {"image": file, "label": i % 2}

    BrokenImages(data_dir=tmp_path).download_and_prepare()
    task = tasks.from_tfds(
        "broken_images", {"train": "train", "test": "train[30:]"}, str(tmp_path)
    )
    assert "10 of 10 test images are training images too" in task.warnings["splits"]
    split = readable.drop_corrupt(task, tmp_path, look_in=["train"]).splits["train"]
    assert list(split.unreadable) == [f"train, example {i}" for i in sorted(bad)]
    assert split.num_examples == 37
    kept = [i for i in range(40) if i not in bad]
    for process in (0, 1):
        examples = list(split.examples(None, process, 2, 0).as_numpy_iterator())
        assert [e["index"] for e in examples] == list(range(process, 37, 2))
        assert [e["image"][0, 0, 0] // 6 for e in examples] == kept[process::2]
    with pytest.raises(InputError, match="3 of 40"):
        readable.drop_corrupt(task, tmp_path, most=0.05)
    with pytest.raises(InputError, match=r"config.task.train[\s\S]*no_such"):
        tasks.from_tfds("broken_images", {"train": "no_such[:3]"}, str(tmp_path))


def test_a_run_leaves_the_same_images_out_for_all_and_says_so(
    scene, caplog, monkeypatch
):
    """One that cannot be opened, and two that show only when they are decoded."""
    clean = scene.run(workdir=str(scene.folder / "clean"))
    folder = scene.images / "train" / "green"
    (folder / "a.jpg").write_bytes(b"")
    (folder / "c <b>.jpg").write_bytes(encoded(PIXELS, "JPEG")[:-300])
    # Left out for accuracies too, which are not asked for here.
    caplog.clear()
    with caplog.at_level("INFO"):
        ranking = scene.run()
    told = (
        "2 of 26 images of train cannot be read and are left out for all checkpoints: "
        "'train/green/a.jpg' (empty), 'train/green/c <b>.jpg' (Invalid JPEG data, size"
    )
    assert told in caplog.text
    place = scene.folder / "runs" / "images"
    for row in ranking.rows:
        assert row.warnings["images"].startswith(told) and row.extract_images == 24
        manifest = json.loads(
            (place / row.checkpoint / "features/train/manifest.json").read_text()
        )
        assert manifest["request"]["count"] == 24
        assert set(manifest["result"]["images_left_out"]) == {
            "train/green/a.jpg",
            "train/green/c <b>.jpg",
        }
        # Features of the others are what they were.
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

    # A later run knows, decodes only what was broken, and computes nothing.
    with monkeypatch.context() as patched:
        patched.setattr(extract, "extract", lambda *a, **k: pytest.fail("extracted"))
        again = scene.run()
    assert [r.scores for r in again.rows] == [r.scores for r in ranking.rows]
    # Once they are mended they take part again.
    for name in ("a.jpg", "c <b>.jpg"):
        shutil.copy(folder / "0.jpg", folder / name)
    mended = scene.run()
    assert all("images" not in row.warnings for row in mended.rows)
    assert all(row.extract_images == 26 for row in mended.rows)


def test_too_many_images_that_cannot_be_decoded_end_the_run(scene):
    for i in range(3):
        (scene.images / f"train/red/{i}.jpg").write_bytes(encoded(PIXELS, "PNG")[:-50])
    with pytest.raises(InputError, match=r"3 of 24[\s\S]*max_unreadable"):
        scene.run()
    assert not scene.run(task={"max_unreadable": 0.2}).failed


def test_an_image_mended_without_a_change_of_size_is_noticed(scene):
    path = scene.images / "train/red/0.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + b"\0\0")
    found = scene.folder / "found"
    task = tasks.from_folder(str(scene.images))
    lacking = readable.drop_corrupt(task, found, look_in=["train"])
    assert lacking.splits["train"].num_examples == 23
    assert readable.drop_corrupt(task, found).splits["train"].num_examples == 23
    path.write_bytes(whole)
    assert readable.drop_corrupt(task, found).splits["train"].num_examples == 24
