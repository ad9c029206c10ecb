"""Reads WordNet's database files (the folder of Debian's wordnet-base, or the `dict` folder of a WNdb archive).

Each line of data.noun, data.verb, data.adj and data.adv is a synset with its lemmas in order. `cntlist.rev` has the
number of occurrences of each sense in WordNet's own tagged texts.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

PARTS = ("noun", "verb", "adj", "adv")
_MARKER = re.compile(r"\((?:a|p|ip)\)$")  # marks the position of an adjective


class WordNetError(ValueError):
    """The folder is not a WordNet database."""


def read_synsets(folder: str) -> list[list[str]]:
    """The lemmas of every synset as written ("St._Louis"), without the markers of adjectives.

    Raises:
        WordNetError: a data file is missing or holds no synset.
    """
    found: list[list[str]] = []
    for part in PARTS:
        before = len(found)
        for line in _lines(Path(folder) / f"data.{part}"):
            if not line.startswith(" "):  # the licence
                found.append(_lemmas(line))
        if len(found) == before:
            raise WordNetError(f"{folder}: data.{part} holds no synset")
    return found


def read_counts(folder: str) -> Counter[str]:
    """The number of tagged occurrences of each lemma (lower case, with "_"). Empty if there is no cntlist.rev."""
    counts: Counter[str] = Counter()
    path = Path(folder) / "cntlist.rev"
    for line in _lines(path) if path.is_file() else []:
        fields = line.split()
        if len(fields) == 3 and fields[2].isdecimal():
            counts[fields[0].partition("%")[0]] += int(fields[2])
    return counts


def all_lemmas(folder: str, *, first_only: bool = False) -> dict[str, int]:
    """Each lemma with blanks for "_" -> its count, in WordNet's order. `first_only`: one lemma of each synset."""
    counts = read_counts(folder)
    found: dict[str, int] = {}
    for lemmas in read_synsets(folder):
        for lemma in lemmas[:1] if first_only else lemmas:
            found.setdefault(lemma.replace("_", " "), counts[lemma.lower()])
    return found


def metaclip_names(folder: str) -> dict[str, int]:
    """The name of each synset up to its first dot, in lower case, as MetaCLIP reads it: "St._Louis" becomes "st"."""
    counts = read_counts(folder)
    found: dict[str, int] = {}
    for lemmas in read_synsets(folder):
        name = lemmas[0].lower().partition(".")[0]
        found.setdefault(name.replace("_", " "), counts[name])
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise WordNetError(
            f"{path} cannot be read ({error.strerror}): give the folder that holds data.noun, such as "
            f"/usr/share/wordnet of Debian's wordnet-base"
        ) from error


def _lemmas(line: str) -> list[str]:
    """The lemmas of a data line: offset, file, type, number of lemmas (hex), then each lemma with its sense id."""
    fields = line.split(" ")
    try:
        number = int(fields[3], 16)
        words = fields[4 : 4 + 2 * number : 2]
    except (IndexError, ValueError) as error:
        raise WordNetError(f"not a line of a WordNet data file: {line[:60]!r}") from error
    if not words or len(words) != number:
        raise WordNetError(f"not a line of a WordNet data file: {line[:60]!r}")
    return [_MARKER.sub("", word) for word in words]
