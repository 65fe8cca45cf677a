import functools
import math

import jax
import jax.numpy as jnp
import pytest

from rankckpt_jax import models
from rankckpt_jax.devices import mapping, target, work
from rankckpt_jax.devices.work import Work


def floats(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def flops_of_xla(function, *args):
    """Return XLA's count, which is the reference for programs without loops."""
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (jnp.matmul, [(7, 5), (5, 3)]),
        (jnp.matmul, [(4, 7, 5), (4, 5, 3)]),
        (lambda a, b: jnp.einsum("abc,dbc->ad", a, b), [(2, 3, 4), (5, 3, 4)]),
    ],
)
def test_count_equals_xla_for_products(function, shapes):
    args = [floats(*shape) for shape in shapes]
    counted = work.count(function, *args)
    assert counted.total_flop == flops_of_xla(function, *args)
    outputs = jax.eval_shape(function, *args)
    sizes = [math.prod(a.shape) for a in (*args, outputs)]
    assert counted.bytes == 4 * sum(sizes)


def convolve(x, kernel, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 8)])
def test_count_equals_xla_for_convolutions(stride, groups):
    function = functools.partial(convolve, stride=stride, groups=groups)
    args = floats(2, 9, 9, 8), floats(3, 3, 8 // groups, 16)
    counted = work.count(function, *args).total_flop
    assert counted == flops_of_xla(function, *args)


def test_count_of_gradients_is_twice_that_of_the_function():
    """The zeros between the pixels of a strided gradient do not count."""

    def loss(x, kernel):
        return convolve(x, kernel, stride=2).sum()

    args = floats(2, 32, 32, 8), floats(2, 2, 8, 16)
    forward = work.count(loss, *args).total_flop
    both = work.count(jax.grad(loss, (0, 1)), *args).total_flop
    # The forward product is traced too. Edges of the image differ.
    assert both == pytest.approx(3 * forward, rel=0.1)


def test_count_repeats_the_body_of_a_scan():
    def function(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, length=10)[0]

    counted = work.count(function, floats(8, 8))
    assert counted.total_flop == 10 * 2 * 8**3
    assert flops_of_xla(function, floats(8, 8)) < counted.total_flop


def test_count_returns_the_work_of_one_device():
    devices = jax.local_device_count()
    function = mapping.map_devices(lambda x: jax.lax.psum(x @ x, mapping.AXIS))
    assert work.count(function, floats(devices, 8, 8)).total_flop == 2 * 8**3


@pytest.mark.parametrize(
    ("dtype", "precision", "kind"),
    [
        (jnp.bfloat16, None, "bfloat16"),
        (jnp.float32, None, "float32 default"),
        (jnp.float32, "high", "float32 high"),
        (jnp.float32, "highest", "float32 highest"),
    ],
)
def test_count_distinguishes_kinds_of_products(dtype, precision, kind):
    function = functools.partial(jnp.matmul, precision=precision)
    x = floats(2, 2, dtype=dtype)
    assert work.count(function, x, x).flop == {kind: 16.0}
    assert kind in work.KINDS


def test_count_of_a_network_is_twice_its_multiplications(monkeypatch):
    # A CPU has another form of depthwise convolutions.
    monkeypatch.setattr(target, "platform", lambda: "gpu")
    module = models.create("mobilenet_v1_025")
    image = floats(1, 32, 32, 3)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    counted = work.count(module.apply, variables, image)
    assert counted.total_flop == 2 * models.multiply_adds("mobilenet_v1_025", 32)


def test_analyze_returns_the_memory_of_arguments_and_results():
    analysis = work.analyze(jax.jit(jnp.matmul), floats(64, 32), floats(32, 16))
    arrays = 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert arrays <= analysis.peak_bytes < 3 * arrays
    assert analysis.work.bytes >= arrays and not analysis.is_refused


def refuse(monkeypatch, message):
    def lower(function, *args):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(mapping, "lower", lower)


def test_analyze_returns_the_memory_that_the_compiler_names(monkeypatch):
    refuse(
        monkeypatch,
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
        "HLO temporaries (18.26G) exceeds available HBM (15.75G)",
    )
    analysis = work.analyze(jnp.matmul, floats(2, 2), floats(2, 2))
    assert analysis.is_refused and analysis.work.total_flop == 16
    assert analysis.peak_bytes == pytest.approx(18.26 * 2**30)
    refuse(monkeypatch, "RESOURCE_EXHAUSTED: too large")
    assert work.analyze(jnp.matmul, floats(2, 2), floats(2, 2)).peak_bytes == math.inf


def test_analyze_raises_other_errors_of_the_compiler(monkeypatch):
    refuse(monkeypatch, "INTERNAL: a bug")
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        work.analyze(jnp.matmul, floats(2, 2), floats(2, 2))


def test_work_adds_and_multiplies_by_kind():
    one = Work({"bfloat16": 1.0}, 8)
    total = (one + Work({"bfloat16": 2.0, "float64": 5.0}, 1)) * 10
    assert total == Work({"bfloat16": 30.0, "float64": 50.0}, 90)
    assert total.total_flop == 80
