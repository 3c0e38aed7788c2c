"""Who may import whom (docs/architecture.md), and what importing the package may load."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"errors"},
    {"system"},
    {"jobs", "tasks"},
    {"config", "scores", "envs"},
    {"data"},
    {"model"},
    {"bank"},
    {"training", "hub"},
    {"agent"},
    {"adapters", "evaluation", "export"},
    {"quickstart", "view"},
    {"cli"},
]
"""The rooms of the house, from the ground up: a room may import only from lower floors, or as ALLOWED_BESIDE says."""
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
ALLOWED_BESIDE: set[tuple[str, str]] = set()
FORBIDDEN = {
    "data": {"envs"},
    "model": {"envs"},
    "hub": {"training", "agent", "envs"},
}
EXCEPTIONS = {"data": {"m3dt_agent.envs.make"}}
"""The one way from `data` to environments: it imports no simulator."""
BENCHMARK_LAYERS = [{"records", "settings"}, {"experiments", "methods", "perf"}, {"runs"}, {"report"}, {"studies", "__main__"}]
BENCHMARK_RANK = {name: rank for rank, layer in enumerate(BENCHMARK_LAYERS) for name in layer}
FILES = sorted([*(ROOT / "m3dt_agent").rglob("*.py"), *(ROOT / "hub").rglob("*.py")])
BENCHMARK_FILES = sorted((ROOT / "benchmarks").rglob("*.py"))


def module_of(path: Path) -> str:
    """The dotted name of a file's module; a folder's face has the folder's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    named = ("m3dt_agent", *parts) if parts[0] == "hub" else parts
    return ".".join(named[:-1] if named[-1] == "__init__" else named)


MODULES = {module_of(path): path for path in (*FILES, *BENCHMARK_FILES)}


def part_of(module: str) -> str:
    """The room that a module belongs to: `data`, `model`, `hub`, …; "" for the face of the whole package."""
    return [*module.split("."), ""][1]


@functools.cache
def imports_of(path: Path, *, late: bool = True) -> set[str]:
    """The modules of this repository that a file imports, by full name. late: those inside functions as well."""
    module = module_of(path)
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    found = set()
    for node in walk(ast.parse(path.read_text()), late=late):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])]
                if node.level
                else [node.module]
            )
            found |= {name if (name := f"{'.'.join(base)}.{alias.name}") in MODULES else ".".join(base) for alias in node.names}
    return found & set(MODULES)


def walk(tree: ast.AST, *, late: bool) -> Iterator[ast.AST]:
    """Every node; without `late` not those that run later or never: function bodies and blocks for type checkers."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        runs_later = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if late or not (runs_later or for_types):
            yield from walk(child, late=late)


def circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (strongly connected components of more than one)."""
    reached = {module: reachable(module, imports) for module in imports}
    groups = {tuple(sorted(m for m in reached[module] if module in reached[m])) for module in imports}
    return sorted(list(group) for group in groups if len(group) > 1)


def reachable(start: str, imports: Mapping[str, set[str]]) -> set[str]:
    """Everything that `start` imports, at any distance."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for module in imports.get(waiting.pop(), set()) - found:
            found.add(module)
            waiting.append(module)
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down(path: Path) -> None:
    part = part_of(module_of(path))
    if not part:
        return
    assert part in RANK, f"{path} belongs to no room; add it to LAYERS"
    for other in {part_of(module) for module in imports_of(path) - EXCEPTIONS.get(part, set())} - {part, ""}:
        below = RANK[other] < RANK[part] or (part, other) in ALLOWED_BESIDE
        assert below, f"{path} imports {other}, which does not lie below {part}"
        assert other not in FORBIDDEN.get(part, set()), f"{part} must not import {other}"


@pytest.mark.parametrize("path", BENCHMARK_FILES, ids=module_of)
def test_imports_of_benchmarks_go_down(path: Path) -> None:
    part = part_of(module_of(path))
    for other in {part_of(module) for module in imports_of(path) if module.startswith("benchmarks")} - {part, ""}:
        assert BENCHMARK_RANK[other] < BENCHMARK_RANK[part], (
            f"{path} imports benchmarks.{other}, which does not lie below {part}"
        )


def test_no_file_imports_itself_through_others() -> None:
    """Faces are left out: they only hand names on, and a file of the folder never imports its own face."""
    faces = {module for module, path in MODULES.items() if path.stem == "__init__"}
    imports = {module: imports_of(path) - faces for module, path in MODULES.items() if module not in faces}
    assert circles(imports) == []


@pytest.mark.parametrize("path", MODULES.values(), ids=module_of)
def test_no_file_imports_the_face_of_its_own_folder(path: Path) -> None:
    own = module_of(path).rpartition(".")[0]
    if path.stem != "__init__" and own.count("."):
        assert own not in imports_of(path), f"{path} must import from its neighbours, not from {own}"


@pytest.mark.parametrize("path", [path for path in MODULES.values() if path.stem == "__init__"], ids=module_of)
def test_no_module_bears_the_name_of_something_that_its_face_exports(path: Path) -> None:
    exported = {
        alias.asname or alias.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    modules = {child.stem for child in path.parent.iterdir()}
    clashes = {name for name in exported & modules if f"{module_of(path)}.{name}" not in imports_of(path)}
    assert not clashes


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_nothing_in_the_package_imports_benchmarks_or_the_source_folder_hub() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if getattr(node, "level", 0):  # relative: `.hub` is m3dt_agent.hub
                continue
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            assert not any(name.split(".")[0] in ("benchmarks", "hub") for name in names), path


@pytest.mark.parametrize("path", [path for path in FILES if part_of(module_of(path)) in ("jobs", "machine")], ids=module_of)
def test_jobs_do_not_import_torch_when_they_are_imported(path: Path) -> None:
    names = {
        alias.name
        for node in walk(ast.parse(path.read_text()), late=False)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert "torch" not in names


SIMULATORS = "mujoco metaworld dm_control shimmy minari sklearn matplotlib tensorboard stable_baselines3 jax pandas"


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import m3dt_agent", f"{SIMULATORS} torch h5py huggingface_hub safetensors typer rich"),
        ("from m3dt_agent import M3DTAgent, ExpertBank, TaskDatasets", f"{SIMULATORS} h5py typer rich"),
        ("from m3dt_agent.cli import main; main(['--help'])", f"{SIMULATORS} torch h5py huggingface_hub safetensors"),
    ],
)
def test_what_starting_up_does_not_load(code: str, heavy: str) -> None:
    code += f"; import sys; print(sorted(set('{heavy}'.split()) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_names_that_load_late_are_there_all_the_same() -> None:
    import m3dt_agent
    from m3dt_agent import bank

    assert set(m3dt_agent.__all__) <= set(dir(m3dt_agent))
    assert m3dt_agent.ExpertBank is bank.ExpertBank
    for name in m3dt_agent.__all__:
        assert getattr(m3dt_agent, name) is not None
    with pytest.raises(ImportError, match="M3DTAgents"):
        exec("from m3dt_agent import M3DTAgents")


def test_all_160_ids_are_registered() -> None:
    import gymnasium as gym

    import m3dt_agent

    assert {task.env_id for task in m3dt_agent.tasks.TASKS} <= set(gym.registry)
