"""NeuCRaB on Caltech101: 41 checkpoints of three groups.

    python -m rankckpt_jax.main --config=configs/caltech.py
    python -m rankckpt_jax.main --config=configs/caltech.py:group_i,1k

After the colon may stand, separated by commas: group_i, group_ii, group_iii (all three
by default), 1k (VTAB-1k's images), smoke (does everything work here?).

The images are VTAB's Caltech101, 102 classes with the background: 2754 training, 306
validation and 6084 test images. They come from TFDS, or from a folder:
--config.task.path=DIR. Checkpoints are downloaded; without network the run lists which
files to put where and goes on with those that are there. A directory that holds
rank_ckpt/ and vtab/NAME/ is named by --config.checkpoints=DIR.

Expected cost, counted and not measured:

- Ranking: 40 files x 2754 images, about 7e14 FLOP: a minute of one data center GPU (at
  40 TFLOP/s, as below) once images are decoded, hours of a laptop, for which
  `:1k,group_i` is smaller.
- Fine-tuning, added by --config.stages=extract,score,finetune,report: 4 rates x (5000 +
  10,000) steps x 512 images, about 2.4e19 FLOP for all files: 170 hours of one data
  center GPU, or a pod. `:1k` takes a five-hundredth.

Published by VTAB of fourteen checkpoints of Group I, and used until checkpoints are
fine-tuned here: 94.44 % at best (Sup-Exemplar-100%), 90.95 % with 1000 images
(Sup-100%); from scratch 55.89 and 38.24 %. Cond-BigGAN diverged at full size and counts
with its 0.15 %. The paper's own figures could not be recovered.
"""

import ml_collections

from rankckpt_jax.configs import neucrab_task


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration; `argument` is what stands after the colon."""
    return neucrab_task.get_config("caltech", argument)
