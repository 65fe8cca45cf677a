import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import image_cache, pipeline, preprocess, tasks
from rankckpt_jax.devices import compilation, target
from rankckpt_jax.errors import InputError
from rankckpt_jax.features import extract
from rankckpt_jax.models import layers

SETTINGS = {"preprocess": "vtab", "batch_size": 8}


@dataclasses.dataclass(frozen=True)
class Linear:
    """A network that compiles at once: the mean of each row of the image, projected."""

    dtype: str = "float32"

    def __call__(self, variables, images):
        x = images.mean(axis=(2, 3)).astype(self.dtype)
        features = (x @ variables["params"]["kernel"]).astype(jnp.float32)
        return layers.Output(features, None)


@pytest.fixture(scope="module")
def split():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (21, 40, 40, 3), dtype=np.uint8)
    return tasks.array_split("train", images, np.arange(21) % 3)


@pytest.fixture(scope="module")
def first(pool):
    return checkpoints.load(str(pool / "first"), name="first", image_size=32)


@pytest.fixture(scope="module")
def linear(first):
    """The same backbone with the weights of `Linear`."""
    kernel = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)
    variables = {"params": {"kernel": kernel}}
    return dataclasses.replace(first, apply=Linear(), variables=variables)


def run(backbone, split, **changes):
    settings = {**SETTINGS, "cache": image_cache.open_cache(), **changes}
    return extract.extract(backbone, split, **settings)


def load(directory, backbone, split, **changes):
    settings = {**SETTINGS, "cache": image_cache.open_cache(), **changes}
    directory, compute = epath.Path(directory), settings.pop("compute", True)
    stored = extract.load(directory, backbone, split, preprocess=settings["preprocess"])
    if stored is not None or not compute:
        return stored, False
    return extract.extract_and_store(directory, backbone, split, **settings), True


def test_extract_matches_network_in_split_order(pool, first, split):
    """Both checkpoints share one trace, although the second has no classifier."""
    extract._forward.cache_clear()
    extract.NUM_TRACES.clear()
    arrays = run(first, split)
    second = checkpoints.load(str(pool / "second"), name="second", image_size=32)
    assert "logits" not in run(second, split)
    assert list(extract.NUM_TRACES.values()) == [1]

    examples = split.examples(None, 0, 1, 0)
    images = [preprocess.resize(e.read(), 32, "vtab") for e in examples]
    expected = jax.jit(first.apply)(first.variables, np.stack(images) / 127.5 - 1)
    # Float32 through 27 layers, in another order of operations.
    atol = 1e-5 * np.abs(expected.features).max()
    np.testing.assert_allclose(
        arrays["features"], expected.features, rtol=1e-4, atol=atol
    )
    np.testing.assert_allclose(arrays["logits"], expected.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(arrays["labels"], np.arange(21) % 3)


@pytest.mark.parametrize("batch_size", [4, 21, 32])
def test_extract_is_independent_of_batch_size(linear, split, batch_size):
    expected = run(linear, split)["features"]
    features = run(linear, split, batch_size=batch_size)["features"]
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


def test_compile_forward_makes_the_program_that_extract_calls(linear, split, tmp_path):
    def mapped():
        """Return the kept programs of `map_devices`."""
        return {path.name for path in tmp_path.glob("*/jit__fun-*-cache")}

    # As in a new process.
    jax.clear_caches()
    with compilation.persistent_cache(str(tmp_path)):
        options = {"dtype": "float32", "batch_size": SETTINGS["batch_size"]}
        extract.compile_forward(linear, split=split, **options)
        ahead = mapped()
        jax.clear_caches()
        run(linear, split)
        assert mapped() == ahead and len(ahead) == 1


def test_extract_computes_in_dtype(linear, split):
    exact = run(linear, split)["features"]
    rounded = run(linear, split, dtype="bfloat16")["features"]
    assert rounded.dtype == np.float32
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, atol=0.02 * np.abs(exact).max())


def test_extract_and_store_stores_features(linear, split, tmp_path, monkeypatch):
    assert load(tmp_path, linear, split, compute=False) == (None, False)
    first, computed = load(tmp_path, linear, split)
    assert computed and first.seconds > first.compile_seconds >= 0
    manifest = json.loads((tmp_path / "train" / "manifest.json").read_text())
    values = first.features.astype(np.float64)
    assert manifest["result"] == {
        "count": 21,
        "mean": pytest.approx(values.mean()),
        "standard_deviation": pytest.approx(values.std()),
        "largest": pytest.approx(np.abs(values).max()),
        "seconds": first.seconds,
        "compile_seconds": first.compile_seconds,
        "images_left_out": {},
    }
    monkeypatch.setattr(extract, "extract", lambda *a, **k: pytest.fail("extracted"))
    second, computed = load(tmp_path, linear, split)
    assert not computed and first.checksum == second.checksum != ""
    np.testing.assert_array_equal(first.features, second.features)


@pytest.mark.parametrize(
    "change", [{"image_size": 48}, {"fingerprint": "x"}, {"input_range": (0.0, 1.0)}]
)
def test_make_key_differs_between_backbones(first, split, change):
    key = extract.make_key(first, split, "vtab", "float32")
    other = dataclasses.replace(first, **change)
    assert extract.make_key(other, split, "vtab", "float32") != key
    assert extract.make_key(first, split, "vtab", "bfloat16") != key


@pytest.mark.parametrize("name", ["decode", "vtab", "to_input_range", "forward"])
def test_load_misses_for_another_version(
    linear, split, tmp_path, monkeypatch, caplog, name
):
    load(tmp_path, linear, split)
    if name == "forward":
        version = backbone_lib.FORWARD_VERSION
        monkeypatch.setattr(backbone_lib, "FORWARD_VERSION", version + 1)
        change = f"forward_version {version} -> {version + 1}"
    else:
        version = preprocess.VERSIONS[name] + 1
        versions = {**preprocess.VERSIONS, name: version}
        monkeypatch.setattr(preprocess, "VERSIONS", versions)
        change = f"'{name}': {version}"
    with caplog.at_level("INFO"):
        assert load(tmp_path, linear, split)[1]
    assert "Cached result does not match" in caplog.text and change in caplog.text


def test_compute_dtype_depends_on_platform(monkeypatch):
    assert extract.compute_dtype("auto") == "float32"
    monkeypatch.setattr(target, "platform", lambda: "tpu")
    assert extract.compute_dtype("auto") == "bfloat16"
    assert extract.compute_dtype("float32") == "float32"
    with pytest.raises(InputError, match=r"config\.dtype"):
        extract.compute_dtype("float16")


@pytest.mark.parametrize(
    ("weight", "message"),
    [(0.0, "the same features for every image"), (np.nan, "not finite")],
)
def test_extract_and_store_rejects_useless_features(
    linear, split, tmp_path, weight, message
):
    weights = jax.tree.map(lambda x: np.full_like(x, weight), linear.variables)
    broken = dataclasses.replace(linear, variables=weights)
    with pytest.raises(InputError, match=message):
        load(tmp_path, broken, split)
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize(
    ("batch_size", "num_examples", "rows"),
    [(64, 5, 64), (8, 5, 8), (8192, 5, 64), (8192, 200, 200), (128, 200, 128)],
)
def test_extract_pads_batches_to_the_number_of_images(
    linear, split, batch_size, num_examples, rows, monkeypatch
):
    used = []

    def batches(split, *, size, batch_size, **_):
        used.append(batch_size)
        images = np.zeros((batch_size, size, size, 3), np.float32)
        index = np.arange(batch_size)
        yield pipeline.Batch(images, index.astype(np.int32), index, index >= 0)

    monkeypatch.setattr(pipeline, "batches", batches)
    run(
        linear,
        split.subset("part", np.arange(num_examples) % 21),
        batch_size=batch_size,
    )
    assert used == [rows]
