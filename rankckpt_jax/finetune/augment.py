"""Random resized crops and mirroring on the device.

Each image's draw depends on (seed, step, row) only, not on the device that holds it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Range of a crop's width / height (Szegedy et al., "Going deeper with convolutions",
# 2015).
_ASPECT = (3 / 4, 4 / 3)


def augment(
    images: jax.Array,
    key: jax.Array,
    rows: jax.Array,
    min_area: jax.Array,
    crop: bool,
    flip: bool,
) -> jax.Array:
    """Crop and mirror each image at random.

    Args:
      images: uint8 or float32 [B, S, S, 3].
      key: Random key of the step.
      rows: int32 [B], index of each image in the global batch.
      min_area: Minimum share of the area that a crop keeps, in (0, 1].
      crop: Whether to crop. Crops are resized to [S, S], bilinearly.
      flip: Whether to mirror left to right with probability 0.5.

    Returns:
      float32 [B, S, S, 3].
    """

    def augment_one(image: jax.Array, row: jax.Array) -> jax.Array:
        flip_key, *crop_keys = jax.random.split(jax.random.fold_in(key, row), 5)
        image = image.astype(jnp.float32)
        if crop:
            image = _crop(image, crop_keys, min_area)
        if flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        return image

    return jax.vmap(augment_one)(images, rows)


def _crop(image: jax.Array, keys: list[jax.Array], min_area: jax.Array) -> jax.Array:
    size = image.shape[0]
    area = jax.random.uniform(keys[0], minval=min_area, maxval=1.0)
    low, high = jnp.log(jnp.asarray(_ASPECT))
    aspect = jnp.exp(jax.random.uniform(keys[1], minval=low, maxval=high))
    # A side is limited to the image's, so that the box stays inside.
    height = jnp.minimum(jnp.sqrt(area / aspect), 1.0) * size
    width = jnp.minimum(jnp.sqrt(area * aspect), 1.0) * size
    top = jax.random.uniform(keys[2]) * (size - height)
    left = jax.random.uniform(keys[3]) * (size - width)
    scale = size / jnp.stack([height, width])
    return jax.image.scale_and_translate(
        image,
        image.shape,
        (0, 1),
        scale,
        -jnp.stack([top, left]) * scale,
        method="linear",
        # Like VTAB's resizing of the original image.
        antialias=False,
    )
