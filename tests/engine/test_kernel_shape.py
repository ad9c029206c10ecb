"""The shape of the compiled kernels: short functions, few arguments, bytes by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = sorted(
    path for package in ("pipeline", "queries", "clip_train") for path in (ROOT / package).rglob("*_kernel.py")
)
MAX_LINES = 60
MAX_ARGUMENTS = 6
MAX_NUMBER = 8  # that a byte may be compared with: sizes of words, not byte codes
COMPARES_SIZES = {"hashing_kernel"}  # XXH3's classes of lengths; it compares no bytes


def too_long(tree: ast.AST) -> Iterator[str]:
    """Functions of more than MAX_LINES lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MAX_LINES:
            yield f"line {node.lineno}: {node.name} is too long"


def too_wide(tree: ast.AST) -> Iterator[str]:
    """Functions with more than MAX_ARGUMENTS parameters, and calls with more positional arguments.

    The parameters are counted because a call with `*values` does not show how many arguments it has.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and len(node.args.posonlyargs + node.args.args) > MAX_ARGUMENTS:
            yield f"line {node.lineno}: {node.name} has too many parameters"
        if isinstance(node, ast.Call) and len(node.args) > MAX_ARGUMENTS:
            yield f"line {node.lineno}: a call has too many positional arguments"


def bare_codes(tree: ast.AST) -> Iterator[str]:
    """Comparisons of compiled code with a number over MAX_NUMBER, which may be a byte code without a name."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or "njit" not in map(ast.unparse, function.decorator_list):
            continue
        for node in ast.walk(function):
            for side in (node.left, *node.comparators) if isinstance(node, ast.Compare) else ():
                numbers = [leaf.value for leaf in ast.walk(side) if isinstance(leaf, ast.Constant)]
                if any(isinstance(number, int) and number > MAX_NUMBER for number in numbers):
                    yield f"line {node.lineno}: a comparison with {numbers}"


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_a_kernel_is_readable(path: Path) -> None:
    tree = ast.parse(path.read_text())
    found = [*too_long(tree), *too_wide(tree)]
    if path.stem not in COMPARES_SIZES:
        found += bare_codes(tree)
    assert not found, "\n".join(found)


def test_the_kernels_are_found() -> None:
    assert {"wat_kernel", "html_kernel", "json_kernel", "matcher_kernel"} <= {path.stem for path in KERNELS}


def test_each_fault_is_seen() -> None:
    """The checks above see a function, a call and a byte code that they are meant to see."""
    long = "def f():\n" + "    pass\n" * MAX_LINES
    assert list(too_long(ast.parse(long))) and not list(too_long(ast.parse(long.removesuffix("    pass\n"))))
    assert list(too_wide(ast.parse("f(1, 2, 3, 4, 5, 6, 7)"))) and not list(too_wide(ast.parse("f(1, 2, 3, 4, 5, 6)")))
    assert list(too_wide(ast.parse("def f(a, b, c, d, e, f, g): pass")))
    compiled = "@njit\ndef f(byte, first, size): return {}"
    for text in (
        "byte == 34",
        "48 <= byte <= 57",
        "byte | 0x20 == 0x65",
        "byte & 0xC0 == TAIL",
        "byte == np.uint8(47)",
    ):
        assert list(bare_codes(ast.parse(compiled.format(text)))), text
    assert not list(bare_codes(ast.parse(compiled.format("byte == QUOTE and size >= 8"))))
