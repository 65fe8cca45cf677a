import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath

from rankckpt_jax import checkpoints
from rankckpt_jax.data import pipeline, preprocess, tasks
from rankckpt_jax.errors import InputError
from rankckpt_jax.features import extract as features


@pytest.fixture
def split():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (21, 40, 40, 3), dtype=np.uint8)
    return tasks.array_split("train", images, np.arange(21) % 3)


def load(pool, name):
    return checkpoints.load(str(pool / name), name=name, image_size=32)


def extract(backbone, split, batch_size=8):
    return features.extract(
        backbone,
        split,
        preprocess="vtab",
        batch_size=batch_size,
        cache=pipeline.ImageCache(1.0),
    )


def test_features_are_those_of_the_network_on_each_image_in_order(pool, split):
    backbone = load(pool, "first")
    found = extract(backbone, split)
    resized = np.stack(
        [
            preprocess.resize(example["image"], 32, "vtab").numpy()
            for example in split.examples(None, 0, 1, 0).as_numpy_iterator()
        ]
    )
    direct = backbone.apply(backbone.variables, resized / 127.5 - 1)
    # Float32 through 27 layers in another order of operations.
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * np.abs(direct.features).max()}
    np.testing.assert_allclose(found["features"], direct.features, **tolerance)
    np.testing.assert_allclose(found["logits"], direct.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found["labels"], np.arange(21) % 3)


def test_the_batch_size_does_not_matter(pool, split):
    backbone = load(pool, "second")
    np.testing.assert_allclose(
        extract(backbone, split, 4)["features"],
        extract(backbone, split, 21)["features"],
        rtol=1e-5,
        atol=1e-6,
    )


def test_checkpoints_of_an_architecture_share_one_trace(pool, split):
    features._forward.cache_clear()
    features.NUM_TRACES.clear()
    for name in ("first", "second"):  # One has a classifier, the other has none.
        assert ("logits" in extract(load(pool, name), split)) == (name == "first")
    assert list(features.NUM_TRACES.values()) == [1]


def test_a_second_run_computes_nothing(pool, split, tmp_path, monkeypatch):
    backbone = load(pool, "first")

    def get():
        return features.get(
            epath.Path(tmp_path),
            backbone,
            split,
            preprocess="vtab",
            batch_size=8,
            cache=pipeline.ImageCache(1.0),
        )

    first, computed = get()
    assert computed
    monkeypatch.setattr(features, "extract", lambda *a, **k: pytest.fail("extracted"))
    second, computed = get()
    assert not computed
    np.testing.assert_array_equal(first.features, second.features)
    assert first.checksum == second.checksum != ""


@pytest.mark.parametrize(
    "change", [{"image_size": 48}, {"fingerprint": "x"}, {"input_range": (0.0, 1.0)}]
)
def test_what_decides_the_features_is_in_the_request(pool, split, change):
    backbone = load(pool, "first")
    other = dataclasses.replace(backbone, **change)
    assert features.request(backbone, split, "vtab", "float32") != features.request(
        other, split, "vtab", "float32"
    )


def test_bfloat16_is_near_float32_and_kept_apart_from_it(pool, split):
    backbone = load(pool, "first")
    exact, rounded = (
        features.extract(
            backbone,
            split,
            preprocess="vtab",
            dtype=dtype,
            batch_size=8,
            cache=pipeline.ImageCache(1.0),
        )["features"]
        for dtype in ("float32", "bfloat16")
    )
    assert rounded.dtype == np.float32
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(rounded, axis=1)
    assert ((exact * rounded).sum(axis=1) > 0.999 * norms).all()
    assert not np.array_equal(exact, rounded)
    assert features.request(backbone, split, "vtab", "float32") != features.request(
        backbone, split, "vtab", "bfloat16"
    )


def test_the_dtype_follows_the_platform(monkeypatch):
    assert features.compute_dtype("auto") == "float32"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert features.compute_dtype("auto") == "bfloat16"
    assert features.compute_dtype("float32") == "float32"
    with pytest.raises(InputError, match=r"config\.dtype"):
        features.compute_dtype("float16")


def test_the_manifest_tells_mean_and_spread(pool, split, tmp_path):
    found, _ = features.get(
        epath.Path(tmp_path),
        load(pool, "second"),
        split,
        preprocess="vtab",
        batch_size=8,
        cache=pipeline.ImageCache(1.0),
    )
    told = json.loads((tmp_path / "train" / "manifest.json").read_text())["result"]
    exact = found.features.astype(np.float64)
    assert told["count"] == 21 and told["images_left_out"] == {}
    assert told["mean"] == pytest.approx(exact.mean())
    assert told["standard_deviation"] == pytest.approx(exact.std())
    assert told["largest"] == pytest.approx(np.abs(exact).max())


def test_features_that_are_equal_for_all_images_are_refused(pool, split, tmp_path):
    """As those of a network whose last layer gives nothing but zeros."""
    backbone = load(pool, "second")
    dead = jax.tree.map(np.zeros_like, backbone.variables)
    with pytest.raises(InputError, match="the same features for every image"):
        features.get(
            epath.Path(tmp_path),
            dataclasses.replace(backbone, variables=dead),
            split,
            preprocess="vtab",
            batch_size=8,
            cache=pipeline.ImageCache(1.0),
        )
    assert not list(tmp_path.rglob("*.npy"))


def test_features_that_are_not_finite_are_refused(pool, split, tmp_path):
    backbone = load(pool, "second")
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), backbone.variables)
    with pytest.raises(InputError, match="not finite"):
        features.get(
            epath.Path(tmp_path),
            dataclasses.replace(backbone, variables=broken),
            split,
            preprocess="vtab",
            batch_size=8,
            cache=pipeline.ImageCache(1.0),
        )
    assert not list(tmp_path.rglob("*.npy"))
