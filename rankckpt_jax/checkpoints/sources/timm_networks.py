"""Networks of timm with weights from a file -> `Backbone`.

timm itself puts the weights into the network, because it also converts those that other
programs saved under other names.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.checkpoints.fetch import hub_cache
from rankckpt_jax.checkpoints.sources import Options, state_dict
from rankckpt_jax.checkpoints.torch_modules import convert, spec
from rankckpt_jax.data import transform
from rankckpt_jax.errors import InputError, some, unknown_name
from rankckpt_jax.storage import files

CONFIG = "config.json"
"""The file of a folder that names its network."""

FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
"""Names of the weights in a folder; the first one counts."""

# Names of the classifier in other programs.
_USUAL_CLASSIFIERS = ("head", "fc", "classifier", "head.fc")


def names(pattern: str = "") -> tuple[str, ...]:
    """Return the pre-trained networks of timm, with the tags of their weights.

    Args:
      pattern: A name with "*", or one name. Without a tag, a name means timm's default
        weights, and a pattern all weights.

    Raises:
      InputError: timm has no such network or weights.
    """
    timm = spec.import_library("timm")
    if not pattern or set(pattern) & set("*?["):
        return tuple(timm.list_pretrained(pattern))
    name = timm.models.get_deprecated_models().get(pattern) or pattern
    architecture, dot, _ = name.partition(".")
    known = timm.list_pretrained(architecture) if dot else []
    if dot and name in known:
        return (name,)
    if known:
        raise unknown_name("weights of timm", name, known, f"timm:{pattern}")
    if not dot and timm.models.is_model_pretrained(name):
        tag = timm.get_pretrained_cfg(name).tag
        return (f"{name}.{tag}" if tag else name,)
    known = sorted(n.partition(".")[0] for n in timm.list_pretrained())
    kind = "pre-trained network of timm"
    raise unknown_name(kind, name, dict.fromkeys(known), f"timm:{pattern}")


def check_architecture(name: str, where: str) -> None:
    """Raise unless timm has a network, with weights or without.

    Args:
      name: The network; a tag selects its preprocessing.
      where: For the message.

    Raises:
      InputError: The message has the nearest name.
    """
    timm = spec.import_library("timm")
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        known = timm.list_models()
        raise unknown_name("network of timm", architecture, known, where)
    known = timm.list_pretrained(architecture)
    if architecture != name and name not in known:
        raise unknown_name("weights of timm", name, known, where)


def find_weights(folder: epath.Path) -> epath.Path | None:
    """Return the weights in a folder with config.json; None if it is not one."""
    if not (folder / CONFIG).exists():
        return None
    return next((folder / name for name in FILES if (folder / name).exists()), None)


def load_folder(folder: epath.Path, file: epath.Path, options: Options) -> Backbone:
    """Load a folder of the hub's layout.

    Args:
      folder: A folder with config.json.
      file: Its weights.
      options: The user's choices.

    Raises:
      InputError: config.json does not describe a network of timm, or the weights are
        not those of the network.
    """
    place = folder / CONFIG
    try:
        config = json.loads(place.read_bytes())
    except ValueError as error:
        raise InputError(
            "A description of a network is not JSON", where=str(place), found=str(error)
        ) from error
    name = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(name, str):
        classes = config.get("architectures") if isinstance(config, dict) else None
        raise InputError(
            "A folder does not name a network of timm",
            where=str(place),
            expected='"architecture": a name of timm',
            found=f"{some(classes)} of the library transformers"
            if isinstance(classes, list)
            else "none",
            fix=f"if the weights are those of such a network, append #model=NAME to "
            f"{folder}; otherwise load it in Python and pass "
            "checkpoints.from_torch(module, ...)",
        )
    check_architecture(name, str(place))
    return load(
        f"local-dir:{folder}",
        state_dict.read(file, options.use_moving_averages),
        options,
        digest=files.digest(
            hub_cache.digest(pathlib.Path(file)), files.digest_file(place)
        ),
        where=str(file),
        model_args=config.get("model_args"),
    )


def load(
    identifier: str,
    weights: Mapping[str, Any],
    options: Options,
    *,
    digest: str,
    where: str,
    model_args: Mapping[str, Any] | None = None,
    is_exact: bool = False,
) -> Backbone:
    """Build a network with weights.

    Args:
      identifier: As for `timm.create_model`: a name with or without a tag, or
        "local-dir:FOLDER" for a folder with config.json.
      weights: Tensors by name.
      options: The user's choices.
      digest: Digest of the file of the weights.
      where: The file, for messages.
      model_args: The arguments of the network in config.json.
      is_exact: Whether the weights are timm's own, with timm's number of classes. Those
        of others may have prefixes and any number of classes.

    Raises:
      InputError: The weights are not those of the network, or the images do not fit.
    """
    timm = spec.import_library("timm")
    arguments: dict[str, Any] = {}
    overlay: dict[str, Any] = {"source": None}
    if is_exact:
        config = timm.get_pretrained_cfg(identifier).to_dict()
    else:
        empty = _create(identifier, where)
        config = empty.pretrained_cfg
        weights = state_dict.select(weights, empty.state_dict(), where)
        arguments["num_classes"] = _num_classes(empty, weights)
        overlay |= {"num_classes": arguments["num_classes"], "label_offset": 0}
        _check_complete(empty, weights, where)
        del empty
    data = timm.data.resolve_data_config({}, pretrained_cfg=config)
    channels, own, _ = data["input_size"]
    if model_args and model_args.get("img_size"):
        own = np.max(model_args["img_size"]).item()
    if channels != 3:
        raise InputError(
            "The network does not take color images",
            where=where,
            expected="3 channels",
            found=f"{channels}",
        )
    size, warnings = options.image_size or own, {}
    if config.get("fixed_input_size") and size != own:
        if options.is_size_preferred:
            warnings["image_size"] = (
                f"The network was made for images of {own} x {own} pixels only, not "
                f"{size}. To resize its position embeddings, append "
                f"#image_size={size} to the checkpoint's name"
            )
            size = own
        else:
            arguments["img_size"] = size
    try:
        module = timm.create_model(
            identifier,
            pretrained=True,
            # timm copies it.
            pretrained_cfg_overlay={**overlay, "state_dict": dict(weights)},
            **arguments,
        )
    except Exception as error:  # timm raises errors of many types.
        expected = _create(identifier, where, **arguments).state_dict()
        name = config.get("architecture", identifier)
        raise state_dict.mismatch(weights, expected, where, name, error) from error
    del module.pretrained_cfg["state_dict"]
    if config.get("fixed_input_size"):
        # Tags of one architecture can differ in it.
        arguments["img_size"] = size
    arguments = {"num_classes": module.num_classes, **(model_args or {}), **arguments}
    module_spec = spec.ModuleSpec(
        "timm", config["architecture"], tuple(sorted(_hashable(arguments).items()))
    )
    backbone = convert.to_backbone(
        module.eval(),
        module_spec,
        name=options.name,
        image_size=size,
        own_image_size=own,
        mean=data["mean"],
        std=data["std"],
        fingerprint=files.digest(digest, repr(module_spec)),
        source=options.handle,
        engine=options.torch_engine,
        with_blocks=options.with_blocks,
        features=options.output,
        transform=transform.from_timm(data),
    )
    return dataclasses.replace(
        backbone,
        input_range=options.input_range or backbone.input_range,
        warnings={**backbone.warnings, **warnings},
    )


def _create(identifier: str, where: str, **arguments: Any) -> Any:
    """Return the network with random weights."""
    timm = spec.import_library("timm")
    try:
        return timm.create_model(identifier, pretrained=False, **arguments)
    except Exception as error:  # Any arguments may be in a file of others.
        raise InputError(
            "timm cannot build the network",
            where=where,
            found=state_dict.first_line(error),
            fix="check config.json, or install the version of timm that wrote it",
        ) from error


def _classifier(module: Any) -> str:
    """Return the dotted name of the classifier; empty if timm names none."""
    names = module.pretrained_cfg.get("classifier") or ""
    return names if isinstance(names, str) else names[0]


def _num_classes(empty: Any, weights: Mapping[str, Any]) -> int:
    """Return the width of the classifier in a state dict; 0 without one."""
    for name in (_classifier(empty), *_USUAL_CLASSIFIERS):
        weight = weights.get(f"{name}.weight")
        if weight is not None:
            return weight.shape[0]
    # The names of other programs, which timm converts.
    is_foreign = not weights.keys() & empty.state_dict().keys()
    return empty.num_classes if is_foreign else 0


def _check_complete(empty: Any, weights: Mapping[str, Any], where: str) -> None:
    """Raise if a state dict of timm's names lacks some.

    timm ignores this for a few architectures, whose tensors would stay random.
    """
    expected = {
        name: tensor
        for name, tensor in empty.state_dict().items()
        if not name.startswith(f"{_classifier(empty)}.")
        # Older versions of PyTorch have no counters.
        and not name.endswith(".num_batches_tracked")
    }
    is_missing = expected.keys() - weights.keys()
    if is_missing and not weights.keys() - empty.state_dict().keys():
        name = empty.pretrained_cfg["architecture"]
        raise state_dict.mismatch(weights, expected, where, name)


def _hashable(value: Any) -> Any:
    """Return a JSON value with tuples instead of lists."""
    if isinstance(value, dict):
        return {key: _hashable(item) for key, item in value.items()}
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
