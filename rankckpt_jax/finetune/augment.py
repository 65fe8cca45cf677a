"""Random resized crops and mirroring on the device, from (seed, step, row) alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Width over height of a crop (Szegedy et al., "Going deeper with convolutions", 2015).
_ASPECT = (3 / 4, 4 / 3)


def augment(
    images: jax.Array,
    key: jax.Array,
    rows: jax.Array,
    smallest: jax.Array,
    crop: bool,
    flip: bool,
) -> jax.Array:
    """Crops and mirrors each image by a draw of its own.

    Args:
      images: float32 [B, S, S, 3].
      key: Of the step.
      rows: int32 [B], each image's place in the global batch: its draw is the same
        whichever device it lies on.
      smallest: Share of the area, in (0, 1], that a crop keeps at least.
      crop: Whether to crop. The crop is drawn back up to [S, S], bilinearly.
      flip: Whether to mirror left to right, half of the images.

    Returns:
      float32 [B, S, S, 3].
    """

    def one(image: jax.Array, row: jax.Array) -> jax.Array:
        mirrored, *box = jax.random.split(jax.random.fold_in(key, row), 5)
        if crop:
            image = _crop(image, box, smallest)
        if flip:
            image = jnp.where(jax.random.bernoulli(mirrored), image[:, ::-1], image)
        return image

    return jax.vmap(one)(images, rows)


def _crop(image: jax.Array, keys: list[jax.Array], smallest: jax.Array) -> jax.Array:
    size = image.shape[0]
    area = jax.random.uniform(keys[0], minval=smallest, maxval=1.0)
    low, high = jnp.log(jnp.asarray(_ASPECT))
    aspect = jnp.exp(jax.random.uniform(keys[1], minval=low, maxval=high))
    # At most the whole side: a box that would stick out is as tall or wide as it can.
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
        # As the resizing that made the image: VTAB's has no antialiasing.
        antialias=False,
    )
