"""The compiled training step and evaluation step, each compiled once per architecture.

Settings that a sweep varies (learning rate, momentum, weight decay, label smoothing,
clipping) are arguments of the compiled step, so a sweep compiles once. `StepSpec` holds
what changes the compiled step itself.
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
from rankckpt_jax.devices import mapping, processes, target
from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import augment, optimizers
from rankckpt_jax.finetune.recipes import Recipe
from rankckpt_jax.models import layers

TRAINING_VERSION = 2
"""Version of training, in the key of every result of it.

Raise it with every change of the weights that the same recipe gives: of the step, the
augmentation, the schedule, or the order of images.
"""

NUM_TRACES: collections.Counter[int] = collections.Counter()
"""Number of traces of each training step, by the hash of its `StepSpec`. Tests assert
that it is one."""


class State(NamedTuple):
    """Everything that training changes.

    Attributes:
      params: {"backbone": ..., "head": {"kernel" [D, C], "bias" [C]}}, float32.
      batch_stats: Moving averages of batch norm.
      optimizer: Optax's state, which contains SGD's momentum or AdamW's two moments.
    """

    params: Any
    batch_stats: Any
    optimizer: Any


class Hyperparameters(NamedTuple):
    """Arguments of a training step: float32 scalars as in `Recipe`, except for these.

    Attributes:
      rate: Learning rate; [T] for T trials.
      clip_norm: Infinite for no clipping.
      seed: uint32.
      step: Index of the step, uint32.
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
class StepSpec:
    """Settings that determine the compiled step.

    Attributes:
      apply: The forward function; see `checkpoints.backbone.Apply`.
      accumulate: Number of parts of a batch whose gradients are summed.
      crop: Whether images are cropped at random.
      flip: Whether images are mirrored at random.
      trials: Number of trials that share the step. With more than one, states are
        stacked along a leading axis.
      optimizer: See `Recipe`, like `layer_decay`.
      target: Kind of the labels, which decides the loss; see `_loss`.
    """

    apply: Callable[..., Any]
    accumulate: int = 1
    crop: bool = False
    flip: bool = False
    trials: int = 1
    optimizer: str = "sgd"
    layer_decay: float = 1.0
    target: str = "classes"


def step_spec(
    backbone: backbone_lib.Backbone,
    recipe: Recipe,
    trials: int = 1,
    target: str = "classes",
) -> StepSpec:
    """Return the spec of the step that trains `backbone` with `recipe`.

    Args:
      backbone: The checkpoint.
      recipe: The recipe.
      trials: See `StepSpec`, like `target`.
      target: One of `data.targets.TARGETS`.

    Raises:
      InputError: PyTorch itself computes the network, or `recipe.layer_decay` is not 1
        and it has no blocks.
    """
    if backbone_lib.is_on_host(backbone.apply):
        raise InputError(
            f"{backbone.name} is computed by PyTorch, which only extracts features",
            where="config.torch_engine",
            expected="jax or auto",
            found="torch",
            fix='--config.torch_engine=jax, or engine="jax" in from_torch',
        )
    if recipe.layer_decay != 1:
        optimizers.layer_factors(backbone.variables["params"], recipe.layer_decay)
    apply = dataclasses.replace(
        backbone.apply,
        dtype=recipe.dtype,
        axis_name=mapping.AXIS,
        decay=recipe.batch_norm_decay or None,
        precision=product_precision(),
    )
    crop, flip = recipe.random_crop > 0, recipe.random_flip
    return StepSpec(
        apply,
        recipe.accumulate,
        crop,
        flip,
        trials,
        recipe.optimizer,
        recipe.layer_decay,
        target,
    )


def product_precision() -> str:
    """Return the precision of the network's float32 products in fine-tuning.

    It is "default" on a TPU: inputs are rounded to bfloat16, sums are float32. This
    takes one pass instead of six, and is TensorFlow's default on TPUs too. Elsewhere it
    is "highest".
    """
    return "default" if target.platform() == "tpu" else "highest"


def hyperparameters(recipe: Recipe, rate: Any, step: int) -> Hyperparameters:
    """Return the arguments of step `step` of `recipe`; `rate` is a scalar or [T]."""
    return Hyperparameters(
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
    backbone: backbone_lib.Backbone,
    num_outputs: int,
    trials: int = 1,
    optimizer: str = "sgd",
) -> State:
    """Return the checkpoint's weights with a new head of zeros, on every device.

    Args:
      backbone: The checkpoint.
      num_outputs: Width of the new head.
      trials: Number of trials. With more than one, their states are stacked along a
        leading axis.
      optimizer: The recipe's.
    """
    variables = backbone.variables
    width = backbone.feature_dim
    state = _state(variables, width, num_outputs, trials, optimizer, np)
    return mapping.replicate(state)


def initial_shapes(
    backbone: Any, num_outputs: int, trials: int = 1, optimizer: str = "sgd"
) -> State:
    """Return the shapes of `initial_state`, which take no memory.

    Args:
      backbone: The checkpoint; `variables` may be shapes.
      num_outputs: Width of the new head.
      trials: Number of trials.
      optimizer: The recipe's.
    """
    width = backbone.feature_dim
    shapes = jax.eval_shape(
        lambda variables: _state(variables, width, num_outputs, trials, optimizer, jnp),
        backbone.variables,
    )
    return mapping.replicated_shapes(shapes)


def _state(
    variables: Any,
    feature_dim: int,
    num_outputs: int,
    trials: int,
    optimizer: str,
    numpy: Any,
) -> State:
    """Make the initial state with the functions of `numpy` or `jax.numpy`."""
    variables, _ = backbone_lib.split_head(variables)
    head = {
        "kernel": numpy.zeros((feature_dim, num_outputs), numpy.float32),
        "bias": numpy.zeros(num_outputs, numpy.float32),
    }
    params = {"backbone": variables["params"], "head": head}
    batch_stats = variables.get("batch_stats", {})
    params, batch_stats = jax.tree.map(numpy.asarray, (params, batch_stats))
    # The optimizer's state does not depend on the numbers.
    initial = optimizers.make(
        optimizer, rate=0.0, momentum=0.0, weight_decay=0.0, clip_norm=1.0
    )
    state = State(params, batch_stats, initial.init(params))
    if trials > 1:
        state = jax.tree.map(lambda x: numpy.stack([numpy.asarray(x)] * trials), state)
    return state


@mapping.bounded_cache
def train_step(spec: StepSpec) -> Callable[..., tuple[State, jax.Array]]:
    """Compile a training step, shared by all checkpoints of an architecture.

    Returns:
      step(state, scaling, hyperparameters, (images [n, b, S, S, 3], labels, rows [n,
      b])) -> (state, loss; see `_loss`). Labels are int32 [n, b] for classes, bool [n,
      b, L] for multi_label and standardized float32 [n, b] for regression. `rows` are
      the images' indices in the global batch, which determine their augmentation. The
      state's memory is reused. With T > 1 trials, the state, the learning rate and the
      loss have a leading axis [T].
    """

    def step(
        state: State, scaling: Any, hyper: Hyperparameters, data: Any
    ) -> tuple[State, jax.Array]:
        NUM_TRACES[hash(spec)] += 1
        raw, labels, rows = data
        step_key = jax.random.fold_in(jax.random.key(hyper.seed), hyper.step)
        images_key, network_key = jax.random.split(step_key)
        if spec.crop or spec.flip:
            raw = augment.augment(
                raw, images_key, rows, hyper.random_crop, spec.crop, spec.flip
            )
        images = preprocess_lib.to_input_range(raw, *scaling)
        # Trials share the key, so that a trial does not depend on those beside it.
        update = functools.partial(_update, spec, images, labels, network_key)
        if spec.trials == 1:
            return update(state, hyper)
        axes = Hyperparameters(0, *[None] * (len(Hyperparameters._fields) - 1))
        return jax.vmap(update, in_axes=(0, axes))(state, hyper)

    return mapping.map_devices(
        step, in_axes=(None, None, None, 0), out_axes=None, donate_argnums=(0,)
    )


def _update(
    spec: StepSpec,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    state: State,
    hyper: Hyperparameters,
) -> tuple[State, jax.Array]:
    """Apply Optax's update with the gradient of the global batch's mean loss.

    `key` is the network's random key for this step. Each device and each part of an
    accumulated batch derives its own.
    """
    key = jax.random.fold_in(key, jax.lax.axis_index(mapping.AXIS))

    def loss_fn(params: Any, stats: Any, images: Any, labels: Any, key: Any) -> Any:
        variables = {"params": params["backbone"], "batch_stats": stats}
        output, stats = spec.apply(variables, images, train=True, key=key)
        logits = layers.classify(params["head"], output.features)
        return _loss(spec.target, logits, labels, hyper.label_smoothing), stats

    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if spec.accumulate == 1:
        (loss, stats), gradients = gradient_fn(
            state.params, state.batch_stats, images, labels, key
        )
    else:

        def accumulate(carry: Any, part: Any) -> tuple[Any, None]:
            stats, total = carry
            (loss, stats), gradients = gradient_fn(state.params, stats, *part)
            return (stats, jax.tree.map(jnp.add, total, (loss, gradients))), None

        parts = jax.tree.map(
            lambda x: x.reshape(spec.accumulate, -1, *x.shape[1:]), (images, labels)
        )
        parts = *parts, jax.random.split(key, spec.accumulate)
        zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params)
        start = (state.batch_stats, zeros)
        (stats, total), _ = jax.lax.scan(accumulate, start, parts)
        loss, gradients = jax.tree.map(lambda x: x / spec.accumulate, total)
    loss, gradients = jax.lax.pmean((loss, gradients), mapping.AXIS)
    # For a network that averages its batch moments over the axis, the moving averages
    # are equal on all devices already. For other networks they are averaged here.
    stats = jax.tree.map(_average_over_devices, stats)
    optimizer = optimizers.make(
        spec.optimizer,
        rate=hyper.rate,
        momentum=hyper.momentum,
        weight_decay=hyper.weight_decay,
        clip_norm=hyper.clip_norm,
        layer_decay=spec.layer_decay,
    )
    updates, optimizer_state = optimizer.update(
        gradients, state.optimizer, state.params
    )
    params = optax.apply_updates(state.params, updates)
    return State(params, stats, optimizer_state), loss


def _loss(
    target: str, logits: jax.Array, labels: jax.Array, smoothing: jax.Array
) -> jax.Array:
    """Return the mean loss over images.

    - classes: softmax cross-entropy in nats.
    - multi_label: sigmoid cross-entropy in nats, summed over the labels, so that the
      gradient of a label does not depend on their number. Smoothing moves a label
      towards 0.5.
    - regression: squared error of the standardized number.

    Args:
      target: One of `data.targets.TARGETS`.
      logits: float [b, C], [b, L] or [b, 1].
      labels: See `train_step`.
      smoothing: See `Recipe.label_smoothing`.
    """
    if target == "regression":
        return optax.squared_error(logits[:, 0], labels).mean()
    if target == "multi_label":
        targets = labels * (1 - smoothing) + smoothing / 2
        return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1).mean()
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = optax.smooth_labels(targets, smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean()


def _average_over_devices(statistic: jax.Array) -> jax.Array:
    """Average over devices; leave an integer as it is, a counter of equal values."""
    is_float = jnp.issubdtype(statistic.dtype, jnp.floating)
    return jax.lax.pmean(statistic, mapping.AXIS) if is_float else statistic


@mapping.bounded_cache
def predict(apply: Callable[..., Any], trials: int = 1) -> Callable[..., Any]:
    """Compile an evaluation step, shared by all checkpoints of an architecture.

    Returns:
      predict(state, scaling, (images, labels, mask)) -> (logits, labels, mask) of all
      devices of all processes: logits float32 [n, b, C], or [n, T, b, C] for T > 1
      trials, and the others as given, with n for all devices.
    """

    def predict(state: State, scaling: Any, data: Any) -> Any:
        raw, labels, mask = data
        images = preprocess_lib.to_input_range(raw, *scaling)

        def predict_one(state: State) -> jax.Array:
            variables = {
                "params": state.params["backbone"],
                "batch_stats": state.batch_stats,
            }
            features = apply(variables, images).features
            return layers.classify(state.params["head"], features)

        logits = predict_one(state) if trials == 1 else jax.vmap(predict_one)(state)
        return jax.lax.all_gather((logits, labels, mask), mapping.AXIS)

    return mapping.map_devices(predict, in_axes=(None, None, 0), out_axes=None)


def num_parts(accumulate: int) -> int:
    """Return the number of equal parts that a global batch is divided into."""
    return processes.process_count() * mapping.local_device_count() * accumulate


def check_batch(batch_size: int, accumulate: int) -> int:
    """Return this process's share of a global batch.

    Raises:
      InputError: The devices cannot share it evenly. Rounding is no option, since the
        result would depend on the number of devices.
    """
    parts = num_parts(accumulate)
    devices = parts // accumulate
    if batch_size % parts:
        raise InputError(
            "The batch cannot be divided evenly",
            where="config.finetune.batch_size",
            expected=f"a multiple of {parts} ({devices} devices, {accumulate} parts "
            "each)",
            found=str(batch_size),
            fix=f"{math.ceil(batch_size / parts) * parts} is the nearest above",
        )
    return batch_size // processes.process_count()
