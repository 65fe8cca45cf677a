r"""Ranks your checkpoints on your images.

    python -m rankckpt_jax.main --config=configs/folder.py \
        --config.task.path=DIR --config.checkpoints=DIR_OR_GLOB

DIR holds train/CLASS/*.jpg, and optionally val/CLASS/ and test/CLASS/. Every checkpoint
below the second directory is ranked; the architecture of TF-Slim checkpoints is
recognized from their variables. The cost is one pass of the training images per
checkpoint. To verify the ranking by fine-tuning, add

        --config.stages=extract,score,finetune,report
"""

import ml_collections

from rankckpt_jax.configs import default


def get_config() -> ml_collections.ConfigDict:
    """Return a configuration that lacks only the two paths."""
    config = default.get_config()
    config.finetune.recipe = "quick"
    return config
