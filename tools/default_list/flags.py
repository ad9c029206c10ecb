"""Finds slurs and explicit terms, by three sources and by decisions made by hand.

- WordNet marks senses as "ethnic slur", "disparagement" or "obscenity". A lemma is flagged if it has no other sense.
- cuss rates words; 2 is "likely profane". A word of that rating is flagged if WordNet and SCOWL do not have it: there
  the list has many false alarms ("kumquat", "pollock").
- naughty-words (LDNOOBW) lists explicit terms. They are flagged if WordNet and SCOWL do not have them.

decisions.tsv overrules them all: term, then `slur`, `explicit`, or `-` for a term that is not flagged. Anatomy, art and
medicine stay ("nude", "breast", "penis"), and so do words whose other meaning is far more frequent in captions ("cock",
"tit", "dick", which is a name).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from tools.default_list.wordnet_files import Synset

DECISIONS = Path(__file__).parent / "decisions.tsv"
MARKED = {
    "ethnic slur": "slur",
    "disparagement": "slur",
    "obscenity": "explicit",
}
# Flagged words that are harmless as a part of many names: "wild ass", "Rio Negro", "magna cum laude", "Homo sapiens".
ONLY_ALONE = frozenset(
    "ass asses negro cum homo coon coons chink nip spade retarded hardcore dyke dykes jap anal bitch kraut boche paki"
    " jackass hebe bugger coolie xxx whitey horny smut squaw kaffir caffer tits wop nance pussy bitches kkk".split()
)
_CUSS = re.compile(r"^\s+(?:'([^']+)'|\"([^\"]+)\"|([\w$]+)):\s*(\d)", re.MULTILINE)
_EXPLICIT = re.compile(
    r"fuck|shit|cock|dick|cunt|ass(?!a)|tit|cum|porn|sex|anal|peni|puss|slut|whore|jiz|blow|wank|bang|boob|jerk|hump|clit"
    r"|dildo|orgas|suck|lick|hooter|horny|bitch|butt|fart|piss|crap|poop|fist|rim|spunk|twat|nipp|orgy|xxx|jack|lez|bone"
)


def lexicon(synsets: list[Synset], cuss: Path, naughty: Path, known: set[str]) -> dict[str, str]:
    """Term in lower case -> "slur" or "explicit".

    Args:
        synsets: of WordNet.
        cuss, naughty: folders of the packages.
        known: words of a dictionary, in lower case.
    """
    found = {term: "explicit" for term in _naughty(naughty) if term not in known}
    for term, rating in _cuss(cuss).items():
        if rating == 2 and term not in known:
            found[term] = "explicit" if _EXPLICIT.search(term) else "slur"
    found |= _marked(synsets)
    for line in DECISIONS.read_text(encoding="utf-8").splitlines():
        term, _, flag = line.partition("\t")
        found.pop(term, None)
        if flag != "-":
            found[term] = flag
    return found


def flag_of(query: str, terms: dict[str, str], *, whole: bool) -> str:
    """The flag of a query in lower case; "" for none. `whole` looks only at the whole query, not at its words."""
    flag = terms.get(query) or terms.get(query.replace("-", " "), "")
    if flag or whole:
        return flag
    words = [word.strip(".,'’") for word in re.split(r"[\s/-]+", query)]
    return next((terms[word] for word in words if word in terms and word not in ONLY_ALONE), "")


def _cuss(folder: Path) -> dict[str, int]:
    source = (folder / "package/index.js").read_text(encoding="utf-8")
    return {match[1] or match[2] or match[3]: int(match[4]) for match in _CUSS.finditer(source)}


def _naughty(folder: Path) -> list[str]:
    return json.loads((folder / "package/en.json").read_text(encoding="utf-8"))


def _marked(synsets: list[Synset]) -> dict[str, str]:
    """The lemmas whose senses are all marked."""
    senses: dict[str, list[str]] = {}
    for synset in synsets:
        flag = next((MARKED[usage] for usage in synset.usage if usage in MARKED), "")
        for lemma in synset.lemmas:
            senses.setdefault(lemma.lower(), []).append(flag)
    return {lemma: flags[0] for lemma, flags in senses.items() if all(flags)}
