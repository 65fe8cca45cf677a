"""The order of imports: a package imports only from packages below it."""

import ast
import dataclasses
import functools
import graphlib
import pathlib

import rankckpt_jax

PACKAGE = pathlib.Path(rankckpt_jax.__file__).parent

# Highest first. Packages on one line may not import each other.
ORDER = [
    {"main", "api"},
    {"command_line"},
    {"usage"},
    {"run"},
    {"benchmark"},
    {"report"},
    {"results"},
    {"prediction"},
    {"evaluation", "finetune"},
    {"features"},
    {"measures"},
    {"checkpoints"},
    {"data"},
    {"storage"},
    {"models"},
    {"devices"},
    {"short_form"},
    {"errors"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
# Only the package `devices` calls these functions of JAX, so that programs can be
# compiled for devices that are absent.
DEVICE_QUESTIONS = {
    "default_backend",
    "device_count",
    "devices",
    "local_device_count",
    "local_devices",
    "process_count",
    "process_index",
}
# Configs are plain data that `run` reads; they sit outside the package.
IGNORED = {"configs"}


@dataclasses.dataclass(frozen=True)
class Import:
    """An import of one module of the package by another.

    Attributes:
      module: The importing module, without the package's name.
      target: The imported module.
      line: Number of the line.
      is_local: Whether it is inside a function.
      has_reason: Whether a comment is on its line or above its block of imports.
    """

    module: str
    target: str
    line: int
    is_local: bool
    has_reason: bool

    @property
    def is_upward(self) -> bool:
        room, target = (name.partition(".")[0] for name in (self.module, self.target))
        return room != target and LEVEL[room] >= LEVEL[target]

    def __str__(self) -> str:
        return f"{self.module}, line {self.line}, imports {self.target}"


@functools.cache
def modules() -> dict[str, pathlib.Path]:
    result = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        result[".".join(part for part in parts if part != "__init__")] = path
    return result


def find_imports(module: str, text: str) -> list[Import]:
    """Return the imports of the package's modules, without those for type checking."""
    lines = text.splitlines()
    result = []

    def visit(node: ast.AST, is_local: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        targets: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            head, _, base = node.module.partition(".")
            if head == PACKAGE.name:
                names = (f"{base}.{alias.name}".strip(".") for alias in node.names)
                targets = [name if name in modules() else base for name in names]
        elif isinstance(node, ast.Import):
            parts = (alias.name.partition(".") for alias in node.names)
            targets = [base for head, _, base in parts if head == PACKAGE.name]
        for target in targets:
            if target and target.partition(".")[0] not in IGNORED:
                reason = has_reason(lines, node.lineno)
                result.append(Import(module, target, node.lineno, is_local, reason))
        is_local |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            visit(child, is_local)

    visit(ast.parse(text), False)
    return result


def has_reason(lines: list[str], number: int) -> bool:
    """Whether a line, or the line above its block of imports, has a comment."""
    if "#" in lines[number - 1]:
        return True
    above = number - 2
    while above >= 0 and lines[above].lstrip().startswith(("import ", "from ")):
        above -= 1
    return above >= 0 and lines[above].lstrip().startswith("#")


@functools.cache
def all_imports() -> list[Import]:
    return [
        i for name, p in modules().items() for i in find_imports(name, p.read_text())
    ]


def test_every_module_is_in_a_room():
    rooms = {name.partition(".")[0] for name in modules()} - {""}
    assert rooms == set(LEVEL)


def test_packages_import_only_from_packages_below():
    assert not [
        str(i) for i in all_imports() if i.module and not i.is_local and i.is_upward
    ]


def test_upward_imports_inside_functions_name_a_reason():
    assert not [
        str(i)
        for i in all_imports()
        if i.module and i.is_local and i.is_upward and not i.has_reason
    ]


def test_find_imports_tells_local_and_explained_imports_apart():
    found = find_imports(
        "results.row",
        "from rankckpt_jax import report\n"
        "def one():\n"
        "    from rankckpt_jax.run import run\n"
        "def two():\n"
        "    # Imported here: a convenience method.\n"
        "    import numpy\n"
        "    from rankckpt_jax.report import page\n",
    )
    assert [(i.target, i.is_local, i.has_reason) for i in found] == [
        ("report", False, False),
        ("run.run", True, False),
        ("report.page", True, True),
    ]
    assert all(i.is_upward for i in found)


def test_modules_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for i in all_imports():
        if not i.is_local and i.target != i.module:
            graph[i.module].add(i.target)
    # TopologicalSorter raises CycleError, which names the modules of the circle.
    assert list(graphlib.TopologicalSorter(graph).static_order())


def find_questions_about_devices(text: str) -> set[str]:
    """Return the functions of JAX that a module asks about devices or processes."""
    return {
        node.attr
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "jax"
        and node.attr in DEVICE_QUESTIONS
    }


def test_only_devices_asks_jax_about_devices():
    asking = {
        name: found
        for name, path in modules().items()
        if (found := find_questions_about_devices(path.read_text()))
    }
    assert {name.partition(".")[0] for name in asking} == {"devices"}
    platform = {name for name, found in asking.items() if "default_backend" in found}
    assert platform == {"devices.target"}


def test_no_module_is_longer_than_450_lines():
    lengths = {n: len(p.read_text().splitlines()) for n, p in modules().items()}
    assert not {name: length for name, length in lengths.items() if length > 450}
