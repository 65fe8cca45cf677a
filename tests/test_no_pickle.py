"""Nothing in the package unpickles, so reading a file never runs its code."""

import ast
import pathlib
import re

import pytest

import rankckpt_jax

ROOT = pathlib.Path(rankckpt_jax.__file__).parents[1]
FILES = sorted(
    path
    for folder in ("rankckpt_jax", "configs", "launch")
    for path in (ROOT / folder).rglob("*.py")
)
# Modules that unpickle or run what they read, some only in some functions.
MODULES = {
    *("pickle", "cPickle", "_pickle", "pickletools", "dill", "cloudpickle", "joblib"),
    *("shelve", "marshal", "copyreg", "multiprocessing", "diskcache"),
    *("torch", "yaml", "msgpack", "runpy", "code", "imp"),
}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
# Functions of NumPy that are safe only with `allow_pickle=False`.
LOADERS = {"load", "save", "savez", "savez_compressed"}
# Dtypes of mapped files.
PLAIN = {"np.uint8", "preprocess_lib.DTYPE"}
# Methods that pickle or read raw memory, process pools, which pickle their arguments,
# and the function that disables Keras's own checks.
METHODS = {
    *("dump", "dumps", "loads", "tofile", "fromfile", "NpzFile"),
    *("to_pickle", "read_pickle", "from_pickle"),
    *("ProcessPoolExecutor", "enable_unsafe_deserialization"),
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
            if node.arg in ("safe_mode", "weights_only") and value is not True:
                yield node.value.lineno, node.arg
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
        # An array of objects would take bytes of a file for pointers.
        if function.attr == "memmap" and not PLAIN & set(map(ast.unparse, node.args)):
            yield node.lineno, "memmap"
        # PyTorch unpickles by default, and TorchScript and torch.hub run programs.
        called = ast.unparse(function)
        is_safe = called == "torch.load" and "weights_only" in given
        if re.match(r"torch\.(\w+\.)*load", called) and not is_safe:
            yield node.lineno, called
        if function.attr in ("safe_globals", "add_safe_globals"):
            allowed = ", ".join(map(ast.unparse, node.args))
            if function.attr != "safe_globals" or allowed != "[argparse.Namespace]":
                yield node.lineno, function.attr
        # The package has a `load_model` of its own, which reads no Keras files.
        is_ours = ast.unparse(function) == "model_lib.load_model"
        if function.attr == "load_model" and "safe_mode" not in given and not is_ours:
            yield node.lineno, "load_model"
        # TensorFlow's data sets of generators run Python code.
        if (
            function.attr in ("from_generator", "import_module")
            and owner != "importlib"
        ):
            yield node.lineno, function.attr


def test_no_file_unpickles():
    problems = {
        str(path.relative_to(ROOT)): found
        for path in FILES
        if (found := list(_problems(ast.parse(path.read_text()))))
    }
    assert problems == {}


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
        "import torch",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=flag)",
        "torch.jit.load(file)",
        "torch.hub.load_state_dict_from_url(url)",
        "torch.serialization.safe_globals([type])",
        "torch.serialization.add_safe_globals([argparse.Namespace])",
        "load_model(path, safe_mode=False)",
        "array.dump(file)",
        "np.memmap(file, dtype, 'r')",
        "pandas.read_pickle(file)",
        "eval(text)",
        "module.loads(data)",
    ],
)
def test_problems_finds_each_kind(text):
    assert list(_problems(ast.parse(text)))
