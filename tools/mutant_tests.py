"""Which tests can notice a fault: those of the files nearest to its module that enter its function."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

from tools.mutant_faults import Fault

PACKAGES = ("pipeline", "queries", "clip_train")
# Tests about the sources themselves and about installation: they notice that a file has changed, not what it does.
NO_ORACLES = ("test_imports.py", "test_docs.py", "test_wheel.py", "test_requirements.py", "test_kernel_shape.py")
WHOLE_WAY = ("test_build.py", "test_whole_way.py")  # for a module that no test file reaches by imports
MAX_TEST_FILES = 6  # for one module; the nearest first


@dataclass(frozen=True)
class Known:
    """What one run of a test file without faults has shown.

    Shapes: a key per test that passed. `entered` has the functions (file:line) that a test entered in its own process.
    `shared` has those that a fixture of a module or of the session entered. `complete` is False if the time of the file
    was over before its last test.
    """

    seconds: dict[str, float]
    entered: dict[str, list[str]]
    shared: list[str]
    complete: bool = True


def module_files(root: Path) -> dict[str, Path]:
    """Dotted name -> source file of each module that can get a fault."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths if path.stem != "__init__"}


@functools.cache
def _imports(path: Path) -> frozenset[str]:
    """The modules that a file imports, or names in a string (`pipeline.text.clean_kernel`)."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            names.add(node.value)
    return frozenset(names)


@functools.cache
def tests_of(module: str, root: Path) -> list[str]:
    """The test files of a module, the nearest first: those named after it, then its importers, then theirs.

    Returns paths relative to `root`, at most `MAX_TEST_FILES`.
    """
    modules = module_files(root)
    tests = [path for path in sorted((root / "tests").rglob("test_*.py")) if path.name not in NO_ORACLES]
    tests = [path for path in tests if path.parent.name != "tools"]
    near = {module, module.removesuffix("_kernel")}
    stems = [name.split(".")[-1] for name in sorted(near)]
    found = [path for path in tests if any(stem in path.stem.removeprefix("test_") for stem in stems)]
    for _ in range(3):
        direct = [path for path in tests if _imports(path) & near and path not in found]
        found += sorted(direct, key=lambda path: (path.parent == root / "tests", path.stat().st_size))
        if len(found) >= 2:
            break
        near |= {name for name, path in modules.items() if _imports(path) & near}
    found = found or [path for path in tests if path.name in WHOLE_WAY]
    return [str(path.relative_to(root)) for path in found[:MAX_TEST_FILES]]


def function_of(fault: Fault, source: str) -> set[str]:
    """The innermost function that holds a fault, as `line` of its `def` and of its first decorator. Empty: none."""
    best: ast.FunctionDef | ast.AsyncFunctionDef | None = None
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            within = node.lineno <= fault.line <= (node.end_lineno or node.lineno)
            if within and (best is None or node.lineno > best.lineno):
                best = node
    return {str(node.lineno) for node in (best, *best.decorator_list)} if best else set()


def choose(near: list[Known], far: list[Known], *, file: str, lines: set[str], seconds: float) -> tuple[list[str], int]:
    """The tests for a fault, those that enter its function first, then the others of their files, the fast ones first.

    Args:
        near: the nearest test files. One whose tests enter no such function gives all of its tests, last: a compiled
            or forked function is not seen to be entered.
        far: other test files. They give the tests that enter the function.
        file: of the function.
        lines: where it begins; empty: any function of the file counts.
        seconds: the tests take at most so many.

    Returns:
        The tests, and the number of tests that were left.
    """
    places = {f"{file}:{line}" for line in lines}

    def enters(functions: list[str]) -> bool:
        return any(name in places if places else name.startswith(f"{file}:") for name in functions)

    ranked: list[tuple[int, float, int, float, str]] = []
    for place, each in enumerate([*near, *far]):
        direct = {test for test, functions in each.entered.items() if enters(functions)} & each.seconds.keys()
        reached = bool(direct) or enters(each.shared)
        first = min((each.seconds[test] for test in direct), default=0.0)  # the tests of a file share fixtures
        for test, taken in each.seconds.items():
            rank = 0 if test in direct else 1 if reached else 2
            if rank and place >= len(near):
                continue
            ranked.append((rank, 0.0 if rank else first, place, taken, test))
    chosen: list[str] = []
    spent = 0.0
    for *_, taken, test in sorted(ranked):
        if chosen and spent + taken > seconds:
            continue
        chosen.append(test)
        spent += taken
    return chosen, len(ranked) - len(chosen)
