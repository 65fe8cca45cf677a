"""Tasks with several labels or a number per image, from labels.csv and from folders."""

import shutil

import numpy as np
import pytest
from PIL import Image

from rankckpt_jax.configs import default
from rankckpt_jax.data import pipeline, tasks
from rankckpt_jax.data.image_cache import ImageCache
from rankckpt_jax.errors import InputError


def make_images(folder, count=20):
    """Write different images 0.jpg, 1.jpg, ... and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(count)
    names = [f"{i}.jpg" for i in range(count)]
    for name in names:
        pixels = random.integers(0, 255, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return names


def load(folder, lines, target="auto"):
    (folder / "labels.csv").write_text("\n".join(lines))
    return tasks.from_folder(str(folder), target=target)


def labels_by_name(task):
    """Return the label of each file, from the fingerprints' order of files."""
    found = {}
    for name in ("train", "test"):
        split = task.splits[name]
        for example in split.examples(None, 0, 1, 0):
            path = example.read.args[0]
            np.testing.assert_array_equal(example.label, split.labels[example.index])
            found[path.name] = example.label
    return found


SETS = [("cat", "dog"), ("dog",), (), ("bird", "cat")]


def names_of(row, class_names):
    return tuple(n for n, has in zip(class_names, row, strict=True) if has)


@pytest.mark.parametrize("form", ["bars", "semicolons", "rows", "columns", "split"])
def test_from_folder_reads_several_labels_per_image(tmp_path, form):
    names = make_images(tmp_path)
    sets = {name: SETS[i % 4] for i, name in enumerate(names)}
    if form == "bars":
        lines = [f"{n},{'|'.join(s)}" for n, s in sets.items()]
    elif form == "semicolons":
        lines = ["file,labels", *(f"{n},{'; '.join(s)}" for n, s in sets.items())]
    elif form == "rows":
        lines = [f"{n},{label}" for n, s in sets.items() for label in s or ("",)]
    else:
        every = ("cat", "bird", "dog")
        lines = [
            f"{n},{','.join('01'[label in s] for label in every)}"
            for n, s in sets.items()
        ]
        lines = ["image," + ",".join(every), *lines]
        if form == "split":
            parts = ["train"] * 14 + ["Validation"] * 2 + ["test"] * 4
            lines = [lines[0] + ",split"] + [
                f"{line},{part}" for line, part in zip(lines[1:], parts, strict=True)
            ]
    task = load(tmp_path, lines)
    assert task.target == "multi_label" and task.class_names == ("bird", "cat", "dog")
    assert "labels" in task.description and "several per image" in task.description
    assert task.warnings.keys() <= {"labels"} if form == "split" else not task.warnings
    sizes = {name: split.num_examples for name, split in task.splits.items()}
    if form == "split":
        assert sizes == {"train": 14, "val": 2, "test": 4, "trainval": 16}
        return
    assert sizes == {"train": 16, "test": 4}
    found = {n: names_of(r, task.class_names) for n, r in labels_by_name(task).items()}
    assert found == sets
    assert task.splits["train"].labels.dtype == bool
    kept, held = tasks.hold_out(task.splits["train"])
    assert (kept.labels.shape, held.labels.shape) == ((14, 3), (2, 3))
    assert kept.target == "multi_label"


def test_multi_label_batches_keep_labels_with_and_without_a_cache(tmp_path):
    names = make_images(tmp_path / "images")
    lines = [f"{n},{'|'.join(SETS[i % 4])}" for i, n in enumerate(names)]
    split = load(tmp_path / "images", lines).splits["train"]
    for cache in (
        ImageCache(None),
        ImageCache(tmp_path / "c"),
        ImageCache(tmp_path / "c"),
    ):
        [batch] = pipeline.batches(
            split, size=8, preprocess="vtab", batch_size=32, cache=cache
        )
        assert batch.labels.shape == (32, 3) and batch.labels.dtype == bool
        np.testing.assert_array_equal(batch.labels[:16], split.labels)
        assert not batch.labels[16:].any()


def test_multi_label_leaves_out_labels_that_do_not_vary_in_train(tmp_path):
    names = make_images(tmp_path)
    parts = ["train"] * 14 + ["test"] * 6
    lines = ["file,split,labels"]
    for i, (name, part) in enumerate(zip(names, parts, strict=True)):
        own = ["all", "even"[: 4 * (i % 2 == 0)], "late"[: 4 * (i > 15)]]
        lines.append(f"{name},{part},{'|'.join(filter(None, own))}")
    task = load(tmp_path, lines)
    assert task.class_names == ("even",)
    assert "because no training image has them: 'late'" in task.warnings["labels"]
    assert "because every training image has them: 'all'" in task.warnings["labels"]
    with pytest.raises(InputError, match="No label distinguishes"):
        load(tmp_path, [f"{n},x|y" for n in names])


def test_columns_with_one_label_per_image_are_classes_with_a_warning(tmp_path):
    names = make_images(tmp_path)
    lines = [f"{n},{i % 2}.0,{1 - i % 2}.0" for i, n in enumerate(names)]
    task = load(tmp_path, ["image,odd,even", *lines])
    assert (task.target, task.class_names) == ("classes", ("even", "odd"))
    assert "config.task.target=multi_label" in task.warnings["target"]
    task = load(tmp_path, ["image,odd,even", *lines], "multi_label")
    assert task.target == "multi_label" and "target" not in task.warnings


def test_from_folder_reads_a_number_per_image(tmp_path):
    names = make_images(tmp_path)
    numbers = {name: i / 3 - 2 for i, name in enumerate(names)}
    task = load(tmp_path, ["file,height", *(f"{n},{x!r}" for n, x in numbers.items())])
    assert (task.target, task.class_names, task.num_outputs) == ("regression", (), 1)
    assert "numbers from -2 to 4.33333" in task.description and not task.warnings
    assert labels_by_name(task) == numbers
    assert task.splits["train"].labels.dtype == np.float64
    kept, held = tasks.hold_out(task.splits["train"])
    assert sorted([*kept.labels, *held.labels]) == sorted(task.splits["train"].labels)
    other = load(tmp_path, [f"{n},{x + 1!r}" for n, x in numbers.items()])
    assert other.splits["train"].fingerprint != task.splits["train"].fingerprint


@pytest.mark.parametrize(
    ("number", "kind", "warns"),
    [
        (lambda i: i % 4, "classes", False),
        (lambda i: 1 + i % 3, "classes", False),
        (lambda i: 10 * (i % 4), "classes", True),
        (lambda i: 3 * i, "regression", True),
        (lambda i: i / 8, "regression", False),
        (lambda i: 0.5 * (i % 2), "regression", True),
    ],
    ids=["from 0", "from 1", "gaps", "all different", "fractions", "two fractions"],
)
def test_from_folder_says_what_it_assumes_about_numbers(tmp_path, number, kind, warns):
    names = make_images(tmp_path, 24)
    lines = [f"{name},{number(i)}" for i, name in enumerate(names)]
    task = load(tmp_path, lines)
    assert task.target == kind
    other = {"classes": "regression", "regression": "classes"}[kind]
    assert ("target" in task.warnings) == warns
    if warns:
        assert f"set config.task.target={other}" in task.warnings["target"]
    assert load(tmp_path, lines, "regression").target == "regression"


@pytest.mark.parametrize("value", ["nan", "inf", "", "tall"])
@pytest.mark.parametrize("target", ["auto", "regression"])
def test_regression_refuses_a_line_without_a_number(tmp_path, value, target):
    names = make_images(tmp_path)
    lines = [f"{n},{i / 7}" for i, n in enumerate(names)]
    lines[4] = f"4.jpg,{value}"
    with pytest.raises(InputError, match="line 5") as raised:
        load(tmp_path, lines, target)
    assert "a finite number" in str(raised.value)


def test_regression_refuses_equal_or_contradicting_numbers(tmp_path):
    names = make_images(tmp_path)
    with pytest.raises(InputError, match="no different numbers"):
        load(tmp_path, [f"{n},2.5" for n in names])
    lines = [f"{n},{i / 7}" for i, n in enumerate(names)]
    with pytest.raises(InputError, match="one number per image"):
        load(tmp_path, [*lines, "3.jpg,9.5"])


def test_missing_and_unlisted_images_are_named_for_each_kind(tmp_path):
    names = make_images(tmp_path)
    (tmp_path / "0.jpg").unlink()
    for value in ("a|b", "0.25"):
        lines = [f"{n},{value if i % 2 else 0.75}" for i, n in enumerate(names[:-1])]
        task = load(tmp_path, lines)
        assert task.target != "classes"
        assert "'0.jpg' (No such file or directory)" in task.warnings["images"]
        assert "'19.jpg'" in task.warnings["folders"]


def test_a_few_images_with_two_classes_are_a_mistake_unless_it_is_set(tmp_path):
    names = make_images(tmp_path)
    lines = [f"{n},{'ab'[i % 2]}" for i, n in enumerate(names)] + ["0.jpg,b"]
    with pytest.raises(InputError, match="config.task.target=multi_label"):
        load(tmp_path, lines)
    assert load(tmp_path, lines, "multi_label").target == "multi_label"


def test_labels_with_separators_can_be_classes(tmp_path):
    names = make_images(tmp_path)
    lines = [f"{n},{'a|b' if i % 2 else 'c'}" for i, n in enumerate(names)]
    assert load(tmp_path, lines, "classes").class_names == ("a|b", "c")


@pytest.fixture
def label_folders(tmp_path):
    """Folders a, b and c with 12, 12 and 8 images; 8 images are in a and in c."""
    for i, name in enumerate("abc"):
        make_images(tmp_path / "train" / name, 12 + i)
    shutil.rmtree(tmp_path / "train" / "c")
    (tmp_path / "train" / "c").mkdir()
    for i in range(8):
        shutil.copy(tmp_path / f"train/a/{i}.jpg", tmp_path / f"train/c/{i + 5}.jpg")
    (tmp_path / "train" / "b" / "12.jpg").unlink()
    return tmp_path


def test_copies_in_several_folders_are_images_with_several_labels(label_folders):
    task = tasks.from_folder(str(label_folders))
    assert (task.target, task.class_names) == ("multi_label", ("a", "b", "c"))
    assert "labels from the folders of each image" in task.description
    assert "labels" not in task.warnings
    rows = np.concatenate([task.splits[s].labels for s in ("train", "test")])
    assert len(rows) == 24
    assert sorted(map(tuple, rows.tolist())) == sorted(
        [(True, False, True)] * 8
        + [(True, False, False)] * 4
        + [(False, True, False)] * 12
    )
    classes = tasks.from_folder(str(label_folders), target="classes")
    assert classes.target == "classes"
    assert "8 images are in several classes" in classes.warnings["labels"]


def test_folders_of_classes_are_no_other_kind_without_copies(image_folder):
    with pytest.raises(InputError, match="byte for byte"):
        tasks.from_folder(str(image_folder), target="multi_label")
    with pytest.raises(InputError, match="no number per image"):
        tasks.from_folder(str(image_folder), target="regression")


def test_splits_with_labels_of_different_kinds_are_refused(image_folder):
    for path in (image_folder / "train").rglob("*.jpg"):
        path.rename(image_folder / "train" / f"{path.parent.name}{path.name}")
    for name in ("red", "green", "blue"):
        (image_folder / "train" / name).rmdir()
    files = sorted(path.name for path in (image_folder / "train").iterdir())
    lines = [f"{name},{i / 7}" for i, name in enumerate(files)]
    (image_folder / "train" / "labels.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match="labels of different kinds"):
        tasks.from_folder(str(image_folder))


@pytest.mark.parametrize(("common", "warns"), [(16, True), (12, False)])
def test_load_notes_a_class_that_is_most_of_the_images(tmp_path, common, warns):
    names = make_images(tmp_path)
    lines = [f"{n},{'common' if i < common else 'rare'}" for i, n in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    config = default.get_config().task
    config.path = str(tmp_path)
    task = tasks.load(config)
    assert ("classes" in task.warnings) == warns
    if warns:
        reached = np.mean(task.splits["test"].labels == 0)
        assert f"reaches an accuracy of {reached:.1%}" in task.warnings["classes"]
        assert "config.finetune.metric=balanced_accuracy" in task.warnings["classes"]


def test_config_task_target_is_checked(image_folder):
    config = default.get_config().task
    config.path, config.target = str(image_folder), "multilabel"
    with pytest.raises(InputError, match="did you mean 'multi_label'"):
        tasks.load(config)
    config.path, config.digits, config.target = "", (0, 1), "regression"
    with pytest.raises(InputError, match="Only a folder"):
        tasks.load(config)
