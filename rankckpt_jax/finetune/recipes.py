"""How a checkpoint is fine-tuned, as data: a `Recipe` per trial, a `Sweep` of trials.

`SWEEPS` holds the protocols behind published accuracies, and a short one. A config can
override every field.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from rankckpt_jax.data.metrics import METRICS
from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.finetune import budget


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of one trial of fine-tuning.

    Attributes:
      learning_rate: Step size before any decay.
      num_steps: Number of optimizer steps.
      batch_size: Global batch size, over all devices of all processes. A sweep lowers
        it to the largest power of two that is not above the number of training images.
      optimizer: "sgd" or "adamw"; see `optimizers.make`.
      momentum: Momentum of SGD, without Nesterov's correction, or decay of AdamW's
        first moment. That of its second moment is 0.999.
      schedule: "piecewise" (decays at `decay_at`), "cosine" (to 0) or "constant".
      decay_at: Shares of `num_steps` at which a piecewise schedule decays.
      decay_factor: Factor of each piecewise decay.
      warmup: Share of the steps over which the rate rises linearly to its full value.
      weight_decay: Factor of the kernels that is added to their gradients; for AdamW,
        times the learning rate, the share by which a step lowers them. Biases, scales
        and embeddings of positions are not decayed.
      layer_decay: Factor of the learning rate from each block of a transformer to the
        one before it, in (0, 1]; 1 for equal rates. See `optimizers.layer_factors`.
      label_smoothing: Probability spread evenly over all classes, in [0, 1).
      clip_norm: Maximum global norm of the gradient; 0 for no clipping, or for 1 in
        regression.
      random_crop: Minimum share of the image's area that a random resized crop keeps,
        in (0, 1]; 0 for no cropping. Crops are taken from the resized image.
      random_flip: Whether to mirror images left to right with probability 0.5.
      dtype: Dtype of the network's computation, "float32" or "bfloat16". Weights, batch
        norm moments, the head and the optimizer are float32 in either case.
      accumulate: Number of parts of a device's batch that are processed one after the
        other, to save memory. Gradients equal those of the whole batch, except for
        batch norm, which uses the moments of each part.
      frozen: Whether to train the head alone, on fixed features: a linear probe.
      batch_norm_decay: Decay of batch norm's moving averages; 0 for the architecture's
        own. TF-Slim's 0.9997 averages over 3000 steps, so after a short training
        evaluation would still use the checkpoint's averages.
      evaluations: Number of evaluations during training, evenly spaced.
      early_stop: Share of the steps after which the accuracy of the measure
        `early_stopping` is taken.
      save_every: Number of steps between saves of the training state.
      seed: Seed of the order of images, of augmentation, and of the choice of the
        training images that are held out to choose a trial.
    """

    learning_rate: float = 0.01
    num_steps: int = 1000
    batch_size: int = 64
    optimizer: str = "sgd"
    momentum: float = 0.9
    schedule: str = "piecewise"
    decay_at: tuple[float, ...] = (0.3, 0.6, 0.9)
    decay_factor: float = 0.1
    warmup: float = 0.0
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    random_crop: float = 0.0
    random_flip: bool = False
    dtype: str = "float32"
    accumulate: int = 1
    frozen: bool = False
    batch_norm_decay: float = 0.0
    evaluations: int = 5
    early_stop: float = 0.1
    save_every: int = 200
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A grid of trials, and how one of them is chosen.

    Attributes:
      name: Name of the protocol.
      recipe: Settings that all trials share.
      learning_rates: The grid's learning rates; they replace `recipe.learning_rate`.
      num_steps: The grid's numbers of steps; they replace `recipe.num_steps`.
      select_by: "test": train all trials on `train_on` and report the best final test
        accuracy, as published benchmarks do. "val": train on `train` and compare on
        `val`, without using test images.
      train_on: "train", or "trainval" to include `val` if the task has it. With
        `select_by="val"`, the chosen setting is then trained again on both.
      trials_at_once: Number of trials with equal `num_steps` that share a device by
        `jax.vmap`. This is faster for networks too small to fill the device. Without
        effect if `choose_after` is less than 1.
      choose_after: Share of the steps after which only the learning rate with the best
        metric on validation images goes on, in (0, 1]; 1 to train all rates to the
        end. It is applied to each of `num_steps`.
      metric: Name of the metric of `data.metrics` that trials are compared by; empty
        for that of the task's kind of target.
      budget: Steps of successive halving over the trials of all checkpoints, which
        replace `num_steps`; 0 to train every trial. Trials are then compared on
        held-out images, whatever `select_by`. See `halving`.
    """

    name: str
    recipe: Recipe
    learning_rates: tuple[float, ...]
    num_steps: tuple[int, ...]
    select_by: str = "test"
    train_on: str = "trainval"
    trials_at_once: int = 1
    choose_after: float = 1.0
    metric: str = ""
    budget: int = 0

    @property
    def trials(self) -> tuple[Recipe, ...]:
        """The recipe of each trial of the grid."""
        return tuple(
            dataclasses.replace(self.recipe, learning_rate=rate, num_steps=steps)
            for steps in self.num_steps
            for rate in self.learning_rates
        )

    @property
    def chooses_early(self) -> bool:
        """Whether learning rates are dropped before the last step."""
        return self.has_two_parts and len(self.learning_rates) > 1

    @property
    def has_two_parts(self) -> bool:
        """Whether trials have steps after the choice; one of a single step has none."""
        return all(self.choice_step(steps) < steps for steps in self.num_steps)

    def choice_step(self, num_steps: int) -> int:
        """Return the step after which one of the learning rates is chosen."""
        return max(1, round(self.choose_after * num_steps))

    @property
    def steps_before_choice(self) -> int:
        """Number of steps of all trials until the learning rates are chosen."""
        steps = sum(map(self.choice_step, self.num_steps))
        return len(self.learning_rates) * steps

    @property
    def steps_after_choice(self) -> int:
        """Number of steps of the chosen trials from there on."""
        return sum(steps - self.choice_step(steps) for steps in self.num_steps)


SWEEPS: Mapping[str, Sweep] = {
    sweep.name: sweep
    for sweep in (
        # VTAB (Zhai et al., 2019) with 1000 training images: one trial.
        Sweep("vtab_1k", Recipe(batch_size=64, warmup=0.08), (0.01,), (1000,)),
        # VTAB with all training images: chosen on val, then trained on train and val.
        Sweep(
            "vtab_full",
            Recipe(batch_size=512),
            (0.1, 0.01),
            (2500, 10_000),
            select_by="val",
        ),
        # The grid of PACTran (Ding et al., 2022) for NeuCRaB's four tasks. Li et al. do
        # not publish their own grid; this is the best known substitute. Like theirs, it
        # selects by test accuracy.
        Sweep(
            "neucrab",
            Recipe(batch_size=512, evaluations=10),
            (0.1, 0.05, 0.01, 0.005),
            (5000, 10_000),
        ),
        # Full fine-tuning of transformers on 1000 images of VTAB, as in Visual Prompt
        # Tuning (Jia et al., 2022, and their `tune_vtab.py`): 100 epochs, 10 of them
        # warm-up, learning rates 5e-3, 1e-3, 5e-4 and 1e-4 times batch size / 256. Of
        # their weight decays (0.01, 1e-3, 1e-4, 0) only the first is tried.
        Sweep(
            "vit",
            Recipe(
                optimizer="adamw",
                weight_decay=0.01,
                schedule="cosine",
                warmup=0.1,
                batch_size=64,
            ),
            (1.25e-3, 2.5e-4, 1.25e-4, 2.5e-5),
            (1500,),
            select_by="val",
        ),
        # Our own: a few hundred steps, for a laptop. SGD has no rates that suit all
        # networks; see docs/public_pool.md.
        Sweep(
            "quick",
            Recipe(
                optimizer="adamw", schedule="cosine", warmup=0.1, batch_norm_decay=0.9
            ),
            (0.003, 0.001, 0.0003),
            (300,),
            select_by="val",
            train_on="train",
            choose_after=budget.CHOOSE_AFTER,
        ),
    )
}
"""The named protocols."""

_CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("piecewise", "cosine", "constant"),
    "dtype": ("float32", "bfloat16"),
    "select_by": ("val", "test"),
    "train_on": ("train", "trainval"),
}
_AT_LEAST_1 = ("num_steps", "batch_size", "accumulate", "save_every", "trials_at_once")
_LIMITS: Sequence[tuple[Sequence[str], str, Callable[[Any], bool]]] = (
    (("learning_rate",), "a finite rate of at least 0", lambda x: 0 <= x < math.inf),
    (_AT_LEAST_1, "at least 1", lambda x: x >= 1),
    (("weight_decay", "clip_norm", "evaluations"), "at least 0", lambda x: x >= 0),
    (
        ("momentum", "label_smoothing", "batch_norm_decay"),
        "a value in [0, 1)",
        lambda x: 0 <= x < 1,
    ),
    (("layer_decay",), "a factor in (0, 1]", lambda x: 0 < x <= 1),
    (("choose_after",), "a share in (0, 1]", lambda x: 0 < x <= 1),
    (
        ("warmup", "early_stop", "random_crop"),
        "a share in [0, 1]",
        lambda x: 0 <= x <= 1,
    ),
)


def make_sweep(settings: Mapping[str, Any], seed: int) -> Sweep:
    """Build the sweep that a config's section `finetune` describes.

    Args:
      settings: `recipe`, a name of `SWEEPS`, and fields of `Recipe` and `Sweep` that
        override it; None keeps the recipe's value. `learning_rate` and `num_steps` are
        one value or several.
      seed: Seed of all trials.

    Raises:
      InputError: A name or value is not allowed; names the field.
    """
    if (metric := settings.get("metric")) and metric not in METRICS:
        raise unknown_name("metric", metric, METRICS, "config.finetune.metric")
    given = {key: value for key, value in settings.items() if value is not None}
    name = given.pop("recipe", "vtab_1k")
    if name not in SWEEPS:
        raise unknown_name("recipe", name, SWEEPS, "config.finetune.recipe")
    base = SWEEPS[name]
    rates = given.pop("learning_rate", base.learning_rates)
    steps = given.pop("num_steps", base.num_steps)
    of_sweep = {field.name for field in dataclasses.fields(Sweep)} & given.keys()
    options = {key: given.pop(key) for key in of_sweep}
    limit = budget.parse(options.get("budget"))
    options["budget"] = limit.steps
    if limit.seconds:
        options.setdefault("choose_after", budget.CHOOSE_AFTER)
    elif limit.steps:
        # Successive halving drops the learning rates.
        options["choose_after"] = 1.0
    for key in ("num_steps", "choose_after"):
        if limit.steps and settings.get(key) is not None:
            raise InputError(
                "The budget of fine-tuning decides the number of steps",
                where=f"config.finetune.{key}",
                expected=f"no {key} with config.finetune.budget in steps",
                found=f"{settings[key]} with a budget of {limit.steps}",
                fix="leave one of the two out",
            )
    if "decay_at" in given:
        given["decay_at"] = tuple(given["decay_at"])
    known = {field.name for field in dataclasses.fields(Recipe)}
    for key in sorted(given.keys() - known):
        raise unknown_name("field of a recipe", key, sorted(known), "config.finetune")
    sweep = dataclasses.replace(
        base,
        recipe=dataclasses.replace(base.recipe, **{**given, "seed": seed}),
        learning_rates=_numbers("learning_rate", rates, float),
        num_steps=_numbers("num_steps", steps, int),
        **options,
    )
    _check(sweep)
    return sweep


def _check(sweep: Sweep) -> None:
    """Raise an `InputError` that names the first field with an invalid value."""
    fields = [
        *dataclasses.asdict(sweep.recipe).items(),
        *(("learning_rate", rate) for rate in sweep.learning_rates),
        *(("num_steps", steps) for steps in sweep.num_steps),
        *((name, getattr(sweep, name)) for name in ("select_by", "train_on")),
        ("trials_at_once", sweep.trials_at_once),
        ("choose_after", sweep.choose_after),
    ]
    for name, value in fields:
        where = f"config.finetune.{name}"
        if name in _CHOICES and value not in _CHOICES[name]:
            raise unknown_name(name, value, _CHOICES[name], where)
        for names, expected, is_valid in _LIMITS:
            if name in names and not is_valid(value):
                raise InputError(
                    f"Invalid value for fine-tuning: {name} = {value}",
                    where=where,
                    expected=expected,
                    found=str(value),
                    fix="change it, or omit it to use the recipe's value",
                )
    recipe = sweep.recipe
    if recipe.frozen and (recipe.random_crop > 0 or recipe.random_flip):
        raise InputError(
            "A linear probe cannot use augmentation: it extracts the features of each "
            "image once",
            where="config.finetune.frozen",
            expected="random_crop 0 and random_flip False",
            found=f"random_crop {recipe.random_crop}, random_flip {recipe.random_flip}",
            fix="turn augmentation off, or set config.finetune.frozen=False",
        )


def schedule(recipe: Recipe) -> np.ndarray:
    """Return the learning rate of each step, float32 [num_steps].

    Step t of a warm-up over w steps multiplies the schedule by (t + 1) / w. The rates
    are a table on the host, so that reading one never waits for a device.
    """
    steps = jnp.arange(recipe.num_steps)
    rates = jnp.asarray(_schedule(recipe)(steps), jnp.float32)
    rates = jnp.broadcast_to(rates, steps.shape)
    warmup_steps = round(recipe.warmup * recipe.num_steps)
    if warmup_steps:
        rates = rates * jnp.minimum(1.0, (steps + 1) / warmup_steps)
    return np.asarray(rates, np.float32)


def _schedule(recipe: Recipe) -> optax.Schedule:
    if recipe.schedule == "cosine":
        return optax.cosine_decay_schedule(recipe.learning_rate, recipe.num_steps)
    if recipe.schedule == "constant":
        return optax.constant_schedule(recipe.learning_rate)
    decays = {
        round(share * recipe.num_steps): recipe.decay_factor
        for share in recipe.decay_at
    }
    return optax.piecewise_constant_schedule(recipe.learning_rate, decays)


def _numbers(name: str, given: Any, kind: type) -> tuple[Any, ...]:
    values = given if isinstance(given, Sequence) else (given,)
    try:
        if values and not isinstance(given, str):
            return tuple(kind(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(
        f"Not a number: {name} = {given!r}",
        where=f"config.finetune.{name}",
        expected="one number or several, such as 0.1,0.01",
        found=repr(given),
        fix="change it, or omit it to use the recipe's value",
    )
