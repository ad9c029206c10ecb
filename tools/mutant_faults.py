"""The single faults that `tools.mutants` puts into a source file. Changes that nobody can notice are left out."""

from __future__ import annotations

import ast
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

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
# Arguments of argparse and of our options that are words for a person.
_WORDS = {"help", "metavar", "description", "epilog", "title", "desc", "unit", "stacklevel"}
_SYMMETRIC = {"min", "max", "minimum", "maximum", "gcd", "logaddexp"}
# Sizes of pieces of work: another size gives the same rows.
_PIECES = ("CHUNK", "BUFFER", "BATCH", "POLL", "PIECE", "BLOCK_", "AT_A_TIME")


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


def faults_of(module: str, source: str) -> list[Fault]:
    """All faults that the tool knows for a source file, in the order of their places.

    What nobody can notice by construction is left out: docstrings, annotations, words for a person (f-strings, help
    texts, the arguments of exceptions and warnings), log records, `__all__`, the sizes of pieces of work, the order of
    the arguments of `min` and `max`.
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
        elif isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)) or _only_words(node):
            roots.append(node)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            roots.append(node)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            roots += [*node.exc.args, *node.exc.keywords]
    return {id(node) for root in roots for node in ast.walk(root)}


def _only_words(node: ast.AST) -> bool:
    """True for what a person reads or what sets the size of a piece of work: no result depends on it."""
    if isinstance(node, ast.keyword):
        return node.arg in _WORDS
    if isinstance(node, ast.Assign):
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        return any(name == "__all__" or any(piece in name for piece in _PIECES) for name in names)
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    called = ast.unparse(node.value.func)
    return called.startswith(("logging.", "_log.", "logger.")) or called == "warnings.warn"


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
        if ast.unparse(node.func).split(".")[-1] not in _SYMMETRIC:
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


def sample(sources: dict[str, str], *, faults: int, seed: int, spread: int | None = None) -> list[Fault]:
    """Draws `faults` faults, the same number in each module, from `spread` modules (default: all).

    `sources` is the text of each module. Its order does not matter.
    """
    pools = {}
    for module in sorted(sources):
        pool = faults_of(module, sources[module])
        random.Random(_digest(seed, module)).shuffle(pool)
        pools[module] = pool
    order = sorted((name for name in pools if pools[name]), key=lambda name: _digest(seed, name))[:spread]
    drawn: list[Fault] = []
    while len(drawn) < faults and any(pools[module] for module in order):
        left = [module for module in order if pools[module]]
        drawn += [pools[module].pop() for module in left[: faults - len(drawn)]]
    return drawn


def _digest(seed: int, module: str) -> bytes:
    return hashlib.sha256(f"{seed} {module}".encode()).digest()
