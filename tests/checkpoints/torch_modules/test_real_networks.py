import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
pytest.importorskip("torchax", reason="needs the extra torch")

from rankckpt_jax import checkpoints  # noqa: E402
from rankckpt_jax.checkpoints.torch_modules import points  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.shared]


@pytest.mark.parametrize("engine", ["jax", "torch"])
def test_efficientnet_lite_equals_its_reference(shared, engine):
    folder = shared / "real/torch/tf_efficientnet_lite0"
    reference = np.load(folder / "reference.npz")
    backbone = checkpoints.load(folder, torch_engine=engine)
    # The reference was normalized with the mean and standard deviation 0.5.
    images = np.moveaxis(reference["input"], 1, 3) * 0.5 + 0.5
    apply = backbone.apply if engine == "torch" else jax.jit(backbone.apply)
    output = apply(backbone.variables, images.astype(np.float32))
    for values, name in zip(output[:2], ("features", "logits"), strict=True):
        expected = reference[name]
        # float32 on another CPU; 1.4e-6 and less were measured.
        assert points.difference(np.asarray(values), expected) <= 1e-5
    # A macaw and an Egyptian cat.
    assert np.asarray(output.logits).argmax(axis=1).tolist() == [88, 285]
