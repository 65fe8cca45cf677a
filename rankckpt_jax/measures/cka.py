"""CKA (Kornblith et al. 2019, arXiv 1905.00414): alignment of features and labels.

N images, F [N, D] features, Y [N, C] one-hot labels, H = I - 11'/N:

    CKA = |F'HY|^2 / (|F'HF| |Y'HY|)      in Frobenius norms    (their equation 6)

With the class means g_c, sizes n_c and the scatter T (`statistics`), it is

    sum_c n_c^2 |g_c|^2 / (|T| |Y'HY|).

The option `variant` gives LFC (Deshpande et al. 2021, arXiv 2102.00084, section 3),
Pearson's correlation r over all N^2 pairs between k(f_i, f_j) and +1 within a class, -1
between classes:

    lfc              k(a, b) = a'b
    lfc_cosine       k(a, b) = a'b / |a| |b|
    lfc_correlation  k(a, b) = correlation of the entries of a and of b
    lfc_uncentered   k(a, b) = a'b, without subtracting the means of r

Several labels or a number per image: Y holds 0 or 1 per label, or the number, and CKA
is |P|^2 / (|T| |Y'HY|) with the products P = Y'HF (`statistics`). LFC compares classes.

With q = sum_c n_c^2 / N^2, the mean m of all features, and v = sum_c n_c^2 (|g_c|^2 +
2 m'g_c), r is v / (N sqrt(q (1 - q) (|T|^2 + 2 N m'Tm))). With equal classes, CKA is
LFC of centered features. Published code, by others, has the first three variants.

Cost: 2 N D^2 FLOP, shared; no pair of images is visited. Range: CKA [0, 1], LFC [-1,
1]. Higher is better. Labels without relation to the features have an expected CKA of
tr(T) tr(Y'HY) / ((N - 1) |T| |Y'HY|), which is high if there are few images for the
dimensions.
"""

from __future__ import annotations

import math

import numpy as np

from rankckpt_jax.data.targets import CLASSES, REGRESSION, TARGETS
from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.measures.registry import (
    UNIT_SCALE,
    Bounds,
    Inputs,
    Options,
    Regime,
    Result,
    register,
)
from rankckpt_jax.measures.statistics import scaling
from rankckpt_jax.measures.statistics.class_statistics import Statistics

VARIANTS = ("cka", "lfc", "lfc_cosine", "lfc_correlation", "lfc_uncentered")

_DEVIATIONS = 2
"""Standard deviations above chance up to which a score is at chance."""


def _single_images(inputs: Inputs, result: Result) -> str:
    # Most numbers occur once.
    if inputs.target == REGRESSION or inputs.statistics.sums.max() > 1:
        return ""
    return (
        "Each class has one image, so the score does not depend on the labels and "
        "cannot order checkpoints. Add images or use another measure."
    )


def _few_images(inputs: Inputs, result: Result) -> str:
    count, size = inputs.features.shape
    if count > size or result.details["variant"] != "cka":
        return ""
    chance = result.details["chance"]
    return (
        f"With no more images ({count}) than feature dimensions, random labels score "
        f"{chance:.3g}, and this value depends on the features. Add images, or compare "
        "it with another measure."
    )


def _chance(inputs: Inputs, result: Result) -> str:
    if result.details["variant"] != "cka":
        return ""
    chance = result.details["chance"]
    # Of tr(K L) over permutations of the labels (Kazi-Aoual et al. 1995), to first
    # order, in units of |K| |L|.
    deviation = math.sqrt(2) / (len(inputs.labels) - 1)
    if result.score > chance + _DEVIATIONS * deviation:
        return ""
    return (
        f"The score is not above that of random labels, {chance:.3g}, so it is at "
        "chance and cannot order checkpoints. Check the preprocessing and the image "
        "size, or use another measure."
    )


SINGLE_IMAGES = Regime("single images", _single_images, saturates=True)
FEW_IMAGES = Regime("few images", _few_images, of_few_images=True)
CHANCE = Regime("chance", _chance, saturates=True)


def _check(options: Options) -> None:
    variant = options.get("variant", VARIANTS[0])
    if variant not in VARIANTS:
        raise unknown_name("variant", variant, VARIANTS, "measure_options.cka.variant")


def _bounds(options: Options) -> Bounds:
    return (0.0 if options.get("variant", VARIANTS[0]) == "cka" else -1.0), 1.0


@register(
    "cka",
    cost="N D^2",
    targets=tuple(TARGETS),
    bounds=_bounds,
    check=_check,
    tolerance=UNIT_SCALE,
    regimes=(SINGLE_IMAGES, CHANCE, FEW_IMAGES),
)
def cka(inputs: Inputs, variant: str = "cka") -> Result:
    """Return linear CKA of features [N, D] and labels, in [0, 1], or LFC.

    Args:
      inputs: Features [N, D] and labels of any kind.
      variant: One of VARIANTS; only "cka" without classes.

    Raises:
      InputError: All rows of the features are equal, or the variant needs classes.
    """
    if variant != "cka" and inputs.target != CLASSES:
        raise InputError(
            f"The variant {variant!r} of cka compares classes",
            where="measure_options.cka.variant",
            expected=f"cka for {TARGETS[inputs.target]} per image",
            found=variant,
            fix="leave the option out",
        )
    statistics = _transformed(inputs.statistics, variant)
    scatter, total = statistics.scatter, statistics.num_images
    norm = np.linalg.norm(scatter)
    if norm == 0:
        raise InputError(
            "All rows of the features are equal, so cka is not defined",
            found=f"no variance in the features of variant {variant!r}",
            fix="check the weights and the input range of the network",
        )
    labels_norm = _labels_norm(statistics)
    trace = float(np.sum(statistics.squares))
    chance = np.trace(scatter) * trace / ((total - 1) * norm * labels_norm)
    details = {"variant": variant, "chance": float(chance)}
    if variant == "cka":
        score = np.sum(statistics.products**2) / (norm * labels_norm)
    else:
        score = _lfc(statistics, variant != "lfc_uncentered")
    return Result(float(np.clip(score, -1, 1)), details)


def _labels_norm(statistics: Statistics) -> float:
    """Return |Y'HY|, without the C x C matrix of classes."""
    total = statistics.num_images
    if statistics.columns is not None:
        centered = statistics.columns - statistics.sums / total
        return float(np.linalg.norm(centered.T @ centered))
    squares = statistics.sizes.astype(float) ** 2
    own = np.sum(squares) / total
    return math.sqrt(
        np.sum(squares) - 2 * np.sum(squares * statistics.sizes) / total + own**2
    )


def _transformed(statistics: Statistics, variant: str) -> Statistics:
    """Return the statistics of the features whose product is the kernel."""
    if variant not in ("lfc_cosine", "lfc_correlation"):
        return statistics
    x = statistics.features
    if variant == "lfc_correlation":
        x = x - x.mean(axis=1, keepdims=True)
    return Statistics(scaling.unit_rows(x), statistics.labels, statistics.num_classes)


def _lfc(statistics: Statistics, center: bool) -> float:
    scatter, total, mean = statistics.scatter, statistics.num_images, statistics.mean
    squares = statistics.sizes.astype(float) ** 2
    share = np.sum(squares) / total**2
    norms = np.sum(statistics.class_means**2, axis=1)
    within = np.sum(squares * (norms + 2 * statistics.class_means @ mean))
    features = np.sum(scatter**2) + 2 * total * mean @ scatter @ mean
    if center:
        return within / total / math.sqrt(share * (1 - share) * features)
    offset = total * mean @ mean
    product = 2 * within + (2 * share - 1) * total * offset
    return product / total / math.sqrt(features + offset**2)
