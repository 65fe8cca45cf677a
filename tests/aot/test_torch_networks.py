"""PyTorch networks are extracted on devices that are absent."""

import pytest

pytest.importorskip("timm", reason="needs the extra torch")
pytest.importorskip("torchax", reason="needs the extra torch")

from rankckpt_jax.devices import mapping, target  # noqa: E402
from rankckpt_jax.features import extract  # noqa: E402
from tests.aot import compiler, programs  # noqa: E402
from tests.aot.test_programs import tpu_products  # noqa: E402
from tests.checkpoints.torch_modules import networks  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", ["resnet", "convnext", "vit"])
def test_extraction_compiles_for_tpu(name, compile_for):
    # Loading compares the network with PyTorch on this machine.
    backbone = networks.to_backbone(*networks.make(name))
    compile_for("v5e:2x4")

    def build():
        function, shapes = extract.forward_program(
            backbone, dtype="bfloat16", batch_size=2 * mapping.local_device_count()
        )
        return programs.Call(function, shapes)

    program = programs.Program(
        "features.extract._forward.forward", name, build, "network"
    )
    compiled = compiler.compile_program(program)
    assert compiled.device_kinds == {target.local_devices()[0].device_kind}
    exact, rounded = tpu_products(compiled.text)
    assert rounded and not exact
    assert "all-gather" not in compiled.text and "callback" not in compiled.text
    assert "f64[" not in compiled.text
