import numpy as np
import pytest

from rankckpt_jax.data import preprocess
from rankckpt_jax.errors import InputError


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def bilinear(array, size):
    """Resize bilinearly with half-pixel centers and no antialiasing."""
    result = np.asarray(array, np.float64)
    for axis in (0, 1):
        length = result.shape[axis]
        at = (np.arange(size) + 0.5) * length / size - 0.5
        low = np.floor(at).astype(int)
        weight = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        below = np.take(result, np.clip(low, 0, length - 1), axis)
        above = np.take(result, np.clip(low + 1, 0, length - 1), axis)
        result = below * (1 - weight) + above * weight
    return result


@pytest.mark.parametrize(("height", "width"), [(8, 8), (50, 31), (300, 17)])
def test_resize_vtab_is_bilinear(height, width):
    original = image(height, width)
    resized = preprocess.resize(original, 24, "vtab").numpy()
    assert resized.dtype == np.float32
    # TensorFlow resizes in float32 with values up to 255: 255 * 2**-23 * a few steps.
    np.testing.assert_allclose(resized, bilinear(original, 24), atol=2e-3)


def test_resize_slim_inception_crops_the_center():
    framed = np.zeros((64, 64, 3), np.uint8)
    framed[4:60, 4:60] = 200
    resized = preprocess.resize(framed, 32, "slim_inception").numpy()
    np.testing.assert_array_equal(resized, np.full((32, 32, 3), 200, np.float32))


def test_resize_slim_vgg_keeps_the_aspect_ratio():
    wide = np.zeros((128, 256, 3), np.uint8)
    wide[:, 64:192] = 100  # The central square.
    resized = preprocess.resize(wide, 112, "slim_vgg").numpy()
    assert resized.shape == (112, 112, 3)
    np.testing.assert_array_equal(resized, np.full((112, 112, 3), 100, np.float32))


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif"])
def test_decode_returns_three_channels_for_every_format(tmp_path, suffix):
    from PIL import Image

    pixels = np.full((9, 7), 128, np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"gray.{suffix}")
    data = (tmp_path / f"gray.{suffix}").read_bytes()
    decoded = preprocess.decode(data).numpy()
    assert decoded.shape == (9, 7, 3) and decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded.astype(int), 128, atol=2)


def test_to_input_range_maps_to_the_range_and_subtracts_the_mean():
    images = np.asarray([0.0, 255.0]).reshape(1, 1, 2, 1).repeat(3, -1)
    scaled = preprocess.to_input_range(
        images, *preprocess.scaling((-1.0, 1.0), (0.0, 0.0, 0.0))
    )
    np.testing.assert_allclose(scaled[0, 0], [[-1.0] * 3, [1.0] * 3], rtol=1e-6)
    scaled = preprocess.to_input_range(
        images, *preprocess.scaling((0.0, 255.0), (123.0, 116.0, 103.0))
    )
    np.testing.assert_allclose(scaled[0, 0, 1], [132.0, 139.0, 152.0])


def test_resize_refuses_an_unknown_rule():
    with pytest.raises(InputError, match="vtabb"):
        preprocess.resize(image(8, 8), 8, "vtabb")
