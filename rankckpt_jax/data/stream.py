"""Images of a split, decoded and resized by the threads of tf.data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rankckpt_jax.data import corrupt_images, decode, image_headers
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.data.splits import Split
from rankckpt_jax.errors import UnreadableImage


def resized(
    split: Split,
    size: int,
    preprocess: str,
    *,
    seed: int | None = None,
    process: int = 0,
    count: int = 1,
    skip: int = 0,
) -> Any:
    """Return a data set of resized images.

    Args:
      split: The split to read.
      size: Side of the square images in pixels, S.
      preprocess: See `preprocess.resize`.
      seed: Seed of the order; None for the split's own order.
      process: First example of the order.
      count: Every `count`-th example from `process` on is returned.
      skip: Number of these examples to leave out.

    Returns:
      A `tf.data.Dataset` of {"image": uint8 [S, S, 3], "label": int32, "index":
      int64}.
    """
    tf = tensorflow()

    def resize(example: Any) -> Any:
        image = tf.numpy_function(
            lambda image: preprocess_lib.resize(image, size, preprocess),
            [example["image"]],
            tf.uint8,
            stateful=False,
        )
        image.set_shape([size, size, 3])
        return {**example, "image": image}

    return split.examples(seed, process, count, skip).map(
        resize, num_parallel_calls=tf.data.AUTOTUNE
    )


def to_numpy(split: Split, dataset: Any) -> Iterator[Any]:
    """Yield the elements of a data set as NumPy arrays.

    Args:
      split: The split that the data set reads, for error messages.
      dataset: A `tf.data.Dataset`.

    Raises:
      UnreadableImage: An image cannot be decoded.
    """
    tf = tensorflow()
    try:
        yield from dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    except tf.errors.InvalidArgumentError as error:
        raise UnreadableImage(
            "An image cannot be decoded",
            where=f"split {split.name!r}",
            expected=f"{image_headers.READABLE} files of at most "
            f"{decode.MAX_MEGAPIXELS} megapixels",
            found=corrupt_images.reason(error),
        ) from error
