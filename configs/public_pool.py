r"""The public-pool benchmark: 21 public networks on 7 image sets, with 2 seeds.

    python -m rankckpt_jax.main --config=configs/public_pool.py \
        --config.task.path=IMAGES/textures10 --config.checkpoints=DIR

DIR holds the networks that docs/data/public_pool_networks.csv lists, and IMAGES the
image sets that docs/public_pool.md lists. A second seed is --config.seed=1 with another
work directory. tests/benchmarks/public_pool.py runs all of it and collects the table,
so that a new measure can be evaluated without fine-tuning anything.

Every network is fine-tuned with each learning rate, and the accuracy on a tenth of the
training images chooses among them, because one rate for all would favor some networks.

Cost: 300 steps of 32 images per network, image set and seed, counting all three
learning rates: 0.3 to 10 minutes on one core, and about 45 minutes per image set for
all networks and both seeds on two idle cores.
"""

import ml_collections

from rankckpt_jax.configs import default


def get_config() -> ml_collections.ConfigDict:
    """Return a configuration that lacks only the two paths."""
    config = default.get_config()
    config.stages = "extract,score,finetune,report"
    # All networks that take any size. Three take only their own.
    config.image_size = 96
    # All measures of features, logits and weights. The paper's comes first.
    config.measures = "all"
    config.finetune.recipe = "quick"
    # SGD does not train networks with small features at any rate that suits others; see
    # docs/public_pool.md. The recorded results have these settings.
    config.finetune.optimizer = "adamw"
    config.finetune.learning_rate = (0.003, 0.001, 0.0003)
    # The curves of all rates are recorded.
    config.finetune.choose_after = 1.0
    config.finetune.num_steps = 100
    config.finetune.batch_size = 32
    config.finetune.evaluations = 10
    # The programs of an extraction with JAX are needed for fine-tuning too.
    config.torch_engine = "jax"
    # Its table is the record; predictions that are evaluated on it must not know it.
    config.history = "off"
    return config
