"""Unpacks the titles of compromise-wikipedia: a trie in efrt's format (npm efrt, `src/unpack`).

The trie is nodes with ";" between. A node is a run of (letters, reference). A reference names the next node, or is ","
for the end of a title. "!" at the beginning of a node marks that the letters so far are a title themselves. A
reference that is smaller than the number of symbols stands for an entry of the table "0:HR0;1:HTI;..." at the start.
Any other reference counts from the node it stands in.
"""

from __future__ import annotations

import re
from pathlib import Path

_SYMBOL = re.compile(r"^([0-9A-Z]+):([0-9A-Z]+)$")
_STEP = re.compile(r"([^A-Z0-9,]+)([A-Z0-9,]+)?")
_LITERAL = re.compile(r"export default `true¦(.*)`", re.DOTALL)


def read(package: Path) -> list[str]:
    """The titles in lower case, sorted.

    Raises:
        ValueError: the file has another form.
    """
    found = _LITERAL.search((package / "package/src/_model.js").read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{package}: _model.js holds no packed trie")
    return unpack(found[1])


def unpack(packed: str) -> list[str]:
    """The strings of a packed trie, sorted."""
    nodes = packed.split(";")
    symbols = []
    while match := _SYMBOL.match(nodes[len(symbols)]):
        symbols.append(_number(match[2]))
    nodes = nodes[len(symbols) :]
    found: list[str] = []
    stack = [(0, "")]
    while stack:
        place, before = stack.pop()
        node = nodes[place]
        if node.startswith("!"):
            found.append(before)
        for letters, reference in _STEP.findall(node.removeprefix("!")):
            if reference in ("", ","):
                found.append(before + letters)
                continue
            number = _number(reference)
            to = symbols[number] if number < len(symbols) else place + number + 1 - len(symbols)
            stack.append((to, before + letters))
    return sorted(found)


def _number(code: str) -> int:
    """The number of an alpha code: 0, 1, ... 9, A, ... Z, 00, 01, ..."""
    before = sum(36**length for length in range(1, len(code)))
    return before + int(code, 36)
