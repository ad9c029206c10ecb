"""Puts single faults into the code and lists those that no test notices.

    python tools/mutants.py --faults 400 --seed 7 --jobs 2 --to mutants.json
    python tools/mutants.py --modules pipeline.stages.caps queries.rules --faults 20

A fault is one small change of a source file: another operator, another constant, two swapped arguments, a condition
turned round, a dropped statement. The sample depends on the seed and the sources alone. Each fault goes into a copy of
the checkout, then the tests of its module run there until the first one fails. The tests of a module are the test files
that import it, the nearest ones first. The tests of a kernel are also those of its reference.

A fault that was not noticed is either a gap in the tests or a change without an effect. A person decides that:
docs/testing.md has the figures, and the reason for each fault that was left.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "queries", "clip_train")
COPIED = (*PACKAGES, "tests", "benchmarks", "tools", "setup.cfg", "ruff.toml", "README.md", "CONTRIBUTING.md", "docs")
# Tests about the sources themselves and about installation: they notice that a file has changed, not what it does.
NO_ORACLES = ("test_imports.py", "test_docs.py", "test_wheel.py", "test_requirements.py", "test_kernel_shape.py")
WHOLE_WAY = ("test_build.py", "test_whole_way.py")  # for a module that no test file reaches by imports
MAX_TEST_FILES = 6  # for one module; the nearest first
SECONDS = 600  # for the tests of one fault

_COMPARE = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}


@dataclass(frozen=True)
class Fault:
    """One change of a source file: the text between two offsets (in bytes) becomes another text."""

    module: str
    line: int
    start: int
    end: int
    kind: str
    before: str
    after: str

    def apply(self, source: bytes) -> bytes:
        """The source with the fault in it."""
        return source[: self.start] + self.after.encode() + source[self.end :]


@dataclass(frozen=True)
class Outcome:
    """What became of a fault. `state` is seen, not_seen or timeout (a hang is seen, too)."""

    fault: Fault
    state: str
    seconds: float
    by: str = ""


# ---- faults


def faults_of(module: str, source: str) -> list[Fault]:
    """All faults that the tool knows for a source file, in the order of their places.

    Docstrings, annotations, messages (f-strings and the arguments of exceptions) and `__future__` imports are left out.
    """
    tree = ast.parse(source)
    starts = _line_starts(source.encode())
    passed_over = _passed_over(tree)
    found = []
    for node in ast.walk(tree):
        if id(node) in passed_over or not hasattr(node, "lineno"):
            continue
        for kind, after in _changes(node):
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            before = source.encode()[begin:end].decode()
            if after != before:
                found.append(Fault(module, node.lineno, begin, end, kind, before, after))
    return sorted(found, key=lambda fault: (fault.start, fault.end, fault.kind, fault.after))


def _line_starts(source: bytes) -> list[int]:
    """The offset in bytes of the start of each line."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def _passed_over(tree: ast.Module) -> set[int]:
    """The nodes (by id) that hold no behaviour, or only the words of a message."""
    roots: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                roots.append(first)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            roots += [*node.decorator_list, *([node.returns] if node.returns else [])]
        elif isinstance(node, ast.arg) and node.annotation:
            roots.append(node.annotation)
        elif isinstance(node, ast.AnnAssign):
            roots.append(node.annotation)
        elif isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)):
            roots.append(node)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            roots.append(node)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            roots += [*node.exc.args, *node.exc.keywords]
    return {id(node) for root in roots for node in ast.walk(root)}


def _changes(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(kind, new text) for each fault that can be put in the place of a node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARE:
        yield "operator", _with(node, "ops", [_COMPARE[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        yield "operator", _with(node, "op", _ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield "operator", _with(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "condition", f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.IfExp):
        yield "condition", f"({ast.unparse(node.orelse)} if {ast.unparse(node.test)} else {ast.unparse(node.body)})"
    elif isinstance(node, ast.Constant):
        yield from _other_constants(node.value)
    elif isinstance(node, ast.Call) and len(node.args) >= 2 and not isinstance(node.args[0], ast.Starred):
        yield "arguments", _with(node, "args", [node.args[1], node.args[0], *node.args[2:]])
    elif isinstance(node, (ast.AugAssign, ast.Continue, ast.Break)):
        yield "statement", "pass"
    elif isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Await)):
        yield "statement", "pass"
    elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield "statement", "return None"


def _with(node: ast.expr, field: str, value: object) -> str:
    """The text of an expression with one field replaced, in brackets."""
    fields = {name: getattr(node, name) for name in node._fields} | {field: value}
    return f"({ast.unparse(type(node)(**fields))})"


def _other_constants(value: object) -> Iterator[tuple[str, str]]:
    """(kind, text) of the constants that replace a constant."""
    if isinstance(value, bool):
        yield "constant", repr(not value)
    elif isinstance(value, (int, float)):
        yield "constant", repr(value + 1)
    elif isinstance(value, bytes) and value:
        yield "constant", repr(value[:-1])
    elif isinstance(value, str) and value and " " not in value.strip():  # a text with blanks is a message
        yield "constant", repr(value[:-1])


# ---- the tests of a module


def module_files(root: Path = ROOT) -> dict[str, Path]:
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


def tests_of(module: str, root: Path = ROOT) -> list[str]:
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


# ---- runs


def sample(modules: list[str], *, faults: int, seed: int, root: Path = ROOT) -> list[Fault]:
    """Draws `faults` faults, spread evenly over the modules. The order of the modules does not matter."""
    files = module_files(root)
    drawn: list[Fault] = []
    pools = {}
    for module in sorted(modules):
        pool = faults_of(module, files[module].read_text())
        key = hashlib.sha256(f"{seed} {module}".encode()).digest()
        random.Random(key).shuffle(pool)
        pools[module] = pool
    while len(drawn) < faults and any(pools.values()):
        order = sorted(pools, key=lambda name: hashlib.sha256(f"{seed} {len(drawn)} {name}".encode()).digest())
        for module in order:
            if pools[module] and len(drawn) < faults:
                drawn.append(pools[module].pop())
    return drawn


def copy_of(root: Path, folder: Path) -> Path:
    """Copies the parts of a checkout that the tests need. Data beside the checkout is linked."""
    copy = folder / "checkout"
    copy.mkdir()
    for name in COPIED:
        path = root / name
        if path.is_dir():
            shutil.copytree(path, copy / name, symlinks=True)
        elif path.exists():
            shutil.copy2(path, copy / name)
    if (root.parent / "shared").exists():
        (folder / "shared").symlink_to((root.parent / "shared").resolve())
    return copy


def run_tests(checkout: Path, tests: list[str], *, seconds: float = SECONDS) -> tuple[str, str]:
    """Runs tests until one fails. Returns (state, the first test that failed)."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no", *tests]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return "timeout", ""
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    first = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "")
    return ("not_seen" if code == 0 else "seen"), first[:160]


def try_fault(fault: Fault, checkout: Path, tests: list[str]) -> Outcome:
    """Puts a fault into a copy of the checkout, runs the tests, and takes the fault out again."""
    path = module_files(checkout)[fault.module]
    source = path.read_bytes()
    start = time.perf_counter()
    path.write_bytes(fault.apply(source))
    try:
        state, first = run_tests(checkout, tests)
    finally:
        path.write_bytes(source)
    return Outcome(fault, state, time.perf_counter() - start, first)


def run(faults: list[Fault], *, jobs: int, to: Path | None, root: Path = ROOT) -> list[Outcome]:
    """Tries each fault. Prints a line for each, and writes the outcomes so far to `to` after each one.

    Test files that fail without any fault are left out: what they say of a fault means nothing.
    """
    outcomes: list[Outcome] = []
    sound = functools.cache(lambda test: run_tests(root, [test])[0] == "not_seen")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            (place := Path(folder, str(number))).mkdir()
            copies.put(copy_of(root, place))

        def one(fault: Fault) -> Outcome:
            checkout = copies.get()
            try:
                tests = [test for test in tests_of(fault.module, root) if sound(test)]
                return try_fault(fault, checkout, tests)
            finally:
                copies.put(checkout)

        with ThreadPoolExecutor(jobs) as pool:
            for outcome in pool.map(one, faults):
                outcomes.append(outcome)
                print(_line(outcome, len(outcomes), len(faults)), flush=True)
                if to:
                    to.write_text(json.dumps([asdict(each) for each in outcomes], indent=1) + "\n")
    return outcomes


def _line(outcome: Outcome, number: int, total: int) -> str:
    fault = outcome.fault
    change = f"{fault.before!r} -> {fault.after!r}"
    return f"{number}/{total} {outcome.state:8} {outcome.seconds:5.1f} s {fault.module}:{fault.line} {change[:150]}"


def summary(outcomes: list[Outcome]) -> str:
    """A table by module, then the faults that no test noticed."""
    rows = {}
    for outcome in outcomes:
        noticed, total = rows.get(outcome.fault.module, (0, 0))
        rows[outcome.fault.module] = (noticed + (outcome.state in ("seen", "timeout")), total + 1)
    noticed = sum(row[0] for row in rows.values())
    lines = [f"{name:44} {row[0]:3} of {row[1]:3}" for name, row in sorted(rows.items())]
    missed = [_line(each, number, len(outcomes)) for number, each in enumerate(outcomes, 1) if each.state == "not_seen"]
    return "\n".join([*lines, f"{'all':44} {noticed:3} of {len(outcomes):3}", "", "not noticed:", *missed])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--modules", nargs="+", metavar="NAME", help="dotted names, or the start of some; default: all")
    parser.add_argument("--faults", type=int, default=40, help="number of faults (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time (default: 1)")
    parser.add_argument("--to", type=Path, metavar="FILE", help="write the outcomes to this JSON file")
    parser.add_argument("--list", action="store_true", help="print the faults and the tests, and run nothing")
    options = parser.parse_args(argv)
    known = [name for name in module_files() if ".demo." not in name]
    wanted = options.modules or ["pipeline", "queries", "clip_train"]
    modules = [name for name in known if any(name == each or name.startswith(f"{each}.") for each in wanted)]
    if not modules:
        parser.error(f"--modules {' '.join(wanted)}: no such module; {len(known)} are known, the first is {known[0]}")
    faults = sample(modules, faults=options.faults, seed=options.seed)
    if options.list:
        for fault in faults:
            tests = " ".join(tests_of(fault.module))
            print(f"{fault.module}:{fault.line} {fault.kind}: {fault.before!r} -> {fault.after!r} [{tests}]")
        return 0
    print(summary(run(faults, jobs=options.jobs, to=options.to)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
