"""Pre-trained classifiers of torchvision by name: torchvision:NAME.WEIGHTS.

Without ".WEIGHTS", a name means torchvision's default weights.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.checkpoints.fetch import kept, torch_cache
from rankckpt_jax.checkpoints.sources import Options, state_dict
from rankckpt_jax.checkpoints.torch_modules import convert, spec
from rankckpt_jax.data import transform
from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.storage import files

SCHEME = "torchvision"

# As torchvision builds them for its weights. Without initialization it is not slow.
_INCEPTION = (("aux_logits", False), ("init_weights", False), ("transform_input", True))
_ARGUMENTS: dict[str, tuple[tuple[str, Any], ...]] = {
    "googlenet": _INCEPTION,
    "inception_v3": _INCEPTION,
}
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# Networks of one image size.
_FIXED = ("vit_", "maxvit_")
# Early names of DenseNet's layers.
_DENSE_LAYER = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")


def names(pattern: str = "") -> tuple[str, ...]:
    """Return the pre-trained classifiers of torchvision with their weights.

    Args:
      pattern: A name with "*", or one name. Without weights, a name means
        torchvision's default weights, and a pattern all weights.

    Raises:
      InputError: torchvision has no such network or weights.
    """
    models = spec.import_library("torchvision").models
    known = {
        name: [f"{name}.{weights.name}" for weights in models.get_model_weights(name)]
        for name in models.list_models(module=models)
    }
    full = [name for group in known.values() for name in group]
    if not pattern or set(pattern) & set("*?["):
        found = {*fnmatch.filter(full, pattern or "*")}
        found.update(*(known[name] for name in fnmatch.filter(known, pattern)))
        return tuple(name for name in full if name in found)
    name, dot, _ = pattern.partition(".")
    where = f"{SCHEME}:{pattern}"
    if name not in known:
        raise unknown_name("network of torchvision", name, known, where)
    if not dot:
        return (f"{name}.{models.get_model_weights(name).DEFAULT.name}",)
    if pattern not in known[name]:
        raise unknown_name("weights of torchvision", pattern, known[name], where)
    return (pattern,)


def identify(name: str) -> str:
    """Return a digest of the weights, or "" if they are not in the cache."""
    file = torch_cache.path(_weights(name).url)
    if not file.exists():
        return ""
    version = importlib.metadata.version("torchvision")
    return files.digest(name, version, kept.digest(file))


def load_named(name: str, options: Options) -> Backbone:
    """Load a network, and download its weights if necessary.

    Raises:
      InputError: It cannot be downloaded or converted.
    """
    file = torch_cache.get(_weights(name).url, f"{SCHEME}:{name}")
    weights = state_dict.read(epath.Path(file))
    return load_weights(
        name, weights, options, digest=kept.digest(file), where=str(file)
    )


def load_weights(
    name: str, weights: Mapping[str, Any], options: Options, *, digest: str, where: str
) -> Backbone:
    """Build a network with weights.

    Args:
      name: The network, and the weights whose preprocessing is used: "NAME.WEIGHTS".
      weights: Tensors by name, with any number of classes.
      options: The user's choices.
      digest: Digest of the file of the weights.
      where: The file, for messages.

    Raises:
      InputError: The weights are not those of the network, or the images do not fit.
    """
    architecture = name.partition(".")[0]
    preset = _weights(name).transforms()
    (own,), (side,) = preset.crop_size, preset.resize_size
    size, warnings = options.image_size or own, {}
    if size != own and architecture.startswith(_FIXED):
        text = f"The network takes images of {own} x {own} pixels only, not {size}"
        if not options.is_size_preferred:
            raise InputError(
                text,
                where=options.handle,
                found=f"{size} x {size}",
                fix=f"remove #image_size={size} from the checkpoint's name",
            )
        size, warnings = own, {"image_size": text}
    arguments = _ARGUMENTS.get(architecture, ())
    empty = spec.build(spec.ModuleSpec(SCHEME, architecture, arguments))
    expected = empty.state_dict()
    if architecture.startswith("densenet"):
        weights = {_DENSE_LAYER.sub(r"\1\2", key): weights[key] for key in weights}
    weights = state_dict.select(weights, expected, where)
    if architecture in _ARGUMENTS:
        weights = {k: v for k, v in weights.items() if not k.startswith(_AUXILIARY)}
    # The classifier is the last layer of every network.
    classifier = [key for key in expected if key.endswith(".weight")][-1]
    if classifier in weights:
        classes = weights[classifier].shape[0]
        arguments += (("num_classes", classes),)
    module_spec = spec.ModuleSpec(SCHEME, architecture, arguments)
    module = spec.build(module_spec)
    try:
        module.load_state_dict(weights)
    except (RuntimeError, AssertionError) as error:
        raise state_dict.mismatch(
            weights, module.state_dict(), where, architecture, error
        ) from error
    backbone = convert.to_backbone(
        module.eval(),
        module_spec,
        name=options.name,
        image_size=size,
        own_image_size=own,
        mean=preset.mean,
        std=preset.std,
        fingerprint=files.digest(digest, repr(module_spec)),
        source=options.handle,
        engine=options.torch_engine,
        with_blocks=options.with_blocks,
        features=options.output,
        transform=transform.from_sides(side, own, preset.interpolation.value),
    )
    return dataclasses.replace(
        backbone,
        input_range=options.input_range or backbone.input_range,
        warnings={**backbone.warnings, **warnings},
    )


def _weights(name: str) -> Any:
    models = spec.import_library("torchvision").models
    architecture, _, weights = name.partition(".")
    return models.get_model_weights(architecture)[weights]
