"""The demo, and the default config: no download, four minutes on two CPU cores.

Run it with `rankckpt demo`.

NeuCRaB in miniature. The task is to classify handwritten digits 0 to 4 (scikit-learn's,
drawn on larger images). The pool is nine checkpoints that the demo pre-trains on digits
5 to 9, in the benchmark's three groups: supervision, stages of training, architectures.
NLEEP predicts from one pass of features which checkpoint transfers best, and
fine-tuning every checkpoint verifies it.

Result: Kendall's tau of NLEEP with fine-tuning is 0.61, and 0.87, 0.72, 0.61 and
0.65 with seeds 1 to 4; see runs/demo/digits_0_to_4/report.html.
docs/getting-started.md states how these settings were chosen.
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
    # At least as many images per mixture component as PCA keeps dimensions.
    config.task.drawings = 4
    config.image_size = 32

    # Its networks are small, and made by itself: no experience for other tasks.
    config.history = "off"

    # The stage `pretrain` makes the pool that the other stages rank.
    config.pretrain = pretrain = ml_collections.ConfigDict()
    pretrain.digits = (5, 6, 7, 8, 9)
    # Drawings of each digit, at different positions and sizes.
    pretrain.drawings = 8
    # Trained with labels, and saved after these numbers of steps.
    pretrain.architecture = "mobilenet_v1_025"
    pretrain.stages = (0, 60, 120, 240)
    # The same network trained with other supervision: rotation, random_labels.
    pretrain.other_supervision = ("rotation", "random_labels")
    # Other networks, trained and saved like the first one, except for random weights.
    pretrain.other_architectures = ("mobilenet_v1_050",)
    pretrain.learning_rate = 0.05
    pretrain.batch_size = 64
    pretrain.batch_norm_decay = 0.9
    # Follows the work directory, also if it is set on the command line.
    config.checkpoints = config.get_oneway_ref("workdir") + "/pretrained"

    # LEEP needs a classifier, which random weights lack.
    config.measures = "nleep,logme,h_score"

    config.finetune.recipe = "quick"
    config.finetune.num_steps = 60
    # As in pre-training, so that a network's training steps are compiled once.
    config.finetune.batch_size = 64
    config.finetune.optimizer = "sgd"
    config.finetune.learning_rate = 0.03
    config.finetune.evaluations = 2
    return config
