"""No function is compiled in a run that `programs` does not hold.

A new function of `map_devices` or `jax.jit` needs an entry in `programs`.
"""

import ast
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.api import rank
from rankckpt_jax.devices import mapping, target
from tests.aot import programs
from tests.test_imports import modules

# Functions of graphs that come from checkpoints, and of tools beside a run.
ELSEWHERE = {
    "checkpoints.graphs.recognize.graph_backbone.apply",
    "checkpoints.backbone.Apply(architecture)",
    "checkpoints.torch_modules.convert._features.features",
    "benchmark.demo.module.init",
    # Exported for several platforms at once, from programs listed here.
    "finetune.serving.forward",
    "devices.peaks._multiply",
    "devices.peaks._read",
}
COVERED = {program.name for program in programs.PROGRAMS}


def find_compiled(module, text):
    """Return the functions that a module compiles, by module and name."""
    imported, result = {}, set()

    def is_jit(node):
        return ast.unparse(node) in ("jax.jit", "mapping.map_devices", "map_devices")

    def name_of(argument, scope, local):
        if isinstance(argument, ast.Name) and argument.id in local:
            return ".".join([module, *scope, argument.id])
        text = ast.unparse(argument)
        head, dot, rest = text.partition(".")
        return imported.get(head, f"{module}.{head}") + dot + rest

    def visit(node, scope):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "rankckpt"
        ):
            package = node.module.partition(".")[2]
            for alias in node.names:
                name = f"{package}.{alias.name}".strip(".")
                imported[alias.asname or alias.name] = name
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                if any(
                    is_jit(part) for part in ast.walk(decorator) if hasattr(part, "ctx")
                ):
                    result.add(".".join([module, *scope, node.name]))
            scope = [*scope, node.name]
        if isinstance(node, ast.Call) and is_jit(node.func) and node.args:
            local = definitions.get(tuple(scope), ())
            result.add(name_of(node.args[0], scope, local))
        for child in ast.iter_child_nodes(node):
            visit(child, scope)

    def define(node, scope):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                definitions.setdefault(tuple(scope), set()).add(child.name)
                define(child, [*scope, child.name])
            else:
                define(child, scope)

    tree, definitions = ast.parse(text), {}
    define(tree, [])
    visit(tree, [])
    return result


def test_find_compiled_finds_all_forms():
    text = """
from rankckpt_jax.models import layers
@jax.jit
def one(x): ...
@functools.partial(jax.jit, static_argnames="n")
def two(x, n): ...
def three():
    def inner(x): ...
    mapping.map_devices(layers.classify)
    return mapping.map_devices(inner, in_axes=0)
"""
    assert find_compiled("a.b", text) == {
        *("a.b.one", "a.b.two", "a.b.three.inner", "models.layers.classify")
    }


def test_every_compiled_function_of_the_package_is_covered():
    found = set()
    for name, path in modules().items():
        found |= find_compiled(name, path.read_text())
    assert found - COVERED - ELSEWHERE == set()
    # Nothing is listed that has gone.
    assert found == COVERED | ELSEWHERE


def test_run_compiles_only_covered_programs(
    image_folder, pool, tmp_path, monkeypatch, caplog
):
    """The forms of a TPU are taken, on the CPU."""
    for logger in ("jax", mapping.__name__):
        caplog.set_level(logging.DEBUG, logger)
    monkeypatch.setattr(target, "platform", lambda: "tpu")
    jax.clear_caches()
    try:
        ranking = rank(
            image_folder,
            pool,
            measures="all",
            finetune=True,
            image_size=32,
            workdir=tmp_path / "runs",
            fields={
                "finetune.num_steps": 2,
                "finetune.batch_size": 8,
                "finetune.random_flip": True,
                "measure_options.nleep.components_per_class": 2,
            },
        )
    finally:
        jax.clear_caches()
    assert [row.failure for row in ranking.rows] == ["", ""]
    mapped = set(re.findall(r"tracing (\S+) for tpu", caplog.text))
    assert "features.extract._forward.forward" in mapped
    assert "finetune.step.train_step.step" in mapped
    assert mapped <= COVERED
    jitted = set(re.findall(r"Compiling (?:jit\()?(\w+)\)? with global", caplog.text))
    # All functions of `map_devices` are called "_fun".
    own = {name for name in jitted - {"_fun"} if not is_of_jax(name)}
    assert "_fit" in own
    assert own <= {name.rpartition(".")[2] for name in COVERED}


def is_of_jax(name):
    """Whether a program is a single operation outside of our functions."""
    places = (jnp, jnp.linalg, jax.lax, jax.nn, jax.random, jax.scipy.special, np)
    is_random = name.startswith("_threefry")
    return is_random or any(hasattr(place, name.lstrip("_")) for place in places)
