r"""Ranks features that were extracted elsewhere, in any framework.

    python -m rankckpt_jax.main --config=configs/features.py \
        --config.features=DIR_OR_GLOB

Each NAME.npz is one checkpoint, written for example from PyTorch with

    np.savez("resnet50.npz", features=..., labels=..., logits=..., accuracy=0.87)

where features [N, D] are those of the task's training images, labels [N] are integers
or strings, logits [N, V] are those of the checkpoint's own classifier (optional), and
accuracy is the accuracy after fine-tuning (optional). Nothing is unpickled. A file that
cannot be used is a failed row. The task is named after the folder, or by
--config.task.name.

To score stored features again without their checkpoints, use
--config.features='runs/TASK/*/features/train'.

Cost: that of the measures, seconds to minutes per checkpoint.
"""

import ml_collections

from rankckpt_jax.configs import default


def get_config() -> ml_collections.ConfigDict:
    """Return a configuration that lacks only the features."""
    config = default.get_config()
    config.stages = "score,report"
    config.measures = "nleep,leep,h_score,logme,sfda,knn"
    return config
