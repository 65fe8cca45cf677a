"""The fine-tuned model that a run kept, as plain data."""

from __future__ import annotations

import dataclasses
import shlex

PROGRAM = "rankckpt"


@dataclasses.dataclass(frozen=True)
class KeptModel:
    """The model of the checkpoint with the highest accuracy.

    Attributes:
      directory: Where it is, for `rankckpt_jax.predict`.
      checkpoint: Name of the checkpoint that was fine-tuned.
      serving: File of the exported program; empty if it could not be exported.
    """

    directory: str
    checkpoint: str
    serving: str = ""

    @property
    def command(self) -> str:
        """The command that predicts the classes of a folder of images."""
        return f"{shlex.join([PROGRAM, 'predict', self.directory])} IMAGES"
