"""The floors of the house: a file imports only from floors below its own, a stage never imports a stage."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT

TOP = {"pipeline.build", "pipeline.planning", "pipeline.inspect_shards", "pipeline.demo"}
STAGES = {f"pipeline.{name}" for name in "gather match dedup balance fetch dedup_images publish".split()}
FIRST = {
    f"pipeline.{name}"
    for name in "steps passes dropping balancing exports options runners zygote worker progress report".split()
    + ["sources", "fetching"]
}
HEAVY = ("apache_beam", "img2dataset", "numba", "torch", "webdataset", "pandas", "fasttext", "faiss")


def modules() -> dict[str, Path]:
    """Dotted name -> file of everything we wrote."""
    found = {}
    for package in ("pipeline", "queries", "clip_train"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, *, everywhere: bool = True) -> set[str]:
    """Dotted names that a file imports; `from a import b` counts as a and as a.b."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def floor(module: str) -> int:
    if module in TOP:
        return 3
    if module in STAGES:
        return 2
    if any(module == name or module.startswith(name + ".") for name in FIRST):
        return 1
    return 0


@pytest.mark.parametrize("module", [name for name in modules() if name.startswith("pipeline.")])
def test_a_file_imports_only_lower_floors(module: str) -> None:
    known = modules()
    for target in imports(known[module]) & set(known):
        if target.startswith("pipeline."):
            assert floor(target) <= floor(module), f"{module} (floor {floor(module)}) imports {target}"
        if module in STAGES:
            assert target not in STAGES - {module}, f"the stage {module} imports the stage {target}"
        assert not target.startswith("clip_train")


def test_only_build_knows_the_order() -> None:
    users = {name for name, path in modules().items() if len(imports(path) & STAGES) > 1}
    assert users == {"pipeline.build", "pipeline.planning"}  # planning gives each stage its settings


def test_queries_and_trainer_stand_alone() -> None:
    for name, path in modules().items():
        targets = imports(path) & set(modules())
        if name.startswith("queries"):
            assert all(t.split(".")[0] == "queries" or floor(t) == 0 or t in RUNNING for t in targets), (name, targets)
            assert not any(t.startswith("clip_train") for t in targets)
        if name.startswith("clip_train"):
            assert not any(t.startswith(("pipeline", "queries")) for t in targets), (name, targets)


# What queries.build needs of the pipeline to run its own jobs.
RUNNING = {"pipeline", "pipeline.engine.runners", "pipeline.engine.steps", "pipeline.engine.progress"}


def test_no_cycles() -> None:
    known = modules()
    graph = {name: (imports(path, everywhere=False) & set(known)) - {name} for name, path in known.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way, name])
        if name not in done:
            for target in graph[name]:
                if not name.startswith(target + "."):  # a module and its own package
                    visit(target, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_numba_is_imported_by_kernels_alone() -> None:
    for name, path in modules().items():
        if {"numba", "llvmlite"} & {target.split(".")[0] for target in imports(path)}:
            assert name.endswith("_kernel") or name == "pipeline.engine.jit", name


@pytest.mark.parametrize(
    "command",
    ["import pipeline.inspect_shards", "import pipeline.build", "from pipeline.build import main; main(['--version'])"],
)
def test_light_commands_stay_light(command: str) -> None:
    program = f"import sys\ntry:\n    {command}\nexcept SystemExit:\n    pass\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {name for name in HEAVY if name in out.split()}
