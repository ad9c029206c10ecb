"""What a user types into the search box, as terms over normalised words.

    red boat          both words, anywhere in the texts of a pair
    "red boat"        these words, one after the other
    light*            words that begin so
    -boat             no pair with this word

Texts and terms pass the same normaliser (`text.normalize`, case folded). Words that are written without a blank between
them ("t-shirt", a word of Chinese) follow each other.
"""

from __future__ import annotations

import dataclasses
import re

from pipeline.text.normalize import normalize_text

LONGEST = 500  # characters of a search
MOST_TERMS = 20
LEAST_OF_PREFIX = 2  # letters before the asterisk
_TERM = re.compile(r'(-?)(?:"([^"]*)"?|(\S+))')


class BadSearch(ValueError):
    """The search cannot be answered. The message is for the user."""


@dataclasses.dataclass(frozen=True)
class Term:
    """Words that must follow each other.

    Attributes:
        words: normalised; at least one.
        is_prefix: the last word is the beginning of a word.
        is_excluded: pairs with it are left out.
        shown: as the user wrote it.
    """

    words: tuple[str, ...]
    is_prefix: bool = False
    is_excluded: bool = False
    shown: str = ""


def parse(text: str) -> list[Term]:
    """The terms of a search. What has no letter, digit or symbol is left out.

    Raises:
        BadSearch: it is too long, or a word is too short for its asterisk.
    """
    if len(text) > LONGEST:
        raise BadSearch(f"a search has at most {LONGEST} characters, this one has {len(text):,}")
    terms = []
    for minus, quoted, plain in _TERM.findall(text):
        words = tuple(normalize_text(quoted or plain, "fold").split())
        is_prefix = plain.endswith("*")
        if not words:
            continue
        if is_prefix and len(words[-1]) < LEAST_OF_PREFIX:
            raise BadSearch(f"{plain}: write at least {LEAST_OF_PREFIX} letters before *")
        terms.append(Term(words, is_prefix, bool(minus), f'"{quoted}"' if quoted else plain))
    if len(terms) > MOST_TERMS:
        raise BadSearch(f"a search has at most {MOST_TERMS} words and phrases, this one has {len(terms)}")
    return terms


def matches(terms: list[Term], texts: list[list[str]]) -> bool:
    """The definition: whether a pair, given as the words of each of its texts, answers all terms."""
    return all(any(_in(term, words) for words in texts) != term.is_excluded for term in terms)


def _in(term: Term, words: list[str]) -> bool:
    size = len(term.words)
    for at in range(len(words) - size + 1):
        *first, last = words[at : at + size]
        fits = last.startswith(term.words[-1]) if term.is_prefix else last == term.words[-1]
        if fits and tuple(first) == term.words[:-1]:
            return True
    return False
