"""NeuCRaB as data: 41 checkpoints in three groups, and four tasks.

*Ranking Neural Checkpoints* (Li et al., CVPR 2021) ranks within each group:

    group_i    16 of mixed supervision: generative, self-, semi- and supervised
    group_ii   12 stages of training a ResNet-50 on ImageNet, iNaturalist and Places
    group_iii  13 architectures trained on ImageNet

The 41 entries are 40 files, because iNaturalist's last stage is in Groups I and II.
VTAB's checkpoints are TF-Hub modules, the others TF-Slim checkpoints of the authors'
archive.

The archive's README contradicts itself. It names the Places ResNet-50 of Group I
`model.ckpt-300000`, and gives 200000 as the last step of the same run in Group II. One
of the two may be missing. A missing step is reported with the nearest one, and replaced
only with `config.nearest_step`.

The paper's own accuracies could not be recovered. `published.ACCURACIES` has VTAB's,
which cover fourteen entries of Group I.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Mapping
from typing import Any

ARCHIVE = "http://storage.googleapis.com/gresearch/rank_ckpt/rank_ckpt.zip"
"""The authors' archive; the paths of TF-Slim entries are below `rank_ckpt/` in it."""

HUB = "https://tfhub.dev/vtab"
"""VTAB's modules: TF-Hub's first format, float32 RGB in [0, 1]."""

GROUP_TITLES: Mapping[str, str] = types.MappingProxyType(
    {
        "group_i": "Group I: mixed supervision",
        "group_ii": "Group II: stages of training",
        "group_iii": "Group III: architectures",
    }
)
"""Headings for reports: how the checkpoints of each group differ."""

GROUPS = tuple(GROUP_TITLES)
"""Names of the groups."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One entry of the benchmark.

    Attributes:
      name: Name of its row and directory; the same for both entries of one file.
      group: One of GROUPS.
      source: "hub" or "slim".
      path: A TF-Hub handle, or a prefix below `rank_ckpt/` of ARCHIVE.
      architecture: The network. "resnet_50" is v1 or v2; the file's variable names
        decide which.
      image_size: Side of the input images in pixels.
      input_range: Range of the input pixels; None for the architecture's own, which for
        ResNet v1 is [0, 255] less the mean color.
      pretraining: Images that it was trained on.
      supervision: Labels or pretext task that it was trained with.
      steps: Training steps; None if not published.
      source_accuracy: Top-1 accuracy on ImageNet in percent, from TF-Slim's README for
        its own release of the network. The accuracy of this file is not published.
      note: Sentence for the report; may be empty.
    """

    name: str
    group: str
    source: str
    path: str
    architecture: str
    image_size: int
    input_range: tuple[float, float] | None
    pretraining: str
    supervision: str
    steps: int | None = None
    source_accuracy: float | None = None
    note: str = ""


def _module(
    name: str,
    supervision: str,
    architecture: str = "vtab_resnet_v2_50",
    image_size: int = 224,
) -> Checkpoint:
    return Checkpoint(
        name,
        "group_i",
        "hub",
        f"{HUB}/{name}/1",
        architecture,
        image_size,
        (0.0, 1.0),
        "ImageNet",
        supervision,
        note="VTAB's published runs used 224 pixels" if image_size != 224 else "",
    )


def _stage(data: str, steps: int, group: str, note: str = "") -> Checkpoint:
    names = {"imagenet": "ImageNet", "inat": "iNaturalist", "places": "Places"}
    folder = f"{data}_res50"
    return Checkpoint(
        f"{folder}-{steps}",
        group,
        "slim",
        f"{folder}/model.ckpt-{steps}",
        "resnet_50",
        224,
        None,
        names[data],
        "labels",
        steps,
        note=note,
    )


def _network(
    architecture: str,
    image_size: int = 224,
    steps: int = 300_000,
    source_accuracy: float | None = None,
) -> Checkpoint:
    folder = f"imagenet_{architecture}"
    return Checkpoint(
        f"{folder}-{steps}",
        "group_iii",
        "slim",
        f"{folder}/model.ckpt-{steps}",
        architecture,
        image_size,
        None,
        "ImageNet",
        "labels",
        steps,
        source_accuracy,
    )


_PLACES_NOTE = (
    "the archive's README names both 300000 steps (Group I) and 200000 as the last "
    "(Group II); one of them may not exist"
)
_GENERATIVE = "none: it learned to generate images"
_PRETEXT = "none: a task made of the images themselves"

CHECKPOINTS: tuple[Checkpoint, ...] = (
    _module("wae-ukl", _GENERATIVE, "WAE encoder", 128),
    _module("wae-gan", _GENERATIVE, "WAE encoder", 128),
    _module(
        "cond-biggan",
        "labels, as the condition of generated images",
        "BigGAN discriminator",
        128,
    ),
    _module("wae-mmd", _GENERATIVE, "WAE encoder", 128),
    _module("vae", _GENERATIVE, "VAE encoder", 128),
    _module("uncond-biggan", _GENERATIVE, "BigGAN discriminator", 128),
    _module("jigsaw", _PRETEXT),
    _module("relative-patch-location", _PRETEXT),
    _module("exemplar", _PRETEXT),
    _module("rotation", _PRETEXT),
    _module("semi-rotation-10", "10 % of the labels, and rotation"),
    _module("semi-exemplar-10", "10 % of the labels, and exemplar"),
    _module("sup-100", "labels"),
    _module("sup-exemplar-100", "labels, and exemplar"),
    _stage("inat", 300_000, "group_i"),
    _stage("places", 300_000, "group_i", _PLACES_NOTE),
    *(
        _stage(data, steps, "group_ii")
        for data in ("imagenet", "inat")
        for steps in (90_000, 180_000, 270_000, 300_000)
    ),
    *(
        _stage("places", steps, "group_ii", _PLACES_NOTE if steps == 200_000 else "")
        for steps in (60_000, 120_000, 180_000, 200_000)
    ),
    _network("inception_resnet_v2", 299, 90_000, 80.4),
    _network("inception_v1", source_accuracy=69.8),
    _network("inception_v2", source_accuracy=73.9),
    _network("inception_v3", 299, source_accuracy=78.0),
    _network("inception_v4", 299, source_accuracy=80.2),
    _network("mobilenet_v1", source_accuracy=70.9),
    _network("mobilenet_v1_025"),
    _network("mobilenet_v2"),
    _network("mobilenet_v2_035"),
    _network("mobilenet_v3_small"),
    _network("mobilenet_v3_large"),
    _network("resnet_v1_50", source_accuracy=75.2),
    _network("resnet_v1_101", source_accuracy=76.4),
)
"""All 41 entries, in the paper's order of groups."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A task with VTAB's splits.

    Attributes:
      name: Name in the store and the configs.
      tfds: TFDS name with its version.
      num_classes: Number of classes, C.
      splits: TFDS expressions of train, val and test. Measures use train.
      counts: Number of images of each split.
      few: TFDS expressions of VTAB-1k: 800 training and 200 validation images.
    """

    name: str
    tfds: str
    num_classes: int
    splits: Mapping[str, str]
    counts: Mapping[str, int]
    few: Mapping[str, str]


def _by_role(train: Any, val: Any, test: Any) -> dict[str, Any]:
    return {"train": train, "val": val, "test": test}


_NAMED = _by_role("train", "validation", "test")
_FEW = _by_role("train[:800]", "validation[:200]", "test")

TASKS: Mapping[str, Task] = types.MappingProxyType(
    {
        task.name: task
        for task in (
            # 102 classes with the background.
            Task(
                "caltech",
                "caltech101:3.*.*",
                102,
                _by_role("train[:2754]", "train[2754:]", "test"),
                _by_role(2754, 306, 6084),
                _by_role("train[:800]", "train[2754:2954]", "test"),
            ),
            Task(
                "flowers",
                "oxford_flowers102:2.*.*",
                102,
                _NAMED,
                _by_role(1020, 1020, 6149),
                _FEW,
            ),
            Task(
                "camelyon",
                "patch_camelyon:2.*.*",
                2,
                _NAMED,
                _by_role(262_144, 32_768, 32_768),
                _FEW,
            ),
            # The 800 training images of VTAB-1k hold only 309 of the 397 classes.
            Task(
                "sun",
                "sun397/tfds:4.*.*",
                397,
                _NAMED,
                _by_role(76_128, 10_875, 21_750),
                _FEW,
            ),
        )
    }
)
"""The four tasks, by name."""


def entries(groups: Iterable[str] = GROUPS) -> tuple[Checkpoint, ...]:
    """Return the entries of some groups, in the paper's order.

    Args:
      groups: Some of GROUPS.
    """
    selected = set(groups)
    return tuple(entry for entry in CHECKPOINTS if entry.group in selected)


def title(group: str) -> str:
    """Return the heading of a group of NeuCRaB or of any other group."""
    return GROUP_TITLES.get(group, "All checkpoints" if group == "all" else group)


def groups_of(name: str) -> tuple[str, ...]:
    """Return the groups of the checkpoint `name`; none for other checkpoints."""
    return tuple(entry.group for entry in CHECKPOINTS if entry.name == name)


def facts_of(name: str) -> dict[str, object]:
    """Return published facts about the checkpoint `name`, for measures."""
    for entry in CHECKPOINTS:
        if entry.name == name:
            return {"source_accuracy": entry.source_accuracy}
    return {}
