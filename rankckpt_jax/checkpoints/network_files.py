"""A backbone without its weights as plain data, to be stored beside them.

A network of `models` is rebuilt from its name. A converted graph is stored itself. A
PyTorch network is built again by the library that it is from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.graphs import pure_graph
from rankckpt_jax.checkpoints.graphs.graph_apply import GraphApply, Graphs
from rankckpt_jax.checkpoints.pixels import Pixels
from rankckpt_jax.checkpoints.torch_modules import skeletons
from rankckpt_jax.checkpoints.torch_modules import spec as spec_lib
from rankckpt_jax.checkpoints.torch_modules.apply import TorchApply
from rankckpt_jax.checkpoints.torch_modules.points import Point
from rankckpt_jax.checkpoints.torch_modules.spec import ModuleSpec
from rankckpt_jax.errors import InputError

_GRAPHS = ("evaluation", "training")
_TORCH_LIBRARIES = ("timm", "torchvision")
# Arguments that would load files or download weights.
_LOADING = {
    *("checkpoint_path", "features_only", "pretrained", "pretrained_cfg"),
    *("pretrained_cfg_overlay", "weights", "weights_backbone"),
}


def check(apply: Any, where: str) -> None:
    """Raise unless a network can be built again without the process that made it.

    Args:
      apply: The forward function of a `Backbone`.
      where: The network, for the message.

    Raises:
      InputError: It is a module in memory, or PyTorch itself computes it.
    """
    if isinstance(apply, backbone_lib.Apply | GraphApply):
        return
    if isinstance(apply, TorchApply) and apply.spec.library in _TORCH_LIBRARIES:
        return
    raise InputError(
        "The weights of this network cannot be kept, because its code exists only in "
        "the process that made it",
        where=where,
        expected="a checkpoint in a file, a Keras model, timm:NAME or torchvision:NAME",
        found=f"a network of {type(apply).__name__}",
        fix="save the weights as FILE.pth and name the network: FILE.pth#model=NAME, "
        "or leave config.finetune.keep empty",
    )


def describe(
    backbone: backbone_lib.Backbone,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return (JSON-able description, contents of further files by name).

    Args:
      backbone: Any for which `check` passes.
    """
    attributes = {
        field.name: getattr(backbone, field.name)
        for field in dataclasses.fields(backbone)
        if field.name not in ("variables", "apply")
    }
    described: dict[str, Any] = {"backbone": attributes}
    definitions: dict[str, bytes] = {}
    if isinstance(backbone.apply, GraphApply):
        described["graphs"], definitions = _describe_graphs(backbone.apply.graphs)
    elif isinstance(backbone.apply, TorchApply):
        names = ("spec", "point", "constants", "pixels", "block_names")
        fields = dataclasses.asdict(backbone.apply)
        described["torch"] = {name: fields[name] for name in names}
    return described, definitions


def rebuild(
    place: epath.Path, described: Mapping[str, Any], variables: Mapping[str, Any]
) -> backbone_lib.Backbone:
    """Return the backbone of a description and its weights.

    Args:
      place: Directory of the further files.
      described: What `describe` returned, from JSON.
      variables: The weights.

    Raises:
      InputError: The library of a PyTorch network is missing, or builds another one.
    """
    attributes = _tuples(described["backbone"])
    apply: Any = backbone_lib.Apply(attributes["architecture"])
    if "graphs" in described:
        apply = GraphApply(_load_graphs(epath.Path(place), described["graphs"]))
    elif "torch" in described:
        apply = _load_torch(_tuples(described["torch"]), str(place))
    return backbone_lib.Backbone(
        variables={"params": {}, "batch_stats": {}, **variables},
        apply=apply,
        **attributes,
    )


def _describe_graphs(graphs: Graphs) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return (JSON-able description, contents of the .pb files by name)."""
    described = dataclasses.asdict(graphs)
    definitions = {
        f"{name}.pb": described[name].pop("definition")
        for name in _GRAPHS
        if described[name] is not None
    }
    return described, definitions


def _load_graphs(place: epath.Path, described: Mapping[str, Any]) -> Graphs:
    def load_graph(name: str) -> pure_graph.PureGraph:
        definition = (place / f"{name}.pb").read_bytes()
        return pure_graph.PureGraph(definition, **_tuples(described[name]))

    return Graphs(
        load_graph("evaluation"),
        load_graph("training") if described.get("training") else None,
        Pixels(**_tuples(described["pixels"])),
        described["batch_size"],
    )


def _load_torch(described: Mapping[str, Any], where: str) -> TorchApply:
    spec = ModuleSpec(**described["spec"])
    arguments = dict(spec.arguments)
    is_loading = ":" in spec.name or _LOADING & arguments.keys()
    if spec.library not in _TORCH_LIBRARIES or is_loading:
        raise InputError(
            "The description of a PyTorch network cannot be used",
            where=where,
            expected="a network of timm or torchvision, without files of its own",
            found=f"{spec.library}:{spec.name}, arguments {', '.join(arguments)}",
        )
    constants = skeletons.register(spec, spec_lib.build(spec).eval())
    if constants != described["constants"]:
        library = spec_lib.import_library(spec.library)
        raise InputError(
            f"{spec.library} {library.__version__} builds another {spec.name} than the "
            "version that the weights were kept with",
            where=where,
            expected="the same constants, such as tables of positions",
            found="others",
            fix=f"install the version of {spec.library} that model.json names",
        )
    return TorchApply(
        spec,
        Point(**described["point"]),
        constants,
        Pixels(**described["pixels"]),
        block_names=described["block_names"],
    )


def _tuples(value: Any) -> Any:
    """Return a JSON value with tuples instead of lists."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
