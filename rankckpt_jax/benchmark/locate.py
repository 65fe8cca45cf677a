"""Finds the files of NeuCRaB's checkpoints, and explains how to get missing ones."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from etils import epath

from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.checkpoints.fetch import download, uris
from rankckpt_jax.checkpoints.sources import hub
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files


@dataclasses.dataclass(frozen=True)
class Locations:
    """Places that are searched for checkpoints.

    Attributes:
      folders: Directories to search first: for `rank_ckpt/...` or its contents, and for
        `vtab/NAME/1`, `vtab/NAME` or `NAME`, unpacked or as `.tar.gz`.
      storage: Downloads, searched last.
    """

    folders: tuple[epath.Path, ...]
    storage: download.Storage

    def find(self, entry: neucrab.Checkpoint) -> str | None:
        """Return the path or handle of an entry on this machine, or None."""
        if entry.source == "slim":
            for folder in self._slim_folders():
                if epath.Path(f"{folder / entry.path}.index").exists():
                    return str(folder / entry.path)
            return None
        for folder in self.folders:
            for pattern in ("vtab/{}/1", "vtab/{}", "{}/1", "{}"):
                path = folder / pattern.format(entry.name)
                if hub.matches(path):
                    return str(path)
                archive = epath.Path(f"{path}.tar.gz")
                if archive.exists():
                    return str(archive)
        return entry.path if uris.is_here(entry.path, self.storage) else None

    def steps(self, entry: neucrab.Checkpoint) -> dict[int, str]:
        """Return the prefixes of all checkpoints of an entry's run, by step."""
        found: dict[int, str] = {}
        if entry.source != "slim":
            return found
        for folder in self._slim_folders():
            run = folder / pathlib.PurePosixPath(entry.path).parent
            for file in files.matching(run, "model.ckpt-*.index"):
                prefix = str(file).removesuffix(".index")
                step = prefix.rpartition("-")[2]
                if step.isdigit():
                    found.setdefault(int(step), prefix)
        return found

    def nearest_step(self, entry: neucrab.Checkpoint) -> tuple[int, str] | None:
        """Return (step, prefix) of the checkpoint nearest to a missing step, if any."""
        steps = self.steps(entry)
        if not steps:
            return None
        step = min(steps, key=lambda n: abs(n - (entry.steps or 0)))
        return step, steps[step]

    def instructions(self, missing: Sequence[neucrab.Checkpoint], total: int) -> str:
        """Return which files to download elsewhere, and where to put each.

        Args:
          missing: Entries that are not on this machine.
          total: Number of entries of the pool.
        """
        lines = [
            f"NeuCRaB: {total - len(missing)} of {total} checkpoints are on this "
            "machine. For the others, on a machine with network access, download"
        ]
        slim = [e for e in missing if e.source == "slim" and not self.steps(e)]
        if slim:
            lines += [
                f"  {neucrab.ARCHIVE}",
                f"    and copy it to {self._destination(neucrab.ARCHIVE)}",
                f"    ({len(slim)} checkpoints: {', '.join(e.name for e in slim)})",
            ]
        for entry in missing:
            if entry.source == "hub":
                lines += [
                    f"  {uris.addresses(entry.path, ())[0]}",
                    f"    and copy it to {self._destination(entry.path)}",
                ]
        lines.append(
            "or name a directory that holds rank_ckpt/ and vtab/NAME/: "
            "--config.checkpoints=DIR"
        )
        for entry in missing:
            if steps := sorted(self.steps(entry)):
                listed = ", ".join(map(str, steps))
                lines.append(f"{entry.path} is missing; its run has steps {listed}")
        return "\n".join(lines)

    def missing(self, entry: neucrab.Checkpoint) -> InputError:
        """Return the error for an entry that is not on this machine."""
        nearest = self.nearest_step(entry)
        if nearest is not None:
            step, prefix = nearest
            note = f"; {entry.note}" if entry.note else ""
            return InputError(
                f"{entry.path} is missing",
                where=str(epath.Path(prefix).parent),
                expected=f"model.ckpt-{entry.steps}{note}",
                found="steps " + ", ".join(map(str, sorted(self.steps(entry)))),
                fix=f"rank step {step} in its place: --config.nearest_step=True",
            )
        url = neucrab.ARCHIVE if entry.source == "slim" else entry.path
        return InputError(
            "The checkpoint is not on this machine, and there is no network",
            where=entry.path,
            fix=f"download {uris.addresses(url, ())[0]} on another machine and copy it "
            f"to {self._destination(url)}",
        )

    def _slim_folders(self) -> list[epath.Path]:
        _, unpacked = uris.destination(neucrab.ARCHIVE, self.storage)
        tops = [*self.folders, epath.Path(unpacked)]
        return [folder for top in tops for folder in (top, top / "rank_ckpt")]

    def _destination(self, url: str) -> pathlib.Path:
        archive, _ = uris.destination(url, self.storage)
        return archive
