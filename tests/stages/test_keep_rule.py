"""The language of --keep against Python's own rules on the same rows, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.cli import UsageError
from pipeline.stages.keep_rule import LONGEST, KeepRule

COLUMNS = {
    "clip_score": pa.array([0.3, 0.28, 0.1, None], pa.float32()),
    "nsfw": pa.array([0.0, 0.2, None, 0.05], pa.float64()),
    "width": pa.array([100, 300, 2**62, 1], pa.int64()),
    "ok": pa.array([True, False, None, True]),
    "p-watermark 2": pa.array([1, 2, 3, 4], pa.uint8()),
}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("clip_score >= 0.28", [True, True, False, None]),  # 0.28 means the number of 32 bits
        ("0.28 <= clip_score", [True, True, False, None]),
        ("clip_score == 0.1", [False, False, True, None]),
        ("clip_score >= 0.28 and nsfw < 0.1", [True, False, False, None]),
        ("clip_score is None or clip_score > .29", [True, False, False, True]),
        ("nsfw is not None", [True, True, False, True]),
        ("not (nsfw < .1 or ok)", [False, True, None, False]),
        ("0 < nsfw <= .2", [False, True, None, True]),
        ("ok == True", [True, False, None, True]),
        ("ok", [True, False, None, True]),
        ("True", [True, True, True, True]),
        ("width > 10", [True, True, True, False]),
        ("width != 'p-watermark 2' * 25 * 4", [False, True, True, True]),
        ("1 / nsfw > 15", [True, False, None, True]),  # a division by zero is infinite
        ("nsfw / nsfw > 0", [False, True, None, True]),  # 0 / 0 fits no comparison
        ("-clip_score - -1 < +0.75", [True, True, False, None]),
        ("(clip_score) \n >= 0.28", [True, True, False, None]),
    ],
)
def test_what_an_expression_keeps(text: str, kept: list[bool | None]) -> None:
    rule = KeepRule.parse(text)
    rule.check({name: column.type for name, column in COLUMNS.items()})
    assert rule.keeps(COLUMNS, 4).to_pylist() == kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read at its end"),
        ("clip_score >=", "cannot be read"),
        ("clip_score = 0.3", "cannot be read near '= 0.3'"),
        ("clip_score > 1 AND nsfw < 2", "cannot be read near 'AND nsfw < 2'"),
        ("(nsfw < 1) & ok", "not of the language; write 'and'"),
        ("~ok", "write 'not'"),
        ("__import__('os').system('false')", "is not of the language"),
        ("nsfw.x > 1", "is not of the language"),
        ("[ok for ok in nsfw]", "is not of the language"),
        ("(lambda: ok)()", "is not of the language"),
        ("nsfw ** 2 > 1", "is not of the language"),
        ("nsfw in 'ok'", "is not of the language"),
        ("nsfw == None", "write COLUMN is None"),
        ("nsfw is 3", "write COLUMN is None"),
        ("nsfw < 1e999", "number that is too large"),
        ("nsfw < 1j", "is not of the language"),
        ("clip_scor > 1", "no column 'clip_scor'; did you mean clip_score? (columns: clip_score, nsfw, ok,"),
        ("clip_score", "but it is a number: compare it"),
        ("clip_score and ok", "but it is a number"),
        ("ok > 3", "compares a number with a truth value"),
        ("ok > True", "orders truth values"),
        ("ok + 1 > 3", "calculates with 'ok'"),
        ("3 is None", "only a column can be"),
        ("- " * 1500 + "1 > 2", "nests too deeply"),
        ("(" * 1500 + "ok" + ")" * 1500, "such as clip_score"),
        ("not " * 120 + "ok", "nests too deeply"),
        ("ok or " * LONGEST + "ok", "at most"),
        ("nsfw > 1 \x00", "such as clip_score"),
        ("False", "is true for no pair"),
        ("not True or 1 > 2", "is true for no pair"),
        ("ok and 2 * 2 == 5", "is true for no pair"),
        ("nsfw > 1 and ok and 1 >= nsfw", "is true for no pair"),
        ("0.5 < nsfw <= 0.5 or nsfw == 1 and nsfw == 2", "is true for no pair"),
        ("nsfw is None and nsfw < 1", "is true for no pair"),
        ("nsfw / (2 - 2) < 1", "divides by zero in 'nsfw / (2 - 2)'"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        KeepRule.parse(text).check({name: column.type for name, column in COLUMNS.items()})
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


VALUES = st.one_of(st.none(), st.integers(-2, 2).map(float))
LEAVES = st.builds(
    lambda name, op, number: f"{name} {op} {number}",
    st.sampled_from(["a", "b"]),
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    st.integers(-2, 2),
) | st.sampled_from(["a is None", "b is not None"])
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds("({} and {})".format, inner, inner)
        | st.builds("({} or {})".format, inner, inner)
        | inner.map("(not {})".format)
    ),
    max_leaves=8,
)


def naive(text: str, row: dict[str, float | None]) -> bool | None:
    """An expression under three-valued logic: true, false or unknown for one row."""
    import ast

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.BoolOp):
            found = [value(part) for part in node.values]
            decides = isinstance(node.op, ast.Or)
            return decides if decides in found else None if None in found else not decides
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = value(node.operand)
            return None if inner is None else not inner
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            return (row[node.left.id] is None) == isinstance(node.ops[0], ast.Is)
        text = ast.unparse(node)
        return None if row[text[0]] is None else bool(eval(text, dict(row)))

    return value(ast.parse(text, mode="eval").body)


@given(TREES, st.lists(st.tuples(VALUES, VALUES), max_size=5))
def test_logic_is_three_valued(text: str, rows: list[tuple[float | None, float | None]]) -> None:
    columns = {name: pa.array([row[at] for row in rows], pa.float64()) for at, name in enumerate("ab")}
    try:
        rule = KeepRule.parse(text)
    except UsageError:
        values = (None, *(number / 2 for number in range(-5, 6)))
        assert True not in {naive(text, {"a": a, "b": b}) for a in values for b in values}
        return
    kept = rule.keeps(columns, len(rows)).to_pylist()
    assert kept == [naive(text, {"a": a, "b": b}) for a, b in rows]


@given(st.text(st.sampled_from("ab<>=!()+-*/.1e'\"~&| notandrisNone\n\\x"), max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    types = {"a": pa.float32(), "b": pa.int8()}
    try:
        rule = KeepRule.parse(text)
        rule.check(types)
    except UsageError as error:
        assert "\n" not in str(error)
        return
    found = rule.keeps({"a": pa.array([1.0, None], pa.float32()), "b": pa.array([0, 1], pa.int8())}, 2)
    assert found.type == pa.bool_() and len(found) == 2


def test_a_number_is_never_infinite() -> None:
    assert math.isfinite(1e308)
    with pytest.raises(UsageError, match="too large"):
        KeepRule.parse("a < 1" + "0" * 400)
