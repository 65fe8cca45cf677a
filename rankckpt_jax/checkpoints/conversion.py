"""Converted networks, kept so that conversion happens once.

    DIRECTORY/FINGERPRINT/converted.json   what was converted, from where, with what
    DIRECTORY/FINGERPRINT/variables/       the Flax variables, by Orbax
    DIRECTORY/FINGERPRINT/*.pb             graphs, where no Flax module serves

Where one does, neither reading nor applying the network imports TensorFlow any more.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from etils import epath

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.graphs import graph as graph_lib
from rankckpt_jax.checkpoints.graphs.graph_apply import GraphApply, Graphs, Pixels
from rankckpt_jax.devices import processes
from rankckpt_jax.storage import files, store

_log = logging.getLogger(__name__)

_MANIFEST = "converted.json"
_GRAPHS = ("evaluation", "training")
# Between the parts of a variable's path, which may hold any other character.
_SEPARATOR = "\n"


def save(
    directory: epath.Path,
    request: Mapping[str, Any],
    backbone: backbone_lib.Backbone,
    provenance: Mapping[str, Any],
) -> None:
    """Stores a backbone.

    Args:
      directory: Its own; the manifest in it is written last.
      request: JSON-able inputs that decide the conversion.
      backbone: What came of it.
      provenance: JSON-able facts: versions, agreement with the original.
    """
    place = epath.Path(directory)
    (place / _MANIFEST).unlink(missing_ok=True)
    place.mkdir(parents=True, exist_ok=True)
    flat = flax.traverse_util.flatten_dict(backbone.variables)
    order = sorted(flat)
    # As a list: Orbax would take the parts of a path for directories.
    values = [np.asarray(flat[path]) for path in order]
    # What a killed run was writing.
    for left in place.glob("variables.*"):
        left.rmtree()
    variables = place / "variables"
    with files.writing(variables, ValueError, RuntimeError), _checkpointer() as orbax:
        orbax.save(variables.resolve(), values, force=True)
    result: dict[str, Any] = {
        "paths": [_SEPARATOR.join(path) for path in order],
        "shapes": [list(value.shape) for value in values],
        "dtypes": [str(value.dtype) for value in values],
        "files": files.digest_files(variables),
        "backbone": _facts(backbone),
        "provenance": dict(provenance),
    }
    if isinstance(backbone.apply, GraphApply):
        result["graphs"] = _save_graphs(place, backbone.apply.graphs)
    store.save_result(place / _MANIFEST, request, result)


def load(
    directory: epath.Path, request: Mapping[str, Any]
) -> backbone_lib.Backbone | None:
    """Returns the stored backbone for this request, or None where there is none."""
    place = epath.Path(directory)
    entry = store.load_result(place / _MANIFEST, request)
    if entry is None:
        return None
    result = entry.result
    try:
        # Orbax does not tell of all damage, and of some at length.
        if not files.verify_checksums(place / "variables", result["files"]):
            return None
        values = _restore(place / "variables", result)
        graphs = _load_graphs(place, result["graphs"]) if "graphs" in result else None
    except (OSError, ValueError, KeyError) as error:
        text = "%s cannot be read (%s): converting again"
        _log.warning(text, place, files.reason(error))
        return None
    paths = [tuple(path.split(_SEPARATOR)) for path in result["paths"]]
    flat = dict(zip(paths, values, strict=True))
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    variables |= flax.traverse_util.unflatten_dict(flat)
    facts = dict(result["backbone"])
    for field in ("input_range", "input_mean"):
        facts[field] = tuple(facts[field])
    apply: Any = backbone_lib.Apply(facts["architecture"])
    if graphs is not None:
        apply = GraphApply(graphs)
    return backbone_lib.Backbone(variables=variables, apply=apply, **facts)


def _checkpointer() -> Any:
    """Orbax for this process alone: the others may have nothing to read or write."""
    import orbax.checkpoint as ocp

    own = processes.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own,
        active_processes={own},
        barrier_sync_key_prefix=f"converted{own}",
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _facts(backbone: backbone_lib.Backbone) -> dict[str, Any]:
    fields = {field.name for field in dataclasses.fields(backbone)}
    return {
        name: getattr(backbone, name)
        for name in sorted(fields - {"variables", "apply"})
    }


def _restore(place: epath.Path, result: Mapping[str, Any]) -> list[np.ndarray]:
    described = zip(result["shapes"], result["dtypes"], strict=True)
    target = [np.empty(shape, dtype) for shape, dtype in described]
    with _checkpointer() as checkpointer:
        values = checkpointer.restore(place.resolve(), target)
    return jax.tree.map(np.asarray, values)


def _save_graphs(place: epath.Path, graphs: Graphs) -> dict[str, Any]:
    described: dict[str, Any] = {
        "pixels": dataclasses.asdict(graphs.pixels),
        "batch_size": graphs.batch_size,
    }
    for name in _GRAPHS:
        graph = getattr(graphs, name)
        if graph is None:
            continue
        files.write_bytes_atomically(place / f"{name}.pb", graph.definition)
        described[name] = {
            "variables": [[key, list(path)] for key, path in graph.variables],
            "features": graph.features,
            "updates": [[list(path), key] for path, key in graph.updates],
            "digest": graph.digest,
        }
    return described


def _load_graphs(place: epath.Path, described: Mapping[str, Any]) -> Graphs:
    graphs: dict[str, graph_lib.Graph | None] = dict.fromkeys(_GRAPHS)
    for name in _GRAPHS:
        if name not in described:
            continue
        facts = described[name]
        graphs[name] = graph_lib.Graph(
            (place / f"{name}.pb").read_bytes(),
            tuple((key, tuple(path)) for key, path in facts["variables"]),
            facts["features"],
            tuple((tuple(path), key) for path, key in facts["updates"]),
        )
        if graphs[name].digest != facts["digest"]:  # type: ignore[union-attr]
            raise ValueError(f"{name}.pb does not match its checksum")
    pixels: dict[str, Any] = {
        key: value if isinstance(value, bool) else tuple(value)
        for key, value in described["pixels"].items()
    }
    evaluation = graphs["evaluation"]
    assert evaluation is not None
    return Graphs(
        evaluation, graphs["training"], Pixels(**pixels), described["batch_size"]
    )
