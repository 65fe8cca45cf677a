"""A small job that tests break in one place."""

import dataclasses
import pathlib
from typing import Any

from rankckpt_jax import checkpoints
from rankckpt_jax.configs import default
from rankckpt_jax.run import run as run_lib


@dataclasses.dataclass
class Scene:
    """Images of three classes, two checkpoints, and a config that ranks them."""

    images: pathlib.Path
    pool: pathlib.Path
    folder: pathlib.Path

    @property
    def data(self) -> pathlib.Path:
        return self.pool / "first" / "model.ckpt.data-00000-of-00001"

    @property
    def index(self) -> pathlib.Path:
        return self.pool / "first" / "model.ckpt.index"

    def config(self, **changes: Any) -> Any:
        made = default.get_config()
        made.task.path = str(self.images)
        made.checkpoints = str(self.pool)
        made.workdir = str(self.folder / "runs")
        made.image_size = 32
        made.measures = "h_score"
        made.update(changes)
        return made

    def run(self, **changes: Any) -> Any:
        return run_lib.run(self.config(**changes))

    def load(self) -> Any:
        return checkpoints.load(str(self.pool / "first" / "model.ckpt"))
