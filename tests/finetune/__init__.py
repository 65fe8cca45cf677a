"""Settings and a small network that the tests of fine-tuning share."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
from etils import epath

from rankckpt_jax import finetune
from rankckpt_jax.checkpoints.description import describe
from rankckpt_jax.data import image_cache
from rankckpt_jax.models import layers

RECIPE = finetune.Recipe(
    learning_rate=0.05,
    num_steps=12,
    batch_size=8,
    batch_norm_decay=0.8,
    evaluations=2,
    save_every=4,
)


@dataclasses.dataclass(frozen=True)
class SmallNetwork:
    """A projection of 4 x 4 pixels, batch norm and ReLU; compiles in a moment."""

    dtype: str = "float32"
    axis_name: str | None = None
    decay: float | None = None
    precision: str = "highest"

    def __call__(self, variables, images, train=False, key=None):
        params, stats = variables["params"], variables["batch_stats"]
        batch, size = images.shape[:2]
        blocks = images.reshape(batch, 4, size // 4, 4, size // 4, 3).mean((2, 4))
        x = blocks.reshape(batch, 48).astype(self.dtype)
        x = jnp.dot(x, params["kernel"].astype(self.dtype)).astype(jnp.float32)
        mean, variance = stats["mean"], stats["var"]
        if train:
            mean, square = x.mean(0), (x * x).mean(0)
            if self.axis_name:
                mean, square = jax.lax.pmean((mean, square), self.axis_name)
            variance = square - mean**2
            decay = 0.9 if self.decay is None else self.decay
            new = {"mean": mean, "var": variance}
            stats = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, stats, new)
        x = (x - mean) * jax.lax.rsqrt(variance + 1e-3) * params["scale"]
        output = layers.Output(jax.nn.relu(x + params["bias"]), None)
        return (output, stats) if train else output


def settings():
    """Return the preprocessing, and an empty cache."""
    return {"preprocess": "vtab", "cache": image_cache.open_cache()}


def run(directory, backbone, task, sweep, **options):
    """Return (result, whether it was computed): `finetune.load`, else `run`."""
    options = {**settings(), **options}
    directory, compute = epath.Path(directory), options.pop("compute", True)
    known = describe(backbone), task, sweep
    stored = finetune.load(directory, *known, preprocess=options["preprocess"])
    if stored is not None or not compute:
        return stored, False
    return finetune.run(directory, backbone, task, sweep, **options), True


def without_times(trial):
    """Return (a trial's result, the rows of its CSV), both without measured times."""
    rows = [
        {name: value for name, value in row.items() if name != "images_per_second"}
        for row in csv.DictReader(trial.metrics.splitlines())
    ]
    return dataclasses.replace(
        trial, seconds=0.0, compile_seconds=0.0, metrics=""
    ), rows
