"""Files of PyTorch weights: .safetensors, .pth, .pt, .bin and Lightning's .ckpt.

Only tensors and plain values are read. A file that holds code is refused.
"""

from __future__ import annotations

import argparse
import collections
import re
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from etils import epath

from rankckpt_jax.checkpoints.torch_modules import spec
from rankckpt_jax.errors import InputError, some

_SUFFIXES = (".safetensors", ".pth", ".pt", ".pth.tar")
# Endings that other formats have too; the first bytes of the file decide.
_SHARED_SUFFIXES = (".bin", ".ckpt")
# How files of `torch.save` begin: as a zip archive, and before PyTorch 1.6.
_HEADERS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF")
# Keys under which training programs store weights, and their moving averages.
_WEIGHTS = ("state_dict", "model", "model_state_dict", "module", "net", "network")
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_SAVE_WEIGHTS = (
    "in the program that made the file, save only the weights: "
    "torch.save(model.state_dict(), FILE)"
)


def matches(path: epath.Path) -> bool:
    """Return whether a path has the ending, and if necessary the header, of weights."""
    if path.name.endswith(_SHARED_SUFFIXES):
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(8).startswith(_HEADERS)
    return path.name.endswith(_SUFFIXES)


def read(path: epath.Path, use_moving_averages: bool = False) -> dict[str, Any]:
    """Read the state dict of a file.

    Args:
      path: A local file.
      use_moving_averages: Which to take of a file that holds the weights and their
        moving averages.

    Returns:
      `torch.Tensor`s on the CPU by name. Wrappers such as "state_dict" are removed;
      prefixes of the names are not, see `select`.

    Raises:
      InputError: The file is damaged, holds code, or holds no state dict.
    """
    if path.name.endswith(".safetensors"):
        return _read_safetensors(path)
    contents = _read_saved(path)
    wrappers = (*_WEIGHTS, *_AVERAGES)
    if use_moving_averages:
        wrappers = (*_AVERAGES, *_WEIGHTS)
    found = contents
    while not _is_state_dict(found):
        inner = found if isinstance(found, Mapping) else {}
        keys = [k for k in wrappers if isinstance(inner.get(k), Mapping)]
        if not keys:
            raise InputError(
                "No state dict is in a file of weights",
                where=str(path),
                expected="tensors by name, or these under one of the keys "
                + ", ".join(wrappers),
                found=_describe(found),
                fix=_SAVE_WEIGHTS,
            )
        found = inner[keys[0]]
    return found


def _is_state_dict(value: Any) -> bool:
    torch = spec.import_library("torch")
    is_filled = isinstance(value, Mapping) and bool(value)
    return is_filled and all(isinstance(v, torch.Tensor) for v in value.values())


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"the keys {some(map(str, value))}" if value else "nothing"
    return f"a value of the type {type(value).__name__}"


def _read_safetensors(path: epath.Path) -> dict[str, Any]:
    safetensors = spec.import_library("safetensors.torch")
    try:
        return safetensors.load_file(path)
    except Exception as error:  # The library's errors have no common type.
        raise _damaged(path, error) from error


def _read_saved(path: epath.Path) -> Any:
    """Read a file of `torch.save` without running code in it."""
    torch = spec.import_library("torch")
    is_archive = zipfile.is_zipfile(path)
    if is_archive and _is_torch_script(path):
        raise InputError(
            "A TorchScript file holds a program, which is not run",
            where=str(path),
            expected="weights only",
            found="a TorchScript archive",
            fix="save its weights: "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
        )
    try:
        with (
            warnings.catch_warnings(),
            # Training programs, timm's among them, save their arguments beside the
            # weights. The class only holds values.
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            warnings.simplefilter("ignore")
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=is_archive
            )
    except Exception as error:  # Damaged pickles raise errors of any type.
        text = str(error)
        refused = re.findall(r"GLOBAL ([\w.]+)", text)
        if not refused and "Weights only load failed" not in text:
            # Of bytes that are no pickle, PyTorch raises whatever comes first.
            known = isinstance(error, RuntimeError)
            reason = error if known else ValueError("not a file of torch.save")
            raise _damaged(path, reason) from error
        # PyTorch's own message explains how to load the file unsafely.
        raise InputError(
            "A file of weights holds Python objects, which could run code",
            where=str(path),
            expected="tensors, numbers, texts, lists and dictionaries",
            found=some(dict.fromkeys(refused)) or "a pickle that is not of torch.save",
            fix=_SAVE_WEIGHTS,
        ) from None


def _is_torch_script(path: epath.Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _damaged(path: epath.Path, error: Exception) -> InputError:
    return InputError(
        "A file of weights is damaged or incomplete",
        where=str(path),
        found=first_line(error).partition(". ")[0],
        fix="copy or download it again",
    )


def select(
    weights: Mapping[str, Any], names: Collection[str], where: str
) -> Mapping[str, Any]:
    """Return the weights of one network, without the prefix of their names.

    Prefixes come from wrappers ("module.", "_orig_mod.") and from the attribute of a
    larger module that holds the network (Lightning's "model."). The tensors of other
    attributes, such as a loss, are left out.

    Args:
      weights: Tensors by name.
      names: The network's own names.
      where: The file, for messages.

    Returns:
      The weights; all of them unchanged if no name is one of the network's.

    Raises:
      InputError: Several parts of the file fit the network, such as a teacher and a
        student.
    """
    own = set(names)
    counts = collections.Counter(
        name.removesuffix(suffix)
        for name in weights
        for suffix in _suffixes(name)
        if suffix in own
    )
    # Names within a network can repeat those of its first layers.
    best, most = max(
        counts.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0)
    )
    if not best or counts[""] == most:
        return weights
    others = [prefix for prefix, count in counts.items() if 2 * count >= most]
    if len(others) > 1:
        raise InputError(
            "Several networks are in a file of weights",
            where=where,
            expected="one state dict of the network",
            found="weights that begin with " + some(others),
            fix="save the one to rank in a file of its own",
        )
    return {
        name.removeprefix(best): tensor
        for name, tensor in weights.items()
        if name.startswith(best)
    }


def _suffixes(name: str) -> Iterator[str]:
    """Yield a dotted name, and what follows each of its dots."""
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield name


def mismatch(
    weights: Mapping[str, Any],
    expected: Mapping[str, Any],
    where: str,
    network: str,
    error: Exception | None = None,
) -> InputError:
    """Return the error for weights that are not those of a network.

    Args:
      weights: Tensors by name.
      expected: The network's own tensors by name.
      where: The file.
      network: The network's name.
      error: What was raised, for a message if names and shapes agree.
    """
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "other shapes": shapes}
    found = "; ".join(
        f"{len(names)} {kind} ({some(names, 4)})"
        for kind, names in kinds.items()
        if names
    )
    return InputError(
        f"The weights are not those of {network}",
        where=where,
        expected=f"the {len(expected)} tensors of {network}",
        found=found or (first_line(error) if error else ""),
        fix="name the network that they were saved from: #model=NAME for one of timm, "
        "#model=torchvision:NAME for one of torchvision",
    )


def first_line(error: Exception) -> str:
    """Return the first line of a message, or the name of the error's type."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
