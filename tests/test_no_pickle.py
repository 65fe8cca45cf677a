"""No pickle: nothing that is read can run code by being read."""

import ast
import pathlib

import pytest

import rankckpt_jax

ROOT = pathlib.Path(rankckpt_jax.__file__).parents[1]
FILES = sorted(
    path
    for folder in ("rankckpt_jax", "configs", "launch")
    for path in (ROOT / folder).rglob("*.py")
)
# They unpickle, or run what they read; some only in some of their functions.
MODULES = {
    *("pickle", "cPickle", "_pickle", "pickletools", "dill", "cloudpickle", "joblib"),
    *("shelve", "marshal", "copyreg", "multiprocessing", "diskcache"),
    *("torch", "pandas", "yaml", "msgpack", "runpy", "code", "imp"),
}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
# Of numpy, safe only when they are told so.
LOADERS = {"load", "save", "savez", "savez_compressed"}
# Methods that pickle whatever they are called on, and what turns Keras's own care off.
METHODS = {
    "dump",
    "dumps",
    "loads",
    "tofile",
    "to_pickle",
    "read_pickle",
    "from_pickle",
}
# Threads do not pickle what they are given; processes do.
METHODS |= {
    "ProcessPoolExecutor",
    "enable_unsafe_deserialization",
    "memmap",
    "fromfile",
    "NpzFile",
}


def _problems(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                if name.partition(".")[0] in MODULES:
                    yield node.lineno, f"import {name}"
        if isinstance(node, ast.keyword):
            value = getattr(node.value, "value", None)
            if node.arg == "allow_pickle" and value is not False:
                yield node.value.lineno, "allow_pickle"
            if node.arg == "safe_mode" and value is not True:
                yield node.value.lineno, "safe_mode"
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id in CALLS:
            yield node.lineno, function.id
        if not isinstance(function, ast.Attribute):
            continue
        owner = getattr(function.value, "id", "")
        given = {keyword.arg for keyword in node.keywords}
        if function.attr in METHODS and owner != "json":
            yield node.lineno, function.attr
        if owner in ("np", "numpy", "jnp") and function.attr in LOADERS:
            plain = function.attr.startswith("savez")
            if not plain and "allow_pickle" not in given:
                yield node.lineno, f"{owner}.{function.attr}"
        if function.attr == "load_model" and "safe_mode" not in given:
            yield node.lineno, "load_model"
        # TensorFlow's own data sets of Python generators run what they are given.
        if (
            function.attr in ("from_generator", "import_module")
            and owner != "importlib"
        ):
            yield node.lineno, function.attr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles(path):
    found = list(_problems(ast.parse(path.read_text())))
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "concurrent.futures.ProcessPoolExecutor(2)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "np.save(file, array, allow_pickle=flag)",
        "keras.saving.load_model(path)",
        "load_model(path, safe_mode=False)",
        "array.dump(file)",
        "eval(text)",
        "module.loads(data)",
    ],
)
def test_the_search_finds_what_it_looks_for(text):
    assert list(_problems(ast.parse(text)))
