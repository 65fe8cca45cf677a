"""Choose a module's signature, and check that it is a function of images."""

from __future__ import annotations

from collections.abc import Mapping

from rankckpt_jax.checkpoints.graphs.network import Shape
from rankckpt_jax.errors import InputError

# Names of VTAB and TF-Hub, the most specific first.
_SIGNATURES = (
    "representation",
    "image_feature_vector",
    "feature_vector",
    "default",
    "serving_default",
)
# Value of TensorFlow's enum DataType.
_FLOAT = 1


def choose(names: list[str], key: str | None, where: str) -> str:
    """Return the user's signature, or the usual one if `key` is None.

    Raises:
      InputError: It does not exist, or the choice is ambiguous.
    """
    names = [name for name in names if not name.startswith("__")]
    if key is not None and key in names:
        return key
    if key is None:
        for name in _SIGNATURES:
            if name in names:
                return name
        if len(names) == 1:
            return names[0]
    raise InputError(
        "Ambiguous signature" if key is None else f"There is no signature {key!r}",
        where=where,
        found=", ".join(sorted(names)) or "no signatures",
        fix="name one of them: signature=NAME",
    )


def images_of(
    inputs: Mapping[str, tuple[str, Shape, int]], where: str
) -> tuple[str, Shape]:
    """Return (tensor, shape) of a function's only input, the images.

    Args:
      inputs: Tensor, shape and `DataType` of each input, by name.
      where: The file, for messages.

    Raises:
      InputError: There are several inputs, or the input is not float32 [B, H, W, 3].
    """
    listed = ", ".join(f"{name} {shape}" for name, (_, shape, _) in inputs.items())
    if len(inputs) == 1:
        tensor, shape, dtype = next(iter(inputs.values()))
        fits = shape is None or (len(shape) == 4 and shape[3] in (3, None))
        if fits and dtype == _FLOAT:
            return tensor, shape
    raise InputError(
        "The function does not take images",
        where=where,
        expected="one input, float32 [B, H, W, 3]",
        found=listed.replace("None", "?") or "no input",
        fix="name another signature, or export one that takes images only",
    )


def size_of(shape: Shape, where: str) -> int | None:
    """Return the side in pixels of images of a shape, or None for any size.

    Raises:
      InputError: The images are not square.
    """
    if shape is None or shape[1] is None or shape[2] is None:
        return None
    if shape[1] != shape[2]:
        raise InputError(
            "The network's images are not square",
            where=where,
            found=f"{shape[1]} x {shape[2]}",
        )
    return shape[1]
