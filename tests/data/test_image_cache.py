import errno
import os
import shutil
import subprocess
import sys
import threading
import time

import filelock
import numpy as np
import pytest

from rankckpt_jax.data import image_cache, pipeline, preprocess, stream, tasks
from rankckpt_jax.devices import memory, signals
from rankckpt_jax.errors import InputError, Interrupted, UnreadableImage

HEADER = 4096


@pytest.fixture
def split():
    return make_split()


@pytest.fixture
def decoded(monkeypatch):
    """The size in pixels of every pass that decodes images."""
    passes = []
    batches = stream.batches

    def count(split, size, *args, **options):
        passes.append(size)
        return batches(split, size, *args, **options)

    monkeypatch.setattr(stream, "batches", count)
    return passes


def make_split(seed=0, count=23):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 9, 7, 3), dtype=np.uint8)
    return tasks.array_split("train", images, np.arange(count) % 5)


def file_bytes(size, count=23):
    return HEADER + count * (size * size * 3 + 4)


def read_all(split, cache, rule="vtab", size=16):
    batches = pipeline.batches(
        split, size=size, preprocess=rule, batch_size=8, cache=cache
    )
    parts = [(b.images[b.mask], b.labels[b.mask], b.index[b.mask]) for b in batches]
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def names(folder):
    return sorted(path.name for path in folder.glob("*.images"))


@pytest.mark.parametrize("rule", preprocess.names())
def test_get_equals_decoding(image_folder, tmp_path, rule):
    split = tasks.from_folder(str(image_folder)).splits["train"]
    kept = read_all(split, image_cache.ImageCache(tmp_path / "cache"), rule)
    reopened = read_all(split, image_cache.ImageCache(tmp_path / "cache"), rule)
    expected = read_all(split, image_cache.ImageCache(None), rule)
    for array, again, reference in zip(kept, reopened, expected, strict=True):
        assert array.dtype == again.dtype == reference.dtype
        assert array.tobytes() == again.tobytes() == reference.tobytes()


def test_get_decodes_once_for_all_passes_stages_and_processes(split, tmp_path, decoded):
    # Another object stands for another process: it has only the file.
    for cache in (image_cache.ImageCache(tmp_path), image_cache.ImageCache(tmp_path)):
        read_all(split, cache)
        for seed in (0, 1):
            batches = pipeline.training_batches(
                split,
                size=16,
                preprocess="vtab",
                batch_size=4,
                seed=seed,
                first_step=0,
                last_step=12,
                cache=cache,
            )
            assert len(list(batches)) == 12
    assert decoded == [16]
    assert [path.name for path in tmp_path.glob(".*.partial")] == []


def test_get_states_the_size_before_it_decodes(split, tmp_path, caplog):
    with caplog.at_level("INFO"):
        image_cache.ImageCache(tmp_path).get(split, 128, "vtab")
    assert caplog.messages[0] == "train: decoding 23 images to 128 px (1.1 MB)"
    [path] = tmp_path.glob("*.images")
    assert path.stat().st_size == file_bytes(128)


def test_get_returns_read_only_views_of_a_mapped_file(split, tmp_path):
    images, _ = image_cache.ImageCache(tmp_path).get(split, 16, "vtab")
    assert isinstance(images.base, np.memmap)
    assert not images.flags.writeable


def test_get_makes_another_file_for_other_contents_rules_and_sizes(
    split, tmp_path, monkeypatch
):
    cache = image_cache.ImageCache(tmp_path)
    cache.get(split, 16, "vtab")
    assert len(names(tmp_path)) == 1
    cache.get(make_split(), 16, "vtab")  # Equal contents.
    assert len(names(tmp_path)) == 1
    cache.get(make_split(seed=1), 16, "vtab")
    cache.get(split.subset("train", np.arange(22)), 16, "vtab")
    cache.get(split, 17, "vtab")
    cache.get(split, 16, "slim_vgg")
    versions = {**preprocess.VERSIONS, "decode": preprocess.VERSIONS["decode"] + 1}
    monkeypatch.setattr(preprocess, "VERSIONS", versions)
    cache.get(split, 16, "vtab")
    assert len(names(tmp_path)) == 6


@pytest.mark.parametrize("count", [2, 3])
def test_get_returns_the_share_of_a_process(split, tmp_path, decoded, count):
    every = image_cache.ImageCache(None)
    images, labels, _ = read_all(split, every)
    decoded.clear()
    for process in range(count):
        share = image_cache.ImageCache(tmp_path).get(split, 16, "vtab", process, count)
        np.testing.assert_array_equal(share[0], images[process::count])
        np.testing.assert_array_equal(share[1], labels[process::count])
    assert len(decoded) == count
    image_cache.ImageCache(tmp_path).get(split, 16, "vtab")
    for path in names(tmp_path)[1:]:
        (tmp_path / path).touch()
    decoded.clear()
    # A file of all images serves any number of processes.
    share = image_cache.ImageCache(tmp_path).get(split, 16, "vtab", 1, 5)
    np.testing.assert_array_equal(share[0], images[1::5])
    assert not decoded


def damage_header(path):
    with path.open("r+b") as file:
        file.write(b"{'key'")


def damage_image(path):
    with path.open("r+b") as file:
        file.seek(HEADER + 5000)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def damage_label(path):
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\1")


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def lengthen(path):
    os.truncate(path, path.stat().st_size + 1)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [damage_header, damage_image, damage_label, cut, lengthen, empty]
)
def test_get_replaces_a_damaged_file(split, tmp_path, caplog, damage):
    expected = read_all(split, image_cache.ImageCache(tmp_path))
    [path] = tmp_path.glob("*.images")
    content = path.read_bytes()
    damage(path)
    kept = read_all(split, image_cache.ImageCache(tmp_path))
    for array, reference in zip(kept, expected, strict=True):
        np.testing.assert_array_equal(array, reference)
    assert path.read_bytes() == content
    assert f"{path}: damaged" in caplog.text


def disk_is_short(monkeypatch, folder):
    usage = shutil.disk_usage(folder)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    return "1.0 GB are free"


def disk_fills_up(monkeypatch, folder):
    def write(split, key):
        yield np.zeros(1000, np.uint8).data
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(image_cache, "_decode", write)
    return "No space left on device"


def directory_cannot_be_made(monkeypatch, folder):
    folder.rmdir()
    folder.write_text("a file")
    return "Not a directory"


def directory_is_read_only(monkeypatch, folder):
    def acquire(lock, *args, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    return "Permission denied"


def files_cannot_be_locked(monkeypatch, folder):
    def acquire(lock, *args, **options):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    return "does not appear to support flock"


def files_cannot_be_mapped(monkeypatch, folder):
    def memmap(*args, **options):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(np, "memmap", memmap)
    return "No such device"


@pytest.mark.parametrize(
    "prepare",
    [
        disk_is_short,
        disk_fills_up,
        directory_cannot_be_made,
        directory_is_read_only,
        files_cannot_be_locked,
        files_cannot_be_mapped,
    ],
)
def test_get_falls_back_to_decoding(split, tmp_path, monkeypatch, caplog, prepare):
    expected = read_all(split, image_cache.ImageCache(None))
    folder = tmp_path / "cache"
    folder.mkdir()
    reason = prepare(monkeypatch, folder)
    cache = image_cache.ImageCache(folder)
    for _ in range(2):
        kept = read_all(split, cache)
        for array, reference in zip(kept, expected, strict=True):
            np.testing.assert_array_equal(array, reference)
    assert not folder.is_dir() or not [*folder.glob("*.images"), *partials(folder)]
    # Once, not for each checkpoint.
    [message] = [m for m in caplog.messages if m.startswith("Image cache")]
    assert reason in message and "config.image_cache" in message


def partials(folder):
    return list(folder.glob(".*.partial"))


def test_get_deletes_the_least_recently_used_files_above_the_limit(split, tmp_path):
    cache = image_cache.ImageCache(tmp_path, limit=2.5 * file_bytes(16))
    for age, size in ((300, 14), (200, 15)):
        image_cache.ImageCache(tmp_path).get(split, size, "vtab")
        [path] = tmp_path.glob(f"{size}px-*.images")
        os.utime(path, (time.time() - age,) * 2)
    assert cache.get(split, 14, "vtab") is not None  # Now the most recently used.
    assert cache.get(split, 16, "vtab") is not None
    assert [name[:4] for name in names(tmp_path)] == ["14px", "16px"]


def test_get_keeps_files_in_use_above_the_limit(split, tmp_path, caplog):
    cache = image_cache.ImageCache(tmp_path, limit=1.5 * file_bytes(16))
    assert cache.get(split, 16, "vtab") is not None
    assert cache.get(split, 15, "vtab") is None
    assert "config.image_cache_gigabytes" in caplog.text
    assert cache.get(split, 16, "vtab") is not None
    assert [name[:4] for name in names(tmp_path)] == ["16px"]


def test_get_writes_once_for_two_at_the_same_time(split, tmp_path, decoded):
    start = threading.Barrier(2)
    results = []

    def get():
        start.wait()
        results.append(image_cache.ImageCache(tmp_path).get(split, 16, "vtab"))

    threads = [threading.Thread(target=get) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decoded == [16]
    np.testing.assert_array_equal(results[0][0], results[1][0])


def test_get_stops_waiting_for_another_process(split, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(image_cache, "_POLL", 0.01)
    with filelock.FileLock(tmp_path / ".lock"), caplog.at_level("INFO"):
        monkeypatch.setattr(signals, "should_stop", lambda: True)
        with pytest.raises(Interrupted):
            image_cache.ImageCache(tmp_path).get(split, 16, "vtab")
        assert "waiting for another process" in caplog.text
        monkeypatch.setattr(signals, "should_stop", lambda: False)
        monkeypatch.setattr(image_cache, "_PATIENCE", 0.05)
        assert image_cache.ImageCache(tmp_path).get(split, 16, "vtab") is None


KILLED = """
import os, pathlib, signal, sys
import numpy as np
from rankckpt_jax.data import image_cache, splits

def decode(split, key):
    yield np.zeros(5000, np.uint8).data
    os.kill(os.getpid(), signal.SIGKILL)

image_cache._decode = decode
split = splits.Split("train", 23, lambda: "other", lambda *order: None)
image_cache.ImageCache(pathlib.Path(sys.argv[1])).get(split, 16, "vtab")
"""


def test_get_removes_what_a_killed_process_left(split, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode < 0
    assert len(partials(tmp_path)) == 1 and not names(tmp_path)
    assert image_cache.ImageCache(tmp_path).get(split, 16, "vtab") is not None
    assert not partials(tmp_path) and len(names(tmp_path)) == 1


def test_get_leaves_nothing_when_interrupted(split, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "should_stop", lambda: True)
    with pytest.raises(Interrupted):
        image_cache.ImageCache(tmp_path).get(split, 16, "vtab")
    monkeypatch.undo()
    assert not names(tmp_path) and not partials(tmp_path)
    assert image_cache.ImageCache(tmp_path).get(split, 16, "vtab") is not None


def test_get_raises_unreadable_image(image_folder, tmp_path):
    (image_folder / "train" / "red" / "0.jpg").write_bytes(b"\xff\xd8\xff not a JPEG")
    split = tasks.from_folder(str(image_folder)).splits["train"]
    with pytest.raises(UnreadableImage, match="cannot be decoded"):
        image_cache.ImageCache(tmp_path / "cache").get(split, 16, "vtab")
    assert not names(tmp_path / "cache") and not partials(tmp_path / "cache")


def test_open_cache_uses_the_setting_then_the_variable_then_home(
    split, tmp_path, monkeypatch, caplog
):
    def made(directory=""):
        before = set(tmp_path.rglob("*.images"))
        kept = image_cache.open_cache(directory).get(split, 16, "vtab")
        [path] = set(tmp_path.rglob("*.images")) - before or [None]
        assert (kept is None) == (path is None)
        return path and str(path.parent.relative_to(tmp_path))

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RANKCKPT_IMAGES", str(tmp_path / "variable"))
    assert made(str(tmp_path / "setting")) == "setting"
    assert made() == "variable"
    assert made("off") is None
    monkeypatch.delenv("RANKCKPT_IMAGES")
    assert made() == "home/.cache/rankckpt_jax/images"
    monkeypatch.setenv("RANKCKPT_IMAGES", "off")
    assert made() is None
    with pytest.raises(InputError, match="local directory"):
        image_cache.open_cache("gs://bucket/images")


@pytest.mark.parametrize("content", ["1000000\n", "max\n", None])
def test_open_cache_limits_files_to_the_memory(split, tmp_path, monkeypatch, content):
    if content:
        (tmp_path / "memory.max").write_text(content)
    monkeypatch.setattr(memory, "_CONTAINER_LIMITS", [str(tmp_path / "memory.max")])
    too_small = content == "1000000\n"
    fits = image_cache.open_cache(str(tmp_path)).get(split, 96, "vtab")
    assert fits is not None
    kept = image_cache.open_cache(str(tmp_path)).get(split, 128, "vtab")
    assert (kept is None) == too_small
    # A limit in the config takes precedence.
    assert image_cache.open_cache(str(tmp_path), 1.0).get(split, 128, "vtab")
