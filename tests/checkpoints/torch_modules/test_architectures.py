import pytest

pytest.importorskip("timm", reason="needs the extra torch")
pytest.importorskip("torchax", reason="needs the extra torch")

from rankckpt_jax.checkpoints.torch_modules import points  # noqa: E402
from tests.checkpoints.torch_modules import architectures  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.mark.parametrize(("name", "size"), tuple(architectures.names()))
def test_architecture_equals_pytorch(name, size):
    features, logits, _ = architectures.compare(name, size)
    assert features <= points.TOLERANCE
    assert logits is None or logits <= points.TOLERANCE
