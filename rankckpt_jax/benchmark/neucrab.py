"""NeuCRaB as data: 41 checkpoints in three groups, four tasks, published accuracies.

*Ranking Neural Checkpoints* (Li et al., CVPR 2021) ranks within each group:

    group_i    16 of mixed supervision: generative, self-, semi- and supervised
    group_ii   12 stages of training a ResNet-50 on ImageNet, iNaturalist and Places
    group_iii  13 architectures trained on ImageNet

The 41 entries are 40 files: iNaturalist's last stage stands in Groups I and II. Those
of VTAB are TF-Hub modules, the others TF-Slim checkpoints of the authors' archive.

Two things in the archive's README do not fit together. It names the Places ResNet-50
of Group I `model.ckpt-300000`, and gives 200000 as the last step of the same run in
Group II. One of the two may not be in the archive: which steps there are is looked up,
and a missing one is reported with the nearest, never replaced without being asked.

What the paper's text leaves open is not invented here: its own accuracies could not be
recovered, and `PUBLISHED` has VTAB's, which cover fourteen entries of Group I.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Mapping

from rankckpt_jax.results.formatting import printable

ARCHIVE = "http://storage.googleapis.com/gresearch/rank_ckpt/rank_ckpt.zip"
"""The authors' archive; the paths of TF-Slim entries are below `rank_ckpt/` in it."""

HUB = "https://tfhub.dev/vtab"
"""VTAB's modules: TF-Hub's first format, float32 RGB in [0, 1]."""

GROUPS: Mapping[str, str] = types.MappingProxyType(
    {
        "group_i": "mixed supervision",
        "group_ii": "stages of training",
        "group_iii": "architectures",
    }
)
"""What the checkpoints of each group differ in."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One entry of the benchmark.

    Attributes:
      name: How rows and directories call it; the same for both entries of one file.
      label: How the paper calls it.
      group: A key of GROUPS.
      source: "hub" or "slim".
      path: A TF-Hub handle, or a prefix below `rank_ckpt/` of ARCHIVE.
      architecture: The network. "resnet_50" is v1 or v2: the file's variable names
        decide, since nothing published says which.
      image_size: Side of the images it is fed, in pixels.
      input_range: What 0 and 255 become; None for the architecture's own, which for
        ResNet v1 is [0, 255] less the mean color.
      pretraining: The images it was trained on.
      supervision: What it was trained to tell.
      steps: Of its training; None where it is not published.
      source_accuracy: Top-1 on ImageNet, in per cent, as TF-Slim's README gives it for
        its own release of the network; that of this very file is not published.
      note: What a reader should know; may be empty.
    """

    name: str
    label: str
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
    label: str,
    supervision: str,
    architecture: str = "vtab_resnet_v2_50",
    image_size: int = 224,
) -> Checkpoint:
    return Checkpoint(
        name,
        label,
        "group_i",
        "hub",
        f"{HUB}/{name}/1",
        architecture,
        image_size,
        (0.0, 1.0),
        "ImageNet",
        supervision,
        note="VTAB's published runs fed it 224 pixels" if image_size != 224 else "",
    )


def _stage(data: str, steps: int, group: str, note: str = "") -> Checkpoint:
    folder, label, pretraining = {
        "imagenet": ("imagenet_res50", "Img", "ImageNet"),
        "inat": ("inat_res50", "Inat", "iNaturalist"),
        "places": ("places_res50", "Pla", "Places"),
    }[data]
    return Checkpoint(
        f"{folder}-{steps}",
        f"Sup-100%-{label}" if group == "group_i" else f"{label}-{steps // 1000}k",
        group,
        "slim",
        f"{folder}/model.ckpt-{steps}",
        "resnet_50",
        224,
        None,
        pretraining,
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
        architecture,
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
_GENERATIVE = "none: it learnt to generate images"
_PRETEXT = "none: a task made of the images themselves"

CHECKPOINTS: tuple[Checkpoint, ...] = (
    _module("wae-ukl", "WAE-UKL", _GENERATIVE, "WAE encoder", 128),
    _module("wae-gan", "WAE-GAN", _GENERATIVE, "WAE encoder", 128),
    _module(
        "cond-biggan",
        "Cond-BigGAN",
        "labels, as the condition of generated images",
        "BigGAN discriminator",
        128,
    ),
    _module("wae-mmd", "WAE-MMD", _GENERATIVE, "WAE encoder", 128),
    _module("vae", "VAE", _GENERATIVE, "VAE encoder", 128),
    _module("uncond-biggan", "Uncond-BigGAN", _GENERATIVE, "BigGAN discriminator", 128),
    _module("jigsaw", "Jigsaw", _PRETEXT),
    _module("relative-patch-location", "Rel.Pat.Loc", _PRETEXT),
    _module("exemplar", "Exemplar", _PRETEXT),
    _module("rotation", "Rotation", _PRETEXT),
    _module(
        "semi-rotation-10", "Semi-Rotation-10%", "10 % of the labels, and rotation"
    ),
    _module(
        "semi-exemplar-10", "Semi-Exemplar-10%", "10 % of the labels, and exemplar"
    ),
    _module("sup-100", "Sup-100%", "labels"),
    _module("sup-exemplar-100", "Sup-Exemplar-100%", "labels, and exemplar"),
    _stage("inat", 300_000, "group_i"),
    _stage("places", 300_000, "group_i", _PLACES_NOTE),
    *(
        _stage("imagenet", steps, "group_ii")
        for steps in (90_000, 180_000, 270_000, 300_000)
    ),
    *(
        _stage("inat", steps, "group_ii")
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
      name: How the store and the configs call it.
      title: How the paper calls it.
      tfds: The TFDS name with its version.
      num_classes: C.
      splits: TFDS expressions of train, val and test. A ranking sees train.
      counts: Images of each split.
      few: The expressions of VTAB-1k: 800 training and 200 validation images.
      note: What a reader should know; may be empty.
    """

    name: str
    title: str
    tfds: str
    num_classes: int
    splits: Mapping[str, str]
    counts: Mapping[str, int]
    few: Mapping[str, str]
    note: str = ""


def _task(
    name: str,
    title: str,
    tfds: str,
    num_classes: int,
    splits: tuple[str, str, str],
    counts: tuple[int, int, int],
    few: tuple[str, str],
    note: str = "",
) -> Task:
    roles = ("train", "val", "test")
    return Task(
        name,
        title,
        tfds,
        num_classes,
        dict(zip(roles, splits, strict=True)),
        dict(zip(roles, counts, strict=True)),
        dict(zip(roles, (*few, splits[2]), strict=True)),
        note,
    )


_NAMED = ("train", "validation", "test")
_FEW = ("train[:800]", "validation[:200]")

TASKS: Mapping[str, Task] = types.MappingProxyType(
    {
        task.name: task
        for task in (
            _task(
                "caltech",
                "Caltech101",
                "caltech101:3.*.*",
                102,
                ("train[:2754]", "train[2754:]", "test"),
                (2754, 306, 6084),
                ("train[:800]", "train[2754:2954]"),
                "102 classes with the background",
            ),
            _task(
                "flowers",
                "Flowers102",
                "oxford_flowers102:2.*.*",
                102,
                _NAMED,
                (1020, 1020, 6149),
                _FEW,
            ),
            _task(
                "camelyon",
                "Patch Camelyon",
                "patch_camelyon:2.*.*",
                2,
                _NAMED,
                (262_144, 32_768, 32_768),
                _FEW,
            ),
            _task(
                "sun",
                "Sun397",
                "sun397/tfds:4.*.*",
                397,
                _NAMED,
                (76_128, 10_875, 21_750),
                _FEW,
                "the 800 training images of VTAB-1k hold only 309 of the 397 classes",
            ),
        )
    }
)
"""The four tasks, by name."""

SCRATCH = "from_scratch"
"""The key of PUBLISHED for training from a random initialization."""

PUBLISHED_SOURCE = (
    "VTAB (Zhai et al., 2019), google-research/task_adaptation, docs/data/results.csv"
)
"""Where PUBLISHED is from."""

# Per cent of the test images: 1000 training images, then all of them; each in the
# order caltech, flowers, camelyon, sun.
_PUBLISHED = {
    "wae-ukl": (29.31, 13.12, 69.81, 3.32, 41.68, 17.22, 76.36, 12.04),
    "wae-gan": (29.92, 11.98, 69.01, 3.18, 42.04, 15.48, 77.13, 12.78),
    # Its full-size run on Caltech101 diverged, and was published so.
    "cond-biggan": (62.06, 59.99, 77.18, 11.89, 0.15, 68.83, 81.29, 44.94),
    "wae-mmd": (35.46, 18.41, 73.83, 4.91, 50.79, 20.78, 80.62, 31.64),
    "vae": (34.31, 18.25, 72.59, 4.49, 48.44, 18.44, 81.27, 29.25),
    "uncond-biggan": (58.68, 49.89, 76.29, 9.43, 73.62, 63.54, 82.21, 46.87),
    "jigsaw": (66.73, 66.06, 76.04, 12.08, 79.10, 77.86, 83.01, 59.23),
    "relative-patch-location": (
        *(68.52, 69.04, 77.53, 11.07),
        *(79.87, 78.82, 85.32, 57.97),
    ),
    "exemplar": (69.57, 69.89, 79.13, 13.70, 81.91, 79.30, 84.71, 58.21),
    "rotation": (77.63, 68.75, 80.39, 12.85, 88.29, 83.37, 86.37, 60.47),
    "semi-rotation-10": (88.14, 87.63, 81.38, 26.98, 88.11, 93.18, 78.62, 66.72),
    "semi-exemplar-10": (88.55, 86.77, 83.15, 28.96, 85.28, 92.19, 86.03, 67.43),
    "sup-100": (90.95, 88.61, 80.61, 34.41, 94.11, 93.21, 83.93, 70.75),
    "sup-exemplar-100": (90.23, 88.30, 83.74, 34.55, 94.44, 93.42, 86.67, 69.41),
    SCRATCH: (38.24, 40.22, 75.62, 5.02, 55.89, 50.60, 81.19, 52.71),
}


def _published() -> dict[str, dict[str, float]]:
    keys = [f"{task}_1k" for task in TASKS] + list(TASKS)
    return {
        key: {name: round(values[i] / 100, 6) for name, values in _PUBLISHED.items()}
        for i, key in enumerate(keys)
    }


PUBLISHED: Mapping[str, Mapping[str, float]] = types.MappingProxyType(_published())
"""Published accuracies in [0, 1], by task ("caltech", or "caltech_1k") and name."""


def entries(groups: Iterable[str] = tuple(GROUPS)) -> tuple[Checkpoint, ...]:
    """The entries of some groups, in the paper's order.

    Args:
      groups: Keys of GROUPS.
    """
    wanted = set(groups)
    return tuple(entry for entry in CHECKPOINTS if entry.group in wanted)


def title(group: str) -> str:
    """How people call a group, of NeuCRaB or any other."""
    if group in GROUPS:
        return f"Group {group.removeprefix('group_').upper()}: {GROUPS[group]}"
    return "All checkpoints" if group == "all" else printable(group)


def groups_of(name: str) -> tuple[str, ...]:
    """The groups that the checkpoint `name` stands in; none for other checkpoints."""
    return tuple(entry.group for entry in CHECKPOINTS if entry.name == name)


def facts_of(name: str) -> dict[str, object]:
    """What is known of the checkpoint `name` beyond its weights, for measures."""
    for entry in CHECKPOINTS:
        if entry.name == name:
            return {"source_accuracy": entry.source_accuracy}
    return {}
