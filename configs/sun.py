"""NeuCRaB on Sun397: 41 checkpoints in three groups.

    python -m rankckpt_jax.main --config=configs/sun.py
    python -m rankckpt_jax.main --config=configs/sun.py:group_i,1k

After the colon, separated by commas: group_i, group_ii, group_iii (all by default), 1k
(VTAB-1k's images), smoke (a few images and steps, to see whether everything works). The
800 training images of `1k` cover only 309 of the 397 classes.

The images are VTAB's Sun397, 397 classes: 76,128 training, 10,875 validation and 21,750
test images. They come from TFDS, or from a folder: --config.task.path=DIR. Checkpoints
are downloaded. Without network the run lists the files to copy by hand, and continues
with those on this machine. --config.checkpoints=DIR names a directory that holds
rank_ckpt/ and vtab/NAME/.

Expected cost, counted and not measured:

- Ranking: 40 files x 76,128 images, about 2e16 FLOP: ten minutes on a data center GPU
  (at 40 TFLOP/s, as below), more if decoding is slower. NLEEP fits 1985 components per
  checkpoint.
- Fine-tuning, with --config.stages=extract,score,finetune,report: 4 rates x (5000 +
  10,000) steps x 512 images, about 2.4e19 FLOP for all files: 170 hours on a data
  center GPU, or a pod. `:1k` takes a five-hundredth.

Result: not run yet. VTAB published accuracies of fourteen checkpoints of Group I, which
are used until checkpoints are fine-tuned here: 70.75 % at best (Sup-100%), 34.55 % with
1000 images (Sup-Exemplar-100%); from scratch 52.71 and 5.02 %. The paper's own
accuracies could not be recovered.
"""

import ml_collections

from rankckpt_jax.configs import neucrab_task


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Return the configuration; `argument` is the text after the colon."""
    return neucrab_task.get_config("sun", argument)
