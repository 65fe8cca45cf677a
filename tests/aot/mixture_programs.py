"""The programs of NLEEP's mixture and of its predictions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.devices import mapping
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
from rankckpt_jax.measures.statistics import blocks
from tests.aot.calls import CLASSES, IMAGES, Call, Program, floats, ints


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


def mixtures() -> list[Program]:
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
