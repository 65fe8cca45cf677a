"""Public networks with published accuracies, on the data sets of their benchmarks.

    python -m rankckpt_jax.main --config=configs/standard.py:sfda_group1,pets
    python -m rankckpt_jax.main --config=configs/standard.py:keras19,dtd

After the colon, separated by commas: pools (sfda_group1, sfda_group2, keras19) and one
data set. The default is sfda_group1 on pets. `rankckpt list pools` prints all names;
docs/pools.md has the caveats of each pool.

Nothing is fine-tuned: the ranking by each measure is compared with the published
accuracies. Images come from TFDS, and the networks of torchvision and Keras are
downloaded. TFDS does not have aircraft and voc2007 for classification: name a folder of
the images with --config.task.path=DIR. The networks of sfda_group2 are in no hub: put
NAME.pth into a directory and name it, --config.checkpoints=DIR.

Expected cost, counted and not measured: one pass of the training images per network.
11 networks on pets (3,680 images) take about 4e14 FLOP; less than a minute on a data
center GPU once images are decoded, and half an hour on a laptop.

Result: not run yet, because the weights were not available.
"""

import ml_collections

from rankckpt_jax.benchmark import standard
from rankckpt_jax.configs import default, neucrab_task


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Return the configuration; `argument` is the text after the colon.

    Raises:
      InputError: A pool or data set is unknown, or they do not fit together.
    """
    argument = argument or "sfda_group1"
    pools, name = standard.parse(argument, f"configs/standard.py:{argument}")
    family = standard.POOLS[pools[0]].family
    data = standard.TASKS[family][name]

    config = default.get_config()
    config.pool = ",".join(pools)
    config.stages = "extract,score,report"
    config.measures = neucrab_task.MEASURES
    # One start, as in the paper of NLEEP.
    config.measure_options.nleep.num_restarts = 1
    config.image_size = standard.POOLS[pools[0]].image_size
    config.task.name = f"{family}_{name}"
    config.task.tfds = data.tfds
    for role, expression in data.splits.items():
        config.task[role] = expression
    config.accuracies = "published"
    return config
