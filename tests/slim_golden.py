"""Reference outputs of TF-Slim's networks, and checkpoints with the same weights.

Weights are not stored. Each is drawn with a seed that its variable's name gives, in the
reference and here. `golden/slim/NAME.variables.json` holds the shapes of a network's
variables, `golden/slim/NAME_SIZE.npz` TF-Slim's outputs for `images(SIZE)`, and
`golden/slim/NAME_SIZE_training.npz` those of a training step on `images(SIZE, 8)`:

- `features` [8, D];
- `moving`: for each moving average, in the order of the variables, its mean, its
  standard deviation and its first four values after one update;
- `gradient`: the same of the gradient for each trainable variable of
  sum(features * weights) / sum(|features|), the denominator held constant and
  weights = RandomState(11).randn(8, D).

References at a network's default size come from TF-Slim in TensorFlow 2.12, all others
from 2.15 with one thread and without oneDNN.
"""

import json
import pathlib
import zlib

import numpy as np

from rankckpt_jax.checkpoints.tensorflow_files import checkpoint_files

NAMES = (
    "inception_resnet_v2",
    "inception_v1",
    "inception_v2",
    "inception_v3",
    "inception_v4",
    "mobilenet_v1",
    "mobilenet_v1_025",
    "mobilenet_v1_050",
    "mobilenet_v2",
    "mobilenet_v2_035",
    "mobilenet_v2_140",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "resnet_v1_101",
    "resnet_v1_152",
    "resnet_v1_50",
    "resnet_v2_101",
    "resnet_v2_152",
    "resnet_v2_50",
)
FOLDER = pathlib.Path(__file__).parent / "golden" / "slim"


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw the value of a TF-Slim variable; its name is the seed."""
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
    """Return the shapes of a TF-Slim network's variables without its classifier."""
    text = (FOLDER / f"{name}.variables.json").read_text()
    return {variable: tuple(shape) for variable, shape in json.loads(text).items()}


def values(name: str) -> dict[str, np.ndarray]:
    """Return the values of a TF-Slim network's variables."""
    return {variable: draw(variable, shape) for variable, shape in shapes(name).items()}


def write(
    name: str, folder: pathlib.Path, extra: dict[str, np.ndarray] | None = None
) -> str:
    """Write a network as a TF-Slim checkpoint; return its prefix."""
    prefix = str(folder / "model.ckpt")
    checkpoint_files.write(prefix, {**values(name), **(extra or {})})
    return prefix


def reduced_size(name: str) -> int:
    """Return a small image size with references; odd, so that paddings differ."""
    without_padding = ("inception_v3", "inception_v4", "inception_resnet_v2")
    return 107 if name in without_padding else 97


def figures(name: str, size: int, suffix: str = "") -> dict[str, np.ndarray]:
    """Return TF-Slim's features and the mean and deviation of each endpoint."""
    with np.load(FOLDER / f"{name}_{size}{suffix}.npz") as found:
        return dict(found)


def summary(value: np.ndarray) -> np.ndarray:
    """Return the mean, standard deviation and first four values."""
    value = np.asarray(value, np.float64).ravel()
    return np.concatenate([[value.mean(), value.std()], np.resize(value, 4)])


def relative_error(found: np.ndarray, reference: np.ndarray) -> float:
    """Return the largest absolute difference over the largest absolute reference."""
    difference = np.abs(np.asarray(found, np.float64) - reference).max()
    return float(difference / np.abs(reference).max())
