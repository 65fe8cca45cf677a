"""Compares architectures of timm in JAX with PyTorch.

    python -m tests.checkpoints.torch_modules.architectures             # all
    python -m tests.checkpoints.torch_modules.architectures resnet50    # some

prints a table in Markdown. Weights are random, and no branch is inert. `features` and
`logits` are the largest differences of two images, relative to the largest value. The
seconds are the CPU time of conversion with its check, most of which is compiling.
"""

import gc
import sys
import time

import jax
import numpy as np
import timm
import torch

from rankckpt_jax.checkpoints.backbone import split_head
from rankckpt_jax.checkpoints.torch_modules import convert, points
from rankckpt_jax.checkpoints.torch_modules.spec import ModuleSpec
from rankckpt_jax.errors import InputError
from rankckpt_jax.models import layers
from tests.checkpoints.torch_modules import networks

SIZES = {
    128: "convnext_atto convnextv2_atto cspresnet50 densenet121 dla34 dpn68 "
    "eca_nfnet_l0 edgenext_xx_small efficientnet_b0 fastvit_t8 focalnet_tiny_srf "
    "ghostnet_050 hgnet_tiny hgnetv2_b0 hrnet_w18_small inception_next_atto "
    "inception_v3 mambaout_femto mobilenetv2_050 mobilenetv3_small_100 "
    "mobilenetv4_conv_small mobilevit_xxs mobilevitv2_050 nf_resnet26 pvt_v2_b0 "
    "regnetx_002 regnety_002 repvgg_a0 repvit_m0_9 res2net50_26w_4s resnest14d "
    "resnet18 resnet50 resnetv2_18 resnetv2_50x1_bit resnext26ts rexnet_100 "
    "seresnet18 skresnet18 starnet_s1 tf_efficientnet_lite0 tf_efficientnetv2_b0 "
    "vgg11_bn xception41",
    224: "beit_base_patch16_224 cait_xxs24_224 coat_lite_tiny coatnet_pico_rw_224 "
    "convit_tiny davit_tiny deit3_small_patch16_224 deit_tiny_distilled_patch16_224 "
    "efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_m0 "
    "eva02_tiny_patch14_224 gcvit_xxtiny gmlp_ti16_224 hiera_tiny_224 levit_128s "
    "mixer_b32_224 mvitv2_tiny nest_tiny pit_ti_224 poolformer_s12 resmlp_12_224 "
    "resnet50_clip sequencer2d_s swin_tiny_patch4_window7_224 tiny_vit_5m_224 "
    "tnt_s_legacy_patch16_224 twins_svt_small visformer_tiny "
    "vit_base_patch16_siglip_224 vit_base_patch32_clip_224 "
    "vit_small_patch14_dinov2 vit_tiny_patch16_224 volo_d1_224 "
    "xcit_nano_12_p16_224",
    240: "crossvit_tiny_240",
    256: "maxvit_pico_rw_256 swinv2_tiny_window8_256 vit_small_patch16_dinov3",
    1024: "samvit_base_patch16",
}
"""Architectures by the image size that they are compared at."""

OTHER_SIZE = {
    "vit_small_patch14_dinov2": {"img_size": 224},
    "samvit_base_patch16": {"img_size": 256},
}
"""Arguments of architectures that are smaller here than by default."""


def names():
    """Return (architecture, image size) of all."""
    for size, text in SIZES.items():
        for name in text.split():
            yield name, OTHER_SIZE.get(name, {}).get("img_size", size)


def compare(name, size):
    """Return (difference of the features, of the logits or None, CPU seconds).

    Raises:
      InputError: It cannot be converted.
    """
    torch.manual_seed(0)
    arguments = {"num_classes": 10, **OTHER_SIZE.get(name, {})}
    module = timm.create_model(name, pretrained=False, **arguments)
    module = networks.perturb(module).eval()
    shape = (2, size, size, 3)
    images = np.random.default_rng(1).uniform(size=shape).astype(np.float32)
    with torch.no_grad():
        tensor = networks.normalize(images)
        maps = module.forward_features(tensor)
        features = module.forward_head(maps, pre_logits=True)
        logits = module(tensor)
        if isinstance(logits, tuple):
            logits = sum(logits) / len(logits)
        features, logits = (points.pool(x).numpy() for x in (features, logits))
    spec = ModuleSpec("timm", name, tuple(arguments.items()))
    start = time.process_time()
    backbone = networks.to_backbone(module, spec, size)
    seconds = time.process_time() - start
    headless, head = split_head(backbone.variables)
    # The program of the check, which is compiled already.
    computed = np.asarray(convert._features(backbone.apply)(headless, images))
    second = None
    if head is not None:
        own = np.asarray(layers.classify(head, jax.numpy.asarray(computed)))
        second = points.difference(own, logits)
    return points.difference(computed, features), second, seconds


def main():
    wanted = sys.argv[1:]
    print("| architecture | pixels | features | logits | CPU s |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, size in names():
        if wanted and name not in wanted:
            continue
        try:
            features, logits, seconds = compare(name, size)
        except Exception as error:
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            reason = " ".join(f"{kind}{error}".split())[:200]
            print(f"| {name} | {size} | fails | {reason} | |", flush=True)
        else:
            shown = "none" if logits is None else f"{logits:.0e}"
            print(f"| {name} | {size} | {features:.0e} | {shown} | {seconds:.0f} |")
        sys.stdout.flush()
        jax.clear_caches()
        gc.collect()


if __name__ == "__main__":
    main()
