"""Bilinear interpolation compared with TensorFlow's kernel."""

import concurrent.futures

import numpy as np
import pytest

from rankckpt_jax.data import bilinear, preprocess
from rankckpt_jax.data.lazy_tensorflow import tensorflow

SIDES = [(8, 8), (37, 23), (96, 96), (300, 17), (97, 224), (448, 640), (1000, 31)]


def image(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def tensorflow_resize(picture, height, width, half_pixel_centers):
    tf = tensorflow()
    resized = tf.raw_ops.ResizeBilinear(
        images=picture[None],
        size=[height, width],
        align_corners=False,
        half_pixel_centers=half_pixel_centers,
    )
    return tf.cast(tf.round(resized[0]), tf.uint8).numpy()


@pytest.mark.parametrize("half_pixel_centers", [True, False])
def test_resize_equals_tensorflow_to_the_byte(half_pixel_centers):
    options = {"half_pixel_centers": half_pixel_centers}
    for sides in SIDES:
        picture = image(*sides)
        for height, width in ((224, 224), (97, 97), (16, 16), (5, 130)):
            found = bilinear.resize(picture, height, width, **options)
            expected = tensorflow_resize(picture, height, width, **options)
            np.testing.assert_array_equal(found, expected)


def slim_rules(tf, picture, size):
    """Return the two evaluations of TF-Slim, computed by TensorFlow."""
    tensor = tf.cast(picture, tf.float32)
    crop = tf.image.central_crop(tensor, 0.875)
    sides = tf.cast(tf.shape(tensor)[:2], tf.float32)
    short = round(size * 256 / 224)
    target = tf.cast(tf.round(sides * (short / tf.reduce_min(sides))), tf.int32)
    for rule, source, shape in (
        ("slim_inception", crop, [size, size]),
        ("slim_vgg", tensor, target),
    ):
        resized = tf.raw_ops.ResizeBilinear(images=source[None], size=shape)[0]
        square = tf.image.resize_with_crop_or_pad(resized, size, size)
        yield rule, tf.cast(tf.round(square), tf.uint8).numpy()


def test_slim_rules_equal_tensorflow_to_the_byte():
    for height, width in SIDES:
        picture = image(height, width)
        for size in (224, 97):
            for rule, expected in slim_rules(tensorflow(), picture, size):
                found = preprocess.resize(picture, size, rule)
                np.testing.assert_array_equal(found, expected)


def test_resize_is_equal_in_many_threads():
    pictures = [image(*sides) for sides in SIDES] * 20

    def resize(picture):
        return bilinear.resize(picture, 64, 48, half_pixel_centers=True)

    expected = [resize(picture) for picture in pictures]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for found, other in zip(threads.map(resize, pictures), expected, strict=True):
            np.testing.assert_array_equal(found, other)


def test_resize_takes_views():
    picture = image(60, 50)
    turned = picture.transpose(1, 0, 2)[::-1]
    options = {"half_pixel_centers": True}
    np.testing.assert_array_equal(
        bilinear.resize(turned, 24, 24, **options),
        bilinear.resize(np.ascontiguousarray(turned), 24, 24, **options),
    )
