"""The floors of the house: an import goes only downward between folders, and there is no circle within a folder.

Every import counts: at the top of a file, deferred, for types alone, and by name ("pipeline.text.clean_kernel").
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.places import ROOT

# A folder may import from folders with a smaller number. Folders with the same number must not import each other.
FLOORS = {
    "pipeline.schema": 0,
    "pipeline.engine": 1,
    "pipeline.text": 2,
    "pipeline.sources": 3,
    "pipeline.fetching": 3,
    "pipeline.dataset": 3,
    "queries": 3,
    "pipeline.stages": 4,
    "pipeline.planning": 5,
    "pipeline": 6,
    "pipeline.inspector": 7,
    "pipeline.inspect_shards": 8,
    "pipeline.explorer": 8,
    "pipeline.explore": 9,
    "pipeline.commands": 10,
    "pipeline.demo": 10,
}
STAGES = {f"pipeline.stages.{name}" for name in "gather match dedup balance fetch dedup_images publish".split()}
HEAVY = (
    "apache_beam",
    "img2dataset",
    "numba",
    "torch",
    "webdataset",
    "pandas",
    "fasttext",
    "faiss",
    "jinja2",
    "fsspec",
)


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the project."""
    found = {}
    for package in ("pipeline", "queries", "clip_train"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """All modules that a module imports. A name in a string counts, but not the name of a program in a message."""
    names: set[str] = set()
    tree = ast.parse(modules()[module].read_text())
    labels = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "program"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in labels:
            names |= set(re.findall(r"^\w+(?:\.\w+)+$", node.value))
    return frozenset(names)


def ours(module: str) -> set[str]:
    """The modules of the project that a module imports, without the packages that contain them."""
    found = imports(module) & set(modules())
    return {name for name in found if not module.startswith(f"{name}.") and name != module}


def folder(module: str) -> str:
    """The entry of FLOORS that a module belongs to: the longest one that fits."""
    fitting = [name for name in FLOORS if module == name or module.startswith(f"{name}.")]
    return max(fitting, key=len, default=module.split(".")[0])


@pytest.mark.parametrize("module", [name for name in modules() if not name.startswith("clip_train")])
def test_an_import_goes_only_downward(module: str) -> None:
    for target in ours(module) - {"pipeline"}:  # it holds the version
        assert not target.startswith("clip_train")
        same = folder(target) == folder(module)
        assert same or FLOORS[folder(target)] < FLOORS[folder(module)], f"{module} imports {target}"


def test_a_stage_imports_no_other_stage_and_only_the_list_names_them() -> None:
    users = {name for name in modules() if ours(name) & (STAGES - {name})}
    assert users == {"pipeline.stages"}


def test_what_the_packages_know_of_each_other() -> None:
    for name in modules():
        outside = {target for target in ours(name) if target.split(".")[0] != name.split(".")[0]}
        if name.startswith("pipeline"):
            assert outside <= {"queries", "queries.load", "queries.identity", "queries.several"}, (name, outside)
        elif name.startswith("queries"):
            assert all(
                target == "pipeline" or folder(target) in ("pipeline.engine", "pipeline.text") for target in outside
            )
        else:
            assert not outside, (name, outside)


def test_no_circles() -> None:
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way, name])
        if name not in done:
            for target in ours(name):
                if not target.startswith(f"{name}."):  # a package names its modules
                    visit(target, (*way, name))
            done.add(name)

    for name in modules():
        visit(name, ())


def test_numba_is_imported_by_kernels_alone() -> None:
    for name in modules():
        if {"numba", "llvmlite"} & {target.split(".")[0] for target in imports(name)}:
            assert name.endswith("_kernel") or name == "pipeline.engine.jit", name


def test_only_two_files_of_the_engine_import_beam_at_once() -> None:
    for name, path in modules().items():
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        if "apache_beam" in ast.unparse(ast.Module(list(top), [])):
            assert name == "pipeline.engine.beam_steps", name


@pytest.mark.parametrize(
    "command",
    [
        "import pipeline.inspect_shards",
        "import pipeline.explore",
        "import pipeline.build",
        "from pipeline.build import main; main(['--version'])",
    ],
)
def test_light_commands_stay_light(command: str) -> None:
    program = f"import sys\ntry:\n    {command}\nexcept SystemExit:\n    pass\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {name for name in HEAVY if name in out.split()}
