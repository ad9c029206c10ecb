"""Chooses among wordfreq's words: those of a dictionary, and names that another source knows.

wordfreq counts whatever stands in its texts: typing errors ("receving"), laughter, bits of markup, words of other
languages. A word stays for one of these reasons:

- a dictionary has it: WordNet, or SCOWL up to size 80 (Debian's wamerican-huge and its British, Canadian, Australian
  kin);
- it is a name: a title of Wikipedia, a part of a title that names a person, of a place or of a brand, or a frequent
  name of people. It must be frequent in English, and must not be far more frequent in another language.

Bits of markup and words that are run together ("ofthe") never stay.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping

from queries import rules

LEAST_NAME = 500  # occurrences of a name in 10 billion words
MOST_FOREIGN = 30.0  # a word that is so many times more frequent in another language is foreign
MARKUP = frozenset(
    """
    nbsp href html htm www http https jpg jpeg png gif svg webp css php asp aspx amp quot ndash mdash rsquo lsquo
    rdquo ldquo br div img src alt url urls uri txt pdf doc docx xls xlsx ppt mp3 mp4 avi mpeg wmv flv exe zip rar iso
    ftp com net org edu gov utm xml json javascript jquery ajax mailto td tr th px colspan rowspan valign cellpadding
    cellspacing bgcolor blockquote iframe noscript thumbnail thumb isbn issn doi pmid
    """.split()
)
_SHORT = rules.FUNCTION_WORDS - frozenset("like made make less least mine one ones till back".split())
_RUN_TOGETHER = frozenset(f"{first}{second}" for first in _SHORT for second in _SHORT)
_LETTERS = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def parts(names: Iterable[str]) -> set[str]:
    """The single words of names, in lower case. Words with two letters or fewer are left out."""
    return {word for name in names for word in _LETTERS.findall(name.lower()) if len(word) > 2}


def people(titles: Iterable[str], first_names: Container[str]) -> list[str]:
    """The titles that are names of people: two or three words, the first of them a first name."""
    return [title for title in titles if 1 < len(title.split()) <= 3 and title.split()[0] in first_names]


def is_word(word: str) -> bool:
    """True for letters only, also with a hyphen or an apostrophe inside."""
    return _LETTERS.fullmatch(word) is not None


def choose(
    counts: Mapping[str, int], foreign: Mapping[str, int], *, dictionary: set[str], names: set[str]
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Splits wordfreq's words.

    Args:
        counts: word -> occurrences in English.
        foreign: word -> occurrences in the language, other than English, where it is most frequent.
        dictionary, names: words in lower case.

    Returns:
        The words of a dictionary, the names, and the number of the others by reason.
    """
    words: dict[str, int] = {}
    found: dict[str, int] = {}
    dropped = dict.fromkeys(("no_word", "markup", "run_together", "unknown", "rare_name", "foreign"), 0)
    for word, count in counts.items():
        if word in dictionary and word not in MARKUP:
            words[word] = count
            continue
        reason = _reason(word, count, foreign.get(word, 0), names)
        if reason:
            dropped[reason] += 1
        else:
            found[word] = count
    return words, found, dropped


def _reason(word: str, count: int, foreign: int, names: set[str]) -> str:
    """Why a word that no dictionary has is dropped; "" if it is a name."""
    if not is_word(word):
        return "no_word"
    if word in MARKUP:
        return "markup"
    if word in _RUN_TOGETHER:
        return "run_together"
    if word not in names or word.endswith(("'s", "’s", "s'")):
        return "unknown"
    if count < LEAST_NAME:
        return "rare_name"
    return "foreign" if foreign > MOST_FOREIGN * count else ""
