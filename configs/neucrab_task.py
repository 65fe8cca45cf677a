"""Shared settings of NeuCRaB's four tasks: caltech, camelyon, flowers, sun.

Each config takes arguments after a colon: `--config=configs/caltech.py:group_ii,1k`.

    group_i, group_ii, group_iii   only these groups; all three by default
    1k                             VTAB-1k: 800 training and 200 validation images
    smoke                          a few images and steps, to see whether it works
"""

import ml_collections

from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.configs import default
from rankckpt_jax.errors import unknown_name

ARGUMENTS = (*neucrab.GROUPS, "1k", "smoke")
"""Arguments after the colon, separated by commas."""

MEASURES = (
    "nleep,leep,nce,h_score,regularized_h_score,logme,transrate,gbc,sfda,lda,knn,"
    "etran,ncti,energy,source_accuracy,num_parameters,feature_dim"
)
"""All measures except those that take longer than extraction."""


def get_config(task_name: str, argument: str = "") -> ml_collections.ConfigDict:
    """Return the benchmark's configuration on one task.

    Args:
      task_name: A key of `neucrab.TASKS`.
      argument: Some of ARGUMENTS, separated by commas.

    Raises:
      InputError: An argument is unknown.
    """
    given = [name.strip() for name in (argument or "").split(",") if name.strip()]
    for name in given:
        if name not in ARGUMENTS:
            where = f"configs/{task_name}.py:{argument}"
            raise unknown_name("argument", name, ARGUMENTS, where)
    few = "1k" in given
    data = neucrab.TASKS[task_name]

    config = default.get_config()
    groups = [name for name in neucrab.GROUPS if name in given] or neucrab.GROUPS
    config.neucrab = ",".join(groups)
    config.stages = "extract,score,report"
    config.measures = MEASURES

    # One start, as in the paper. More starts multiply the cost of 41 checkpoints.
    config.measure_options.nleep.num_restarts = 1

    config.task.name = f"{task_name}_1k" if few else task_name
    config.task.tfds = data.tfds
    for role, expression in (data.few if few else data.splits).items():
        config.task[role] = expression
    # VTAB's published accuracies, until checkpoints are fine-tuned here.
    config.accuracies = "published"
    config.finetune.recipe = "vtab_1k" if few else "neucrab"

    if "smoke" in given:
        config.task.name += "_smoke"
        config.task.limit = 64
        config.stages = "extract,score,finetune,report"
        config.measures = "nleep,h_score,logme,num_parameters"
        config.measure_options.nleep.components_per_class = 1
        config.accuracies = ""
        config.batch_size = 16
        config.finetune.recipe = "quick"
        config.finetune.num_steps = 2
        config.finetune.learning_rate = 0.001
        config.finetune.batch_size = 8
    return config
