"""Which function of a module is meant, and whether it is one of images."""

from __future__ import annotations

from collections.abc import Mapping

from rankckpt_jax.checkpoints.graphs.network import Shape
from rankckpt_jax.errors import InputError

# Which signature is meant where none is named: that of VTAB, then those of TF-Hub.
_SIGNATURES = (
    "representation",
    "image_feature_vector",
    "feature_vector",
    "default",
    "serving_default",
)
# TensorFlow's number of float32.
_FLOAT = 1


def choose(names: list[str], wanted: str | None, where: str) -> str:
    """The signature that is wanted, or the likeliest where none is named.

    Raises:
      InputError: It is not there, or none is likelier than the others.
    """
    names = [name for name in names if not name.startswith("__")]
    if wanted is not None and wanted in names:
        return wanted
    if wanted is None:
        for name in _SIGNATURES:
            if name in names:
                return name
        if len(names) == 1:
            return names[0]
    raise InputError(
        "It cannot be told which signature is meant"
        if wanted is None
        else f"There is no signature {wanted!r}",
        where=where,
        found=", ".join(sorted(names)) or "no signatures",
        fix="name one of them: signature=NAME",
    )


def images_of(
    inputs: Mapping[str, tuple[str, Shape, int]], where: str
) -> tuple[str, Shape]:
    """(tensor, shape) of the one input of a function, which must be images.

    Args:
      inputs: Each one's tensor, shape and TensorFlow's number of its type, by name.
      where: For messages.

    Raises:
      InputError: There is another number of them, or it is something else.
    """
    listed = ", ".join(f"{name} {shape}" for name, (_, shape, _) in inputs.items())
    if len(inputs) == 1:
        tensor, shape, dtype = next(iter(inputs.values()))
        fits = shape is None or (len(shape) == 4 and shape[3] in (3, None))
        if fits and dtype == _FLOAT:
            return tensor, shape
    raise InputError(
        "The function is not one of images",
        where=where,
        expected="one input, float32 [B, H, W, 3]",
        found=listed.replace("None", "?") or "no input",
        fix="name another signature, or export one that takes images only",
    )


def size_of(shape: Shape, where: str) -> int | None:
    """Side in pixels of images of a shape; None where it leaves that open.

    Raises:
      InputError: They are not square.
    """
    if shape is None or shape[1] is None or shape[2] is None:
        return None
    if shape[1] != shape[2]:
        raise InputError(
            "The network takes images that are not square",
            where=where,
            found=f"{shape[1]} x {shape[2]}",
        )
    return shape[1]
