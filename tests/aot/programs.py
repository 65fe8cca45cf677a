"""Every program that a run compiles, at the shapes of the benchmark.

A `Program` names a function of the package and builds its arguments as shapes. Add one
for every new function of `map_devices` or `jax.jit`; `test_coverage.py` fails without.
"""

import functools
import math
import types
from typing import Any

import jax

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
    mutual_information,
    pactran,
    tmi,
)
from rankckpt_jax.measures.mixture import (
    label_prediction,
    prediction,
)
from rankckpt_jax.measures.statistics import (
    blocks,
    discriminant,
    logistic,
    pca,
    rank_correlation,
    symmetric,
)
from tests.aot.calls import (
    CLASSES,
    EXTRACTION_BATCH,
    IMAGES,
    SOURCE_CLASSES,
    TRAINING_BATCH,
    WIDTH,
    Call,
    Program,
    doubles,
    floats,
    ints,
    simple,
)
from tests.aot.mixture_programs import log_joint, mixtures, predict_labels

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
    return Call(symmetric._sum_products, (rows,), x64=True)


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
    args = (floats(rows, WIDTH), ints(rows), IMAGES)
    options = {"tiles": tiles, "size": size, "low": -0.5, "high": 1.0}
    return Call(rank_correlation._histograms, args, options)


def distances(columns: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    size = rank_correlation._TILE
    tiles = math.ceil(IMAGES / size)
    rows = tiles * size
    args = (floats(rows, WIDTH), floats(rows, columns), IMAGES)
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


def variation() -> Call:
    size = concept_variation._TILE
    tiles = math.ceil(IMAGES / size)
    pairs = ints(tiles * (tiles + 1) // 2, 2)
    rows = tiles * size
    args = (floats(rows, WIDTH), ints(rows), IMAGES, pairs, math.sqrt(WIDTH))
    return Call(concept_variation._sums, args, {"size": size})


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
            CLASSES,
        ),
        "statistics",
    ),
    *mixtures(),
    Program("measures.mixture.gmm._log_joint", "D=72", log_joint, "statistics"),
]
