"""Models of the Hugging Face hub with published accuracies, on NeuCRaB's data sets.

    python -m rankckpt_jax.main --config=configs/hf.py:caltech101

After the colon: caltech101 (the default), flowers102, camelyon or sun397. The images
come from TFDS, or from a folder: --config.task.path=DIR. As in the published runs,
measures use 800 training images, and each network its own image size.

The 43 models are those whose weights timm can load, of 290 with comparable runs.
docs/pools.md says how they were chosen. Half of the published runs failed, so read
docs/pools.md before you trust an agreement.

Expected cost, counted and not measured: 43 networks x 800 images, about 2e15 FLOP, but
30 GB of downloads.

Result: not run yet, because the weights were not available.
"""

import ml_collections

from rankckpt_jax.configs import standard


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Return the configuration; `argument` is the text after the colon.

    Raises:
      InputError: The data set is unknown.
    """
    return standard.get_config(f"hf,{argument}" if argument else "hf")
