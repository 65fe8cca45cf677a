"""Models in memory, of any library, as checkpoints of a pool."""

from __future__ import annotations

import dataclasses
from typing import Any

from rankckpt_jax.checkpoints import keras_models
from rankckpt_jax.checkpoints.backbone import Backbone, digest_weights
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files

_EXPECTED = (
    "a path, a handle, a keras.Model, or what checkpoints.load, from_flax, from_keras "
    "or from_torch returns"
)

# The package of a base class, a message, and how to fix it.
_REFUSED = {
    "torch.nn": (
        "A PyTorch module does not state its image size and the scaling of pixels",
        "write checkpoints.from_torch(module, image_size=224, mean=(0.485, 0.456, "
        '0.406), std=(0.229, 0.224, 0.225), name="net")',
    ),
    "flax.linen": (
        "A Flax module does not hold its variables, image size and scaling of pixels",
        "write checkpoints.from_flax(module, variables, image_size=224, "
        'input_range=(0, 1), name="net")',
    ),
    "flax.nnx": (
        "Modules of flax.nnx cannot be ranked",
        "extract its features and call rank_features, or rewrite it in flax.linen",
    ),
    "tf_keras": (
        "Models of Keras 2 cannot be ranked from memory",
        'save it with model.save("net.h5") and name the file',
    ),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model in memory that can be ranked.

    Attributes:
      name: Name of its row, not yet unique in the pool.
      identity: Digest of its weights; empty if only a loaded backbone has one.
      backbone: The backbone; None for a Keras model, which is converted when needed.
      keras_model: The Keras model.
    """

    name: str
    identity: str
    backbone: Backbone | None = None
    keras_model: Any = None

    def load(self, image_size: int = 0) -> Backbone:
        """Return the backbone.

        Args:
          image_size: Side of the images for a Keras model that takes any size; 0 for
            the default. Others keep their own, with a warning.

        Raises:
          InputError: The model cannot be converted.
        """
        if self.backbone is None:
            return keras_models.from_keras(
                self.keras_model, name=self.name, preferred_image_size=image_size
            )
        own = self.backbone.image_size
        if image_size in (0, own):
            return self.backbone
        text = f"A model in memory keeps its images of {own} x {own} pixels"
        warnings = {**self.backbone.warnings, "image_size": text}
        return dataclasses.replace(self.backbone, warnings=warnings)


def read(item: Any, where: str) -> Model:
    """Check an object that was given as a checkpoint, without converting it.

    Args:
      item: A `Backbone` or a `keras.Model`.
      where: The argument, for messages.

    Raises:
      InputError: It is something else. The message shows the call to write for a bare
        module of PyTorch or Flax.
    """
    if isinstance(item, Backbone):
        # Its variables may have been replaced since it was loaded.
        digest = digest_weights(item.variables)
        fingerprint = files.digest(item.fingerprint, digest)
        item = dataclasses.replace(item, fingerprint=fingerprint)
        return Model(item.name, fingerprint, backbone=item)
    if keras_models.is_model(item):
        return Model(item.name, keras_models.identify(item), keras_model=item)
    bases = [f"{base.__module__}." for base in type(item).__mro__]
    message, fix = next(
        (
            refusal
            for package, refusal in _REFUSED.items()
            if any(base.startswith(f"{package}.") for base in bases)
        ),
        ("Not a checkpoint", ""),
    )
    raise InputError(
        message,
        where=where,
        expected=_EXPECTED,
        found=f"{type(item).__module__}.{type(item).__qualname__}",
        fix=fix,
    )
