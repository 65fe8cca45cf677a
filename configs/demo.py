"""The demo, and what runs when no config is given: no download, a few minutes.

    python -m rankckpt_jax.main

The task is to tell handwritten digits 0 to 4 apart (scikit-learn's, real images drawn
up to network size). The pool is Group II of the benchmark in miniature: MobileNet v1
0.25 pre-trained by the demo itself on digits 5 to 9, saved as TF-Slim checkpoints at
several stages of pre-training, and its random initialization. A checkpoint that was
pre-trained for longer should transfer better; NLEEP says so from one pass of features,
and fine-tuning every checkpoint confirms it.
"""

import ml_collections

from rankckpt_jax.configs import default


def get_config() -> ml_collections.ConfigDict:
    """Returns the demo's configuration."""
    config = default.get_config()
    config.workdir = "runs/demo"
    config.stages = "pretrain,extract,score,finetune,report"
    config.task.name = "digits_0_to_4"
    config.task.digits = (0, 1, 2, 3, 4)
    config.image_size = 64

    # Only the demo pre-trains: the pool it makes is the pool it ranks.
    config.pretrain = pretrain = ml_collections.ConfigDict()
    pretrain.architecture = "mobilenet_v1_025"
    pretrain.digits = (5, 6, 7, 8, 9)
    # How often each digit is drawn, every time at another place and size.
    pretrain.drawings = 8
    # A checkpoint is saved after each of these numbers of steps.
    pretrain.stages = (0, 40, 80, 120, 400)
    pretrain.learning_rate = 0.1
    pretrain.batch_size = 64
    pretrain.batch_norm_decay = 0.9
    # Follows the workdir, also one given on the command line.
    config.checkpoints = config.get_oneway_ref("workdir") + "/pretrained"

    # So small a task is noisy: the mean over several starts, and their spread.
    config.measure_options.nleep.num_restarts = 5

    config.finetune.recipe = "quick"
    config.finetune.num_steps = 100
    config.finetune.batch_size = 32
    config.finetune.learning_rate = 0.03
    return config
