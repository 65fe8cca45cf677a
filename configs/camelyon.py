"""NeuCRaB on Patch Camelyon: 41 checkpoints in three groups.

    python -m rankckpt_jax.main --config=configs/camelyon.py
    python -m rankckpt_jax.main --config=configs/camelyon.py:group_i,1k

After the colon, separated by commas: group_i, group_ii, group_iii (all by default), 1k
(VTAB-1k's images), smoke (a few images and steps, to see whether everything works).

The images are VTAB's Patch Camelyon, 2 classes: 262,144 training, 32,768 validation and
32,768 test images. They come from TFDS, or from a folder: --config.task.path=DIR.
Checkpoints are downloaded. Without network the run lists the files to copy by hand, and
continues with those on this machine. --config.checkpoints=DIR names a directory that
holds rank_ckpt/ and vtab/NAME/.

Expected cost, counted and not measured:

- Ranking: 40 files x 262,144 images, about 7e16 FLOP: half an hour on a data center GPU
  (at 40 TFLOP/s, as below), more if decoding is slower. Too much for a laptop, where
  `:1k` is feasible.
- Fine-tuning, with --config.stages=extract,score,finetune,report: 4 rates x (5000 +
  10,000) steps x 512 images, about 2.4e19 FLOP for all files: 170 hours on a data
  center GPU, or a pod. `:1k` takes a five-hundredth.

Result: not run yet. VTAB published accuracies of fourteen checkpoints of Group I, which
are used until checkpoints are fine-tuned here: 86.67 % at best, 83.74 % with 1000
images (both Sup-Exemplar-100%); from scratch 81.19 and 75.62 %. The paper's own
accuracies could not be recovered.
"""

import ml_collections

from rankckpt_jax.configs import neucrab_task


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Return the configuration; `argument` is the text after the colon."""
    return neucrab_task.get_config("camelyon", argument)
