"""The pool: which checkpoints a config names, and how to load each of them.

They come from directories and handles (`config.checkpoints`), from a benchmark
(`config.neucrab`, `config.pool`), from random initialization (`config.from_scratch`),
from memory, or as features that were extracted elsewhere (`config.features`).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

from etils import epath

from rankckpt_jax import checkpoints, models
from rankckpt_jax.benchmark import demo, locate, neucrab, standard
from rankckpt_jax.checkpoints import in_memory
from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.checkpoints.fetch import download, uris
from rankckpt_jax.data import targets
from rankckpt_jax.devices import target
from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.features import blocks, precomputed
from rankckpt_jax.storage import files, network

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Member:
    """One checkpoint of the pool.

    Attributes:
      name: Unique in the pool, and the name of its directory in the store.
      load: Returns its `Backbone`.
      spec: The path or handle that `load` reads; empty without one.
      features: Path of its features, if they were extracted elsewhere; then it has no
        backbone to load.
      group: Groups of NeuCRaB that it belongs to, separated by commas.
      facts: Published facts about it, for measures that need no features.
      warning: Sentence for the report; may be empty.
      identity: Digest of what `load` returns, for a checkpoint without a spec.
    """

    name: str
    load: Callable[[], Backbone]
    spec: str = ""
    features: epath.Path | None = None
    group: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warning: str = ""
    identity: str = ""

    def identify(self) -> str:
        """Return a digest that changes with its files; see `checkpoints.identify`.

        It is empty if they are missing.
        """
        if self.features is not None:
            return precomputed.identify(self.features)
        return checkpoints.identify(self.spec) if self.spec else self.identity


def check(config: Any, objects: Sequence[in_memory.Model] = ()) -> None:
    """Raise if there is no pool, or an unknown group or architecture.

    Args:
      config: Fields as in configs/default.py.
      objects: Models in memory that are ranked too.

    Raises:
      InputError: Names the field.
    """
    for group in parse_names(config.neucrab):
        if group not in neucrab.GROUPS:
            raise unknown_name("group", group, neucrab.GROUPS, "config.neucrab")
    for name in parse_names(config.pool):
        if name not in standard.POOLS:
            raise unknown_name("pool", name, standard.POOLS, "config.pool")
    for name in parse_names(config.from_scratch):
        models.get(name)
    named = config.checkpoints or config.neucrab or config.pool or config.features
    if not (named or objects):
        raise InputError(
            "The config names no checkpoints",
            where="config.checkpoints",
            expected="a directory or glob with checkpoints below it, or hub handles",
            found="nothing",
            fix="--config.checkpoints=DIR",
        )


def members(
    config: Any,
    stages: Collection[str] = (),
    objects: Sequence[in_memory.Model] = (),
) -> tuple[Member, ...]:
    """List the checkpoints that a config names, in a fixed order.

    Args:
      config: Fields as in configs/default.py.
      stages: Stages to run. With "pretrain", the pool need not exist yet.
      objects: Models in memory that are ranked too.

    Raises:
      InputError: There is nothing to rank.
    """
    if config.features:
        return tuple(
            _member(name, functools.partial(_no_backbone, path), features=path)
            for name, path in precomputed.find_features(config.features)
        )
    storage = download.storage(config.get("download"))
    load = functools.partial(
        checkpoints.load,
        preferred_image_size=config.image_size,
        use_moving_averages=config.use_moving_averages,
        torch_engine=resolve_engine(config.get("torch_engine", "auto"), stages),
        with_blocks=blocks.parse(config.get("features_from", blocks.LAST))
        != blocks.LAST,
        storage=storage,
        cache=files.to_path(config.workdir) / "converted",
    )
    if config.neucrab:
        folders = tuple(map(files.to_path, uris.split_list(config.checkpoints)))
        where = locate.Locations(folders, storage)
        entries = neucrab.entries(parse_names(config.neucrab))
        found = _benchmark(entries, where, load, config.image_size, config.nearest_step)
    elif config.pool:
        found = standard_members(config, load)
    elif not config.checkpoints and objects:
        found = []
    elif "pretrain" in stages:
        found = _demo(config, load)
    else:
        found = [
            _member(name, _loader(load, name, path), spec=path)
            for name, path in checkpoints.find(config.checkpoints, storage)
        ]
    # Random initializations show beside the others what pre-training contributes.
    controls = [
        Member(
            f"{name}_from_scratch",
            functools.partial(demo.from_scratch, name, config.image_size, config.seed),
            identity=files.digest("random", name, str(config.seed)),
        )
        for name in parse_names(config.from_scratch)
    ]
    return tuple(found + controls + _in_memory(objects, found, config.image_size))


def resolve_engine(setting: str, stages: Collection[str]) -> str:
    """Return what computes PyTorch networks: "jax", or "torch" for PyTorch itself.

    PyTorch cannot fine-tune here, and compiles nothing, which takes longer on a CPU
    than extraction of a few hundred images.

    Args:
      setting: As `config.torch_engine`.
      stages: Stages to run.
    """
    if setting != "auto":
        return setting
    extracts_on_cpu = target.platform() == "cpu" and "finetune" not in stages
    return "torch" if extracts_on_cpu else "jax"


def describe_features(pattern: str) -> tuple[str, str]:
    """Return (task name, origin) for features that were extracted elsewhere.

    Args:
      pattern: As `config.features`.
    """
    found = precomputed.find_features(pattern)
    path = found[0][1]
    # In a store, the task's directory is three levels above `features/SPLIT`.
    folder = path.parent if path.suffix == ".npz" else path.parents[2]
    origin = f"features of {len(found)} checkpoints, extracted elsewhere, from {folder}"
    return folder.resolve().name, origin


def find_target(config: Any) -> str:
    """Return the kind of the labels of `config.features`.

    It is `config.task.target`, or that of the first features if this is "auto".
    """
    given = config.task.get("target", targets.AUTO)
    targets.check(given)
    if given != targets.AUTO:
        return given
    return precomputed.find_target(precomputed.find_features(config.features)[0][1])


def _member(name: str, load: Callable[[], Backbone], **fields: Any) -> Member:
    group = ", ".join(neucrab.groups_of(name))
    return Member(name, load, group=group, facts=neucrab.facts_of(name), **fields)


def standard_members(
    config: Any, load: Callable[..., Backbone] = checkpoints.load
) -> list[Member]:
    """List the networks of `config.pool`.

    A missing file is logged, and becomes a member without a spec that fails to load.

    Args:
      config: Fields as in configs/default.py.
      load: `checkpoints.load` with the config's options.

    Raises:
      InputError: All networks are files, and none is in `config.checkpoints`.
    """
    folders = config.checkpoints
    pools = dict.fromkeys(parse_names(config.pool))
    entries = [entry for pool in pools for entry in standard.checkpoints(pool)]
    places: dict[str, str | None] = {}
    for entry in entries:
        places[entry.name] = entry.load
        if entry.file:
            paths = (epath.Path(f) / entry.file for f in uris.split_list(folders))
            path = next((str(path) for path in paths if path.exists()), None)
            options = entry.load.removeprefix(entry.file)
            places[entry.name] = f"{path}{options}" if path else None
    missing = [entry for entry in entries if places[entry.name] is None]
    if missing:
        text = standard.instructions(missing, folders)
        if len(missing) == len(entries):
            raise InputError(
                "No checkpoint of the pool is on this machine",
                where="config.checkpoints",
                found=folders or "no directory",
                fix=text,
            )
        _log.warning("%d files of the pool are missing; %s", len(missing), text)
    found = []
    for entry in entries:
        place = places[entry.name]
        loader = (
            functools.partial(_raise_missing_file, entry, folders)
            if place is None
            else _loader(load, entry.name, place)
        )
        facts = {"source_accuracy": entry.source_accuracy}
        found.append(
            Member(entry.name, loader, place or "", group=entry.pool, facts=facts)
        )
    return found


def _raise_missing_file(entry: standard.Checkpoint, folders: str) -> NoReturn:
    raise InputError(
        "The checkpoint is not on this machine",
        where=entry.file,
        found=f"no such file in {folders}",
        fix=standard.instructions([entry], folders),
    )


def _in_memory(
    objects: Sequence[in_memory.Model], others: Sequence[Member], image_size: int
) -> list[Member]:
    """List models in memory, with names that no other checkpoint has."""
    taken = {member.name.casefold() for member in others}
    found = []
    for model in objects:
        name = own = files.directory_name(model.name, "model")
        count = 1
        while name.casefold() in taken:
            count += 1
            name = f"{own}~{count}"
        taken.add(name.casefold())
        load = functools.partial(model.load, image_size)
        found.append(Member(name, load, identity=model.identity))
    return found


def _loader(
    load: Callable[..., Backbone], name: str, path: str
) -> Callable[[], Backbone]:
    return functools.partial(load, path, name=name)


def _demo(config: Any, load: Callable[..., Backbone]) -> list[Member]:
    """List the checkpoints of the demo, which need not exist yet."""
    directory = files.to_path(config.checkpoints)
    load = functools.partial(_load_trained_at, config.image_size, load)
    found = []
    for made in demo.checkpoints(config.pretrain):
        path, group = demo.path(directory, made), ", ".join(made.groups)
        found.append(
            Member(made.name, _loader(load, made.name, path), path, group=group)
        )
    return found


def _load_trained_at(
    image_size: int, load: Callable[..., Backbone], path: str, name: str
) -> Backbone:
    """Load a checkpoint of the demo, whose files do not state its image size."""
    backbone = load(path, name=name)
    own_size = image_size or backbone.own_image_size
    return dataclasses.replace(backbone, own_image_size=own_size)


def _no_backbone(path: epath.Path) -> NoReturn:
    raise AssertionError(f"{path} holds features, not a checkpoint")


def _benchmark(
    entries: Sequence[neucrab.Checkpoint],
    where: locate.Locations,
    load: Callable[..., Backbone],
    image_size: int,
    nearest_step: bool,
) -> list[Member]:
    """List NeuCRaB's checkpoints, each file once.

    Missing files that cannot be downloaded are logged together, with instructions.
    Each becomes a member that fails to load.
    """
    entries = list({entry.name: entry for entry in entries}.values())
    missing = [entry for entry in entries if where.find(entry) is None]
    mirrors = bool(where.storage.mirrors)
    online = bool(missing) and (mirrors or network.reachable(neucrab.ARCHIVE))
    archive, _ = uris.destination(neucrab.ARCHIVE, where.storage)
    if any(e.source == "slim" for e in missing) and (online or archive.exists()):
        # One archive holds all of them. It must be unpacked to see which steps it has.
        try:
            uris.resolve(f"{neucrab.ARCHIVE}{uris.INNER}.", where.storage)
        except InputError as error:
            _log.warning("%s", error)
        missing = [entry for entry in entries if where.find(entry) is None]
    if online:
        # Modules are downloaded when they are loaded.
        missing = [entry for entry in missing if entry.source == "slim"]
    if missing:
        text = where.instructions(missing, len(entries))
        if len(missing) == len(entries) and not any(map(where.steps, missing)):
            raise InputError(
                "No checkpoint of NeuCRaB is on this machine or can be downloaded",
                where="config.neucrab",
                fix=text,
            )
        _log.warning("%s", text)
    names = {entry.name for entry in entries}
    found = []
    for entry in entries:
        name, warning = entry.name, entry.note
        path = where.find(entry)
        if path is None and entry.source == "hub" and online:
            path = entry.path
        if path is None and nearest_step and (nearest := where.nearest_step(entry)):
            other = re.sub(r"\d+$", str(nearest[0]), entry.name)
            # A step that is ranked anyway replaces nothing.
            if other not in names:
                name, path = other, nearest[1]
                warning = f"ranked in place of {entry.path}, which is missing"
        loader: Callable[[], Backbone]
        if path is None:
            loader = functools.partial(_raise_missing, where, entry)
        else:
            if entry.source == "hub" and not image_size:
                path = f"{path}#image_size={entry.image_size}"
            loader = _loader(load, name, path)
        group = ", ".join(neucrab.groups_of(entry.name))
        facts = neucrab.facts_of(entry.name)
        found.append(Member(name, loader, path or "", None, group, facts, warning))
    return found


def _raise_missing(where: locate.Locations, entry: neucrab.Checkpoint) -> NoReturn:
    raise where.missing(entry)


def parse_names(text: str) -> list[str]:
    """Parse names that are separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
