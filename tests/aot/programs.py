"""Every program that a run compiles, at the shapes of the benchmark.

A `Program` names a function of the package and builds its arguments as shapes. Add one
for every new function of `map_devices` or `jax.jit`; `test_coverage.py` fails without.
"""

import dataclasses
import functools
import math
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax import finetune, models
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import preprocess
from rankckpt_jax.devices import mapping, target
from rankckpt_jax.features import extract
from rankckpt_jax.finetune import loop, probe, restore_batch_norm, step
from rankckpt_jax.measures import (
    concept_variation,
    inputs,
    knn,
    lda_accuracy,
    mutual_information,
    pactran,
    tmi,
)
from rankckpt_jax.measures.mixture import (
    covariance,
    em,
    fitting,
    gmm,
    kmeans,
    label_prediction,
    prediction,
    sparse_em,
)
from rankckpt_jax.measures.statistics import (
    blocks,
    discriminant,
    logistic,
    pca,
    rank_correlation,
    symmetric,
)

# Caltech101 with features of a ResNet-50.
IMAGES, CLASSES, WIDTH, SOURCE_CLASSES = 3060, 102, 2048, 1001
EXTRACTION_BATCH, TRAINING_BATCH = 256, 512


@dataclasses.dataclass(frozen=True)
class Call:
    """A function of `map_devices` or `jax.jit` and the shapes of its arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    x64: bool = False


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of the benchmark.

    Attributes:
      name: Module and name of the function, without the package's name.
      case: Which of its shapes.
      build: Returns the call; called within `target.compile_for`.
      kind: "network" (bfloat16), "training" or "statistics" (float32, exact).
      is_fast: Whether it compiles within a few seconds.
      platforms: Platforms on which it is compiled.
    """

    name: str
    case: str
    build: Callable[[], Call]
    kind: str
    is_fast: bool = True
    platforms: tuple[str, ...] = ("tpu", "gpu")

    def lower(self) -> jax.stages.Lowered:
        """Lower for the devices of `target.compile_for`."""
        call = self.build()
        assert name_of(call.function) == self.name
        # As in `measures.compute`.
        precision = "highest" if self.name.startswith("measures.") else None
        with jax.enable_x64(call.x64), jax.default_matmul_precision(precision):
            return mapping.lower(call.function, *call.args, **call.options)

    def __str__(self) -> str:
        return f"{self.name}[{self.case}]"


def name_of(function: Callable[..., Any]) -> str:
    if isinstance(function, mapping.MappedFunction):
        return function.name
    scope = f"{function.__module__}.{function.__qualname__}"
    return scope.removeprefix("rankckpt_jax.")


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def doubles(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float64)


def ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


SCALING = floats(), floats(), floats(3)


# Networks.


def variables_of(name: str) -> Any:
    network = models.get(name)
    image = floats(1, network.image_size, network.image_size, 3)
    return jax.eval_shape(models.create(name).init, jax.random.key(0), image)


def batch_of(name: str, size: int) -> jax.ShapeDtypeStruct:
    devices, side = mapping.local_device_count(), models.get(name).image_size
    shape = (devices, size // devices, side, side, 3)
    return jax.ShapeDtypeStruct(shape, preprocess.DTYPE)


def network_of(name: str) -> Any:
    """Return what programs read of a `Backbone`, with shapes as weights."""
    network = models.get(name)
    return types.SimpleNamespace(
        apply=backbone_lib.Apply(name),
        image_size=network.image_size,
        feature_dim=network.feature_dim,
        variables=variables_of(name),
    )


def forward(name: str) -> Call:
    dtype, size = extract.compute_dtype("auto"), EXTRACTION_BATCH
    program = extract.forward_program(network_of(name), dtype=dtype, batch_size=size)
    return Call(*program)


def classify() -> Call:
    head = {"kernel": floats(WIDTH, SOURCE_CLASSES), "bias": floats(SOURCE_CLASSES)}
    devices = mapping.local_device_count()
    features = floats(devices, EXTRACTION_BATCH // devices, WIDTH)
    return Call(extract._classify(), (head, features))


def recipe(**options: Any) -> finetune.Recipe:
    return finetune.Recipe(batch_size=TRAINING_BATCH, **options)


def train(name: str, trials: int = 1, **options: Any) -> Call:
    recipes = [recipe(**options)] * trials
    return Call(*loop.train_program(network_of(name), recipes, CLASSES))


def train_probe() -> Call:
    given = recipe()
    backbone = types.SimpleNamespace(
        apply=probe.IdentityBackbone(),
        feature_dim=WIDTH,
        variables={"params": {}, "batch_stats": {}},
    )
    devices = mapping.local_device_count()
    features = floats(devices, TRAINING_BATCH // devices, WIDTH)
    rows = ints(*features.shape[:2])
    scaling = floats(), floats(), floats(1)
    hyper = step.hyperparameters(given, 0.1, 0)
    args = step.initial_shapes(backbone, CLASSES), scaling, hyper
    function = step.train_step(step.step_spec(backbone, given, 1))
    return Call(function, (*args, (features, rows, rows)))


def predict_logits(name: str) -> Call:
    backbone = network_of(name)
    function = step.predict(step.step_spec(backbone, recipe(), 1).apply)
    images = batch_of(name, TRAINING_BATCH)
    labels = ints(*images.shape[:2])
    mask = jax.ShapeDtypeStruct(labels.shape, bool)
    state = step.initial_shapes(backbone, CLASSES)
    return Call(function, (state, SCALING, (images, labels, mask)))


def input_moments(name: str) -> Call:
    function = restore_batch_norm._input_moments(name)
    images = batch_of(name, EXTRACTION_BATCH)
    return Call(function, (variables_of(name), SCALING, images))


# Measures.


def sum_products() -> Call:
    count = math.ceil(IMAGES / symmetric._BLOCK)
    rows = floats(count, symmetric._BLOCK, WIDTH)
    weights = floats(*rows.shape[:2])
    return Call(symmetric._sum_products, (rows, weights), x64=True)


def _exact() -> bool:
    return target.platform() != "tpu"


def true_class() -> Call:
    shape = blocks.shape(IMAGES, CLASSES)
    wide = doubles if _exact() else floats
    args = (floats(*shape, WIDTH), ints(*shape), wide(CLASSES, WIDTH), wide(CLASSES))
    return Call(discriminant._true_class, args, x64=_exact())


def logistic_fit(rank: int, ridges: int) -> Call:
    args = (
        floats(IMAGES, rank),
        ints(IMAGES),
        floats(IMAGES),
        floats(ridges, rank),
        floats(ridges),
    )
    options = {"num_classes": CLASSES, "max_steps": 500, "tolerance": 2e-6}
    return Call(logistic._fit, args, options)


def critics() -> Call:
    images = min(IMAGES, 10_000)
    args = (floats(images, 64), ints(images), ints(images), floats(2, 64, 128))
    options = {"num_classes": CLASSES, "num_steps": 200}
    return Call(mutual_information._critics, args, options)


def histograms() -> Call:
    size = rank_correlation._TILE
    tiles = math.ceil(IMAGES / size)
    rows = tiles * size
    args = (floats(rows, WIDTH), ints(rows), floats(rows))
    options = {"tiles": tiles, "size": size, "low": -0.5, "high": 1.0}
    return Call(rank_correlation._histograms, args, options)


def distances(columns: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    size = rank_correlation._TILE
    tiles = math.ceil(IMAGES / size)
    rows = tiles * size
    args = (floats(rows, WIDTH), floats(rows, columns), floats(rows))
    options = {"tiles": tiles, "size": size, "low": -0.5, "high": 1.0, "root": 2.0}
    return args, options


def distance_histograms() -> Call:
    return Call(rank_correlation._distance_histograms, *distances(CLASSES))


def rank_products() -> Call:
    args, options = distances(1)
    ranks = floats(rank_correlation._BINS)
    return Call(rank_correlation._rank_products, (*args, ranks, ranks), options)


def neighbors(k: int) -> Call:
    size = knn._TILE
    tiles = math.ceil(IMAGES / size)
    pairs = ints(tiles * (tiles + 1) // 2, 2)
    args = (floats(tiles * size, WIDTH), IMAGES, 0.5, pairs)
    return Call(knn._nearest, args, {"size": size, "k": k})


def distances_within_classes() -> Call:
    # 30 images per class fit into a tile of 32.
    x, valid = floats(CLASSES, WIDTH, 32), jax.ShapeDtypeStruct((CLASSES, 32), bool)
    return Call(tmi._nearest, (x, valid, ints(CLASSES, 2)), {"k": 3})


def products_within_classes() -> Call:
    args = (floats(CLASSES, 32, WIDTH), ints(CLASSES, 2))
    return Call(lda_accuracy._squared_products, args)


def variation() -> Call:
    size = concept_variation._TILE
    tiles = math.ceil(IMAGES / size)
    pairs = ints(tiles * (tiles + 1) // 2, 2)
    rows = tiles * size
    args = (floats(rows, WIDTH), ints(rows), IMAGES, pairs, math.sqrt(WIDTH))
    return Call(concept_variation._sums, args, {"size": size})


@dataclasses.dataclass(frozen=True)
class Points:
    """A clustering task: N points in D dimensions, K components."""

    count: int
    components: int
    dimensions: int

    @property
    def width(self) -> int:
        """D', which includes padding."""
        return blocks.padded_size(self.dimensions)

    def data(self, is_divided: bool) -> tuple[em.Data, jax.ShapeDtypeStruct]:
        """Return the points of EM, and their labels."""
        shape = blocks.shape(self.count, max(self.components, self.width))
        if is_divided:
            devices = mapping.local_device_count()
            shape = (devices, shape[0] // devices, shape[1])
        scalars = (floats(),) * 4
        return em.Data(floats(*shape, self.width), floats(*shape), *scalars), ints(
            *shape
        )


CALTECH = Points(IMAGES, 5 * CLASSES, 72)
SUN = Points(19_850, 1985, 340)


def cluster(points: Points) -> Call:
    blocks_, rows = blocks.shape(points.count, points.components)
    widths = np.diff([0, *kmeans.group_ends(points.dimensions)])
    args = (
        ints(mapping.local_device_count(), 1),
        tuple(floats(blocks_, rows, int(width)) for width in widths),
        ints(),
        jax.ShapeDtypeStruct((2,), jnp.uint32),
        floats(),
    )
    function = kmeans.program(points.count, points.components, 300)
    return Call(function, args)


def sparse(points: Points) -> Call:
    devices = mapping.local_device_count()
    count = -(-points.components // devices)
    width = sparse_em.width(points.count, points.components)
    shape = (devices, 1, count, width)
    lists = sparse_em.Lists(ints(*shape), floats(*shape))
    setting = em.Setting("full", points.components, 100)
    return Call(fitting.run_sparse(setting), (points.data(False)[0], lists))


def dense(points: Points, covariance_type: str) -> Call:
    sizes = points.count, points.dimensions, points.components
    return Call(*fitting.dense_program(*sizes, covariance_type))


def fitted(points: Points) -> tuple[em.Setting, covariance.Parameters]:
    count, size = points.components, points.width
    square = floats(count, size, size)
    mixture = covariance.Parameters(floats(count), floats(count, size), square, square)
    return em.Setting("full", count, 100), mixture


def predict(points: Points) -> Call:
    setting, mixture = fitted(points)
    data, labels = points.data(True)
    return Call(prediction._map_points(setting, CLASSES), (data, labels, mixture))


def predict_labels() -> Call:
    setting, mixture = fitted(CALTECH)
    data, labels = CALTECH.data(True)
    labels = jax.ShapeDtypeStruct((*labels.shape, CLASSES), bool)
    run = label_prediction._map_points(setting, CLASSES)
    return Call(run, (data, labels, mixture))


def log_joint() -> Call:
    components, size = 5 * CLASSES, 72
    mixture = gmm.GMM(
        weights=floats(components),
        means=floats(components, size),
        covariances=floats(components, size, size),
        precision_cholesky=floats(components, size, size),
        lower_bounds=floats(10),
        converged=jax.ShapeDtypeStruct((), bool),
    )
    return Call(gmm._log_joint, (mixture, floats(IMAGES, size)))


def simple(function: Callable[..., Any], *shapes: Any, **options: Any) -> Any:
    return lambda: Call(function, shapes, options)


def _networks() -> list[Program]:
    fast = {"mobilenet_v1_025"}
    result = []
    for name in models.names():
        call = functools.partial(forward, name)
        result.append(
            Program(
                "features.extract._forward.forward", name, call, "network", name in fast
            )
        )
    for name in ("resnet_v1_50", "mobilenet_v2", "inception_v3"):
        call = functools.partial(train, name)
        result.append(
            Program("finetune.step.train_step.step", name, call, "training", False)
        )
    augmented = {"random_crop": 0.5, "random_flip": True}
    for case, options in {
        "bfloat16": {"dtype": "bfloat16"},
        "augmented": augmented,
        "accumulated": {"accumulate": 4},
        "two trials": {"trials": 2},
    }.items():
        call = functools.partial(train, "mobilenet_v1_025", **options)
        result.append(
            Program("finetune.step.train_step.step", case, call, "training", False)
        )
    return result


def _mixtures() -> list[Program]:
    result = []
    for case, points in {"Caltech": CALTECH, "Sun": SUN}.items():
        calls = {
            "measures.mixture.kmeans.program.fit_one": (cluster, points),
            "measures.mixture.fitting.run_sparse.run": (sparse, points),
            "measures.mixture.prediction._map_points.sum_blocks": (predict, points),
        }
        for name, call in calls.items():
            is_fast = name.endswith("fit_one") and points is CALTECH
            build = functools.partial(*call)
            result.append(Program(name, case, build, "statistics", is_fast))
        for kind in covariance.TYPES:
            build = functools.partial(dense, points, kind)
            name = "measures.mixture.fitting.run_dense.run"
            program = Program(name, f"{case}, {kind}", build, "statistics", False)
            result.append(program)
    return result


PROGRAMS = [
    *_networks(),
    Program("models.layers.classify", "resnet_v1_50", classify, "statistics"),
    Program("finetune.step.train_step.step", "probe", train_probe, "statistics"),
    Program(
        "finetune.step.predict.predict",
        "resnet_v1_50",
        functools.partial(predict_logits, "resnet_v1_50"),
        "training",
        False,
    ),
    Program(
        "finetune.restore_batch_norm._input_moments.measure",
        "mobilenet_v1",
        functools.partial(input_moments, "mobilenet_v1"),
        "exact",
        False,
    ),
    Program(
        "measures.statistics.symmetric._sum_products",
        "D=2048",
        sum_products,
        "statistics",
        platforms=("gpu",),
    ),
    Program(
        "measures.statistics.discriminant._true_class",
        "D=2048",
        true_class,
        "statistics",
    ),
    Program(
        "measures.statistics.logistic._fit",
        "pactran",
        functools.partial(logistic_fit, WIDTH, 1),
        "statistics",
    ),
    Program(
        "measures.statistics.logistic._fit",
        "linear",
        functools.partial(logistic_fit, WIDTH, 5),
        "statistics",
    ),
    Program("measures.mutual_information._critics", "D=64", critics, "statistics"),
    Program(
        "measures.statistics.rank_correlation._normalized",
        "D=2048",
        simple(rank_correlation._normalized, floats(IMAGES, WIDTH)),
        "statistics",
    ),
    Program(
        "measures.statistics.rank_correlation._histograms",
        "D=2048",
        histograms,
        "statistics",
    ),
    Program(
        "measures.lda_accuracy._squared_products",
        "C=102",
        products_within_classes,
        "statistics",
    ),
    Program("measures.concept_variation._sums", "D=2048", variation, "statistics"),
    Program("measures.tmi._nearest", "k=3", distances_within_classes, "statistics"),
    Program(
        "measures.knn._nearest", "k=1", functools.partial(neighbors, 1), "statistics"
    ),
    Program(
        "measures.knn._nearest", "k=5", functools.partial(neighbors, 5), "statistics"
    ),
    Program(
        "measures.statistics.rank_correlation._distance_histograms",
        "L=102",
        distance_histograms,
        "statistics",
    ),
    Program(
        "measures.statistics.rank_correlation._rank_products",
        "one number",
        rank_products,
        "statistics",
    ),
    Program(
        "measures.mixture.label_prediction._sum_assignments",
        "V=1001",
        simple(
            label_prediction._sum_assignments,
            floats(IMAGES, SOURCE_CLASSES),
            floats(IMAGES, CLASSES),
            floats(IMAGES),
        ),
        "statistics",
    ),
    Program(
        "measures.mixture.label_prediction._map_points.sum_blocks",
        "Caltech",
        predict_labels,
        "statistics",
        False,
    ),
    Program(
        "measures.pactran._curvature",
        "C=102",
        simple(pactran._curvature, floats(IMAGES, CLASSES)),
        "statistics",
    ),
    Program(
        "measures.statistics.blocks.maximum",
        "nce",
        simple(jax.jit(blocks.maximum), floats(IMAGES, SOURCE_CLASSES)),
        "statistics",
    ),
    Program(
        "measures.inputs._are_probabilities",
        "V=1001",
        simple(inputs._are_probabilities, floats(IMAGES, SOURCE_CLASSES)),
        "statistics",
    ),
    Program(
        "measures.inputs._all_finite",
        "D=2048",
        simple(inputs._all_finite, floats(IMAGES, WIDTH)),
        "statistics",
    ),
    Program(
        "measures.statistics.pca._project",
        "D=2048",
        simple(pca._project, floats(IMAGES, WIDTH), floats(WIDTH), floats(72, WIDTH)),
        "statistics",
    ),
    Program(
        "measures.mixture.prediction._sum_assignments",
        "V=1001",
        simple(
            prediction._sum_assignments,
            floats(IMAGES, SOURCE_CLASSES),
            ints(IMAGES),
            floats(IMAGES),
            CLASSES,
        ),
        "statistics",
    ),
    *_mixtures(),
    Program("measures.mixture.gmm._log_joint", "D=72", log_joint, "statistics"),
]
