import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from rankckpt_jax import errors, finetune
from rankckpt_jax.finetune import augment
from tests.finetune import RECIPE, settings, without_times


@pytest.fixture(scope="module")
def images():
    """Each pixel tells its place: red is the row, green the column, both in [0, 1]."""
    place = (np.arange(24) + 0.5) / 24
    rows, columns = np.meshgrid(place, place, indexing="ij")
    image = np.stack([rows, columns, np.ones_like(rows)], axis=-1)
    return np.repeat(image[None], 40, axis=0).astype(np.float32)


def draw(images, rows=None, seed=0, smallest=0.2, crop=True, flip=True):
    rows = np.arange(len(images)) if rows is None else rows
    key = jax.random.key(seed)
    return np.asarray(augment.augment(images, key, rows, smallest, crop, flip))


def test_crops_are_boxes_of_the_image_of_the_area_and_shape_asked_for(images):
    cropped = draw(images, flip=False)
    assert cropped.shape == images.shape
    np.testing.assert_allclose(cropped[..., 2], 1, atol=1e-5)  # Nothing from outside.
    # Place is a linear function of place, away from the edges, where bilinear
    # resampling stays within the image.
    step = np.diff(cropped[:, 4:-4, 4:-4], axis=1)[..., 0]
    across = np.diff(cropped[:, 4:-4, 4:-4], axis=2)[..., 1]
    height, width = step.mean((1, 2)) * 24, across.mean((1, 2)) * 24
    np.testing.assert_allclose(step * 24, height[:, None, None] + 0 * step, atol=1e-3)
    area, aspect = height * width, width / height
    assert area.min() > 0.19 and area.max() < 1.001 and np.ptp(area) > 0.4
    assert aspect.min() > 0.74 and aspect.max() < 1.34 and np.ptp(aspect) > 0.3


def test_half_of_the_images_are_mirrored(images):
    flipped = draw(images, crop=False)
    mirrored = [np.array_equal(image, images[0][:, ::-1]) for image in flipped]
    same = [np.array_equal(image, images[0]) for image in flipped]
    assert sum(mirrored) + sum(same) == 40 and 10 < sum(mirrored) < 30


def test_a_draw_is_decided_by_seed_step_and_row_alone(images):
    whole = draw(images)
    halves = [draw(images[rows], rows) for rows in (np.arange(20), np.arange(20, 40))]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    np.testing.assert_array_equal(whole, draw(images))
    assert not np.array_equal(whole, draw(images, seed=1))


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_same_augmentation(backbone, task, tmp_path):
    recipe = dataclasses.replace(
        RECIPE, random_crop=0.3, random_flip=True, accumulate=2, dtype="bfloat16"
    )
    runs = []
    for name, stop in (("whole", 0), ("stopped", 7)):
        place = epath.Path(tmp_path) / name
        if stop:
            with pytest.raises(errors.Interrupted):
                finetune.get(
                    place,
                    backbone,
                    task,
                    recipe,
                    should_stop=lambda n: n == 7,
                    **settings(),
                )
        outcome, _ = finetune.get(place, backbone, task, recipe, **settings())
        # Its losses are told at the stop, too, and so averaged over other steps.
        runs.append(without_times(outcome.runs[0])[0])
    assert runs[0] == runs[1]
