"""The language of --keep: comparisons of columns, joined by and, or, not. It becomes calls of pyarrow.compute.

    clip_score >= 0.28 and (nsfw < 0.1 or nsfw is None)
    0.5 < aesthetic - 2 * watermark <= 7
    'p-watermark' < 0.8                  a name with blanks or signs stands in quotes

A text is parsed by Python's parser into a syntax tree. Only the nodes that are named here are taken. Nothing is
evaluated by Python. A comparison with a missing value is unknown, as in SQL: `unknown or true` is true, and
`unknown and false` is false.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.cli import UsageError
from pipeline.engine.options import nearest, show

LONGEST = 4000  # characters
DEEPEST = 100  # operations inside one another
EXAMPLE = "such as clip_score >= 0.28 and nsfw < 0.1"

COMPARISONS = {
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}
ARITHMETIC = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide"}
# What users of other languages write, and what to write here.
HINTS = {ast.BitAnd: "and", ast.BitOr: "or", ast.Invert: "not"}

Value: TypeAlias = "pa.Array | float | bool"  # of a column, or a number or truth value of the text


@dataclasses.dataclass(frozen=True)
class KeepRule:
    """A parsed expression.

    Attributes:
        text: as the user wrote it, with single blanks.
    """

    text: str

    @classmethod
    def parse(cls, text: str) -> KeepRule:
        """Parses an expression. Types are not checked yet, since the columns are not known.

        Raises:
            UsageError: it is not of the language.
        """
        rule = cls(" ".join(text.split()))
        tree = rule._tree()
        _check_node(tree, DEEPEST)
        _check_divisors(tree)
        if _is_never_true(tree):
            raise UsageError("is true for no pair: must be true for some")
        return rule

    def names(self) -> list[str]:
        """The sorted names of the columns that the expression takes."""
        return sorted({name for node in ast.walk(self._tree()) if (name := _name(node)) is not None})

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        """Checks names and types: the expression must be true or false.

        Args:
            types: column -> a type of numbers or bool.

        Raises:
            UsageError: it names a column that is not there, or it mixes numbers and truth values.
        """
        for name in self.names():
            if name not in types:
                known = ", ".join(show(one) for one in sorted(types))
                raise UsageError(f"there is no column {show(name)!r}{nearest(name, types)} (columns: {known})")
        self.keeps({name: pa.array([], kind) for name, kind in types.items()}, 0)

    def keeps(self, columns: Mapping[str, pa.Array], rows: int) -> pa.BooleanArray:
        """True, false or null (unknown) for each row.

        Args:
            columns: of numbers or bool, `rows` values each.
            rows: the number of rows.

        Raises:
            UsageError: it mixes numbers and truth values.
        """
        found = _truth(_evaluate(self._tree(), columns), self._tree())
        return pa.repeat(pa.scalar(found), rows) if isinstance(found, bool) else found

    def _tree(self) -> ast.expr:
        if len(self.text) > LONGEST:
            raise UsageError(f"must have at most {LONGEST:,} characters")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            rest = self.text[max(0, (error.offset or 1) - 1) :]
            near = f"near {show(rest[:30])!r}" if rest else "at its end"
            raise UsageError(f"cannot be read {near}: must be comparisons {EXAMPLE}") from None
        except (RecursionError, MemoryError, ValueError):
            raise UsageError(f"nests too deeply: must be comparisons {EXAMPLE}") from None


def _check_divisors(tree: ast.expr) -> None:
    """Refuses a division by the number zero."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and _constant(node.right) == 0:
            raise UsageError(f"divides by zero in {show(_text(node))!r}")


def _is_never_true(node: ast.expr) -> bool:
    """True if no values of the columns make a condition true, as far as its numbers tell."""
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        return all(map(_is_never_true, node.values))
    if isinstance(node, ast.BoolOp):
        return any(map(_is_never_true, node.values)) or _are_exclusive(_conditions(node))
    if isinstance(node, ast.Compare) and len(node.ops) > 1:
        return _are_exclusive(_conditions(node))
    return _constant(node) is False


def _conditions(node: ast.expr) -> list[ast.expr]:
    """The conditions that all must be true for a node to be true. A chain of comparisons is several."""
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        return [condition for part in node.values for condition in _conditions(part)]
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        pairs = zip(sides, node.ops, sides[1:], strict=False)
        return [ast.Compare(left, [op], [right]) for left, op, right in pairs]
    return [node]


# An operator, and the same one read from right to left.
_TURNED = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE, ast.Eq: ast.Eq}


def _are_exclusive(conditions: list[ast.expr]) -> bool:
    """True if a column would have to be above and below some number, or be missing and have a value."""
    lowest: dict[str, tuple[float, int]] = {}  # column -> the bound; 1: it is left out
    highest: dict[str, tuple[float, int]] = {}  # -1: it is left out
    missing, present = set[str](), set[str]()
    for node in conditions:
        if not isinstance(node, ast.Compare):
            continue
        side, other, kind = node.left, node.comparators[0], type(node.ops[0])
        if _name(side) is None:
            side, other, kind = other, side, _TURNED.get(kind, kind)
        name, bound = _name(side), _constant(other)
        if name is None:
            continue
        (missing if kind is ast.Is else present).add(name)
        if bound is None or isinstance(bound, bool):
            continue
        if kind in (ast.Gt, ast.GtE, ast.Eq):
            lowest[name] = max(lowest.get(name, (-math.inf, 0)), (bound, int(kind is ast.Gt)))
        if kind in (ast.Lt, ast.LtE, ast.Eq):
            highest[name] = min(highest.get(name, (math.inf, 0)), (bound, -int(kind is ast.Lt)))
    bounds = ((lowest[name], highest[name]) for name in lowest.keys() & highest.keys())
    return not missing.isdisjoint(present) or any(
        low > high or (low == high and (above, below) != (0, 0)) for (low, above), (high, below) in bounds
    )


def _constant(node: ast.expr) -> float | bool | None:
    """The value of an expression without columns; None: it has some, or its types do not fit."""
    if any(_name(part) is not None or getattr(part, "value", 0) is None for part in ast.walk(node)):
        return None
    try:
        value = _evaluate(node, {})
    except UsageError:  # `check` says it
        return None
    return None if isinstance(value, pa.Array) else value


def _name(node: ast.AST) -> str | None:
    """The column that a node names."""
    if isinstance(node, ast.Name):
        return node.id
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _check_node(node: ast.expr, depth: int) -> None:
    """Refuses a node that is not of the language."""
    if depth == 0:
        raise UsageError(f"nests too deeply: must be comparisons {EXAMPLE}")
    for part in _parts(node):
        _check_node(part, depth - 1)


def _parts(node: ast.expr) -> list[ast.expr]:
    """The operands of a node of the language."""
    if _name(node) is not None:
        return []
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        if not math.isfinite(_finite(node.value)):
            raise UsageError(f"holds a number that is too large: must be comparisons {EXAMPLE}")
        return []
    if isinstance(node, ast.BoolOp):
        return node.values
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.UAdd)):
        return [node.operand]
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        return [node.left, node.right]
    if isinstance(node, ast.Compare):
        return [node.left, *_compared(node)]
    hints = [word for kind, word in HINTS.items() if isinstance(getattr(node, "op", None), kind)]
    hint = f"; write {hints[0]!r}" if hints else ""
    raise UsageError(f"holds {show(_text(node))!r}, which is not of the language{hint}: {_LANGUAGE}")


_LANGUAGE = "it has columns, numbers, + - * /, < <= > >= == !=, is None, and, or, not"


def _text(node: ast.AST) -> str:
    """A part of the expression, for a message."""
    try:
        return ast.unparse(node)
    except RecursionError:
        return "..."


def _finite(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _compared(node: ast.Compare) -> list[ast.expr]:
    """The right sides of a comparison, without None."""
    parts = []
    for op, right in zip(node.ops, node.comparators, strict=True):
        is_none = isinstance(right, ast.Constant) and right.value is None
        if is_none != isinstance(op, (ast.Is, ast.IsNot)) or (is_none and len(node.ops) > 1):
            raise UsageError(f"holds {show(_text(node))!r}: write COLUMN is None, or COLUMN is not None")
        if not is_none and type(op) not in COMPARISONS:
            raise UsageError(f"holds {show(_text(node))!r}, which is not of the language: {_LANGUAGE}")
        parts += [] if is_none else [right]
    return parts


# ------------------------------------------------------------------------------------------------------ evaluation


def _evaluate(node: ast.expr, columns: Mapping[str, pa.Array]) -> Value:
    name = _name(node)
    if name is not None:
        return columns[name]
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, bool) else float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.BoolOp):
        call = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
        found = _truth(_evaluate(node.values[0], columns), node.values[0])
        for part in node.values[1:]:
            found = _as_bool(call(found, _truth(_evaluate(part, columns), part)))
        return found
    if isinstance(node, ast.UnaryOp):
        value = _evaluate(node.operand, columns)
        if isinstance(node.op, ast.Not):
            return _as_bool(pc.invert(_truth(value, node.operand)))
        value = _number(value, node.operand)
        return value if isinstance(node.op, ast.UAdd) else _calculate("multiply", value, -1.0)
    if isinstance(node, ast.BinOp):
        sides = (_number(_evaluate(side, columns), side) for side in (node.left, node.right))
        return _calculate(ARITHMETIC[type(node.op)], *sides)
    assert isinstance(node, ast.Compare)
    return _compare(node, columns)


def _compare(node: ast.Compare, columns: Mapping[str, pa.Array]) -> Value:
    left, found = _evaluate(node.left, columns), None
    if isinstance(node.ops[0], (ast.Is, ast.IsNot)):
        if not isinstance(left, pa.Array):
            raise UsageError(f"asks if {show(_text(node.left))!r} is missing: only a column can be")
        return pc.is_null(left) if isinstance(node.ops[0], ast.Is) else pc.is_valid(left)
    for op, of_right in zip(node.ops, node.comparators, strict=True):
        right = _evaluate(of_right, columns)
        if _is_truth(left) != _is_truth(right):
            raise UsageError(f"compares a number with a truth value in {show(_text(node))!r}")
        if _is_truth(left) and not isinstance(op, (ast.Eq, ast.NotEq)):
            raise UsageError(f"orders truth values in {show(_text(node))!r}")
        one = _as_bool(getattr(pc, COMPARISONS[type(op)])(*_alike(left, right)))
        found = one if found is None else _as_bool(pc.and_kleene(found, one))
        left = right
    assert found is not None
    return found


def _calculate(call: str, left: Value, right: Value) -> Value:
    """Arithmetic in floats of 64 bits. A division by zero gives an infinite number, or one that fits no comparison."""
    found = getattr(pc, call)(*(_float64(side) for side in (left, right)))
    return found if isinstance(found, pa.Array) else found.as_py()


def _float64(side: Value) -> pa.Array | pa.Scalar:
    return side.cast(pa.float64(), safe=False) if isinstance(side, pa.Array) else pa.scalar(float(side), pa.float64())


def _alike(left: Value, right: Value) -> tuple[pa.Array | pa.Scalar, pa.Array | pa.Scalar]:
    """Both sides of a comparison in one type.

    A number of the text takes the type of the column, if this has floats: so 0.7 equals the 0.7 in a column of 32 bits.
    """
    if _is_truth(left):
        some, others = (pa.scalar(side) if isinstance(side, bool) else side for side in (left, right))
        return some, others
    for column, number, turned in ((left, right, False), (right, left, True)):
        if isinstance(column, pa.Array) and not isinstance(number, pa.Array) and column.type == pa.float32():
            scalar = pa.scalar(number, pa.float32())
            return (scalar, column) if turned else (column, scalar)
    return _float64(left), _float64(right)


def _is_truth(value: Value) -> bool:
    return pa.types.is_boolean(value.type) if isinstance(value, pa.Array) else isinstance(value, bool)


def _truth(value: Value, node: ast.expr) -> pa.Array | bool:
    if not _is_truth(value):
        raise UsageError(f"takes {show(_text(node))!r} as true or false, but it is a number: compare it")
    return value  # type: ignore[return-value]


def _number(value: Value, node: ast.expr) -> pa.Array | float:
    if _is_truth(value):
        raise UsageError(f"calculates with {show(_text(node))!r}, which is true or false")
    return value


def _as_bool(value: pa.Array | pa.Scalar) -> pa.Array | bool:
    return value if isinstance(value, pa.Array) else bool(value.as_py())
