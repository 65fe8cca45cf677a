"""Pools of public networks with published accuracies, as data.

    sfda_group1   11 supervised CNNs of torchvision, fine-tuned on 11 data sets by
                  *Not All Models Are Equal* (Shao et al., ECCV 2022)
    sfda_group2   12 self-supervised ResNet-50s, by the same authors
    keras19       19 networks of keras.applications, fine-tuned on 9 data sets by *How
                  stable are Transferability Metrics evaluations?* (Agostinelli et al.,
                  ECCV 2022)
    hf            43 models of the Hugging Face hub, fine-tuned on the 4 data sets of
                  NeuCRaB by Li et al. (TransferGraph, 2024)

Each pool is a CSV file beside this module. A line has a network, what to load, where
its weights are published, its top-1 accuracy on ImageNet in percent, the source of the
accuracies, and its accuracy after fine-tuning on each data set as a fraction. An empty
cell means that none is published. docs/pools.md has the caveats.

The accuracy on ImageNet is in the meta data of torchvision's weights. The other pools
have none.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import pathlib
import types
from collections.abc import Iterable, Mapping

from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.storage import files

# Columns that are no data sets.
_FACTS = ("checkpoint", "load", "weights", "source_accuracy", "source")


@dataclasses.dataclass(frozen=True)
class Pool:
    """A pool.

    Attributes:
      title: Heading for reports.
      family: Start of the names of its tasks, which pools of the same data sets share.
      image_size: Side of the images of the published results; 0 for each network's own.
      default: The task that its config takes by default.
    """

    title: str
    family: str
    image_size: int
    default: str


POOLS: Mapping[str, Pool] = types.MappingProxyType(
    {
        "sfda_group1": Pool("SFDA, group 1: supervised CNNs", "sfda", 224, "pets"),
        "sfda_group2": Pool(
            "SFDA, group 2: self-supervised ResNet-50s", "sfda", 224, "pets"
        ),
        "keras19": Pool(
            "stable_transfer: Keras applications", "keras19", 224, "oxford_iiit_pet"
        ),
        "hf": Pool("Hugging Face: image models", "hf", 0, "caltech101"),
    }
)
"""The pools by name."""

GROUP_TITLES: Mapping[str, str] = types.MappingProxyType(
    {name: pool.title for name, pool in POOLS.items()}
)
"""Headings for reports."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A network of a pool.

    Attributes:
      name: Name of its row and directory.
      pool: Name of its pool.
      load: What `checkpoints.load` reads. A file name is below `config.checkpoints`.
      weights: Where its weights are published.
      source_accuracy: Top-1 accuracy on ImageNet in percent; None if not published.
      source: Repository, commit and file of its accuracies.
      accuracies: Accuracy after fine-tuning by task, in [0, 1].
    """

    name: str
    pool: str
    load: str
    weights: str
    source_accuracy: float | None
    source: str
    accuracies: Mapping[str, float]

    @property
    def file(self) -> str:
        """Name of the local file that holds it; empty for a network with a scheme."""
        place = self.load.partition("#")[0]
        return "" if ":" in place else place


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set.

    Attributes:
      tfds: TFDS name with its version; empty if TFDS does not have it for
        classification.
      splits: TFDS expressions of train, val and test. Measures use train.
    """

    tfds: str
    splits: Mapping[str, str]


def _task(tfds: str, train: str = "train", val: str = "", test: str = "test") -> Task:
    return Task(tfds, {"train": train, "val": val, "test": test})


def _few(tfds: str) -> Task:
    return _task(tfds, "train[:800]", "train[800:1000]")


_BOTH = "train+validation"
_ABSENT = Task("", {"train": "train", "val": "", "test": "test"})

TASKS: Mapping[str, Mapping[str, Task]] = types.MappingProxyType(
    {
        # Scored and trained on train and validation here; see docs/pools.md.
        "sfda": {
            "aircraft": _ABSENT,
            "caltech101": _task("caltech101:3.*.*"),
            "cars": _task("cars196:2.*.*"),
            "cifar10": _task("cifar10:3.*.*"),
            "cifar100": _task("cifar100:3.*.*"),
            "dtd": _task("dtd:3.*.*", _BOTH),
            "flowers": _task("oxford_flowers102:2.*.*", _BOTH),
            "food": _task("food101:2.*.*", test="validation"),
            "pets": _task("oxford_iiit_pet:4.*.*"),
            "sun397": _task("sun397/tfds:4.*.*"),
            "voc2007": _ABSENT,
        },
        "keras19": {
            "caltech_birds2011": _task("caltech_birds2011:0.*.*"),
            "cifar10": _task("cifar10:3.*.*"),
            "cifar100": _task("cifar100:3.*.*"),
            "dtd": _task("dtd:3.*.*"),
            "imagenette": _task("imagenette/full-size-v2:1.*.*", test="validation"),
            "oxford_flowers102": _task("oxford_flowers102:2.*.*"),
            "oxford_iiit_pet": _task("oxford_iiit_pet:4.*.*"),
            "stanford_dogs": _task("stanford_dogs:0.*.*"),
            "sun397": _task("sun397/tfds:4.*.*"),
        },
        # Trained on 800 images.
        "hf": {
            "caltech101": _few("caltech101:3.*.*"),
            "flowers102": _few("oxford_flowers102:2.*.*"),
            "camelyon": _few("patch_camelyon:2.*.*"),
            "sun397": _few("sun397/tfds:4.*.*"),
        },
    }
)
"""The data sets by family and name. A run's task is named FAMILY_NAME."""


@functools.cache
def checkpoints(pool: str) -> tuple[Checkpoint, ...]:
    """Return the networks of a pool, sorted by name.

    Args:
      pool: A key of POOLS.
    """
    family = POOLS[pool].family
    path = pathlib.Path(__file__).with_name(f"{pool}.csv")
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return tuple(
        Checkpoint(
            files.directory_name(line["checkpoint"]),
            pool,
            line["load"],
            line["weights"],
            float(line["source_accuracy"]) if line["source_accuracy"] else None,
            line["source"],
            {
                f"{family}_{column}": float(cell)
                for column, cell in line.items()
                if column not in _FACTS and cell
            },
        )
        for line in lines
    )


def accuracies(task: str) -> tuple[dict[str, float], str]:
    """Return the published accuracies of a run's task, and their sources.

    Args:
      task: Name of the task, such as "sfda_pets".

    Returns:
      (accuracy in [0, 1] by checkpoint, sources); ({}, "") for another task.
    """
    found = [
        entry
        for pool in POOLS
        for entry in checkpoints(pool)
        if task in entry.accuracies
    ]
    sources = dict.fromkeys(entry.source for entry in found)
    return {entry.name: entry.accuracies[task] for entry in found}, ", ".join(sources)


def parse(argument: str, where: str) -> tuple[list[str], str]:
    """Return the pools and the data set that a config's argument names.

    Args:
      argument: Pools and at most one data set, separated by commas, such as
        "sfda_group1,pets".
      where: The config, for messages.

    Raises:
      InputError: A name is unknown, or the pools have no data set in common.
    """
    names = [name.strip() for name in argument.split(",") if name.strip()]
    pools = [name for name in names if name in POOLS]
    others = [name for name in names if name not in POOLS]
    families = {POOLS[name].family for name in pools}
    if len(families) != 1 or len(others) > 1:
        raise InputError(
            "These pools and data sets cannot be ranked together",
            where=where,
            expected="one of " + ", ".join(POOLS) + ", and at most one data set",
            found=argument or "nothing",
            fix="for example sfda_group1,pets; sfda_group1 and sfda_group2 can be "
            "ranked together",
        )
    known = TASKS[families.pop()]
    task = others[0] if others else POOLS[pools[0]].default
    if task not in known:
        raise unknown_name("data set", task, [*known, *POOLS], where)
    return pools, task


def instructions(missing: Iterable[Checkpoint], folders: str) -> str:
    """Return which files to put where, for networks that are not in any hub.

    Args:
      missing: Networks whose files were not found.
      folders: The directories that were searched, as in `config.checkpoints`.
    """
    lines = [f"  {entry.file}: weights of {entry.weights}" for entry in missing]
    return "\n".join(
        [
            f"put these state dicts of PyTorch into {folders or 'a directory'}"
            + ("" if folders else " and name it: --config.checkpoints=DIR"),
            *lines,
            "The script download_and_prepare_models.py of linusericsson/ssl-transfer "
            "writes them in this form, and its readme.md explains SimCLR's",
        ]
    )
