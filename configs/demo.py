"""The demo, and the default config: no download, about four minutes on two CPU cores.

    rankckpt demo

The task is to classify handwritten digits 0 to 4 (scikit-learn's, drawn on larger
images). The pool is Group II of NeuCRaB in miniature: MobileNet v1 0.25, pre-trained by
the demo on digits 5 to 9 and saved after several numbers of steps, the random
initialization included. NLEEP predicts from one pass of features which checkpoint
transfers best, and fine-tuning every checkpoint verifies it.

Result: NLEEP ranks the checkpoint with the most pre-training first, and so does
fine-tuning; see runs/demo/digits_0_to_4/report.html.
"""

import ml_collections

from rankckpt_jax.configs import default


def get_config() -> ml_collections.ConfigDict:
    """Return the demo's configuration."""
    config = default.get_config()
    config.workdir = "runs/demo"
    config.stages = "pretrain,extract,score,finetune,report"
    config.task.name = "digits_0_to_4"
    config.task.digits = (0, 1, 2, 3, 4)
    config.image_size = 64

    # The stage `pretrain` makes the pool that the other stages rank.
    config.pretrain = pretrain = ml_collections.ConfigDict()
    pretrain.architecture = "mobilenet_v1_025"
    pretrain.digits = (5, 6, 7, 8, 9)
    # Copies of each digit, at different positions and sizes.
    pretrain.drawings = 8
    # Numbers of steps after which a checkpoint is saved.
    pretrain.stages = (0, 40, 80, 120, 400)
    pretrain.learning_rate = 0.1
    pretrain.batch_size = 64
    pretrain.batch_norm_decay = 0.9
    # Follows the work directory, also if it is set on the command line.
    config.checkpoints = config.get_oneway_ref("workdir") + "/pretrained"

    # Scores on such a small task are noisy: use the mean over several random starts.
    config.measure_options.nleep.num_restarts = 5

    config.finetune.recipe = "quick"
    config.finetune.num_steps = 100
    config.finetune.batch_size = 32
    config.finetune.learning_rate = 0.03
    return config
