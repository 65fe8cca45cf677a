import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax.data import decode, preprocess
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
    resized = preprocess.resize(original, 24, "vtab")
    assert resized.dtype == preprocess.DTYPE == np.uint8
    # Half a level of rounding. TensorFlow resizes in float32 with values up to 255: 255
    # * 2**-23 * a few steps.
    np.testing.assert_allclose(resized, bilinear(original, 24), rtol=0, atol=0.5 + 2e-3)


@pytest.mark.parametrize("rule", preprocess.names())
def test_resize_keeps_black_and_white(rule):
    halves = np.zeros((41, 60, 3), np.uint8)
    halves[:, 30:] = 255
    resized = preprocess.resize(halves, 32, rule)
    # 256 would become 0.
    assert (resized[:, :14] == 0).all() and (resized[:, -14:] == 255).all()


def test_resize_slim_inception_crops_the_center():
    framed = np.zeros((64, 64, 3), np.uint8)
    framed[4:60, 4:60] = 200
    resized = preprocess.resize(framed, 32, "slim_inception")
    np.testing.assert_array_equal(resized, np.full((32, 32, 3), 200))


def test_resize_slim_vgg_keeps_the_aspect_ratio():
    wide = np.zeros((128, 256, 3), np.uint8)
    wide[:, 64:192] = 100  # The central square.
    resized = preprocess.resize(wide, 112, "slim_vgg")
    assert resized.shape == (112, 112, 3)
    np.testing.assert_array_equal(resized, np.full((112, 112, 3), 100))


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif"])
def test_decode_returns_three_channels_for_every_format(tmp_path, suffix):
    from PIL import Image

    pixels = np.full((9, 7), 128, np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"gray.{suffix}")
    data = (tmp_path / f"gray.{suffix}").read_bytes()
    decoded = decode.decode(data)
    assert decoded.shape == (9, 7, 3) and decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded.astype(int), 128, atol=2)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_to_input_range_maps_to_the_range_and_subtracts_the_mean(dtype):
    images = jnp.asarray([0, 255], dtype).reshape(1, 1, 2, 1).repeat(3, -1)
    scaled = preprocess.to_input_range(
        images, *preprocess.scaling((-1.0, 1.0), (0.0, 0.0, 0.0))
    )
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled[0, 0], [[-1.0] * 3, [1.0] * 3], rtol=1e-6)
    scaled = preprocess.to_input_range(
        images, *preprocess.scaling((0.0, 255.0), (123.0, 116.0, 103.0))
    )
    np.testing.assert_allclose(scaled[0, 0, 1], [132.0, 139.0, 152.0])


_VALUES = {
    ("vtab", 1): [78.25900268554688, 138.44400024414062, 211.81500244140625],
    ("slim_inception", 1): [75.0, 168.66700744628906, 98.44400024414062],
    ("slim_vgg", 1): [36.900001525878906, 218.5749969482422, 25.863000869750977],
    ("vtab", 2): [78, 138, 212],
    ("slim_inception", 2): [75, 169, 98],
    ("slim_vgg", 2): [37, 219, 26],
}
"""Three values of a resized image, by rule and version."""


@pytest.mark.parametrize("rule", preprocess.names())
def test_versions_are_raised_with_every_change(rule):
    resized = preprocess.resize(image(37, 23), 9, rule)
    # Add the new values under the next version; never change those of an old one.
    expected = _VALUES[rule, preprocess.VERSIONS[rule]]
    np.testing.assert_array_equal(resized[[0, 3, 8], [1, 4, 7], [0, 1, 2]], expected)


def test_key_has_the_version_of_each_transformation(monkeypatch):
    key = preprocess.key("vtab")
    for name in ("decode", "vtab", "to_input_range"):
        versions = {**preprocess.VERSIONS, name: preprocess.VERSIONS[name] + 1}
        monkeypatch.setattr(preprocess, "VERSIONS", versions)
        assert preprocess.key("vtab") != key
        monkeypatch.undo()
    monkeypatch.setattr(preprocess, "VERSIONS", {**preprocess.VERSIONS, "slim_vgg": 9})
    assert preprocess.key("vtab") == key


def test_resize_refuses_an_unknown_rule():
    with pytest.raises(InputError, match="vtabb"):
        preprocess.resize(image(8, 8), 8, "vtabb")
