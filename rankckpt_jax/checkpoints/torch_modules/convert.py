"""A PyTorch network with its weights -> `Backbone`."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.checkpoints.backbone import Backbone, digest_weights, split_head
from rankckpt_jax.checkpoints.pixels import standardize
from rankckpt_jax.checkpoints.sources import check_image_size
from rankckpt_jax.checkpoints.torch_modules import blocks, points, skeletons
from rankckpt_jax.checkpoints.torch_modules import spec as spec_lib
from rankckpt_jax.checkpoints.torch_modules.apply import TorchApply
from rankckpt_jax.checkpoints.torch_modules.host import HostApply, run
from rankckpt_jax.checkpoints.torch_modules.points import Split
from rankckpt_jax.checkpoints.torch_modules.spec import ModuleSpec
from rankckpt_jax.devices import mapping
from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.models import layers
from rankckpt_jax.storage import files

# Attributes that may change what a module computes.
_PLAIN = (bool, int, float, str, tuple, type(None))

_FALLBACK = (
    "--config.torch_engine=torch extracts its features with PyTorch itself, without "
    "fine-tuning"
)

_log = logging.getLogger(__name__)


def to_backbone(
    module: Any,
    spec: ModuleSpec,
    *,
    name: str,
    image_size: int,
    own_image_size: int | None,
    mean: Sequence[float],
    std: Sequence[float],
    fingerprint: str,
    source: str,
    engine: str,
    features: str = "",
    transform: Any = None,
    with_blocks: bool = False,
) -> Backbone:
    """Convert a network, and check that JAX computes what PyTorch computes.

    Args:
      module: The `torch.nn.Module` on the CPU with its weights, in evaluation mode. The
        backbone shares their memory, so they must not be changed afterwards.
      spec: What builds an equal network.
      name: Unique in its pool.
      image_size: Side of the images in pixels.
      own_image_size: Side of the images that it was made for; None if unknown.
      mean: Mean per channel of images in [0, 1].
      std: Standard deviation per channel.
      fingerprint: Digest of the weights.
      source: The file or handle they were loaded from.
      engine: "jax", or "torch" for extraction by PyTorch itself.
      features: Name of the module whose output holds the features. By default they are
        what the classifier reads.
      transform: The network's own evaluation transform.
      with_blocks: Whether to find its last blocks, and to check them in the same way.
        `apply.block_names` is empty if there are none, or if they cannot be computed.

    Returns:
      The backbone. Its classifier is in `variables["params"]["logits"]` if it is a
      linear layer on the features; otherwise `warnings` has a sentence about it.

    Raises:
      InputError: PyTorch or JAX cannot apply the network to images of this size, or
        their features or logits differ by more than `points.TOLERANCE`.
    """
    size = (2, image_size, image_size, 3)
    images = np.random.default_rng(0).uniform(size=size).astype(np.float32)
    host = HostApply(module, points.Point("output"), standardize(mean, std, source))
    split = _split(module, features, host.prepare(images), source, image_size)
    names: tuple[str, ...] = ()
    references: tuple[np.ndarray, ...] = ()
    if with_blocks:
        names, references = _find_blocks(module, split, host.prepare(images), source)
    parameters, statistics = skeletons.named_tensors(module)
    unused = tuple(f"{part}." for part in split.unused)
    values = {
        key: tensor.detach().float().numpy()
        for key, tensor in (parameters | statistics).items()
        if not key.startswith(unused)
    }
    params: dict[str, Any] = {key: values[key] for key in values if key in parameters}
    num_parameters = sum(value.size for value in params.values())
    head = {} if split.head is None else {layers.HEAD: dict(split.head)}
    apply: Any
    if engine == "torch":
        apply = dataclasses.replace(
            host, point=split.point, parameters=params, block_names=names
        )
        variables: dict[str, Any] = {"params": head, "batch_stats": {}}
    else:
        batch_stats = {key: values[key] for key in values if key in statistics}
        variables = {"params": {**params, **head}, "batch_stats": batch_stats}
        shared = _without_classes(spec)
        constants = skeletons.register(shared, module)
        apply = TorchApply(shared, split.point, constants, host.pixels)
        if names:
            both = dataclasses.replace(apply, block_names=names, with_blocks=True)
            try:
                _check(both, variables, images, split, references, source)
                apply = dataclasses.replace(both, with_blocks=False)
            except InputError as error:
                _log.debug("%s: no blocks: %s", source, error)
                names = ()
        if not names:
            _check(apply, variables, images, split, (), source)
    warnings = {"logits": split.warning} if split.warning else {}
    return Backbone(
        name=name,
        architecture=spec.name,
        variables=variables,
        apply=apply,
        image_size=image_size,
        input_range=(0.0, 1.0),
        input_mean=(0.0, 0.0, 0.0),
        feature_dim=split.features.shape[1],
        num_source_classes=0 if split.head is None else split.head["bias"].size,
        num_parameters=num_parameters,
        fingerprint=fingerprint,
        source=source,
        feature_tensor=str(split.point),
        own_image_size=own_image_size,
        warnings=warnings,
        engine=engine,
        **({} if transform is None else {"own_transform": transform}),
    )


def from_torch(
    module: Any,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    features: str = "",
    name: str,
    engine: str = "auto",
) -> Backbone:
    """Convert a PyTorch network of the user's, of any library.

    Args:
      module: A `torch.nn.Module` of images [B, 3, H, W] with its weights. It stays as
        it is, and later changes of it change nothing here.
      image_size: Side of its square images in pixels.
      mean: Mean per channel that it expects to be subtracted from images in [0, 1].
      std: Standard deviation per channel that it expects them to be divided by.
      features: Name of the module whose output holds the features, [B, D] or
        [B, D, h, w], which is averaged over h and w. By default the features are the
        input of the last linear layer, and timm's pre-logits.
      name: Unique in its pool.
      engine: "jax", or "torch" for extraction by PyTorch itself, without torchax.
        "auto" is "jax".

    Raises:
      InputError: The network cannot be used; see `to_backbone`.
    """
    torch = spec_lib.import_library("torch")
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            "Not a PyTorch module",
            where=name,
            expected="torch.nn.Module",
            found=type(module).__name__,
            fix="build the network, load its weights with load_state_dict, and pass it",
        )
    check_engine(engine)
    check_image_size(image_size, f"image_size of from_torch, {name!r}")
    with torch.no_grad():
        module = copy.deepcopy(module).cpu().eval()
    return to_backbone(
        module,
        _module_spec(module),
        name=name,
        image_size=image_size,
        own_image_size=image_size,
        mean=mean,
        std=std,
        fingerprint=fingerprint(module),
        source=name,
        engine="jax" if engine == "auto" else engine,
        features=features,
        with_blocks=True,
    )


def check_engine(engine: str) -> None:
    """Raise `InputError` unless an engine is "auto", "jax" or "torch"."""
    if engine not in spec_lib.ENGINES:
        raise unknown_name("engine", engine, spec_lib.ENGINES, "config.torch_engine")


def fingerprint(module: Any) -> str:
    """Return a digest of the names and values of a network's tensors."""
    arrays = {}
    for name, tensor in module.state_dict().items():
        # Bytes of any dtype, such as bfloat16, which NumPy lacks.
        values = tensor.detach().cpu().contiguous().flatten()
        key = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        arrays[key] = values.view(skeletons.torch_dtype("uint8")).numpy()
    return digest_weights(arrays)


def _split(
    module: Any, features: str, images: Any, source: str, image_size: int
) -> Split:
    try:
        with skeletons.unchanged(module):
            split = points.split(module, features, images)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"PyTorch cannot apply the network to images of {image_size} x "
            f"{image_size} pixels",
            where=source,
            found=_first_line(error),
            fix="set image_size to the size that the network was made for",
        ) from error
    if not np.isfinite(split.features).all():
        raise InputError(
            "The network's features are not finite, as computed by PyTorch",
            where=source,
            expected="finite numbers",
            found="NaN or infinite values",
            fix="check that its weights are complete and finite",
        )
    return split


def _find_blocks(
    module: Any, split: Split, images: Any, source: str
) -> tuple[tuple[str, ...], tuple[np.ndarray, ...]]:
    """Return the names and pooled outputs of the last blocks; empty if unusable."""
    try:
        with skeletons.unchanged(module):
            names = blocks.find(module, split.point, images)
            features, outputs = run(module, split.point, names, images)
    except Exception as error:  # Networks raise errors of many types.
        _log.debug("%s: no blocks: %s", source, _first_line(error))
        return (), ()
    usable = all(x.ndim == 2 and np.isfinite(x).all() for x in outputs)
    agrees = points.difference(features, split.features) <= points.TOLERANCE
    return (names, outputs) if usable and agrees else ((), ())


def _check(
    apply: TorchApply,
    variables: Any,
    images: np.ndarray,
    split: Split,
    blocks: Sequence[np.ndarray],
    source: str,
) -> None:
    """Raise unless JAX and PyTorch agree on two images.

    Args:
      apply: The network in JAX.
      variables: Its weights.
      images: The images.
      split: PyTorch's features and logits.
      blocks: PyTorch's pooled outputs of the blocks that `apply` returns.
      source: Where the network is from.
    """
    headless, head = split_head(variables)
    try:
        outputs = _features(apply)(headless, images)
        computed, *others = map(np.asarray, outputs)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"torchax cannot convert {apply.spec.name} to JAX",
            where=source,
            found=_first_line(error),
            fix=_FALLBACK,
        ) from error
    pairs = [("features", computed, split.features)]
    pairs += [("blocks", *pair) for pair in zip(others, blocks, strict=True)]
    if head is not None and split.logits is not None:
        logits = np.asarray(layers.classify(head, jnp.asarray(computed)))
        pairs.append(("logits", logits, split.logits))
    for kind, values, reference in pairs:
        difference = points.difference(values, reference)
        # Not `>`, which is false for NaN.
        if not difference <= points.TOLERANCE:
            raise InputError(
                f"JAX computes other {kind} of {apply.spec.name} than PyTorch",
                where=source,
                expected=f"a relative difference of at most {points.TOLERANCE:g}",
                found=f"{difference:.1g}, on two random images",
                fix=_FALLBACK,
            )
        _log.debug("%s: %s agree with PyTorch's to %.1g", source, kind, difference)


@mapping.bounded_cache
def _features(apply: TorchApply) -> Any:
    """Compile the features of two images, shared by all checkpoints of a network."""

    def features(variables: Any, images: jax.Array) -> tuple[jax.Array, ...]:
        output = apply(variables, images)
        return output.features, *output.blocks

    return jax.jit(features)


def _without_classes(spec: ModuleSpec) -> ModuleSpec:
    """Return a spec that networks of any number of classes share."""
    if spec.library == "module":
        return spec
    arguments = (
        (key, value)
        for key, value in spec.arguments
        if key != "num_classes" or not value
    )
    return dataclasses.replace(spec, arguments=tuple(arguments))


def _module_spec(module: Any) -> ModuleSpec:
    """Return the spec of a module in memory, equal for modules of equal structure."""
    parts, classes = [], []
    for name, part in module.named_modules():
        plain = {k: v for k, v in vars(part).items() if isinstance(v, _PLAIN)}
        tensors = (*part._parameters.items(), *part._buffers.items())
        shapes = [(k, None if t is None else tuple(t.shape)) for k, t in tensors]
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        parts.append(f"{name} {kind} {sorted(plain.items())} {shapes}")
        # A notebook may define another class of the same name.
        classes.append(id(type(part)))
    architecture = f"{type(module).__name__}-{files.digest(*parts)[:8]}"
    return ModuleSpec("module", architecture, (("classes", tuple(classes)),))


def _first_line(error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {reason}".removesuffix(": ")
