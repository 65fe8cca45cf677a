"""TF-Slim's own figures for its networks, and the checkpoints that belong to them.

Weights are not stored: each is drawn from its variable's name, in the reference and
here alike. `golden/slim/NAME.variables.json` has a network's variables and their
shapes; `golden/slim/NAME_SIZE.npz` what TF-Slim computed from `images(SIZE)`.
"""

import json
import pathlib
import zlib

import numpy as np

from rankckpt_jax.checkpoints import tensorflow_files

FOLDER = pathlib.Path(__file__).parent / "golden" / "slim"


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of a TF-Slim variable, decided by its name."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    leaf = name.rsplit("/", 1)[-1]
    if leaf in ("gamma", "moving_variance"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if leaf in ("beta", "moving_mean", "biases"):
        return (0.1 * random.randn(*shape)).astype(np.float32)
    fan = np.prod(shape[:2]) if "depthwise" in leaf else np.prod(shape[:-1])
    return (np.sqrt(2.0 / fan) * random.randn(*shape)).astype(np.float32)


def images(size: int, count: int = 2) -> np.ndarray:
    """The images that the figures were computed from, in [-1, 1]."""
    random = np.random.RandomState(7)
    return random.uniform(-1, 1, (count, size, size, 3)).astype(np.float32)


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Variables of a TF-Slim network without its classifier."""
    text = (FOLDER / f"{name}.variables.json").read_text()
    return {variable: tuple(shape) for variable, shape in json.loads(text).items()}


def values(name: str) -> dict[str, np.ndarray]:
    """Variables of a TF-Slim network with their values."""
    return {variable: draw(variable, shape) for variable, shape in shapes(name).items()}


def write(
    name: str, folder: pathlib.Path, extra: dict[str, np.ndarray] | None = None
) -> str:
    """Writes a network as a genuine checkpoint, and returns its prefix."""
    prefix = str(folder / "model.ckpt")
    tensorflow_files.write(prefix, {**values(name), **(extra or {})})
    return prefix


def figures(name: str, size: int) -> dict[str, np.ndarray]:
    """What TF-Slim computed: features and each endpoint's mean and deviation."""
    with np.load(FOLDER / f"{name}_{size}.npz") as found:
        return dict(found)


def relative_error(found: np.ndarray, reference: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute reference."""
    difference = np.abs(np.asarray(found, np.float64) - reference).max()
    return float(difference / np.abs(reference).max())
