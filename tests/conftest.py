"""What all tests share: where real data stands, small images, a quiet backend."""

import os
import pathlib

import numpy as np
import pytest


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Folder of real checkpoints, images and golden figures; skips where absent."""
    default = pathlib.Path(__file__).resolve().parents[2] / "shared"
    folder = pathlib.Path(os.environ.get("RANKCKPT_SHARED", default))
    if not (folder / "golden").is_dir():
        pytest.skip(f"needs real data: {folder} is not there (RANKCKPT_SHARED names it)")
    return folder


@pytest.fixture
def image_folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A small folder of JPEG images: three classes, told apart by their colour."""
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
