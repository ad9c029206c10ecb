"""Reads more of WordNet's data files than `queries.wordnet` does: parts of speech, kinds of nouns, glosses, usage.

A line of data.noun is: offset, number of the lexicographer's file, type, number of lemmas (hex), lemmas with their
sense ids, number of pointers, pointers (symbol, offset, part, source and target), "|", gloss (wndb(5WN)).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

PARTS = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
USAGE = ";u"  # the pointer to the usage that a synset belongs to, such as "ethnic slur"


@dataclasses.dataclass(frozen=True)
class Synset:
    """A synset.

    Attributes:
        part: noun, verb, adj or adv.
        file: number of the lexicographer's file: 05 animals, 06 artefacts ... (lexnames(5WN)).
        lemmas: as written, with blanks.
        usage: the first lemma of each usage domain.
        gloss: definition and examples.
    """

    part: str
    file: int
    lemmas: tuple[str, ...]
    usage: tuple[str, ...]
    gloss: str


def read(folder: Path) -> list[Synset]:
    """All synsets of the folder with data.noun, data.verb, data.adj and data.adv."""
    lines = {(part, offset): line for part in ("noun", "verb", "adj", "adv") for offset, line in _lines(folder, part)}
    first = {key: line.split(" ", 5)[4].replace("_", " ") for key, line in lines.items()}
    return [_synset(part, line, first) for (part, _), line in lines.items()]


def _lines(folder: Path, part: str) -> Iterator[tuple[str, str]]:
    for line in (folder / f"data.{part}").read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith(" "):  # the licence
            yield line[:8], line


def _synset(part: str, line: str, first: dict[tuple[str, str], str]) -> Synset:
    data, _, gloss = line.partition(" | ")
    fields = data.split(" ")
    lemmas = int(fields[3], 16)
    at = 4 + 2 * lemmas
    pointers = [fields[place : place + 3] for place in range(at + 1, at + 1 + 4 * int(fields[at]), 4)]
    usage = tuple(first[PARTS[kind], offset] for symbol, offset, kind in pointers if symbol == USAGE)
    names = tuple(name.partition("(")[0].replace("_", " ") for name in fields[4:at:2])
    return Synset(part, int(fields[1]), names, usage, gloss.strip())
