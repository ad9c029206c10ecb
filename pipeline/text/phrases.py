"""Phrases of web pages and programs that say nothing about an image, from the table `data/phrases.tsv`.

Columns of the table: `reason` of the drop, `place`, `language` (for the reader), `phrase` in lower case. The places:

- `whole`: the text is the phrase, perhaps with a number after it;
- `start`: the text begins with the phrase;
- `anywhere`: the text contains the phrase;
- `pattern`: the text matches a regular expression.

Case, and punctuation at the ends of the text, are ignored. A phrase that begins or ends with a cased letter must not
touch another letter there.

`clean_kernel` finds the texts in which `reason_of` may find a phrase by `events`: hashes of single words, of pairs of
neighbouring words, and of three neighbouring letters of a script without case. The kernel computes the same events.
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterator
from importlib import resources
from itertools import pairwise
from typing import Any, NamedTuple

LONGEST_WHOLE = 80  # characters; longer texts are no phrase of `whole`
_BY_FREQUENCY = b" etaoinsrhldcumfpgwybvkxjqz0123456789'-"  # of English texts
_CASE_BIT = 0x20
LONGEST_OF_PATTERN = 60  # characters; longer texts match no pattern
_COMMON_GRAMS = (  # each stands in more than 3 of 1,000 captions, the most frequent one first
    b"with|ting| con|ning|grap|crip|mage|imag|cont|ture|phic|comp|ated|rati|ster| bei|inin|ure |en b|ctur|rate"
    b"|llow| pic|ng c|star|pict|ictu|atin| auf|watc|perf|a pi|book|n be|tern|base|gram|n au|l vi|visi|lick"
).split(b"|")
_RARITY = {gram: rank for rank, gram in enumerate(_COMMON_GRAMS)}
_EDGES = " .,:;!?-_*#()[]{}<>|/\\'\"…»«›‹→←"
_TRAILING_NUMBER = re.compile(r"[ _#-]*[0-9]{1,4}\Z")

WORD, PAIR, THREE = range(1, 4)  # the kinds of events
OF_PATTERN = 4  # in `triggers`: an event of any kind that counts only in a text of at most LONGEST_OF_PATTERN
MASK = 0xFFFFFFFF
MIX_1, MIX_2 = 0x9E3779B1, 0x85EBCA77  # odd numbers that spread the bits (the primes of xxHash)
# Every text that a pattern of `pattern` matches has one of these events.
_OF_PATTERNS = (
    "star stars stern sterne sternen étoile étoiles estrella estrellas rated rating score".split(),
    [f"{word} {number}" for word in "of von aus sur de".split() for number in (5, 10)]
    + ["based on"]
    + [f"on {site}" for site in "facebook flickr instagram linkedin pinterest tiktok tumblr twitter youtube".split()],
    ["星のう"],
)


class _Table(NamedTuple):
    whole: dict[str, str]
    start: dict[str, str]
    anywhere: dict[str, str]
    pattern: dict[re.Pattern[str], str]


@functools.lru_cache(maxsize=1)
def table() -> _Table:
    """The phrases of each place, with their reasons."""
    found = _Table({}, {}, {}, {})
    text = resources.files("pipeline.text").joinpath("data/phrases.tsv").read_text("utf-8")
    for row in csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE):
        key = re.compile(row["phrase"]) if row["place"] == "pattern" else row["phrase"]
        getattr(found, row["place"])[key] = row["reason"]
    return found


def reason_of(text: str) -> str:
    """The reason for which a clean text is dropped; "" if it has no phrase of the table."""
    phrases, lower = table(), text.lower()
    words = lower.strip(_EDGES)
    if len(text) <= LONGEST_WHOLE:
        found = phrases.whole.get(words) or phrases.whole.get(_TRAILING_NUMBER.sub("", words))
        if found:
            return found
    if words.startswith(_starts()):
        for phrase, reason in phrases.start.items():
            if words.startswith(phrase) and _stands_alone(words, 0, phrase):
                return reason
    is_ascii = text.isascii()
    for phrase, reason in _anywhere(is_ascii) if _any_of_anywhere(is_ascii).search(lower) else ():
        place = lower.find(phrase)
        while place >= 0:
            if _stands_alone(lower, place, phrase):
                return reason
            place = lower.find(phrase, place + 1)
    if len(text) <= LONGEST_OF_PATTERN and _any_pattern().fullmatch(words):
        for pattern, reason in phrases.pattern.items():
            if pattern.fullmatch(words):
                return reason
    return ""


@functools.lru_cache(maxsize=2)
def _anywhere(is_ascii: bool) -> tuple[tuple[str, str], ...]:
    """The phrases of `anywhere` with their reasons; of ASCII alone, if the text is."""
    return tuple(item for item in table().anywhere.items() if item[0].isascii() or not is_ascii)


@functools.lru_cache(maxsize=2)
def _any_of_anywhere(is_ascii: bool) -> re.Pattern[str]:
    """A pattern that finds a phrase of `_anywhere` in a text that has one.

    It is a tree of letters. So a search looks once at most places of a text, and not once for each phrase.
    """
    tree: dict[str, Any] = {}
    for phrase, _ in _anywhere(is_ascii):
        node = tree
        for char in phrase:
            node = node.setdefault(char, {})
        node[""] = {}
    return re.compile(_pattern_of(tree))


def _pattern_of(tree: dict[str, Any]) -> str:
    """The pattern of a tree of letters. A phrase that begins with another one is left out."""
    if "" in tree:
        return ""
    branches = [re.escape(char) + _pattern_of(rest) for char, rest in tree.items()]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


@functools.lru_cache(maxsize=1)
def _any_pattern() -> re.Pattern[str]:
    """A pattern that matches what one of `pattern` matches."""
    return re.compile("|".join(f"(?:{pattern.pattern})" for pattern in table().pattern))


@functools.lru_cache(maxsize=1)
def _starts() -> tuple[str, ...]:
    return tuple(table().start)


def _stands_alone(text: str, place: int, phrase: str) -> bool:
    """True if no letter touches a cased letter at an end of the phrase."""
    end = place + len(phrase)
    before, after = text[max(0, place - 1) : place], text[end : end + 1]
    return not (_is_cased(phrase[0]) and before.isalpha()) and not (_is_cased(phrase[-1]) and after.isalpha())


def _is_cased(char: str) -> bool:
    return char.isalpha() and char.lower() != char.upper()


def fold(char: str) -> int:
    """The code point that stands for a letter of the Basic Multilingual Plane in the events."""
    lower = char.lower()
    return ord(lower) if len(lower) == 1 and ord(lower) < 0x10000 else ord(char)


def events(text: str) -> Iterator[tuple[int, int]]:
    """(kind, hash) of each word, pair and three letters. The kernel has the same function.

    The hash of a word is (33 * hash) ^ letter, which takes three instructions a letter.
    """
    word, before, letters = 0, 0, 0
    for char in f"{text} ":
        uncased = char.isalpha() and not _is_cased(char)
        if not uncased and (char.isalpha() or char.isdigit()):
            word = (33 * word ^ fold(char)) & MASK
            letters = 0
            continue
        if word:
            yield WORD, spread(0, word)
            if before:
                yield PAIR, spread(before, word)
            before, word = word, 0
        before = 0 if uncased else before
        letters = (letters << 16 ^ ord(char)) & (1 << 48) - 1 if uncased else 0
        if letters >> 32:
            yield THREE, spread(letters >> 16 & MASK, letters & MASK)


def rare_grams() -> set[bytes]:
    """Four neighbouring bytes of each phrase whose events are in `triggers`, with the bit 0x20 set: rare ones.

    Every text with such a phrase has one of them, in any case. The kernel looks for them first, since that is cheap.

    Raises:
        ValueError: a phrase has no four bytes that do not depend on case.
    """
    given = [*table().start, *table().anywhere, *(text for texts in _OF_PATTERNS for text in texts)]
    return {_rare_gram(phrase) for phrase in given}


def _rare_gram(phrase: str) -> bytes:
    data = bytes(byte | _CASE_BIT for byte in phrase.encode())
    settled = [same for char in phrase for same in [_is_settled(char)] * len(char.encode())]
    grams = {data[at : at + 4]: 0 for at in range(len(data) - 3) if all(settled[at : at + 4])}
    if not grams:
        raise ValueError(f"data/phrases.tsv: {phrase!r} needs four bytes that do not depend on case")
    return max(grams, key=lambda gram: (_RARITY.get(gram, len(_RARITY)), sum(map(_BY_FREQUENCY.find, gram)), gram))


def _is_settled(char: str) -> bool:
    """True if both cases of a character have the same bytes, but for the bit of case."""
    both = [bytes(byte | _CASE_BIT for byte in form.encode()) for form in (char, char.upper())]
    return both[0] == both[1]


def spread(first: int, second: int) -> int:
    """A hash of two words of 32 bits."""
    mixed = ((first * MIX_1 & MASK) ^ second) * MIX_2 & MASK
    return (mixed ^ mixed >> 15) * MIX_1 & MASK


def whole_hash(text: str) -> int:
    """The hash of all letters of a text, by which the kernel knows a phrase of `whole`."""
    value = 0
    for char in text:
        if char.isalpha():
            value = (value * MIX_1 + fold(char)) & MASK
    return spread(0, value)


def _rarest_event(phrase: str) -> tuple[int, int]:
    """The event of the two neighbouring words with the most letters. Without two words: of three letters, or a word."""
    words = re.findall(r"[^\W_]+", phrase)
    longest = max((a + " " + b for a, b in pairwise(words)), key=len, default=phrase)
    found = list(events(longest))
    return next((event for event in found if event[0] != WORD), found[0])


def triggers() -> set[tuple[int, int]]:
    """One event of each phrase of `start` and `anywhere`, and those of the patterns.

    A text without any of them has no such phrase.
    """
    chosen = set()
    for phrase in (*table().start, *table().anywhere):
        chosen.add(_rarest_event(phrase))
    for kind, given in zip((WORD, PAIR, THREE), _OF_PATTERNS, strict=True):
        chosen |= {(OF_PATTERN, value) for text in given for found, value in events(text) if found == kind}
    return chosen
