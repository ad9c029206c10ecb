"""Files in which a site says what may be done with its works: /.well-known/tdmrep.json and RSL licences.

    TDMRep   W3C TDM Reservation Protocol, Final Report of 10 May 2024, "TDM File on the Origin Server"
    RSL      Really Simple Licensing 1.0 of 10 December 2025, https://rslstandard.org/rsl

Both are read without a network, bounded, and in time linear in their size for each URL that is asked for.
"""

from __future__ import annotations

import json
import urllib.parse
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple

from pipeline.text import rights
from pipeline.text.url_patterns import matches, path_of, spelling

TDMREP = "/.well-known/tdmrep.json"
LARGEST = 256 << 10  # bytes of a file that are read
MOST_RULES = 5_000  # of a file; a file with more refuses everything: it cannot be meant for a reader
RULE_BYTES = 300  # that a rule takes in memory, about, without its pattern

TRAINING = frozenset({"all", "ai-all", "ai-train", "train-ai"})  # RSL's usage tokens that contain AI training
FREE = frozenset({"", "free", "attribution"})  # RSL's payment types that ask for nothing before the use


class Rule(NamedTuple):
    """What a file says of the URLs that match."""

    host: str  # "": that of the file
    pattern: str
    said: bool | None
    evidence: str


class Terms:
    """The rules of one file."""

    def __init__(self, rules: list[Rule], *, name: str, in_order: bool = False) -> None:
        """Keeps the rules.

        Args:
            rules: in the order of the file.
            name: of the file, for the evidence.
            in_order: the file's format does not say whether the first or the longest match counts: the stricter does.
        """
        if len(rules) > MOST_RULES:
            rules = [Rule("", "", False, "too many rules")]
        self._rules = rules
        self._name = name
        self._in_order = in_order

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return sum(RULE_BYTES + len(rule.pattern) for rule in self._rules)

    def rule(self, url: str) -> Rule | None:
        """The rule that holds for a URL; None: the file does not speak of it."""
        path, host = path_of(url), urllib.parse.urlsplit(url).netloc.lower()
        found = [rule for rule in self._rules if rule.host in ("", host) and matches(rule.pattern, path)]
        if not found:
            return None
        longest = max(len(rule.pattern) for rule in found)
        holding = [rule for rule in found if len(rule.pattern) == longest] + (found[:1] if self._in_order else [])
        said = rights.stricter(rule.said for rule in holding)
        return next(rule for rule in holding if rule.said is said)

    def evidence(self, rule: Rule) -> str:
        """The words of a rule, with the name of the file."""
        return f"{self._name}: {rule.evidence}"


def read_tdmrep(body: bytes) -> Terms:
    """The rules of a tdmrep.json: a list of objects with "location" and "tdm-reservation".

    A damaged file, and an entry without a usable location and reservation, says nothing.
    """
    try:
        entries = json.loads(body[:LARGEST])
    except (ValueError, RecursionError):
        entries = []
    rules = []
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not isinstance(location := entry.get("location"), str):
            continue
        reserved = entry.get("tdm-reservation")
        if isinstance(reserved, bool) or not isinstance(reserved, int | str):
            continue
        said = rights.tdm_reservation(str(reserved))
        if said is not None and location:
            words = json.dumps({"location": location, "tdm-reservation": reserved}, ensure_ascii=False)
            pattern = location if location.startswith(("/", "*")) else "/" + location
            rules.append(Rule("", spelling(pattern), said, words))
    return Terms(rules, name=TDMREP, in_order=True)


class NoLicence(ValueError):
    """The bytes are no RSL document."""


def read_rsl(body: bytes, name: str) -> Terms:
    """The terms of an RSL document, for the training of models.

    A licence allows training if it prohibits no usage that contains it, permits a usage that contains it (or limits no
    usage), limits neither users nor places, asks for no payment, and names no licence server. Of several licences for
    one work any may be chosen; a prohibition in one of them refuses all the same.

    Args:
        body: of the document.
        name: its URL, for the evidence.

    Raises:
        NoLicence: it is no RSL, or it is larger than LARGEST.
    """
    if len(body) > LARGEST or b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise NoLicence("no RSL document: too large, or with a document type")
    try:
        root = ElementTree.fromstring(body)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise NoLicence(f"no RSL document: {error}") from error
    contents = [element for element in root.iter() if _name(element) == "content"]
    if _name(root) != "rsl" and not contents:
        raise NoLicence(f"no RSL document: its root is {_name(root)!r}")
    return Terms([rule for content in contents if (rule := _rule_of(content)) is not None], name=f"RSL {name}")


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2].lower() if isinstance(element.tag, str) else ""


def _rule_of(content: ElementTree.Element) -> Rule | None:
    url = (content.get("url") or "").strip()
    parts = urllib.parse.urlsplit(url) if url.lower().startswith(("http://", "https://")) else None
    host = parts.netloc.lower() if parts else ""
    pattern = (url.partition("://")[2].partition("/")[2] if parts else url) or "/"
    pattern = pattern if pattern.startswith(("/", "*")) else "/" + pattern
    if content.get("server"):
        return Rule(host, spelling(pattern), False, f'<content url="{url}" server=...>: a licence must be obtained')
    found = [_said(licence) for licence in content if _name(licence) == "license"]
    if not found:
        return None
    prohibiting = next((one for one in found if one[1].startswith("<prohibits")), None)
    said, words = prohibiting or next((one for one in found if one[0] is True), found[0])
    return Rule(host, spelling(pattern), said, f'<content url="{url}">: {words}')


def _said(licence: ElementTree.Element) -> tuple[bool | None, str]:
    """What a licence says of training, and the words that say it."""
    permitted: set[str] | None = None
    limits = ""
    for element in licence:
        kind, words = (element.get("type") or "usage").strip().lower(), _tokens(element)
        if _name(element) == "prohibits" and kind == "usage" and words & TRAINING:
            return False, f'<prohibits type="usage">{" ".join(sorted(words))}</prohibits>'
        if _name(element) == "permits" and kind == "usage":
            permitted = (permitted or set()) | words
        elif _name(element) in ("permits", "prohibits") and kind != "usage" and words - {"all"}:
            limits = limits or f'<{_name(element)} type="{kind}">{" ".join(sorted(words))}</{_name(element)}>'
        elif _name(element) == "payment" and (element.get("type") or "").strip().lower() not in FREE:
            limits = limits or f'<payment type="{element.get("type")}">'
    if permitted is not None and not permitted & TRAINING:
        return False, f'<permits type="usage">{" ".join(sorted(permitted))}</permits>'
    if limits:
        return False, limits
    return (True, '<permits type="usage">') if permitted else (None, "<license>")


def _tokens(element: ElementTree.Element) -> set[str]:
    return set((element.text or "").lower().replace(",", " ").split())
