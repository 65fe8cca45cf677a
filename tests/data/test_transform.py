import numpy as np
import pytest

from rankckpt_jax.data import preprocess, transform
from rankckpt_jax.errors import InputError


def image(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def apply(picture, size, *args, **options):
    rule = transform.Transform(*args, **options).rule(size)
    return preprocess.resize(picture, size, rule)


def test_rule_keeps_the_share_of_the_crop_at_every_size():
    own = transform.Transform(0.875, "bilinear")
    assert own.rule(224) == "own(256,bilinear,center)"
    assert own.rule(112) == "own(128,bilinear,center)"
    border = transform.Transform(1.0, mode="border", fill=(124, 116, 104))
    assert border.rule(64) == "own(64,bicubic,border 124 116 104)"
    assert transform.is_rule(border.rule(64)) and not transform.is_rule("vtab")


@pytest.mark.parametrize("crop", [224, 240, 256, 299, 300, 384])
def test_from_sides_gives_these_sides(crop):
    for resize in range(crop, crop + 100):
        rule = transform.from_sides(resize, crop, "bilinear").rule(crop)
        assert rule == f"own({resize},bilinear,center)"


def test_center_keeps_the_aspect_ratio():
    wide = np.zeros((64, 256, 3), np.uint8)
    wide[:, 96:160] = 100  # The central square.
    inside = apply(wide, 32, 1.0)[:, 3:-3]
    np.testing.assert_array_equal(inside, np.full((32, 26, 3), 100))


def test_squash_shows_the_whole_image():
    halves = np.zeros((64, 256, 3), np.uint8)
    halves[:, 128:] = 200
    squashed = apply(halves, 32, 1.0, mode="squash")
    assert not squashed[:, :13].any() and (squashed[:, -13:] == 200).all()


def test_border_pads_with_its_color():
    bordered = apply(image(64, 128), 32, 1.0, mode="border", fill=(9, 8, 7))
    for rows in (bordered[:8], bordered[-8:]):
        assert (rows == (9, 8, 7)).all()
    assert bordered[8:-8].std() > 10


def test_apply_returns_the_image_if_nothing_changes():
    picture = image(24, 24)
    np.testing.assert_array_equal(apply(picture, 24, 1.0), picture)


def test_apply_refuses_one_row_of_pixels():
    with pytest.raises(ValueError, match="300000 x 1 pixels"):
        apply(image(1, 300_000), 224, 0.9)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"interpolation": "bicubik"}, "bicubic"),
        ({"mode": "centre"}, "center"),
        ({"crop_share": 0.0}, "0.875"),
    ],
)
def test_transform_refuses_what_it_does_not_know(options, text):
    with pytest.raises(InputError, match=text):
        transform.Transform(**{"crop_share": 0.9, **options})


def test_key_names_the_rule_and_its_version(monkeypatch):
    rule = transform.Transform(0.9).rule(224)
    key = preprocess.key(rule)
    assert key["preprocess"] == rule and key["preprocess_versions"]["own"] == 1
    assert preprocess.key(transform.Transform(0.95).rule(224)) != key
