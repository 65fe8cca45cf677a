"""The pool: which checkpoints a config names, and how each is read.

They come from directories and handles (`config.checkpoints`), from the benchmark
(`config.neucrab`) and from random initialization (`config.from_scratch`).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from rankckpt_jax import checkpoints, models
from rankckpt_jax.benchmark import demo as pretrain
from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.fetch import download
from rankckpt_jax.checkpoints.fetch import uris as handles
from rankckpt_jax.checkpoints.sources import hub
from rankckpt_jax.errors import InputError, suggest

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Member:
    """One checkpoint of the pool.

    Attributes:
      name: Unique in the pool, and a directory's name.
      load: Reads, or makes, it.
      group: The sets that it belongs to, with commas between.
      facts: What is known of it beyond its weights, for measures.
      warning: What a reader should know of it; may be empty.
    """

    name: str
    load: Callable[[], backbone_lib.Backbone]
    group: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warning: str = ""


def members(config: Any) -> list[Member]:
    """Everything that a config asks to be ranked.

    Args:
      config: As `configs/default.py` describes.

    Raises:
      InputError: There is nothing to rank.
    """
    found = _benchmark(config) if config.neucrab else _found(config)
    return found + _controls(config)


def check(config: Any) -> None:
    """Refuses what would only fail after other work.

    Raises:
      InputError: No pool is named, or a group or architecture is unknown.
    """
    unknown = [name for name in _names(config.neucrab) if name not in neucrab.GROUPS]
    if unknown:
        raise InputError(
            "Unknown group of NeuCRaB",
            where="config.neucrab",
            expected="some of " + ", ".join(neucrab.GROUPS) + ", separated by commas",
            found=", ".join(unknown),
            fix=suggest(unknown[0], neucrab.GROUPS),
        )
    for name in _names(config.from_scratch):
        models.get(name)
    if not (config.checkpoints or config.neucrab):
        raise InputError(
            "The config names no checkpoints",
            where="config.checkpoints",
            expected="a directory or glob with checkpoints below it, or hub handles",
            found="nothing",
            fix="--config.checkpoints=DIR",
        )


def storage(config: Any) -> download.Storage:
    """Where a config has downloads kept."""
    return download.storage(config.get("download"))


def _found(config: Any) -> list[Member]:
    return [
        Member(
            name,
            functools.partial(_load, config, name, path),
            ", ".join(neucrab.groups_of(name)),
            neucrab.facts_of(name),
        )
        for name, path in checkpoints.find(config.checkpoints, storage(config))
    ]


def _load(config: Any, name: str, path: str) -> backbone_lib.Backbone:
    return checkpoints.load(
        path,
        name=name,
        image_size=config.image_size,
        use_moving_averages=config.use_moving_averages,
        storage=storage(config),
        cache=epath.Path(config.workdir).expanduser() / "converted",
    )


def _controls(config: Any) -> list[Member]:
    """Random initializations: what pre-training is worth shows beside them."""
    return [
        Member(
            f"{name}_from_scratch",
            functools.partial(
                pretrain.from_scratch, name, config.image_size, config.seed
            ),
        )
        for name in _names(config.from_scratch)
    ]


def _benchmark(config: Any) -> list[Member]:
    """NeuCRaB's checkpoints of the groups asked for, each file once.

    What is neither here nor can be downloaded is listed once, with the place to put
    it, and becomes a row that fails; the others go on.
    """
    entries = {e.name: e for e in neucrab.entries(_names(config.neucrab))}
    kept = storage(config)
    folders = [epath.Path(f).expanduser() for f in _names(config.checkpoints)]

    def absent() -> list[neucrab.Checkpoint]:
        return [e for e in entries.values() if locate(e, folders, kept) is None]

    missing = absent()
    reachable = bool(missing) and (
        bool(kept.mirrors) or download.reachable(neucrab.ARCHIVE)
    )
    archive, _ = handles.destination(neucrab.ARCHIVE, kept)
    if any(e.source == "slim" for e in missing) and (reachable or archive.exists()):
        # One archive has them all; which steps it has is known once it is unpacked.
        try:
            handles.resolve(f"{neucrab.ARCHIVE}{handles.INNER}.", kept)
        except InputError as error:
            _log.warning("%s", error)
        missing = absent()
    if reachable:
        missing = [e for e in missing if e.source == "slim"]
    if missing:
        told = listing(missing, len(entries), folders, kept)
        nearby = any(_steps(entry, folders, kept) for entry in missing)
        if len(missing) == len(entries) and not nearby:
            raise InputError(
                "None of NeuCRaB's checkpoints is here or can be downloaded",
                where="config.neucrab",
                fix=told,
            )
        _log.warning("%s", told)
    return [
        _entry_member(config, entry, entries.keys(), folders, kept, reachable)
        for entry in entries.values()
    ]


def _entry_member(
    config: Any,
    entry: neucrab.Checkpoint,
    names: Iterable[str],
    folders: Sequence[epath.Path],
    kept: download.Storage,
    reachable: bool,
) -> Member:
    """The member of one entry: from where it is, or one that fails and says why."""
    name, warning = entry.name, entry.note
    place = locate(entry, folders, kept)
    if place is None and entry.source == "hub" and reachable:
        place = entry.path
    nearest = None if place else _nearest(entry, folders, kept)
    if nearest is not None and config.nearest_step:
        other = re.sub(r"\d+$", str(nearest[1]), entry.name)
        # One that is ranked anyway stands in for nothing.
        if other not in names:
            name, place = other, nearest[0]
            warning = f"ranked in place of {entry.path}, which is not there"
    load: Callable[[], backbone_lib.Backbone]
    if place is None:
        load = functools.partial(_missing, entry, folders, kept)
    else:
        if entry.source == "hub" and not config.image_size:
            place = f"{place}#image_size={entry.image_size}"
        load = functools.partial(_load, config, name, place)
    group = ", ".join(neucrab.groups_of(entry.name))
    return Member(name, load, group, neucrab.facts_of(entry.name), warning)


def locate(
    entry: neucrab.Checkpoint, folders: Sequence[epath.Path], kept: download.Storage
) -> str | None:
    """Where an entry's file is on this machine; None where it is not.

    Args:
      entry: Of the benchmark.
      folders: Directories to look in: for `rank_ckpt/...` or what is below it, and for
        `vtab/NAME/1`, `vtab/NAME` or `NAME`, unpacked or as `.tar.gz`.
      kept: Downloads, looked in last.
    """
    if entry.source == "slim":
        for folder in _slim_folders(folders, kept):
            if epath.Path(f"{folder / entry.path}.index").exists():
                return str(folder / entry.path)
        return None
    for folder in folders:
        for shape in ("vtab/{}/1", "vtab/{}", "{}/1", "{}"):
            place = folder / shape.format(entry.name)
            if hub.matches(place):
                return str(place)
            packed = epath.Path(f"{place}.tar.gz")
            if packed.exists():
                return str(packed)
    if handles.is_here(entry.path, kept):
        return entry.path
    return None


def listing(
    missing: Sequence[neucrab.Checkpoint],
    total: int,
    folders: Sequence[epath.Path],
    kept: download.Storage,
) -> str:
    """Says which files to fetch elsewhere, and where to put each.

    Args:
      missing: The entries that are not here.
      total: How many were asked for.
      folders: As for `locate`.
      kept: Where downloads are kept.
    """
    lines = [
        f"NeuCRaB: {total - len(missing)} of {total} checkpoints are here. For the "
        "others, on a machine with network, download"
    ]
    slim = [e for e in missing if e.source == "slim" and not _steps(e, folders, kept)]
    if slim:
        archive, _ = handles.destination(neucrab.ARCHIVE, kept)
        lines += [
            f"  {neucrab.ARCHIVE}",
            f"    and put it here as {archive}",
            f"    ({len(slim)} checkpoints: {', '.join(e.name for e in slim)})",
        ]
    for entry in missing:
        if entry.source == "hub":
            archive, _ = handles.destination(entry.path, kept)
            url = handles.addresses(entry.path, ())[0]
            lines += [f"  {url}", f"    and put it here as {archive}"]
    lines.append(
        "or name a directory that holds rank_ckpt/ and vtab/NAME/: "
        "--config.checkpoints=DIR"
    )
    for entry in missing:
        if steps := sorted(_steps(entry, folders, kept)):
            shown = ", ".join(map(str, steps))
            lines.append(f"{entry.path} is not there; its run has the steps {shown}")
    return "\n".join(lines)


def _slim_folders(
    folders: Sequence[epath.Path], kept: download.Storage
) -> list[epath.Path]:
    _, unpacked = handles.destination(neucrab.ARCHIVE, kept)
    tops = [*folders, epath.Path(unpacked)]
    return [folder for top in tops for folder in (top, top / "rank_ckpt")]


def _nearest(
    entry: neucrab.Checkpoint, folders: Sequence[epath.Path], kept: download.Storage
) -> tuple[str, int] | None:
    """(prefix, steps) of the run's other checkpoint that is nearest, if any."""
    if entry.source != "slim":
        return None
    there = _steps(entry, folders, kept)
    if not there:
        return None
    steps = min(there, key=lambda n: abs(n - (entry.steps or 0)))
    return there[steps], steps


def _steps(
    entry: neucrab.Checkpoint, folders: Sequence[epath.Path], kept: download.Storage
) -> dict[int, str]:
    """Prefixes of the checkpoints that the entry's run has, by their steps."""
    found: dict[int, str] = {}
    for folder in _slim_folders(folders, kept):
        run = folder / pathlib.PurePosixPath(entry.path).parent
        for file in run.glob("model.ckpt-*.index") if run.is_dir() else ():
            prefix = str(file).removesuffix(".index")
            steps = prefix.rpartition("-")[2]
            if steps.isdigit():
                found.setdefault(int(steps), prefix)
    return found


def _missing(
    entry: neucrab.Checkpoint, folders: Sequence[epath.Path], kept: download.Storage
) -> backbone_lib.Backbone:
    """Fails with what is there instead, and what to do."""
    steps = sorted(_steps(entry, folders, kept))
    nearest = _nearest(entry, folders, kept)
    if nearest is not None:
        raise InputError(
            f"{entry.path} is not there",
            where=str(epath.Path(nearest[0]).parent),
            expected=f"model.ckpt-{entry.steps}"
            + (f"; {entry.note}" if entry.note else ""),
            found="the steps " + ", ".join(map(str, steps)),
            fix=f"--config.nearest_step=True ranks {nearest[1]} in its place, "
            "and says so",
        )
    address = neucrab.ARCHIVE if entry.source == "slim" else entry.path
    archive, _ = handles.destination(address, kept)
    raise InputError(
        "Not on this machine, and there is no network",
        where=entry.path,
        fix=f"download {handles.addresses(address, ())[0]} elsewhere and put it here "
        f"as {archive}",
    )


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]
