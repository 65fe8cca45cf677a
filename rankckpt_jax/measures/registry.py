"""The registry of measures: one record per measure.

A measure is a function `compute(inputs: Inputs, **options) -> Result` decorated with
`@register("name")`. Measures are found by importing every file of this directory, so
adding one takes a single file:

    from rankckpt_jax.measures.registry import Inputs, Result, register

    @register("spread")
    def spread(inputs: Inputs, power: float = 1.0) -> Result:
        return Result(float(inputs.features.std()) ** power)
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import itertools
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate

import numpy as np

from rankckpt_jax.data.targets import CLASSES, MULTI_LABEL, REGRESSION, TARGETS
from rankckpt_jax.errors import InputError, suggest, unknown_name
from rankckpt_jax.measures.inputs import Inputs


@dataclasses.dataclass(frozen=True)
class Result:
    """The score of one checkpoint under one measure.

    Attributes:
      score: Higher means better transfer.
      details: Intermediate values as plain numbers, strings and lists. A saturated
        score has the name of its regime in `details["saturated"]`.
      warning: One sentence if the score needs care, else empty.
    """

    score: float
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warning: str = ""

    def __float__(self) -> float:
        """Return the score."""
        return self.score


ROUNDING = 8 * float(np.finfo(np.float32).eps)
"""Relative rounding error of a score: features are float32, and so are some sums."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """The difference below which two scores of a measure are equal.

    Neighbors a and b in the sorted scores are equal if
    |a - b| <= absolute + relative max(|a|, |b|). Scores that are connected by equal
    neighbors are equal too, so equality is transitive. `resolve` gives them one value.

    Attributes:
      relative: Rounding error of a score, as a share of the score.
      absolute: Rounding error of a score near 0.
    """

    relative: float = ROUNDING
    absolute: float = 0.0

    def allows(self, one: float, other: float) -> bool:
        """Return whether two scores differ by rounding error at most."""
        scale = max(abs(one), abs(other))
        return abs(one - other) <= self.absolute + self.relative * scale

    def resolve(
        self, scores: Sequence[float], levels: Sequence[str] = ()
    ) -> list[float]:
        """Return the scores, with the highest of equal ones in place of each of them.

        Resolving again changes nothing.

        Example:
          >>> Tolerance().resolve([4.9999999999999964, 3.0, 5.000000000000003])
          [5.000000000000003, 3.0, 5.000000000000003]

        Args:
          scores: Finite scores of the checkpoints of a pool, in any order.
          levels: For each score the name of the regime that saturates it, or "". The
            scores of a regime, and those between them, are equal.
        """
        resolved = list(scores)
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        last = {levels[i]: position for position, i in enumerate(order) if levels}
        # Scores up to this position belong to a level that has begun.
        end = 0
        for position, (previous, i) in enumerate(itertools.pairwise(order), 1):
            if levels and levels[previous]:
                end = max(end, last[levels[previous]])
            if position <= end or self.allows(scores[previous], scores[i]):
                resolved[i] = resolved[previous]
        return resolved


EXACT = Tolerance(relative=1e-12)
"""For scores that no sum over images has rounded."""

FRACTION = Tolerance(relative=0.0, absolute=1e-9)
"""For fractions of images."""

UNIT_SCALE = Tolerance(absolute=ROUNDING)
"""For mean log probabilities and other scores whose natural scale is 1."""


@dataclasses.dataclass(frozen=True)
class Regime:
    """A kind of input for which a score is saturated or needs care.

    Attributes:
      name: A short name, for files.
      describe: Maps inputs and result to one sentence for the user that names the next
        action, or to "" outside the regime.
      saturates: Whether the score means nothing here: scores of this regime are ties.
      of_few_images: Whether it is that of no more images than feature dimensions.
    """

    name: str
    describe: Callable[[Inputs, Result], str]
    saturates: bool = False
    of_few_images: bool = False


@dataclasses.dataclass(frozen=True)
class Evidence:
    """How well published scores of a measure agree with published accuracies.

    docs/data/published_agreement.csv has the figure of each pair.

    Attributes:
      kendall: Mean of Kendall's tau over pairs of a pool and a task.
      num_pairs: Number of pairs.
    """

    kendall: float
    num_pairs: int


LABELS = (CLASSES, MULTI_LABEL)
"""Kinds of targets of measures that read one label at a time."""

DEFAULTS: Mapping[str, tuple[str, ...]] = {
    CLASSES: ("nleep", "leep", "h_score"),
    MULTI_LABEL: ("nleep", "leep", "h_score"),
    REGRESSION: ("logme", "linear", "knn"),
}
"""Measures for each kind of target, in place of those that are not defined for it."""

Compute = Callable[Concatenate[Inputs, ...], Result]
Combine = Callable[[Sequence[Mapping[str, float]]], list[float]]
Bounds = tuple[float, float]
Options = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Measure:
    """One measure and everything that the rest of the package asks about it.

    Attributes:
      name: Its name in configs and tables.
      compute: Maps inputs and options to a result.
      about: One line about the measure.
      needs_logits: Whether it reads the logits of the checkpoint's own classifier.
      needs_weights: Whether it reads the checkpoint's weights, through
        `inputs.facts[weight_spectra.FACT]`.
      targets: The kinds of `data.targets` for which it is defined.
      undefined: Why it is not defined for the other kinds: a clause without a subject.
      reads_images: Whether its score depends on the images of the task. Other scores
        are those of a baseline, the same for all tasks.
      cost: Order of its FLOP for one checkpoint, apart from extraction: N images, D
        dimensions, C classes, V classes of the checkpoint's classifier.
      evidence: Its agreement with fine-tuning in published tables; None if there are no
        published scores.
      holds_out: Whether it is scored on held-out images. Checkpoints then need their
        images in the same order.
      combine: For a measure whose scores are relative to a pool: maps the
        `details["terms"]` of all checkpoints to their scores. Else None.
      bounds: Lowest and highest possible score, or a function of the options that
        returns them.
      files: Names of the options that name an input file. The contents of these files
        are part of the key of a stored score.
      check: Raises InputError for option values that are not allowed.
      tolerance: The difference below which two scores are equal, from the precision and
        the natural scale of the arithmetic.
      regimes: Where the score is saturated or needs care. The highest possible score of
        `bounds` is always one.
    """

    name: str
    compute: Compute
    about: str = ""
    needs_logits: bool = False
    needs_weights: bool = False
    targets: tuple[str, ...] = (CLASSES,)
    undefined: str = "compares classes of which each image has exactly one"
    reads_images: bool = True
    cost: str = ""
    evidence: Evidence | None = None
    holds_out: bool = False
    combine: Combine | None = None
    bounds: Bounds | Callable[[Options], Bounds] = (-math.inf, math.inf)
    files: tuple[str, ...] = ()
    check: Callable[[Options], None] = lambda options: None
    tolerance: Tolerance = Tolerance()
    regimes: tuple[Regime, ...] = ()

    @functools.cached_property
    def options(self) -> tuple[str, ...]:
        """Names of the options, which are the keyword arguments of `compute`."""
        return tuple(inspect.signature(self.compute).parameters)[1:]

    @property
    def definition(self) -> str:
        """What it computes in a few words: `about` without name and source."""
        return self.about.partition(": ")[2] or self.about

    @property
    def needs_more_images_than_dimensions(self) -> bool:
        """Whether the score is saturated, or needs care, if N <= D."""
        return any(regime.of_few_images for regime in self.regimes)

    @property
    def can_saturate(self) -> bool:
        """Whether different networks can share the best or a meaningless score."""
        highest = self.bounds_for({})[1]
        return highest < math.inf or any(r.saturates for r in self.regimes)

    def check_options(self, options: Options) -> None:
        """Check the names and values of options.

        Raises:
          InputError: An option does not exist or has a value that is not allowed.
        """
        if unknown := sorted(set(options) - set(self.options)):
            raise InputError(
                f"Unknown option of the measure {self.name!r}: {', '.join(unknown)}",
                where=f"measure_options.{self.name}",
                expected=", ".join(self.options) or "no options",
                found=", ".join(unknown),
                fix=suggest(unknown[0], self.options),
            )
        self.check(options)

    def check_target(self, target: str) -> None:
        """Check that the measure is defined for a kind of target.

        Raises:
          InputError: It is not. The message says why, and names measures that are.
        """
        if target in self.targets:
            return
        others = [name for name in DEFAULTS[target] if name != self.name]
        raise InputError(
            f"{self.name} {self.undefined}, and is not defined for "
            f"{TARGETS[target]} per image",
            where="measures",
            expected="a measure for the target " + target,
            found=self.name,
            fix="use " + ", ".join(others),
        )

    def bounds_for(self, options: Options) -> Bounds:
        """Return the lowest and the highest possible score under these options."""
        return self.bounds(options) if callable(self.bounds) else self.bounds


_REGISTRY: dict[str, Measure] = {}


def register(name: str, **fields: Any) -> Callable[[Compute], Compute]:
    """Return a decorator that registers a function as the measure `name`.

    Args:
      name: Name of the measure in configs and tables.
      **fields: Other fields of `Measure`.

    Raises:
      ValueError: A measure of this name exists already.
    """

    def add(compute: Compute) -> Compute:
        if name in _REGISTRY:
            raise ValueError(f"the measure {name!r} is registered twice")
        fields.setdefault("about", _first_line(name, compute))
        _REGISTRY[name] = Measure(name, compute, **fields)
        return compute

    return add


def _first_line(name: str, compute: Compute) -> str:
    """Return the first line of the file's docstring, or of the function's.

    The file's describes the measure if the file holds a single one, which then has the
    name of the file.
    """
    file = compute.__module__.rpartition(".")[2]
    module_doc = getattr(compute, "__globals__", {}).get("__doc__")
    text = (module_doc if file == name else "") or compute.__doc__ or ""
    return inspect.cleandoc(text).partition("\n")[0]


def names() -> tuple[str, ...]:
    """Return the names of all measures in alphabetical order, NLEEP first."""
    return tuple(sorted(_REGISTRY, key=lambda name: (name != "nleep", name)))


def get(name: str) -> Measure:
    """Return the measure `name`.

    Raises:
      InputError: There is no measure of this name.
    """
    if name not in _REGISTRY:
        raise unknown_name("measure", name, names(), "measures")
    return _REGISTRY[name]


def tolerance(name: str) -> Tolerance:
    """Return the tolerance of a measure, which need not be registered.

    A ranking that is read from a file can have measures of another program.
    """
    return _REGISTRY[name].tolerance if name in _REGISTRY else Tolerance()


def reads_images(name: str) -> bool:
    """Return whether a measure's scores depend on the images of the task.

    It need not be registered: those of another program are assumed to.
    """
    return name not in _REGISTRY or _REGISTRY[name].reads_images


def import_all(path: Iterable[str], package: str) -> None:
    """Import every module in the directories `path` as part of `package`.

    Modules that are already imported are skipped, so that calling it again registers
    only the measures of new files.
    """
    for module in pkgutil.iter_modules(path):
        if not module.ispkg:
            importlib.import_module(f"{package}.{module.name}")
