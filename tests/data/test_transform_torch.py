"""Transforms compared with those of timm and torchvision, byte for byte."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
timm_data = pytest.importorskip("timm.data", reason="needs the extra torch")

from PIL import Image  # noqa: E402

from rankckpt_jax.data import preprocess, transform  # noqa: E402

pytestmark = pytest.mark.torch

SIZES = [(300, 200), (97, 301), (224, 224), (64, 48), (500, 375), (30, 400)]


def photo(height, width):
    """Return an image with structure of several scales."""
    random = np.random.default_rng(height * width)
    coarse = Image.fromarray(random.integers(0, 256, (7, 9, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), int)
    noisy = smooth + random.integers(-30, 30, smooth.shape)
    return noisy.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("mode", transform.MODES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("share", [0.875, 0.9, 0.95, 0.965, 1.0, 1.15])
def test_from_timm_equals_create_transform(mode, interpolation, share):
    for size in (224, 160, 288):
        config = {
            "input_size": (3, size, size),
            "interpolation": interpolation,
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "crop_pct": share,
            "crop_mode": mode,
        }
        reference = timm_data.create_transform(**config, normalize=False)
        rule = transform.from_timm(config).rule(size)
        for height, width in SIZES:
            picture = photo(height, width)
            expected = reference(Image.fromarray(picture)).permute(1, 2, 0).numpy()
            found = preprocess.resize(picture, size, rule)
            np.testing.assert_array_equal(found, expected)


def test_from_sides_equals_the_presets_of_torchvision():
    torchvision = pytest.importorskip("torchvision", reason="needs the extra torch")
    models = torchvision.models
    seen = set()
    for name in models.list_models(models):
        for weights in models.get_model_weights(name):
            preset = weights.transforms()
            [resize], [crop] = preset.resize_size, preset.crop_size
            interpolation = preset.interpolation.value
            if (resize, crop, interpolation) in seen:
                continue
            seen.add((resize, crop, interpolation))
            # Their own crop and resize, without the normalization of floats.
            functional = torchvision.transforms.functional
            rule = transform.from_sides(resize, crop, interpolation).rule(crop)
            for height, width in SIZES:
                picture = photo(height, width)
                expected = functional.center_crop(
                    functional.resize(
                        Image.fromarray(picture), [resize], preset.interpolation
                    ),
                    [crop],
                )
                found = preprocess.resize(picture, crop, rule)
                np.testing.assert_array_equal(found, np.asarray(expected))
    assert len(seen) > 20
