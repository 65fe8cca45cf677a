"""Your images, your checkpoints.

    python -m rankckpt_jax.main --config=configs/folder.py \
        --config.task.path=DIR --config.checkpoints=DIR_OR_GLOB

DIR holds train/CLASS/*.jpg and, if you have them, val/CLASS/ and test/CLASS/. Every
TF-Slim checkpoint below the second directory is recognized from its own variables and
ranked. The ranking costs one pass of the training images per checkpoint. To have it
judged by real fine-tuning as well, add

        --config.stages=extract,score,finetune,report
"""

import ml_collections

from rankckpt_jax.configs import default


def get_config() -> ml_collections.ConfigDict:
    """Returns a configuration that lacks only the two paths."""
    config = default.get_config()
    config.finetune.recipe = "quick"
    return config
