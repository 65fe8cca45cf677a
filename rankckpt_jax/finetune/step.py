"""One step of training, and one of counting, compiled once for an architecture.

Whatever a grid of runs varies is data: the learning rate of the moment, momentum,
weight decay, smoothing and clipping are arguments of the compiled step, so a sweep
compiles once. What changes the program itself is a `Program`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.devices import mapping, processes
from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import augment
from rankckpt_jax.finetune.recipes import Recipe
from rankckpt_jax.models import layers

NUM_TRACES: collections.Counter[int] = collections.Counter()
"""How often each program's step, by its hash, was traced; tests hold it to once."""


class State(NamedTuple):
    """Everything that training changes.

    Attributes:
      params: The backbone's, and `head` {"kernel" [D, C], "bias" [C]}; float32.
      batch_stats: The backbone's moving averages.
      optimizer: Optax's state; SGD's running sum of gradients is in it.
    """

    params: Any
    batch_stats: Any
    optimizer: Any


class Hyper(NamedTuple):
    """What a step is told anew each time; float32 scalars but for the last two.

    Attributes:
      rate: Learning rate.
      momentum: Of SGD.
      weight_decay: Times the kernels, added to their gradients.
      label_smoothing: Probability spread evenly over all classes.
      clip_norm: Largest norm of the gradient; infinite for no clipping.
      random_crop: Smallest share of an image that a crop keeps.
      seed: uint32, of augmentation.
      step: uint32, of augmentation.
    """

    rate: Any
    momentum: Any
    weight_decay: Any
    label_smoothing: Any
    clip_norm: Any
    random_crop: Any
    seed: Any
    step: Any


@dataclasses.dataclass(frozen=True)
class Program:
    """What makes one compiled step differ from another.

    Attributes:
      apply: The forward function; see `checkpoints.backbone.Apply`.
      accumulate: Parts of a batch whose gradients are summed.
      crop: Whether images are cropped at random.
      flip: Whether they are mirrored at random.
      cells: Runs that share the step, their states stacked; 1 for a state unstacked.
    """

    apply: Callable[..., Any]
    accumulate: int = 1
    crop: bool = False
    flip: bool = False
    cells: int = 1


def program(backbone: backbone_lib.Backbone, recipe: Recipe, cells: int = 1) -> Program:
    """The program that trains `backbone` by `recipe`."""
    apply = dataclasses.replace(
        backbone.apply,
        dtype=recipe.dtype,
        axis_name=mapping.AXIS,
        decay=recipe.batch_norm_decay or None,
    )
    crop, flip = recipe.random_crop > 0, recipe.random_flip
    return Program(apply, recipe.accumulate, crop, flip, cells)


def hyper(recipe: Recipe, rate: Any, step: int) -> Hyper:
    """What the step number `step` of `recipe` is told; `rate` a scalar, or [cells]."""
    return Hyper(
        rate=np.asarray(rate, np.float32),
        momentum=np.float32(recipe.momentum),
        weight_decay=np.float32(recipe.weight_decay),
        label_smoothing=np.float32(recipe.label_smoothing),
        clip_norm=np.float32(recipe.clip_norm or math.inf),
        random_crop=np.float32(recipe.random_crop),
        seed=np.uint32(recipe.seed & 0xFFFFFFFF),
        step=np.uint32(step),
    )


def initial_state(
    backbone: backbone_lib.Backbone, num_classes: int, cells: int = 1
) -> State:
    """The checkpoint's weights, a head of zeros in place of its own, no momentum.

    Args:
      backbone: Where to start from.
      num_classes: Width of the new head.
      cells: Runs that start from it; more than one are stacked on a leading axis.
    """
    variables, _ = backbone_lib.split_head(backbone.variables)
    head = {
        "kernel": np.zeros((backbone.feature_dim, num_classes), np.float32),
        "bias": np.zeros(num_classes, np.float32),
    }
    params = {"backbone": variables["params"], "head": head}
    params, batch_stats = jax.tree.map(
        np.asarray, (params, variables.get("batch_stats", {}))
    )
    state = State(params, batch_stats, _optimizer(_no_hyper()).init(params))
    if cells > 1:
        state = jax.tree.map(lambda x: np.stack([np.asarray(x)] * cells), state)
    return mapping.replicate(state)


def train_step(program: Program) -> Callable[..., tuple[State, jax.Array]]:
    """Compiles one step of training; shared by all checkpoints of an architecture.

    Returns:
      step(state, scaling, hyper, (images [n, b, S, S, 3], labels [n, b], rows [n, b]))
      -> (state, loss in nats). The state's memory is reused. Rows are the images'
      places in the global batch, which decide their augmentation. With several cells
      the state, `hyper.rate` and the loss have a leading axis of cells.
    """
    return _train_step(program)


@mapping.bounded_cache
def _train_step(program: Program) -> Callable[..., tuple[State, jax.Array]]:
    def step(
        state: State, scaling: Any, hyper: Hyper, data: Any
    ) -> tuple[State, jax.Array]:
        NUM_TRACES[hash(program)] += 1
        raw, labels, rows = data
        if program.crop or program.flip:
            key = jax.random.fold_in(jax.random.key(hyper.seed), hyper.step)
            raw = augment.augment(
                raw, key, rows, hyper.random_crop, program.crop, program.flip
            )
        images = preprocess_lib.to_input_range(raw, *scaling)
        update = functools.partial(_update, program, images, labels)
        if program.cells == 1:
            return update(state, hyper)
        by_cell = Hyper(0, *[None] * (len(Hyper._fields) - 1))
        return jax.vmap(update, in_axes=(0, by_cell))(state, hyper)

    return mapping.map_devices(
        step, in_axes=(None, None, None, 0), out_axes=None, donate_argnums=(0,)
    )


def _update(
    program: Program, images: jax.Array, labels: jax.Array, state: State, hyper: Hyper
) -> tuple[State, jax.Array]:
    """Gradient of the global batch's mean loss, then Optax's update."""

    def loss_fn(params: Any, stats: Any, images: Any, labels: Any) -> Any:
        variables = {"params": params["backbone"], "batch_stats": stats}
        output, stats = program.apply(variables, images, train=True)
        logits = layers.classify(params["head"], output.features)
        wanted = jax.nn.one_hot(labels, logits.shape[-1])
        wanted = optax.smooth_labels(wanted, hyper.label_smoothing)
        return optax.softmax_cross_entropy(logits, wanted).mean(), stats

    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    parts = program.accumulate
    if parts == 1:
        (loss, stats), gradients = gradient_fn(
            state.params, state.batch_stats, images, labels
        )
    else:

        def accumulate(carry: Any, part: Any) -> tuple[Any, None]:
            stats, total = carry
            (loss, stats), gradients = gradient_fn(state.params, stats, *part)
            return (stats, jax.tree.map(jnp.add, total, (loss, gradients))), None

        divided = jax.tree.map(
            lambda x: x.reshape(parts, len(x) // parts, *x.shape[1:]), (images, labels)
        )
        nothing = jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params)
        start = (state.batch_stats, nothing)
        (stats, total), _ = jax.lax.scan(accumulate, start, divided)
        loss, gradients = jax.tree.map(lambda x: x / parts, total)
    # Moving averages are the same on all devices already where the network takes its
    # moments over the axis; where it does not, they become so here.
    loss, gradients, stats = jax.lax.pmean((loss, gradients, stats), mapping.AXIS)
    updates, optimizer = _optimizer(hyper).update(
        gradients, state.optimizer, state.params
    )
    params = optax.apply_updates(state.params, updates)
    return State(params, stats, optimizer), loss


def _optimizer(hyper: Hyper) -> optax.GradientTransformation:
    """SGD with momentum, its settings values that may be traced."""
    return optax.chain(
        optax.clip_by_global_norm(hyper.clip_norm),
        optax.add_decayed_weights(hyper.weight_decay, mask=_kernels),
        optax.trace(decay=hyper.momentum),
        optax.scale(-hyper.rate),
    )


def _no_hyper() -> Hyper:
    return hyper(Recipe(), 0.0, 0)


def _kernels(params: Any) -> Any:
    """Which leaves are kernels: all that have more than one axis."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def count_correct(apply: Callable[..., Any], cells: int = 1) -> Callable[..., Any]:
    """Compiles one step of evaluation; shared by all checkpoints of an architecture.

    Returns:
      count(state, scaling, (images, labels, mask)) -> (images classified correctly,
      images whose logits are not finite), each a scalar, or [cells].
    """
    return _count_correct(apply, cells)


@mapping.bounded_cache
def _count_correct(apply: Callable[..., Any], cells: int) -> Callable[..., Any]:
    def count(state: State, scaling: Any, data: Any) -> tuple[jax.Array, jax.Array]:
        raw, labels, mask = data
        images = preprocess_lib.to_input_range(raw, *scaling)

        def of_one(state: State) -> tuple[jax.Array, jax.Array]:
            variables = {
                "params": state.params["backbone"],
                "batch_stats": state.batch_stats,
            }
            features = apply(variables, images).features
            logits = layers.classify(state.params["head"], features)
            correct = (jnp.argmax(logits, axis=-1) == labels) & mask
            broken = ~jnp.isfinite(logits).all(axis=-1) & mask
            return jnp.sum(correct), jnp.sum(broken)

        counts = of_one(state) if cells == 1 else jax.vmap(of_one)(state)
        return jax.lax.psum(counts, mapping.AXIS)

    return mapping.map_devices(count, in_axes=(None, None, 0), out_axes=None)


def check_batch(batch_size: int, accumulate: int) -> int:
    """Returns this process's share of a global batch.

    Raises:
      InputError: The devices cannot share it evenly. Rounding would train by another
        batch on another machine.
    """
    parts = processes.process_count() * mapping.local_device_count() * accumulate
    if batch_size % parts:
        raise InputError(
            "The batch cannot be divided evenly",
            where="config.finetune.batch_size",
            expected=f"a multiple of {parts}: {parts // accumulate} devices, "
            f"{accumulate} parts each",
            found=str(batch_size),
            fix=f"{math.ceil(batch_size / parts) * parts} is the nearest above",
        )
    return batch_size // processes.process_count()
