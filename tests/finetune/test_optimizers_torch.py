"""AdamW and layer-wise rates compared with PyTorch and timm."""

import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
pytest.importorskip("timm", reason="needs the extra torch")
import timm  # noqa: E402
from timm.optim import param_groups_layer_decay  # noqa: E402

from rankckpt_jax.devices import mapping  # noqa: E402
from rankckpt_jax.finetune import optimizers, probe, step  # noqa: E402
from tests.finetune import RECIPE  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224"]
)
def test_rates_and_weight_decay_match_timm(name):
    with torch.device("meta"):
        module = timm.create_model(name, num_classes=5)
    groups = param_groups_layer_decay(
        module, 0.05, module.no_weight_decay(), layer_decay=0.75
    )
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    expected = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    params = {
        "backbone": {
            name: jax.ShapeDtypeStruct(parameter.shape, np.float32)
            for name, parameter in module.named_parameters()
        }
    }
    factors = optimizers.layer_factors(params, 0.75)["backbone"]
    decayed = optimizers._is_kernel(params)["backbone"]
    assert factors == pytest.approx({n: scale for n, (scale, _) in expected.items()})
    assert decayed == {n: decay > 0 for n, (_, decay) in expected.items()}


def test_five_train_steps_match_adamw_of_pytorch(backbone):
    recipe = dataclasses.replace(RECIPE, optimizer="adamw", weight_decay=0.1)
    random = np.random.default_rng(0)
    images = random.normal(size=(8, 16)).astype(np.float32)
    labels = (np.arange(8) % 3).astype(np.int32)
    linear = probe.without_head(backbone)
    state = step.initial_state(linear, 3, optimizer="adamw")
    run = step.train_step(step.step_spec(linear, recipe))
    data = mapping.shard((images, labels, np.arange(8, dtype=np.int32)))
    scaling = (np.float32(0), np.float32(255), np.zeros(1, np.float32))

    head = torch.nn.Linear(16, 3)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    groups = [
        {"params": [head.weight], "weight_decay": 0.1},
        {"params": [head.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8)
    for number, rate in enumerate([0.01, 0.02, 0.02, 0.01, 0.005]):
        state, loss = run(
            state, scaling, step.hyperparameters(recipe, rate, number), data
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        logits = head(torch.tensor(images))
        their_loss = torch.nn.functional.cross_entropy(
            logits, torch.tensor(labels, dtype=torch.long)
        )
        their_loss.backward()
        optimizer.step()
        assert float(loss) == pytest.approx(their_loss.item(), rel=1e-5)
    # Sums of float32 in another order, divided by the root of a second moment.
    kernel = head.weight.detach().numpy().T
    np.testing.assert_allclose(state.params["head"]["kernel"], kernel, atol=1e-6)
    bias = head.bias.detach().numpy()
    np.testing.assert_allclose(state.params["head"]["bias"], bias, atol=1e-6)
    assert np.abs(kernel).max() > 0.03
