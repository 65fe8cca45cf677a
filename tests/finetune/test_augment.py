import jax
import numpy as np
import pytest

from rankckpt_jax.finetune import augment


@pytest.fixture(scope="module")
def images():
    """Images whose red is the row and whose green is the column, both in [0, 1]."""
    place = (np.arange(24) + 0.5) / 24
    rows, columns = np.meshgrid(place, place, indexing="ij")
    image = np.stack([rows, columns, np.ones_like(rows)], axis=-1)
    return np.repeat(image[None], 40, axis=0).astype(np.float32)


def draw(images, rows=None, seed=0, crop=True, flip=True):
    rows = np.arange(len(images)) if rows is None else rows
    key = jax.random.key(seed)
    return np.asarray(augment.augment(images, key, rows, 0.2, crop, flip))


def test_augment_crops_boxes_of_requested_area_and_aspect(images):
    cropped = draw(images, flip=False)
    assert cropped.shape == images.shape
    np.testing.assert_allclose(cropped[..., 2], 1, atol=1e-5)  # Nothing from outside.
    # Color is a linear function of position, except at the edges.
    step = np.diff(cropped[:, 4:-4, 4:-4], axis=1)[..., 0]
    across = np.diff(cropped[:, 4:-4, 4:-4], axis=2)[..., 1]
    height, width = step.mean((1, 2)) * 24, across.mean((1, 2)) * 24
    np.testing.assert_allclose(step * 24, height[:, None, None] + 0 * step, atol=1e-3)
    area, aspect = height * width, width / height
    assert area.min() > 0.19 and area.max() < 1.001 and np.ptp(area) > 0.4
    assert aspect.min() > 0.74 and aspect.max() < 1.34 and np.ptp(aspect) > 0.3


def test_augment_mirrors_half_of_the_images(images):
    flipped = draw(images, crop=False)
    mirrored = [np.array_equal(image, images[0][:, ::-1]) for image in flipped]
    same = [np.array_equal(image, images[0]) for image in flipped]
    assert sum(mirrored) + sum(same) == 40 and 10 < sum(mirrored) < 30


def test_augment_crops_bytes_like_floats(images):
    pixels = np.rint(255 * images).astype(np.uint8)
    cropped = draw(pixels)
    assert cropped.dtype == np.float32
    np.testing.assert_array_equal(cropped, draw(pixels.astype(np.float32)))


def test_augment_depends_on_key_and_row_only(images):
    expected = draw(images)
    halves = [draw(images[rows], rows) for rows in (np.arange(20), np.arange(20, 40))]
    np.testing.assert_array_equal(np.concatenate(halves), expected)
    assert not np.array_equal(draw(images, seed=1), expected)
