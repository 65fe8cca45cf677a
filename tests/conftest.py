"""Fixtures that tests share, and the settings of JAX for all tests."""

import dataclasses
import glob
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import filelock
import numpy as np
import pytest

# One compilation cache for all tests, pytest's workers and the processes they start,
# because training steps take far longer to compile than to run. It is set before JAX is
# imported.
if not {"PYTEST_XDIST_WORKER", "JAX_COMPILATION_CACHE_DIR"} & set(os.environ):
    _COMPILED = tempfile.TemporaryDirectory(prefix="rankckpt_jax_compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

# The same for decoded images, which do not belong into the user's directory.
if not {"PYTEST_XDIST_WORKER", "RANKCKPT_IMAGES"} & set(os.environ):
    _IMAGES = tempfile.TemporaryDirectory(prefix="rankckpt_jax_images_")
    os.environ["RANKCKPT_IMAGES"] = _IMAGES.name

# Nor do the fine-tunings of tests belong into the user's history.
os.environ["RANKCKPT_HISTORY"] = "off"

# With the extra `aot`, JAX would look for a TPU in every process, and print that there
# is none.
if importlib.util.find_spec("libtpu") and not glob.glob("/dev/accel*"):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


# These import the extra `torch` at once, and pytest imports every module for doctests.
if not importlib.util.find_spec("torchax"):
    collect_ignore = [
        "benchmarks/torch_engines.py",
        "checkpoints/torch_modules/architectures.py",
        "checkpoints/torch_modules/networks.py",
    ]


def pytest_configure(config: pytest.Config) -> None:
    """Compile fast tests without optimization, which halves their time."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "not slow" in config.option.markexpr and _UNOPTIMIZED not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_UNOPTIMIZED}".strip()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests that start processes first, so that no long test is the last."""
    items.sort(key=lambda item: item.get_closest_marker("multiprocess") is None)


_UNOPTIMIZED = "--xla_backend_optimization_level=0"


@dataclasses.dataclass(frozen=True)
class Demo:
    """A finished run of a small demo."""

    workdir: pathlib.Path
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Folder of real checkpoints, images and golden results; skip without it."""
    default = pathlib.Path(__file__).resolve().parents[2] / "shared"
    folder = pathlib.Path(os.environ.get("RANKCKPT_SHARED", default))
    if not (folder / "golden").is_dir():
        pytest.skip(f"needs real data in {folder}, or where RANKCKPT_SHARED points")
    return folder


@pytest.fixture
def image_folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A small folder of JPEG images: three classes of different color."""
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(("blue", "green", "red")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 120, (30 + i, 40, 3), dtype=np.uint8)
                pixels[..., 2 - label] += 120
                Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)
    return tmp_path / "images"


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two random TF-Slim checkpoints of MobileNet v1 0.25, one with a classifier."""
    import jax

    from rankckpt_jax import checkpoints, models

    random = np.random.default_rng(0)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("var", "scale"):
            return np.ones(leaf.shape, np.float32)
        fan = np.prod(leaf.shape[:-1]) if "depthwise" not in kind else 9
        deviation = np.sqrt(2 / fan) if "kernel" in kind else 0.1
        return (deviation * random.normal(size=leaf.shape)).astype(np.float32)

    folder = tmp_path_factory.mktemp("pool")
    for name, classes in (("first", 7), ("second", 0)):
        module = models.create("mobilenet_v1_025", num_classes=classes)
        image = np.zeros((1, 32, 32, 3), np.float32)
        shapes = jax.eval_shape(module.init, jax.random.key(0), image)
        variables = jax.tree_util.tree_map_with_path(draw, dict(shapes))
        path = folder / name / "model.ckpt"
        checkpoints.save_slim("mobilenet_v1_025", variables, str(path))
    return folder


@pytest.fixture
def scene(image_folder: pathlib.Path, pool: pathlib.Path, tmp_path: pathlib.Path):
    """Images of three classes and two checkpoints that a test may break."""
    from tests.scene import Scene

    shutil.copytree(pool, tmp_path / "pool")
    return Scene(image_folder, tmp_path / "pool", tmp_path)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Run a small demo from the command line, once for all workers.

    Tests must not change its work directory.
    """
    from tests import faults

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    result = folder / "demo.json"
    with filelock.FileLock(folder / "demo.lock"):
        if not result.exists():
            # The console script, which need not be on the path.
            program = "from rankckpt_jax import main; main.run()"
            flags = faults.flags(folder / "demo", faults.SMALL)
            done = subprocess.run(
                [sys.executable, "-c", program, "demo", *flags],
                capture_output=True,
                text=True,
                # Results are bit-equal only for equal numbers of devices.
                env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
            )
            assert done.returncode == 0, done.stderr
            result.write_text(json.dumps([done.stdout, done.stderr]))
    return Demo(folder / "demo", *json.loads(result.read_text()))
