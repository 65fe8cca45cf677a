r"""Ranks your checkpoints on your images.

    rankckpt IMAGES CHECKPOINTS

This is short for

    python -m rankckpt_jax.main --config=configs/folder.py \
        --config.task.path=IMAGES --config.checkpoints=CHECKPOINTS

IMAGES holds train/CLASS/*.jpg, and optionally val/CLASS/ and test/CLASS/. Every
checkpoint below CHECKPOINTS is ranked; the architecture of TF-Slim checkpoints is
recognized from their variables. The cost is one pass of the training images per
checkpoint. To verify the ranking by fine-tuning the best two, add

        --finetune=2
"""

import ml_collections

from rankckpt_jax.configs import default


def get_config() -> ml_collections.ConfigDict:
    """Return a configuration that lacks only the two paths."""
    config = default.get_config()
    config.finetune.recipe = "quick"
    return config
