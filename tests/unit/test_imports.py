"""Imports point down: no module needs itself by way of another, and what others stand on knows nothing of them."""

import ast
import importlib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "dnascale"

#: What a package may import of this project, besides itself.
BELOW = {
    "vocab": {"errors"},
    "data": {"errors", "files", "signals", "vocab"},
    "model": {"config", "data", "errors", "vocab"},
    "report": {"errors", "files"},
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imported(node: ast.AST) -> Iterator[str]:
    """Modules of this project that are imported anywhere below `node`, but for type checking."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.ImportFrom) and child.module is not None:
            whole = (f"{child.module}.{alias.name}" for alias in child.names)
            yield from (one if one in MODULES else child.module for one in whole if one.startswith("dnascale."))
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name in MODULES)
        yield from imported(child)


GRAPH = {name: set(imported(ast.parse(path.read_text()))) - {name} for name, path in MODULES.items()}


def test_no_module_needs_itself_by_way_of_another() -> None:
    order = list(TopologicalSorter(GRAPH).static_order())  # CycleError names those that do
    assert len(order) == len(MODULES) > 100


@pytest.mark.parametrize("package", sorted(BELOW))
def test_what_others_stand_on_knows_nothing_of_them(package: str) -> None:
    own = [name for name in MODULES if name.split(".")[1:2] == [package]]
    assert len(own) > 1
    needed = {other.partition(".")[2].split(".")[0] for name in own for other in GRAPH[name]} - {package, ""}
    assert needed <= BELOW[package]


OTHERS = sorted(
    path for folder in ("benchmarks", "docs", "examples", "launch") for path in (ROOT.parent / folder).rglob("*.py")
)


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name)
def test_programs_beside_the_package_import_names_that_are_there(path: Path) -> None:
    """Some of them run for hours, and in no test."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "dnascale":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name) or f"{node.module}.{alias.name}" in MODULES, ast.unparse(node)


@pytest.mark.parametrize("module", ["dnascale.data.order", "dnascale.data.masking"])
def test_the_order_of_the_data_and_the_masks_read_and_write_nothing(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert calls
    assert not {call for call in calls if call in ("open", "print") or call.startswith(("os.", "time.", "random."))}
