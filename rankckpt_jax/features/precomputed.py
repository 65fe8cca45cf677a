"""Features that were made elsewhere: `.npz` files, or the store of an earlier run.

A file NAME.npz holds arrays of one checkpoint on one task:

    features        float [N, D]
    labels          int [N]
    logits          float [N, V]; the checkpoint's own classifier, if it has one
    accuracy        a number in [0, 1]; after fine-tuning, where that is known
    num_parameters  a number, where it is known

as `np.savez("resnet.npz", features=..., labels=..., logits=...)` writes from any
framework. Pickled objects are refused. A directory `CHECKPOINT/features/SPLIT` of a
store is read as it is.
"""

from __future__ import annotations

import dataclasses
import io
import re
import zipfile
from collections.abc import Iterator

import numpy as np
from etils import epath

from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files, store

_KNOWN = ("features", "labels", "logits", "accuracy", "num_parameters")


@dataclasses.dataclass(frozen=True, eq=False)
class Precomputed:
    """What a file has of a checkpoint.

    Attributes:
      features: float [N, D].
      labels: int [N].
      logits: float [N, V], or None.
      checksum: Identity of the arrays.
      accuracy: In [0, 1], or None.
      num_parameters: Or None.
      seconds: What extraction took, where it is known.
      architecture: Of the network, where it is known.
      image_size: Of its input, where it is known.
    """

    features: np.ndarray
    labels: np.ndarray
    logits: np.ndarray | None
    checksum: str
    accuracy: float | None = None
    num_parameters: int | None = None
    seconds: float | None = None
    architecture: str = ""
    image_size: int | None = None


def find(pattern: str) -> list[tuple[str, epath.Path]]:
    """Lists files and store directories by directory or glob.

    Args:
      pattern: A `.npz` file, a directory with such files in it, a `features/SPLIT`
        directory of a store, a glob of either, or several with commas between.

    Returns:
      (name of the checkpoint, path) of each, sorted by name.

    Raises:
      InputError: There is none, or two have one name.
    """
    found: dict[str, epath.Path] = {}
    for part in filter(None, (part.strip() for part in pattern.split(","))):
        for path in _expand(epath.Path(part).expanduser()):
            name = path.stem if path.suffix == ".npz" else path.parent.parent.name
            name = files.directory_name(name, "features")
            if found.get(name, path) != path:
                raise InputError(
                    f"Two sets of features are called {name!r}",
                    where="config.features",
                    found=f"{found[name]} and {path}",
                )
            found[name] = path
    if not found:
        raise InputError(
            "No features found",
            where=pattern,
            expected="NAME.npz with arrays features and labels, or directories "
            "CHECKPOINT/features/SPLIT of a store",
            found="none of these",
            fix="--config.features=DIR_OR_GLOB",
        )
    return sorted(found.items())


def load(path: epath.Path) -> Precomputed:
    """Reads one of them.

    Raises:
      InputError: It cannot be read, or lacks features or labels.
    """
    return _load_npz(path) if path.suffix == ".npz" else _load_stored(path)


def _expand(path: epath.Path) -> Iterator[epath.Path]:
    wildcard = re.search(r"[*?\[]", str(path))
    if wildcard:
        cut = str(path).rfind("/", 0, wildcard.start())
        root = epath.Path(str(path)[: max(cut, 0)] or ("/" if cut == 0 else "."))
        for place in sorted(root.glob(str(path)[cut + 1 :]), key=str):
            if place.suffix == ".npz" or (place / store.MANIFEST).exists():
                yield place
    elif (path / store.MANIFEST).exists():
        yield path
    elif path.is_dir():
        yield from sorted(path.glob("*.npz"), key=str)
    elif path.exists():
        yield path


def _load_npz(path: epath.Path) -> Precomputed:
    data = path.read_bytes()
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name in _KNOWN}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            "Features cannot be read",
            where=str(path),
            expected="an .npz file of plain arrays, without pickled objects",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="write it with np.savez, from arrays of numbers",
        ) from error
    if absent := [name for name in ("features", "labels") if name not in arrays]:
        raise InputError(
            f"The file has no array {' and no array '.join(absent)}",
            where=str(path),
            expected="arrays " + ", ".join(_KNOWN[:2]) + "; also " + ", ".join(_KNOWN),
            found=", ".join(arrays) or "none of these",
            fix="np.savez(FILE, features=..., labels=...)",
        )
    return Precomputed(
        arrays["features"],
        arrays["labels"],
        arrays.get("logits"),
        files.digest(data),
        _number(path, arrays.get("accuracy")),
        None
        if "num_parameters" not in arrays
        else int(_number(path, arrays["num_parameters"]) or 0),
    )


def _number(path: epath.Path, array: np.ndarray | None) -> float | None:
    if array is None:
        return None
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise InputError(
            "accuracy and num_parameters are single numbers",
            where=str(path),
            found=f"{array.dtype} of shape {list(array.shape)}",
        )
    return float(array.reshape(()))


def _load_stored(path: epath.Path) -> Precomputed:
    manifest = store.read(path)
    if manifest is None:
        raise InputError(
            "Stored features cannot be read",
            where=str(path),
            expected="a manifest and arrays that match its checksums",
        )
    request, entry = manifest
    return Precomputed(
        entry.arrays["features"],
        entry.arrays["labels"],
        entry.arrays.get("logits"),
        entry.checksum,
        seconds=entry.result.get("seconds"),
        architecture=str(request.get("architecture", "")),
        image_size=request.get("image_size"),
    )
