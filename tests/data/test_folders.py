"""Folders as they come: names of splits, plain classes, labels.csv, stray files."""

import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from rankckpt_jax.data import folder_layout, image_files, tasks
from rankckpt_jax.errors import InputError


def sizes(task):
    return {name: split.num_examples for name, split in task.splits.items()}


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("train", "Test", "test"),
        ("Training", "testing", "test"),
        ("training_set", "test_set", "test"),
        ("train", "valid", "val"),
        ("TRAIN", "validation", "val"),
        ("train", "VAL", "val"),
    ],
)
def test_from_folder_accepts_usual_names_of_splits(image_folder, train, other, split):
    (image_folder / "train").rename(image_folder / train)
    (image_folder / "test").rename(image_folder / other)
    task = tasks.from_folder(str(image_folder))
    assert sizes(task) == {"train": 24, "test": 12}
    for name, role in ((train, "train"), (other, split)):
        assert (name == role) != (f"{name!r} taken as {role}" in task.description)
    assert ("val images as test" in task.description) == (split == "val")


def test_from_folder_refuses_two_folders_for_one_split(image_folder):
    (image_folder / "testing").mkdir()
    with pytest.raises(InputError, match="'test'.*\n[\\s\\S]*'test', 'testing'"):
        tasks.from_folder(str(image_folder))


def test_from_folder_names_ignored_folders(image_folder):
    shutil.copytree(image_folder / "test", image_folder / "holdout")
    task = tasks.from_folder(str(image_folder))
    assert sizes(task) == {"train": 24, "test": 12}
    assert "'holdout'" in task.warnings["folders"]


def test_from_folder_does_not_use_a_test_folder_without_labels(image_folder):
    flatten(image_folder, "test")
    task = tasks.from_folder(str(image_folder))
    assert sizes(task) == {"train": 18, "test": 6}
    assert "'test' has no folders of classes" in task.warnings["folders"]


def test_from_folder_accepts_plain_class_folders(image_folder):
    task = tasks.from_folder(str(image_folder / "train"))
    assert task.class_names == ("blue", "green", "red")
    assert sizes(task) == {"train": 18, "test": 6}
    assert "taken as train" in task.description
    assert "6 of 24 images of train (25%) held out as test" in task.description


def test_from_folder_states_the_true_share_of_held_out_images(image_folder):
    for path in (image_folder / "train").glob("*/[2-9].jpg"):
        path.unlink()
    task = tasks.from_folder(str(image_folder / "train"))
    assert sizes(task) == {"train": 3, "test": 3}
    assert "3 of 6 images of train (50%) held out as test" in task.description
    assert "3 of 3 classes have a single training image" in task.warnings["classes"]


def flatten(image_folder, split="train"):
    """Move all images into one folder and return the lines FILE,LABEL."""
    lines = []
    for path in sorted((image_folder / split).glob("*/*.jpg")):
        name = f"{path.parent.name[0]}{path.name}"
        lines.append(f"{name},{path.parent.name}")
        path.rename(image_folder / split / name)
    for folder in (image_folder / split).iterdir():
        if folder.is_dir():
            folder.rmdir()
    return lines


@pytest.mark.parametrize(
    ("change", "encoding"),
    [
        (lambda lines: lines, "utf-8"),
        (lambda lines: ["file,label", *lines], "utf-8-sig"),
        (
            lambda lines: ["Datei;Klasse", *(x.replace(",", ";") for x in lines)],
            "utf-8",
        ),
        (
            lambda lines: [
                "label,id,file",
                *(f"{x.split(',')[1]},7,{x.split(',')[0]}" for x in lines),
            ],
            "utf-16",
        ),
    ],
    ids=["no heading", "heading", "semicolons", "other columns"],
)
def test_from_folder_reads_labels_csv(image_folder, change, encoding):
    before = tasks.from_folder(str(image_folder / "train"))
    lines = flatten(image_folder)
    text = "\r\n".join(change(lines)) + "\r\n"
    (image_folder / "train" / "labels.csv").write_bytes(text.encode(encoding))
    task = tasks.from_folder(str(image_folder / "train"))
    assert task.class_names == before.class_names
    assert sizes(task) == sizes(before) and not task.warnings
    assert "classes of train from labels.csv" in task.description
    for example in task.splits["train"].examples(None, 0, 1, 0):
        assert example.read().mean((0, 1)).argmax() == 2 - example.label
    # The same file beside a test split of folders, as the labels of one split.
    both = tasks.from_folder(str(image_folder))
    assert sizes(both) == {"train": 24, "test": 12} and not both.warnings


def test_from_folder_divides_a_common_labels_csv_by_split(image_folder):
    lines = [f"{s}/{x}" for s in ("train", "test") for x in flatten(image_folder, s)]
    (image_folder / "labels.csv").write_text("\n".join(lines))
    task = tasks.from_folder(str(image_folder))
    assert sizes(task) == {"train": 24, "test": 12} and not task.warnings
    assert "classes from labels.csv" in task.description
    (image_folder / "labels.csv").write_text("\n".join([*lines, "other/a.jpg,red"]))
    with pytest.raises(InputError, match="belong to no split[\\s\\S]*'other/a.jpg'"):
        tasks.from_folder(str(image_folder))


def test_labels_csv_names_missing_and_unlisted_images(image_folder):
    folder = image_folder / "train"
    lines = flatten(image_folder)
    (folder / lines[0].split(",")[0]).unlink()
    (folder / "labels.csv").write_text("\n".join(lines[:-1]))
    task = tasks.from_folder(str(folder))
    assert "'b0.jpg' (No such file or directory)" in task.warnings["images"]
    assert "1 images are not listed" in task.warnings["folders"]
    assert "'r7.jpg'" in task.warnings["folders"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("r0.jpg,blue", "'r0.jpg' with the labels 'red' and 'blue'"),
        ("r0.jpg", "r0.jpg"),
        ("r0.jpg,", "r0.jpg,"),
        ("../a.jpg,red", "../a.jpg"),
    ],
)
def test_labels_csv_refuses_an_unusable_line(image_folder, line, found):
    lines = flatten(image_folder)
    (image_folder / "train" / "labels.csv").write_text("\n".join([*lines, line]))
    with pytest.raises(InputError) as raised:
        tasks.from_folder(str(image_folder / "train"))
    assert f"found: {found}\n" in str(raised.value)
    assert "labels.csv, line 25" in str(raised.value)


def test_labels_csv_about_classes_is_no_list_of_images(image_folder):
    text = "class,title\nred,Rot\ngreen,Grün\n"
    (image_folder / "train" / "labels.csv").write_text(text, encoding="utf-8")
    assert sizes(tasks.from_folder(str(image_folder))) == {"train": 24, "test": 12}


def test_labels_csv_beside_folders_of_classes_is_ignored_by_name(image_folder):
    (image_folder / "labels.csv").write_text("train/red/0.jpg,crimson\n")
    task = tasks.from_folder(str(image_folder))
    assert task.class_names == ("blue", "green", "red")
    assert "labels.csv is ignored" in task.warnings["folders"]


STRAY_FOLDERS = ("@eaDir", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN")
STRAY_FILES = ("._0.jpg", "Thumbs.db", ".DS_Store", "desktop.ini")


@pytest.mark.parametrize("plain", [False, True])
def test_from_folder_ignores_what_systems_leave_behind(image_folder, plain):
    root = image_folder / "train" if plain else image_folder
    before = tasks.from_folder(str(root))
    image = (image_folder / "train" / "red" / "0.jpg").read_bytes()
    places = [root, image_folder / "train", image_folder / "train" / "red"]
    for place in places:
        for name in STRAY_FOLDERS:
            (place / name).mkdir(exist_ok=True)
            (place / name / "0.jpg").write_bytes(image)
        for name in STRAY_FILES:
            (place / name).write_bytes(image)
    # A class folder of which only such files are left is no class.
    (image_folder / "train" / "yellow").mkdir()
    (image_folder / "train" / "yellow" / "Thumbs.db").write_bytes(b"")
    (image_folder / "train" / "yellow" / "@eaDir").mkdir()
    after = tasks.from_folder(str(root))
    assert after.class_names == before.class_names == ("blue", "green", "red")
    assert after.warnings == before.warnings == {}
    for name, split in before.splits.items():
        assert after.splits[name].fingerprint == split.fingerprint


def test_is_ignored_ignores_case():
    ignored = ("thumbs.DB", "@eadir", "Desktop.ini", ".hidden", "__MACOSX")
    assert all(map(image_files.is_ignored, ignored))
    kept = ("cat", "thumbs", "@cat", "_cat", "train", "0.jpg", "~cat")
    assert not any(map(image_files.is_ignored, kept))


def test_from_folder_matches_names_that_differ_by_normalization(image_folder):
    composed, decomposed = (unicodedata.normalize(f, "café") for f in ("NFC", "NFD"))
    (image_folder / "train" / "red").rename(image_folder / "train" / composed)
    (image_folder / "test" / "red").rename(image_folder / "test" / decomposed)
    task = tasks.from_folder(str(image_folder))
    assert sizes(task) == {"train": 24, "test": 12}
    assert ascii(decomposed) in task.warnings["folders"]
    # Two such classes in one split stay two, with a warning.
    (image_folder / "train" / "blue").rename(image_folder / "train" / decomposed)
    shutil.rmtree(image_folder / "test" / "blue")
    task = tasks.from_folder(str(image_folder))
    assert len(task.class_names) == 3
    assert "2 classes have names that differ only by" in task.warnings["folders"]
    assert ascii(composed) in task.warnings["folders"]


def test_from_folder_names_copies_in_several_classes(image_folder):
    shutil.copy(image_folder / "train/red/3.jpg", image_folder / "train/blue/copy.jpg")
    shutil.copy(image_folder / "train/red/5.jpg", image_folder / "test/green/5b.jpg")
    # A copy of the same class has no wrong label.
    shutil.copy(image_folder / "train/red/7.jpg", image_folder / "train/red/again.jpg")
    warnings = tasks.from_folder(str(image_folder)).warnings
    assert warnings["labels"].startswith("2 images are in several classes")
    for pair in (
        "'train/blue/copy.jpg' = 'train/red/3.jpg'",
        "'train/red/5.jpg' = 'test/green/5b.jpg'",
    ):
        assert pair in warnings["labels"]
    assert "'test/green/5b.jpg' = 'train/red/5.jpg'" in warnings["splits"]
    assert "again.jpg" not in "".join(warnings.values())


def test_from_folder_names_a_class_that_is_linked_twice(image_folder):
    link = image_folder / "train" / "crimson"
    link.symlink_to(image_folder / "train" / "red", target_is_directory=True)
    task = tasks.from_folder(str(image_folder))
    assert task.class_names == ("blue", "crimson", "green", "red")
    text = "the classes 'crimson' and 'red' of train are the same folder"
    assert task.warnings["labels"].startswith(text)
    assert "0.jpg" not in task.warnings["labels"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_from_folder_warns_of_nearly_constant_images(image_folder, split):
    pixels = np.random.default_rng(0).integers(0, 16, (20, 30, 3), np.uint8)
    assert not tasks.from_folder(str(image_folder)).warnings
    for path in (image_folder / split).glob("*/*.jpg"):
        Image.fromarray(pixels).save(path, "PNG", comment=path.stem)
        pixels = np.roll(pixels, 1)
    warnings = tasks.from_folder(str(image_folder)).warnings
    assert list(warnings) == ["pixels"]
    assert f"the images of {split} are nearly constant" in warnings["pixels"]
    text = f"the mean {pixels.mean():.1f} and the standard deviation {pixels.std():.1f}"
    assert text in warnings["pixels"]


def test_names_of_splits_belong_to_one_split():
    every = [name for names in folder_layout.SPLIT_NAMES.values() for name in names]
    assert len(every) == len(set(every))
