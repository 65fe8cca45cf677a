"""The task and the pool of a plan: sizes and networks, without images and weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax import checkpoints, models
from rankckpt_jax.benchmark import demo, locate, neucrab
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints import sources
from rankckpt_jax.checkpoints.fetch import download, uris
from rankckpt_jax.checkpoints.sources import slim
from rankckpt_jax.data import tasks
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.data.splits import Split, Task
from rankckpt_jax.errors import InputError, describe_unexpected
from rankckpt_jax.features import precomputed
from rankckpt_jax.run import pool
from rankckpt_jax.storage import files

# NeuCRaB names a ResNet-50 without its version. Versions 1 and 2 cost the same.
_ASSUMED = {"resnet_50": "resnet_v1_50"}

# Classes of NeuCRaB's TF-Slim checkpoints: ImageNet's and the background.
_SLIM_CLASSES = 1001


@dataclasses.dataclass(frozen=True)
class Network:
    """A network without its weights; equal if checkpoints share compiled programs.

    Attributes:
      architecture: See `checkpoints.Backbone`, as for the other fields.
      variables: The shapes of the variables, without the classifier.
    """

    architecture: str
    apply: Any
    variables: Any = dataclasses.field(repr=False, compare=False)
    image_size: int
    feature_dim: int
    num_source_classes: int = dataclasses.field(compare=False)


MakeNetwork = Callable[[], Network]


@dataclasses.dataclass(frozen=True)
class Features:
    """Features that were extracted elsewhere.

    Attributes:
      images: Number of images, N.
      feature_dim: D.
      num_source_classes: V; 0 without logits.
      num_outputs: C classes, L labels, or 1 for a number per image.
    """

    images: int
    feature_dim: int
    num_source_classes: int
    num_outputs: int


@dataclasses.dataclass(frozen=True)
class Pool:
    """The checkpoints of a config.

    Attributes:
      networks: By the name of each checkpoint that is planned.
      features: The same, for features that were extracted elsewhere.
      unplanned: The reason by the name of each other checkpoint.
    """

    networks: Mapping[str, Network]
    features: Mapping[str, Features]
    unplanned: Mapping[str, str]


def load_task(config: Any) -> Task:
    """Return the task with the sizes of its splits; images need not be there.

    The sizes of NeuCRaB's tasks are known. Those of another data set of TFDS come from
    its metadata, those of a folder from its listing.

    Raises:
      InputError: The images cannot be used, or their number is unknown.
    """
    given = config.task
    if config.features:
        name, origin = pool.describe_features(config.features)
        target = pool.find_target(config)
        return Task(given.name or name, (), {}, origin, target=target)
    if given.path or not given.tfds:
        return tasks.load(given)
    expressions = {
        role: given[role] for role in ("train", "val", "test") if given[role]
    }
    num_classes, counts = _count_tfds(given, expressions)
    if "val" in counts:
        counts["trainval"] = counts["train"] + counts["val"]
    limit = given.get("limit", 0)
    splits = {
        role: _sized_split(role, min(count, limit or count))
        for role, count in counts.items()
    }
    classes = tuple(map(str, range(num_classes)))
    name = given.name or given.tfds.partition(":")[0]
    return Task(name, classes, splits, f"TFDS {given.tfds}")


def _count_tfds(
    given: Any, expressions: Mapping[str, str]
) -> tuple[int, dict[str, int]]:
    """Return the number of classes and the images of each split of a data set."""
    for task in neucrab.TASKS.values():
        if given.tfds != task.tfds:
            continue
        if expressions == dict(task.splits):
            return task.num_classes, dict(task.counts)
        if expressions == dict(task.few):
            few = {"train": 800, "val": 200, "test": task.counts["test"]}
            return task.num_classes, few
    try:
        tensorflow()
        import tensorflow_datasets as tfds

        builder = tfds.builder(
            given.tfds, data_dir=given.data_dir or None, try_gcs=False
        )
        stored = builder.info.splits
        counts = {r: stored[text].num_examples for r, text in expressions.items()}
        return builder.info.features["label"].num_classes, counts
    except Exception as error:  # TFDS raises errors of many types.
        raise InputError(
            f"The number of images of {given.tfds!r} is unknown",
            where="config.task.tfds",
            expected="a data set that is prepared on this machine, or one of NeuCRaB",
            found=" ".join(f"{type(error).__name__}: {error}".split()),
            fix="prepare the data set, or pass the images as a folder: "
            "--config.task.path=DIR",
        ) from error


def _sized_split(name: str, count: int) -> Split:
    def unavailable(*_: Any) -> Any:
        raise AssertionError(f"a plan reads no images of {name}")

    return Split(
        name,
        count,
        identify=unavailable,
        examples=unavailable,
        subset=lambda other, rows: _sized_split(other, len(rows)),
    )


def load_pool(config: Any, stages: tuple[str, ...]) -> Pool:
    """Return the networks of the checkpoints that a config names.

    Weights are not read, except those of files whose network is only known once it is
    converted. Nothing is downloaded, except an archive without a path inside it.

    Raises:
      InputError: There are no checkpoints, or a name is unknown.
    """
    if config.features:
        found = precomputed.find_features(config.features)
        target = pool.find_target(config)
        described = {name: _describe_features(path, target) for name, path in found}
        return Pool({}, described, {})
    networks: dict[str, Network] = {}
    unplanned: dict[str, str] = {}
    for name, make in _find(config, stages):
        try:
            networks[name] = make()
        except InputError as error:
            unplanned[name] = error.what
        except Exception as error:  # As in a run, one file must not end all.
            unplanned[name] = describe_unexpected(error)
    return Pool(networks, {}, unplanned)


def _find(config: Any, stages: tuple[str, ...]) -> Iterator[tuple[str, MakeNetwork]]:
    """Yield the name of each checkpoint, and a function that returns its network."""
    size = config.image_size
    if config.neucrab:
        yield from _benchmark(config)
    elif config.pool:
        for member in pool.standard_members(config):
            yield member.name, functools.partial(_open_member, config, member)
    elif "pretrain" in stages:
        for made in demo.checkpoints(config.pretrain):
            yield made.name, functools.partial(registered, made.architecture, size)
    else:
        storage = download.storage(config.get("download"))
        for name, path in checkpoints.find(config.checkpoints, storage):
            yield name, functools.partial(_open, config, path, size)
    for name in pool.parse_names(config.from_scratch):
        yield f"{name}_from_scratch", functools.partial(registered, name, size)


@functools.cache
def registered(
    architecture: str, image_size: int = 0, num_source_classes: int = 0
) -> Network:
    """Return a network of `models` by its name.

    Args:
      architecture: Its name.
      image_size: Side of the images in pixels; 0 for the network's own.
      num_source_classes: Classes of the checkpoint's classifier.

    Raises:
      InputError: It does not exist, or takes only larger images.
    """
    network = models.get(architecture)
    size = image_size or network.image_size
    if size < network.minimum_image_size:
        raise InputError(
            f"{architecture} takes images of at least {network.minimum_image_size} "
            "pixels"
        )
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(
        models.create(architecture).init, jax.random.key(0), image
    )
    return Network(
        architecture,
        backbone_lib.Apply(architecture),
        dict(variables),
        size,
        network.feature_dim,
        num_source_classes,
    )


def _benchmark(config: Any) -> Iterator[tuple[str, MakeNetwork]]:
    """Yield each file of NeuCRaB, and its network by name if `models` has it."""
    storage = download.storage(config.get("download"))
    folders = tuple(map(files.to_path, uris.split_list(config.checkpoints)))
    where = locate.Locations(folders, storage)
    entries = neucrab.entries(pool.parse_names(config.neucrab))
    for entry in {entry.name: entry for entry in entries}.values():
        name = _ASSUMED.get(entry.architecture, entry.architecture)
        size = config.image_size or entry.image_size
        classes = _SLIM_CLASSES if entry.source == "slim" else 0
        try:
            models.get(name)
        except InputError:
            spec = where.find(entry) or entry.path
            yield entry.name, functools.partial(_open, config, spec, size)
        else:
            yield entry.name, functools.partial(registered, name, size, classes)


def _open_member(config: Any, member: pool.Member) -> Network:
    """Return the network of a pool's checkpoint, or raise because it is missing."""
    if not member.spec:
        member.load()
    return _open(config, member.spec, config.image_size)


def _open(config: Any, spec: str, image_size: int) -> Network:
    """Return the network of a checkpoint, whose file must be on this machine."""
    place, text = uris.split_options(spec)
    outer, _ = uris.split_archive(place)
    storage = download.storage(config.get("download"))
    is_named = sources.split_scheme(place) is not None
    if is_named:
        is_here = bool(checkpoints.identify(place))
    else:
        is_here = not uris.is_remote(outer) or uris.is_here(outer, storage)
    if not is_here:
        raise InputError("not on this machine")
    path = None if is_named else uris.resolve(place, storage)
    if path is not None and sources.find(path) is slim:
        info = slim.recognize(path)
        size = uris.options(text).get("image_size") or image_size or info.image_size
        return registered(info.architecture, size or 0, info.num_classes)
    backbone = checkpoints.load(
        spec,
        preferred_image_size=image_size,
        use_moving_averages=config.use_moving_averages,
        storage=storage,
    )
    variables, _ = backbone_lib.split_head(backbone.variables)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    return Network(
        backbone.architecture,
        backbone.apply,
        shapes,
        backbone.image_size,
        backbone.feature_dim,
        backbone.num_source_classes,
    )


def _describe_features(path: Any, target: str) -> Features:
    loaded = precomputed.load_features(path, target)
    images, dimensions = loaded.features.shape
    logits, labels = loaded.logits, loaded.labels
    num_outputs = {
        "classes": lambda: len(np.unique(labels)),
        "multi_label": lambda: labels.shape[1],
        "regression": lambda: 1,
    }[loaded.target]()
    num_source_classes = 0 if logits is None else logits.shape[-1]
    return Features(images, dimensions, num_source_classes, num_outputs)
