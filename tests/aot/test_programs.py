"""Every program of a run compiles for devices that are absent, and fits their memory.

The optimized text is searched for what should not be there. Compilation is limited in
CPU seconds, because other work on the machine changes wall time by a factor.
"""

import re

import jax
import pytest

from rankckpt_jax.devices import mapping, target
from tests.aot import compiler, programs

# Memory that XLA may use, in bytes: 15.75 GiB of HBM on v5e, 31.25 GiB on v6e, and the
# three quarters of an H200 that JAX allocates.
MEMORY = {"v5e": 15.75 * 2**30, "v6e": 31.25 * 2**30, "h200": 0.75 * 150.7e9}

# CPU time for a program of a measure. It takes at most 5 s on an idle machine, and up
# to three times as long on a busy one.
SECONDS = 20

# Products of the new head (one, and two in its gradient) and of a random crop (two).
EXACT_PRODUCTS = 5

# Topologies apart from v5e:2x4, on which only a selection is compiled.
OTHERS = ("v6e:4x4", "v5e:8x8", "h200:8")
SELECTED = (
    "features.extract._forward.forward[mobilenet_v1_025]",
    "models.layers.classify[resnet_v1_50]",
    "finetune.step.train_step.step[probe]",
    "measures.statistics.discriminant._true_class[D=2048]",
    "measures.statistics.logistic._fit[linear]",
    "measures.statistics.symmetric._sum_products[D=2048]",
    "measures.knn._nearest[k=1]",
)


# Programs that take too long to compile in a fast test, and are only lowered.
LOWERED = (
    "features.extract._forward.forward[inception_v1]",
    "finetune.step.train_step.step[augmented]",
    "finetune.step.train_step.step[two trials]",
    "finetune.step.predict.predict[resnet_v1_50]",
)


def cases():
    for topology in ("v5e:2x4", *OTHERS):
        for program in programs.PROGRAMS:
            platform = "gpu" if topology.startswith("h200") else "tpu"
            first = topology == "v5e:2x4"
            if platform in program.platforms and (first or str(program) in SELECTED):
                marks = () if first and program.is_fast else pytest.mark.slow
                name = f"{topology}-{program}"
                yield pytest.param(topology, program, id=name, marks=marks)


@pytest.mark.parametrize(("topology", "program"), list(cases()))
def test_program_compiles_for_absent_devices(topology, program, compile_for):
    compile_for(topology)
    compiled = compiler.compile_program(program)
    assert compiled.device_kinds == {target.local_devices()[0].device_kind}
    assert 0 < compiled.peak_bytes < MEMORY[topology.partition(":")[0]]
    if program.is_fast and program.kind == "statistics":
        assert compiled.seconds < SECONDS
    check_text(program, compiled)


def check_text(program, compiled):
    text = compiled.text
    assert "is_host_transfer=true" not in text and "callback" not in text
    # float64 is emulated on a TPU, and meant on a GPU.
    assert "f64[" not in text or target.platform() == "gpu"
    check_products(program, compiled.lowered_text)
    if program.kind == "network":
        # Weights are on every device.
        assert "all-gather" not in text
    if target.platform() == "tpu":
        exact, rounded = tpu_products(text)
        if program.kind == "statistics":
            assert not rounded
        else:
            assert rounded


def check_products(program, lowered_text):
    """Check the dtypes and the precision of the products before optimization."""
    products = find_products(lowered_text)
    exact = [dtypes for dtypes, precision in products if precision == "HIGHEST"]
    others = [dtypes for dtypes, precision in products if precision != "HIGHEST"]
    if program.kind == "network":
        assert others and {dtype for dtypes in others for dtype in dtypes} == {"bf16"}
        # The two kernels of a separable convolution are multiplied.
        assert len(exact) <= 1
    elif program.kind == "training" and target.platform() == "tpu":
        assert others and 0 < len(exact) <= EXACT_PRODUCTS
    else:
        assert not others


def find_products(lowered_text):
    """Return (dtypes of the operands, precision) of all products in StableHLO."""
    result = []
    for line in lowered_text.splitlines():
        if re.search(r"stablehlo\.(convolution|dot_general)", line):
            operands = re.search(r": \((.*?)\) ->", line)[1]
            dtypes = re.findall(r"tensor<(?:\d+x)*(\w+)>", operands)
            precision = re.search(r"(HIGHEST|DEFAULT)", line)
            result.append((dtypes, precision[1] if precision else "DEFAULT"))
    return result


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(program, id=str(program))
        for program in programs.PROGRAMS
        if str(program) in LOWERED
    ],
)
def test_products_of_networks_before_compilation(program, compile_for):
    compile_for("v5e:2x4")
    check_products(program, program.lower().as_text())


def tpu_products(text):
    """Return the products of the highest and of the default precision.

    On a TPU every matrix product is a convolution. The dtype of its result is not that
    of its arithmetic, which is one pass in bfloat16 unless `operand_precision` is set.
    """
    products = [line for line in text.splitlines() if " convolution(" in line]
    exact = [line for line in products if "operand_precision={highest" in line]
    return exact, [line for line in products if line not in exact]


def test_tpu_products_distinguishes_precisions(compile_for):
    compile_for("v5e:2x4")
    shape = programs.floats(256, 256)

    def text(precision):
        function = jax.jit(lambda a, b: jax.numpy.dot(a, b, precision=precision))
        return mapping.lower(function, shape, shape).compile().as_text()

    exact, rounded = tpu_products(text("highest"))
    assert exact and not rounded
    exact, rounded = tpu_products(text("default"))
    assert rounded and not exact
