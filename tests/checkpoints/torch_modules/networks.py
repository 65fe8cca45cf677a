"""Small PyTorch networks with random weights in which no branch is inert."""

import timm
import torch
import torchvision

from rankckpt_jax.checkpoints.torch_modules import convert
from rankckpt_jax.checkpoints.torch_modules.spec import ModuleSpec

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

SMALL = {
    "resnet": (
        "resnet10t",
        dict(channels=(8, 8, 16, 16), stem_width=4, num_classes=5, stem_type="deep"),
        32,
    ),
    # Its classifier is a convolution.
    "resnetv2": (
        "resnetv2_18",
        dict(layers=(1, 1, 1, 1), channels=(8, 8, 8, 16), stem_chs=8, num_classes=5),
        32,
    ),
    "convnext": (
        "convnext_atto",
        # The gradients of large kernels take long to compile.
        dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), kernel_sizes=3, num_classes=5),
        32,
    ),
    "vit": (
        "vit_tiny_patch16_224",
        dict(img_size=32, depth=2, embed_dim=24, num_heads=2, num_classes=5),
        32,
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        dict(
            img_size=32,
            window_size=4,
            depths=(2, 2),
            embed_dim=8,
            num_heads=(2, 2),
            num_classes=5,
        ),
        32,
    ),
}
"""timm's architecture, arguments and image size, by a short name."""


def perturb(module, seed=0):
    """Change weights that are constant or tiny at first, and statistics.

    Otherwise some branches, and the classifiers of most transformers, add next to
    nothing to the logits.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.parameters():
            if tensor.ndim == 1 or float(tensor.std()) < 1e-3:
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in module.named_buffers():
            if "running" in name:
                tensor += 0.5 * torch.rand(tensor.shape, generator=generator)
    return module


def make(name, seed=0, **arguments):
    """Return (timm network in evaluation mode, its spec, its image size)."""
    architecture, given, size = SMALL[name]
    arguments = {**given, **arguments}
    torch.manual_seed(seed)
    module = timm.create_model(architecture, pretrained=False, **arguments)
    spec = ModuleSpec("timm", architecture, tuple(arguments.items()))
    return perturb(module, seed).eval(), spec, size


def to_backbone(module, spec, size, engine="jax", **options):
    """Convert a network."""
    return convert.to_backbone(
        module,
        spec,
        name="network",
        image_size=size,
        own_image_size=size,
        mean=MEAN,
        std=STD,
        fingerprint=convert.fingerprint(module),
        source="network",
        engine=engine,
        **options,
    )


def normalize(images):
    """Return images [B, H, W, 3] in [0, 1] as PyTorch's usual transform does."""
    tensor = torch.tensor(images).permute(0, 3, 1, 2)
    return torchvision.transforms.functional.normalize(tensor, MEAN, STD)
