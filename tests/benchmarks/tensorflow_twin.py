"""The networks of `rankckpt_jax.models` in plain TensorFlow operations.

Extraction and training are compared with them, on the same weights. They are built from
the same tables where there are tables.
"""

import functools

import numpy as np

from rankckpt_jax import models
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.models import inception, mobilenet_v1, mobilenet_v2, mobilenet_v3


def extractor(name, variables):
    """Return a `tf.function` from images [B, H, W, 3] to features [B, D]."""
    tf = tensorflow()
    twin = _Twin(tf, variables)
    module = models.create(name)
    forward = _FORWARD[type(module).__name__]
    return tf.function(lambda images: forward(twin, module, images))


class Trainer:
    """Trains a network as VTAB does: TF1's momentum, a dense head, batch moments.

    Attributes:
      params: {"backbone", "head"}, nested dictionaries of `tf.Variable`.
      batch_stats: Moving averages, likewise.
    """

    def __init__(self, name, variables, head, momentum=0.9, norm_momentum=None):
        self.tf = tf = tensorflow()
        self.module = models.create(name)
        self.forward = _FORWARD[type(self.module).__name__]
        params = {"backbone": variables["params"], "head": head}
        self.params = tf.nest.map_structure(tf.Variable, params)
        self.batch_stats = tf.nest.map_structure(
            lambda value: tf.Variable(value, trainable=False), variables["batch_stats"]
        )
        self.norm_momentum = (
            self.module.momentum if norm_momentum is None else norm_momentum
        )
        self.rate = tf.Variable(np.zeros((), head["bias"].dtype), trainable=False)
        self.optimizer = tf.compat.v1.train.MomentumOptimizer(self.rate, momentum)
        self.compiled = tf.function(self._step, reduce_retracing=True)

    def step(self, images, labels, rate):
        """Take a step; return the loss and the gradients, structured as `params`."""
        self.rate.assign(rate)
        return self.compiled(images, labels)

    def _step(self, images, labels):
        tf = self.tf
        variables = {
            "params": self.params["backbone"],
            "batch_stats": self.batch_stats,
        }
        with tf.GradientTape() as tape:
            twin = _Twin(tf, variables, norm_momentum=self.norm_momentum)
            features = self.forward(twin, self.module, images)
            head = self.params["head"]
            logits = features @ head["kernel"] + head["bias"]
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            )
        flat = tf.nest.flatten(self.params)
        gradients = tape.gradient(loss, flat)
        self.optimizer.apply_gradients(zip(gradients, flat, strict=True))
        for variable, value in twin.moved:
            variable.assign(value)
        return loss, tf.nest.pack_sequence_as(self.params, gradients)


class _Twin:
    """Layers by their scope.

    In inference, weights are constants so that TensorFlow can fold them. With
    `norm_momentum`, training: weights are variables, batch norm uses the batch's
    moments, and `moved` collects (moving average, its new value).
    """

    def __init__(self, tf, variables, norm_momentum=None):
        self.tf = tf
        self.variables = variables
        self.norm_momentum = norm_momentum
        self.moved = []

    def get(self, collection, scope, leaf):
        node = self.variables[collection]
        for part in (*scope.split("/"), leaf):
            if part not in node:
                return None
            node = node[part]
        return node if self.norm_momentum is not None else self.tf.constant(node)

    def batch_norm(self, x, scope, epsilon):
        tf, get = self.tf, functools.partial(self.get, scope=scope)
        bias = get("params", leaf="bias")
        scale = get("params", leaf="scale")
        scale = tf.ones_like(bias) if scale is None else scale
        moving = get("batch_stats", leaf="mean"), get("batch_stats", leaf="var")
        if self.norm_momentum is None:
            y, *_ = tf.compat.v1.nn.fused_batch_norm(
                x, scale, bias, *moving, epsilon=epsilon, is_training=False
            )
            return y
        if x.dtype == tf.float32:
            fused = tf.compat.v1.nn.fused_batch_norm
            y, *moments = fused(x, scale, bias, epsilon=epsilon)
        else:  # The fused kernel has no float64.
            mean, var = tf.nn.moments(x, [0, 1, 2])
            y = tf.nn.batch_normalization(x, mean, var, bias, scale, epsilon)
            count = tf.cast(tf.size(x) / tf.size(mean), x.dtype)
            moments = mean, var * count / (count - 1)
        for average, moment in zip(moving, moments, strict=True):
            new = self.norm_momentum * average + (1 - self.norm_momentum) * moment
            self.moved.append((average, new))
        return y

    def conv(self, x, scope, stride=1, padding="SAME", act="relu", epsilon=1e-3):
        tf = self.tf
        kernel = self.get("params", scope, "kernel")
        depthwise = self.get("params", scope, "depthwise_kernel")
        pointwise = self.get("params", scope, "pointwise_kernel")
        strides = [1, stride, stride, 1]
        if pointwise is not None:
            x = tf.nn.separable_conv2d(x, depthwise, pointwise, strides, padding)
        elif depthwise is not None:
            x = tf.nn.depthwise_conv2d(x, depthwise, strides, padding)
        else:
            x = tf.nn.conv2d(x, kernel, stride, padding)
        bias = self.get("params", scope, "bias")
        if bias is None:
            x = self.batch_norm(x, f"{scope}/BatchNorm", epsilon)
        else:
            x = tf.nn.bias_add(x, bias)
        return self.activate(x, act)

    def activate(self, x, act):
        nn = self.tf.nn
        if act in ("relu", "relu6"):
            return getattr(nn, act)(x)
        return x * nn.relu6(x + 3.0) * (1 / 6) if act == "hard_swish" else x

    def mean(self, x):
        return self.tf.reduce_mean(x, [1, 2])


def _inception(twin, module, x):
    tf = twin.tf

    def run(x, steps, scope):
        for step in steps:
            name = f"{scope}{getattr(step, 'name', '')}"
            if isinstance(step, inception.Conv):
                x = twin.conv(x, name, step.stride, step.padding)
            elif isinstance(step, inception.Separable):
                x = twin.conv(x, name, step.stride)
            elif isinstance(step, inception.MaxPool):
                x = tf.nn.max_pool2d(x, step.window, step.stride, step.padding)
            elif isinstance(step, inception.AvgPool):
                x = tf.nn.avg_pool2d(x, 3, 1, "SAME")
            elif isinstance(step, inception.Fork):
                x = tf.concat([run(x, (conv,), scope) for conv in step.convs], 3)
            elif isinstance(step, inception.Mixed):
                x = join(x, step.branches, f"{name}/")
            elif isinstance(step, inception.Residual):
                x = residual(x, step, f"{name}/")
            else:
                x = run(x, step.steps, f"{name}/")
        return x

    def join(x, branches, scope):
        sides = [
            run(x, steps, f"{scope}Branch_{i}/") for i, steps in enumerate(branches)
        ]
        return tf.concat(sides, 3)

    def residual(x, step, scope):
        y = twin.conv(join(x, step.branches, scope), f"{scope}Conv2d_1x1", act=None)
        return twin.activate(x + step.scale * y, "relu" if step.activate else None)

    return twin.mean(run(x, module.steps, ""))


def _mobilenet_v1(twin, module, x):
    conv = functools.partial(twin.conv, act="relu6")
    x = conv(x, "Conv2d_0", 2)
    for i, (_, stride) in enumerate(mobilenet_v1.LAYERS, start=1):
        x = conv(x, f"Conv2d_{i}_depthwise", stride)
        x = conv(x, f"Conv2d_{i}_pointwise")
    return twin.mean(x)


def _expanded(twin, x, index, stride, act, gated=False):
    scope = f"expanded_conv_{index}" if index else "expanded_conv"
    y = x
    if twin.get("params", f"{scope}/expand", "kernel") is not None:
        y = twin.conv(y, f"{scope}/expand", act=act)
    y = twin.conv(y, f"{scope}/depthwise", stride, act=act)
    if gated:
        gate = twin.tf.reduce_mean(y, [1, 2], keepdims=True)
        gate = twin.conv(gate, f"{scope}/squeeze_excite/Conv")
        gate = twin.conv(gate, f"{scope}/squeeze_excite/Conv_1", act=None)
        y = y * (twin.tf.nn.relu6(gate + 3.0) * 0.16667)
    y = twin.conv(y, f"{scope}/project", act=None)
    return y + x if y.shape == x.shape else y


def _mobilenet_v2(twin, module, x):
    x = twin.conv(x, "Conv", 2, act="relu6")
    for i, (_, stride) in enumerate(mobilenet_v2.BLOCKS):
        x = _expanded(twin, x, i, stride, "relu6")
    return twin.mean(twin.conv(x, "Conv_1", act="relu6"))


def _mobilenet_v3(twin, module, x):
    x = twin.conv(x, "Conv", 2, act="hard_swish")
    for i, block in enumerate(module.blocks):
        act = "hard_swish" if block.activation is mobilenet_v3.hard_swish else "relu"
        x = _expanded(twin, x, i, block.stride, act, block.squeeze_excite)
    x = twin.mean(twin.conv(x, "Conv_1", act="hard_swish"))[:, None, None]
    return twin.conv(x, "Conv_2", act="hard_swish")[:, 0, 0]


def _resnet(twin, module, x):
    tf = twin.tf
    first = module.version == 1
    norm = functools.partial(twin.batch_norm, epsilon=1e-5)
    conv = functools.partial(twin.conv, epsilon=1e-5)

    def same(x, scope, window, stride, act="relu"):
        if stride == 1:
            return conv(x, scope, act=act)
        pad = ((window - 1) // 2, window // 2)
        return conv(tf.pad(x, ((0, 0), pad, pad, (0, 0))), scope, stride, "VALID", act)

    def unit(x, scope, stride):
        inner = x if first else tf.nn.relu(norm(x, f"{scope}/preact"))
        shortcut = x[:, ::stride, ::stride]
        if twin.get("params", f"{scope}/shortcut", "kernel") is not None:
            shortcut = conv(inner, f"{scope}/shortcut", stride, act=None)
        y = conv(inner, f"{scope}/conv1")
        y = same(y, f"{scope}/conv2", 3, stride)
        y = conv(y, f"{scope}/conv3", act=None)
        return tf.nn.relu(shortcut + y) if first else shortcut + y

    x = same(x, "conv1", 7, 2, act="relu" if first else None)
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    for i, units in enumerate(module.units, start=1):
        for j in range(1, units + 1):
            stride = 2 if j == units and i < len(module.units) else 1
            x = unit(x, f"block{i}/unit_{j}/bottleneck_v{module.version}", stride)
    return twin.mean(x if first else tf.nn.relu(norm(x, "postnorm")))


_FORWARD = {
    "Inception": _inception,
    "MobileNetV1": _mobilenet_v1,
    "MobileNetV2": _mobilenet_v2,
    "MobileNetV3": _mobilenet_v3,
    "ResNet": _resnet,
}
