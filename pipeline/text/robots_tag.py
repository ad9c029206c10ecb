"""The rules in an X-Robots-Tag header and in a robots meta.

A rule is a word ("noai"), or a word with a value ("max-snippet: 20"). In a header the name of a robot may stand before
rules ("otherbot: noai, noindex"); it holds up to the next name or the end of that header. The name of a robot begins
with a letter, and a version after it is ignored ("OpenWIT/1.0"). So the times in a date, which also have colons and
commas, are no names: the rules after a date are read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

# Opt-outs. noindex and noimageindex count, as img2dataset's users expect.
OPT_OUTS = frozenset({"noai", "noimageai", "noml", "none", "noindex", "noimageindex"})
WITH_VALUES = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
LONGEST = 8_000  # characters of a header or meta that are read

_AGENT = re.compile(r"([a-z_*][a-z0-9_*-]*)(?:/[^\s/]*)?")
_VALUE = re.compile(r"(?:max-snippet|max-image-preview|max-video-preview|unavailable_after)\s*:\s*[^,;\s]*")


def header_rules(value: str, agents: Collection[str]) -> Iterator[str]:
    """The words of one header that concern one of the agents (in lower case) or every robot ("*")."""
    concerned = True
    for part in value[:LONGEST].lower().split(","):
        name, colon, rest = (piece.strip() for piece in part.partition(":"))
        if colon and name in WITH_VALUES:
            continue
        agent = _AGENT.fullmatch(name) if colon else None
        if agent:
            concerned = agent[1] in agents or agent[1] == "*"
            if rest.partition(":")[0].strip() in WITH_VALUES:
                continue
        if concerned:
            yield from re.split(r"[;\s]+", rest if agent else part)


def meta_rules(content: str) -> set[str]:
    """The words of a robots meta."""
    return set(re.split(r"[,;\s]+", _VALUE.sub("", content[:LONGEST].lower())))
