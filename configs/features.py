r"""Features from any framework: the measures without our networks.

    python -m rankckpt_jax.main --config=configs/features.py \
        --config.features=DIR_OR_GLOB

Each NAME.npz there is a checkpoint, written for instance from PyTorch with

    np.savez("resnet50.npz", features=..., labels=..., logits=..., accuracy=0.87)

where features are [N, D] of the task's training images, labels [N] integers, logits
[N, V] those of the checkpoint's own classifier (leave them out where there is none) and
accuracy, if it is known, that after fine-tuning. Nothing is unpickled. Cost: that of
the measures, seconds to minutes for a checkpoint. The task is called after the folder;
--config.task.name overrules it.

Features that an earlier run keeps in its store can be scored again without their
checkpoints: --config.features='runs/TASK/*/features/train'.
"""

import ml_collections

from rankckpt_jax.configs import default


def get_config() -> ml_collections.ConfigDict:
    """Returns a configuration that lacks only the features."""
    config = default.get_config()
    config.stages = "score,report"
    config.measures = "nleep,leep,h_score,logme,sfda,knn"
    return config
