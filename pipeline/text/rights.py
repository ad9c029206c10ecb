"""What a site says about the use of its works for AI training, in the words of each protocol.

A *statement* is True (training is allowed), False (it is refused) or None (nothing is said). Where statements
contradict each other, the stricter one holds (`stricter`; draft-ietf-aipref-vocab-08, section "Combining Preferences").

    AIPREF            Content-Usage: train-ai=n           draft-ietf-aipref-attach-05, draft-ietf-aipref-vocab-08
    Content Signals   Content-Signal: ai-train=no         draft-romm-aipref-contentsignals-00
    TDMRep            tdm-reservation: 1                  W3C TDM Reservation Protocol, Final Report of 10 May 2024

robots metas and X-Robots-Tag are in `robots_tag`. Everything here is linear in the size of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Every protocol, in the order in which the fetch consults them. They stand in ledgers and columns: append, rename none.
PROTOCOLS = (
    "robots",  # RFC 9309, groups of our agent or "*"
    "robots-agents",  # RFC 9309, groups of the crawlers of data sets
    "content-usage",
    "content-signal",
    "rsl",
    "tdmrep",
    "robots-tag",  # X-Robots-Tag, robots metas
    "iptc",
    "c2pa",
)

USAGE, SIGNAL, TDM = "content-usage", "content-signal", "tdm-reservation"  # names of headers, in lower case
HEADERS = {USAGE: "content-usage", SIGNAL: "content-signal", TDM: "tdmrep"}  # name -> protocol
RSL = "rsl"  # the signal of a page that names an RSL licence, whose terms stand elsewhere
RSL_TYPE = "application/rsl+xml"
LINK = "link"  # the name of the header that may name an RSL licence (RFC 8288), in lower case
# What a page says, as the column opt_out holds it -> the protocol.
SIGNALS = {
    **dict.fromkeys(("noai", "noimageai", "noml"), "robots-tag"),
    **{TDM: "tdmrep", USAGE: "content-usage", SIGNAL: "content-signal"},
}
LONGEST = 8_000  # characters of a statement that are read

# RFC 9651, section 3.2: a dictionary, as regular expressions without a choice between ways to match.
_KEY = re.compile(r"[a-z*][a-z0-9_.*-]*")
_BARE = re.compile(
    r"""(?P<token>[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*)|"(?:[ !#-\[\]-~]|\\["\\])*"|-?\d{1,12}\.\d{1,3}|-?\d{1,15}"""
    r"""|:[A-Za-z0-9+/=]*:|\?[01]|@-?\d{1,15}|%"(?:[ !#$&-~]|%[0-9a-f]{2})*\""""
)
_BLANKS = re.compile(r" *")
# RFC 8288, section 3: <target> and parameters. A quoted text may hold commas and brackets. No two ways to match.
_LINK = re.compile(r"<(?P<target>[^<>]*)>(?P<parameters>(?:[^\"<,]|\"(?:[^\"\\]|\\.)*+(?:\"|$))*+)", re.DOTALL)
_LINK_PARAMETER = re.compile(
    r";\s*([A-Za-z][A-Za-z0-9!#$&+.^_`|~*-]*)\s*=\s*(?:\"((?:[^\"\\]|\\.)*+)|([^\s;,\"]*))", re.DOTALL
)
_OPTIONAL_BLANKS = re.compile(r"[ \t]*")


def stricter(statements: Iterable[bool | None]) -> bool | None:
    """The statement that holds: False before True before None."""
    found = set(statements)
    return False if False in found else True if True in found else None


def content_usage(value: str) -> bool | None:
    """The statement of a Content-Usage field (several fields joined with commas), or of the rule in a robots.txt.

    The value is a dictionary of structured fields; of equal keys the last one counts, and a value that is no dictionary
    says nothing (draft-ietf-aipref-vocab-08, section "Processing Algorithm").
    """
    found = dictionary(value) or {}
    return {"y": True, "n": False}.get(found.get("train-ai") or "")


def dictionary(value: str) -> dict[str, str | None] | None:
    """The tokens of a structured-field dictionary (RFC 9651, section 4.2.2), None for members of other types.

    None: the text is no dictionary.
    """
    found: dict[str, str | None] = {}
    if len(value) > LONGEST or not value.isascii():
        return None
    value = value.strip(" ")
    at = 0
    while at < len(value):
        key = _KEY.match(value, at)
        if key is None:
            return None
        at, token = key.end(), None
        if value.startswith("=", at):
            member = _member(value, at + 1)
            if member is None:
                return None
            at, token = member
        end = _parameters(value, at)
        if end is None:
            return None
        found[key[0]] = token
        at = _OPTIONAL_BLANKS.match(value, end).end()  # type: ignore[union-attr]
        if at == len(value):
            return found
        if value[at] != ",":
            return None
        at = _OPTIONAL_BLANKS.match(value, at + 1).end()  # type: ignore[union-attr]
        if at == len(value):
            return None  # a comma at the end
    return found


def _member(value: str, at: int) -> tuple[int, str | None] | None:
    """(end, token) of an item or an inner list without the parameters after it; None: neither is there."""
    if not value.startswith("(", at):
        bare = _BARE.match(value, at)
        return None if bare is None else (bare.end(), bare["token"])
    at += 1
    while True:
        blanks = _BLANKS.match(value, at)
        at = blanks.end()  # type: ignore[union-attr]
        if value.startswith(")", at):
            return at + 1, None
        bare = _BARE.match(value, at)
        end = None if bare is None else _parameters(value, bare.end())
        if end is None or value[end : end + 1] not in (" ", ")"):
            return None
        at = end


def _parameters(value: str, at: int) -> int | None:
    """The end of the parameters at a place; None: they are damaged."""
    while value.startswith(";", at):
        key = _KEY.match(value, _BLANKS.match(value, at + 1).end())  # type: ignore[union-attr]
        if key is None:
            return None
        at = key.end()
        if value.startswith("=", at):
            bare = _BARE.match(value, at + 1)
            if bare is None:
                return None
            at = bare.end()
    return at


def content_signal(value: str) -> bool | None:
    """The statement of a Content-Signal: "search=yes, ai-train=no". Keys and values are read in any case."""
    found = []
    for part in value[:LONGEST].lower().split(","):
        key, _, answer = part.partition("=")
        if key.strip() == "ai-train":
            found.append({"yes": True, "no": False}.get(answer.strip()))
    return stricter(found)


def tdm_reservation(value: str) -> bool | None:
    """The statement of a tdm-reservation header or meta: 1 reserves, 0 does not; anything else says nothing."""
    return {"1": False, "0": True}.get(value.strip())


def is_rsl(rel: str, type_: str) -> bool:
    """True if a link names an RSL licence: rel=license, type=application/rsl+xml (RSL 1.0, "HTML")."""
    return type_.partition(";")[0].strip().lower() == RSL_TYPE and "license" in rel.lower().split()


def licences(value: str) -> list[str]:
    """The RSL licences that a Link header names, as written (RSL 1.0, "HTTP Link Header"; RFC 8288, section 3).

    A link with another context than the resource itself (`anchor`) is left out. Of a parameter that stands twice, the
    first counts, as RFC 8288 says of rel.
    """
    found = []
    for link in _LINK.finditer(value[:LONGEST]):
        parameters: dict[str, str] = {}
        for name, quoted, token in _LINK_PARAMETER.findall(link["parameters"]):
            parameters.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) or token)
        if "anchor" not in parameters and is_rsl(parameters.get("rel", ""), parameters.get("type", "")):
            found.append(link["target"].strip())
    return found


def statement(name: str, values: Iterable[str]) -> bool | None:
    """What the fields of one name say together.

    Args:
        name: USAGE, SIGNAL or TDM.
        values: of all header fields or metas with the name.
    """
    if name == USAGE:
        return stricter(map(content_usage, {*(given := list(values)), ", ".join(given)}))
    return stricter(map(content_signal if name == SIGNAL else tdm_reservation, values))
