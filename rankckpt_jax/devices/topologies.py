"""Devices that are absent, by the name of their topology.

`load("v5e:2x4")` returns eight TPU v5e devices that programs can be compiled for, on
any machine with the package libtpu; `load("h200:8")` returns eight NVIDIA H200 with
JAX's CUDA plugin. Neither needs a device or a driver.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
from typing import Any

import jax
from jax.experimental import topologies

from rankckpt_jax.devices import compilation
from rankckpt_jax.errors import InputError

_H200 = pathlib.Path(__file__).with_name("h200.txtpb")

_LIBTPU = {
    # Otherwise libtpu asks the cloud's metadata server for these, for up to 10 s.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Otherwise a second process fails at the lock file of the first.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def load(name: str) -> tuple[jax.Device, ...]:
    """Return the devices of a topology.

    Args:
      name: "v5e:2x4", "v6e:4x4", "v5p:2x2x2" and so on, as Cloud TPU names them, or
        "h200:N" for N GPUs of one host.

    Raises:
      InputError: The topology does not exist, or the compiler is not installed.
    """
    kind, _, shape = name.partition(":")
    if not re.fullmatch(r"[0-9a-z]+:[1-9]\d*(x[1-9]\d*)*", name):
        raise _unknown(name)
    if kind == "h200":
        _check_installed("jax_cuda12_plugin", "cuda")
        return _devices(
            name, platform="cuda", topology=f"1x1x{shape}", target_config=_h200()
        )
    _check_installed("libtpu", "tpu")
    for variable, value in _LIBTPU.items():
        os.environ.setdefault(variable, value)
    compilation.limit_tpu_fusions()
    options: dict[str, Any] = {}
    if set(shape) <= {"1", "x"}:
        # A host has several chips unless stated otherwise.
        options["chips_per_host_bounds"] = (1, 1, 1)
    return _devices(name, platform="tpu", topology_name=name, **options)


def _h200() -> str:
    return _H200.read_text()


def _devices(name: str, **arguments: Any) -> tuple[jax.Device, ...]:
    try:
        return tuple(topologies.get_topology_desc(**arguments).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError) as error:
        raise _unknown(name, str(error)) from error


def _unknown(name: str, reason: str = "") -> InputError:
    return InputError(
        f"Unknown topology {name!r}",
        expected="a TPU slice such as v5e:2x4, v6e:4x4 or v5p:2x2x2, or h200:8",
        found=reason.partition("\n")[0] or name,
        fix="for the devices of this machine: --plan=here",
    )


def _check_installed(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f"No compiler for {extra.upper()} is installed",
            expected=f"the package {module}",
            fix=f"pip install 'rankckpt_jax[{extra}]'",
        )
