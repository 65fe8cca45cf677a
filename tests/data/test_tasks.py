import io
import os
import shutil
import time

import numpy as np
import pytest

from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.configs import neucrab_task
from rankckpt_jax.data import image_cache, preprocess, tasks
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files, network


def read(split, seed=None, index=0, count=1, skip=0):
    examples = split.examples(seed, index, count, skip)
    return [{"image": e.read(), "label": e.label, "index": e.index} for e in examples]


def test_a_folder_gives_classes_in_order_and_every_image_once(image_folder):
    task = tasks.from_folder(str(image_folder))
    assert task.class_names == ("blue", "green", "red")
    assert {name: s.num_examples for name, s in task.splits.items()} == {
        "train": 24,
        "test": 12,
    }
    examples = read(task.splits["train"])
    assert [e["index"] for e in examples] == list(range(24))
    assert [e["label"] for e in examples] == [0] * 8 + [1] * 8 + [2] * 8
    for example in examples:
        assert example["image"].dtype == np.uint8
        # The class's own channel is the brightest: labels belong to their images.
        brightest = example["image"].mean((0, 1)).argmax()
        assert brightest == 2 - example["label"]


def test_examples_are_shuffled_and_then_divided_among_processes(image_folder):
    split = tasks.from_folder(str(image_folder)).splits["train"]
    parts = [{e["index"] for e in read(split, None, p, 3)} for p in range(3)]
    assert set.union(*parts) == set(range(24))
    assert sum(len(part) for part in parts) == 24
    order = [e["index"] for e in read(split, seed=5)]
    assert order != list(range(24)) and sorted(order) == list(range(24))
    assert [e["index"] for e in read(split, 5, 1, 2)] == order[1::2]
    assert [e["index"] for e in read(split, 5, 1, 2, 3)] == order[1::2][3:]


def test_from_folder_holds_out_test_images_if_there_are_none(image_folder):
    shutil.rmtree(image_folder / "test")
    task = tasks.from_folder(str(image_folder))
    assert task.splits["train"].num_examples == 18
    assert task.splits["test"].num_examples == 6
    assert "held out" in task.description
    again = tasks.from_folder(str(image_folder))
    assert again.splits["test"].fingerprint == task.splits["test"].fingerprint
    held = {e["image"].tobytes() for e in read(task.splits["test"])}
    kept = {e["image"].tobytes() for e in read(task.splits["train"])}
    assert not held & kept


def test_from_folder_makes_trainval_of_train_and_val(image_folder):
    shutil.copytree(image_folder / "test", image_folder / "val")
    splits = tasks.from_folder(str(image_folder)).splits
    both = {e["image"].tobytes(): e["label"] for e in read(splits["trainval"])}
    for name in ("train", "val"):
        for example in read(splits[name]):
            assert both[example["image"].tobytes()] == example["label"]
    assert splits["trainval"].num_examples == 24 + 12


def test_hold_out_takes_the_same_tenth_every_time(image_folder):
    split = tasks.from_folder(str(image_folder)).splits["train"]
    kept, held = tasks.hold_out(split)
    assert (kept.name, held.name) == ("train_kept", "train_held")
    assert (kept.num_examples, held.num_examples) == (21, 3)
    parts = [[e["image"].tobytes() for e in read(part)] for part in (kept, held)]
    assert sorted(parts[0] + parts[1]) == sorted(
        e["image"].tobytes() for e in read(split)
    )
    assert [e["index"] for e in read(held)] == [0, 1, 2]
    assert tasks.hold_out(split)[1].fingerprint == held.fingerprint
    assert tasks.hold_out(split, seed=1)[1].fingerprint != held.fingerprint
    images = (
        np.zeros((10, 2, 2, 3), np.uint8)
        + np.arange(10, dtype=np.uint8)[:, None, None, None]
    )
    _, held = tasks.hold_out(tasks.array_split("train", images, np.arange(10)))
    [example] = read(held)
    assert (example["image"] == example["label"]).all()


def test_from_folder_uses_val_if_there_is_no_test(image_folder):
    (image_folder / "test").rename(image_folder / "val")
    task = tasks.from_folder(str(image_folder))
    assert set(task.splits) == {"train", "test"}
    assert task.splits["test"].num_examples == 12


def test_fingerprint_depends_on_the_files(image_folder):
    before = fingerprints(tasks.from_folder(str(image_folder)))
    extra = image_folder / "train" / "red" / "extra.jpg"
    shutil.copy(image_folder / "train" / "red" / "0.jpg", extra)
    after = fingerprints(tasks.from_folder(str(image_folder)))
    assert before["train"] != after["train"]
    assert before["test"] == after["test"]


def fingerprints(task):
    return {name: split.fingerprint for name, split in task.splits.items()}


def invert(path):
    """Change all pixels of a JPEG file, but neither its size nor its time."""
    from PIL import Image, ImageOps

    before = path.stat()
    with Image.open(path) as opened:
        inverted = ImageOps.invert(opened)
    encoded = io.BytesIO()
    inverted.save(encoded, "JPEG", quality=50)
    # Decoders ignore what follows the end of the image.
    path.write_bytes(encoded.getvalue().ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_fingerprint_depends_on_the_contents_of_every_split(image_folder, split):
    shutil.copytree(image_folder / "test", image_folder / "val")
    before = fingerprints(tasks.from_folder(str(image_folder)))
    for path in (image_folder / split / "red").iterdir():
        invert(path)
    task = tasks.from_folder(str(image_folder))
    after = fingerprints(task)
    changed = {name for name in before if before[name] != after[name]}
    expected = {"train": {"train", "trainval"}, "val": {"val", "trainval"}}
    assert changed == expected.get(split, {"test"})
    kept, held = tasks.hold_out(task.splits["train"])
    assert len({kept.fingerprint, held.fingerprint, after["train"]}) == 3


def test_fingerprint_reads_each_file_once(image_folder, monkeypatch):
    shutil.copytree(image_folder / "test", image_folder / "val")
    read_files = []
    original = files.digest_file
    monkeypatch.setattr(
        files, "digest_file", lambda path: read_files.append(path) or original(path)
    )
    task = tasks.from_folder(str(image_folder))
    # The copies in `val` and `test` are compared to the end; other files are not read.
    assert len(read_files) == 24
    assert all(split.fingerprint for split in task.splits.values())
    assert len(read_files) == len(set(read_files)) == 24 + 12 + 12


def test_from_digits_draws_the_given_classes():
    task = tasks.from_digits((7, 3))
    train, test = task.splits["train"], task.splits["test"]
    assert task.class_names == ("7", "3")
    assert train.num_examples + test.num_examples == 179 + 183
    example = read(train)[0]
    assert example["image"].dtype == np.uint8 and example["label"] == 0
    assert example["image"].shape == (48, 48, 3)
    assert example["image"].max() > 200 and (example["image"] == 0).mean() > 0.3
    # Drawings are equal in every run, and differ from each other.
    again = tasks.from_digits((7, 3), drawings=2).splits["train"]
    assert again.num_examples == 2 * train.num_examples
    assert train.fingerprint == tasks.from_digits((7, 3)).splits["train"].fingerprint
    first, second = (read(again)[i]["image"] for i in (0, train.num_examples))
    assert (first != second).any()
    # The two halves share no image.
    assert train.fingerprint != test.fingerprint


@pytest.fixture
def tfds_folder(tmp_path):
    """Return a prepared TFDS data set: 12 and 6 PNG images of two classes."""
    import tensorflow_datasets as tfds

    class TinyImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["even", "odd"])
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(
                builder=self, features=features, disable_shuffling=True
            )

        def _split_generators(self, manager):
            return {"train": self._examples(12), "test": self._examples(6)}

        def _examples(self, count):
            for i in range(count):
                image = np.full((4, 4, 3), 10 * i, np.uint8)
                yield i, {"image": image, "label": i % 2}

        _generate_examples = _examples

    TinyImages(data_dir=tmp_path).download_and_prepare()
    return tmp_path


@pytest.mark.filterwarnings("default")  # Warnings of TFDS's writer.
def test_from_tfds_reads_the_named_splits(tfds_folder):
    task = tasks.from_tfds(
        "tiny_images:1.*.*",
        {"train": "train[:8]", "val": "train[8:]", "test": "test"},
        data_dir=str(tfds_folder),
    )
    assert task.name == "tiny_images" and task.class_names == ("even", "odd")
    sizes = {name: split.num_examples for name, split in task.splits.items()}
    assert sizes == {"train": 8, "val": 4, "test": 6, "trainval": 12}
    assert {split.orientation for split in task.splits.values()} == {"as stored"}
    examples = read(task.splits["train"])
    assert [e["index"] for e in examples] == list(range(8))
    assert all(e["image"].shape == (4, 4, 3) for e in examples)
    for example in examples:  # The label is the parity of its position.
        assert example["image"][0, 0, 0] // 10 % 2 == example["label"]
    parts = [{e["index"] for e in read(task.splits["train"], 3, p, 2)} for p in (0, 1)]
    assert set.union(*parts) == set(range(8)) and not parts[0] & parts[1]
    # The first eight training images and the next four are different images.
    assert task.splits["train"].fingerprint != task.splits["val"].fingerprint
    # The examples of a stream cannot be selected.
    with pytest.raises(InputError, match="config.task.val"):
        tasks.hold_out(task.splits["train"])


@pytest.mark.filterwarnings("default")  # Warnings of TFDS's writer.
def test_from_tfds_images_are_equal_from_the_image_cache(tfds_folder, tmp_path):
    splits = {"train": "train", "test": "test"}
    task = tasks.from_tfds("tiny_images", splits, data_dir=str(tfds_folder))
    for split in task.splits.values():
        cache = image_cache.ImageCache(tmp_path / "cache")
        images, labels = cache.get(split, 9, "vtab")
        for example in split.examples(None, 0, 1, 0):
            resized = preprocess.resize(example.read(), 9, "vtab")
            np.testing.assert_array_equal(images[example.index], resized)
            assert labels[example.index] == example.label
    assert len(list((tmp_path / "cache").glob("*.images"))) == 2


@pytest.mark.filterwarnings("default")  # Warnings of TFDS's writer.
def test_fingerprint_depends_on_the_files_of_tfds(tfds_folder):
    def load():
        splits = {"train": "train", "test": "test"}
        task = tasks.from_tfds("tiny_images", splits, data_dir=str(tfds_folder))
        return fingerprints(task)

    before = load()
    [path] = tfds_folder.glob("tiny_images/1.0.0/*-train.tfrecord*")
    data = path.read_bytes()
    path.write_bytes(data[:-40] + bytes(40))
    after = load()
    assert before["train"] != after["train"]
    assert before["test"] == after["test"]


# Sizes of the splits in TFDS, for the versions that the configs name.
_SIZES = {
    "caltech": {"train": 3060, "test": 6084},
    "flowers": {"train": 1020, "validation": 1020, "test": 6149},
    "camelyon": {"train": 262_144, "validation": 32_768, "test": 32_768},
    "sun": {"train": 76_128, "validation": 10_875, "test": 21_750},
}


@pytest.fixture(params=_SIZES)
def mocked(request, tmp_path, monkeypatch):
    """A task of NeuCRaB whose builder has its metadata and TFDS's made-up images."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import ShardedFileTemplate, SplitInfo, splits

    # Its made-up images need no download.
    monkeypatch.setattr(network, "reachable", lambda url: True)
    builder = tfds.builder(neucrab.TASKS[request.param].tfds, data_dir=tmp_path)
    infos = [
        SplitInfo(
            name=split,
            shard_lengths=[size],
            num_bytes=0,
            filename_template=ShardedFileTemplate(
                data_dir=builder.data_path,
                dataset_name=builder.name,
                split=split,
                filetype_suffix="tfrecord",
            ),
        )
        for split, size in _SIZES[request.param].items()
    ]
    builder.info.set_splits(splits.SplitDict(infos))
    builder.data_path.mkdir(parents=True)
    builder.info.write_to_directory(builder.data_path)
    with tfds.testing.mock_data(num_examples=8, data_dir=str(tmp_path)):
        yield request.param, str(tmp_path)


def test_load_reads_the_tasks_of_neucrab_from_tfds(mocked):
    name, folder = mocked
    data = neucrab.TASKS[name]
    for argument, splits in (("", data.counts), ("1k", {"train": 800, "val": 200})):
        config = neucrab_task.get_config(name, argument).task
        config.data_dir = folder
        task = tasks.load(config)
        assert len(task.class_names) == data.num_classes
        sizes = {role: split.num_examples for role, split in task.splits.items()}
        assert sizes["test"] == data.counts["test"]
        assert sizes["trainval"] == splits["train"] + splits["val"]
        assert sizes == {**sizes, **splits}
        for split in task.splits.values():
            examples = read(split)
            assert len(examples) == 8
            for example in examples:
                assert example["image"].dtype == np.uint8
                assert example["image"].ndim == 3 and example["image"].shape[2] == 3
                assert 0 <= example["label"] < data.num_classes


def test_from_tfds_raises_at_once_without_a_network(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(network, "reachable", asked.append)
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        tasks.from_tfds("caltech101:3.*.*", {"train": "train"}, str(tmp_path))
    assert time.monotonic() - start < 60
    assert asked == ["https://data.caltech.edu/", "https://drive.google.com/"]
    assert "found: ConnectionError: no answer from https://data.c" in str(error.value)


def test_from_tfds_shows_all_instructions_for_a_download_by_hand(tmp_path):
    with pytest.raises(InputError) as error:
        tasks.from_tfds("imagenet2012:5.*.*", {"train": "train"}, str(tmp_path))
    assert f"{tmp_path}/downloads/manual does not exist" in str(error.value)
    assert "ILSVRC2012_img_val.tar. You need to register" in str(error.value)


def test_from_tfds_refuses_an_unknown_name(tmp_path):
    with pytest.raises(InputError, match="no_such_data_set") as error:
        tasks.from_tfds("no_such_data_set", {"train": "train"}, str(tmp_path))
    assert "--config.task.path" in str(error.value)
