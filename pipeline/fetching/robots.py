"""What sites forbid: robots.txt, X-Robots-Tag headers, and the TDM reservation protocol."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from protego import Protego

LARGEST = 500 << 10  # bytes that are read: RFC 9309 asks for at least 500 KiB
LONGEST_DELAY_S = 30.0  # a longer Crawl-delay counts as this

# Any of these in X-Robots-Tag forbids the image. noindex and noimageindex count, as img2dataset's users expect.
OPT_OUTS = frozenset({"noai", "noimageai", "noml", "none", "noindex", "noimageindex"})
# Rules that have a value: the name before their colon is not the name of a robot.
RULES_WITH_VALUES = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


class Rules:
    """One site's robots.txt, read for one user agent."""

    def __init__(self, body: bytes, agent: str) -> None:
        self._parsed = Protego.parse(body[:LARGEST].decode("utf-8-sig", "replace"))
        self._agent = agent
        self._lock = threading.Lock()  # the parser builds its index on the first question
        delay = self._parsed.crawl_delay(agent)
        self.delay_s = min(float(delay), LONGEST_DELAY_S) if delay and delay > 0 else 0.0

    def allow(self, url: str) -> bool:
        """True if the URL may be fetched."""
        with self._lock:
            return bool(self._parsed.can_fetch(url, self._agent))


def forbidding_tag(values: Iterable[str], agent: str) -> str | None:
    """The first X-Robots-Tag rule that forbids the image to this agent, in lower case; None if there is none.

    A header may name a robot ("otherbot: noai, noindex"); the name holds until the next one in the same header.
    """
    for value in values:
        meant = True
        for part in value.split(","):
            rule = part.strip().lower()
            name, colon, rest = rule.partition(":")
            if colon:
                if name.strip() in RULES_WITH_VALUES:
                    continue
                meant, rule = name.strip() in (agent.lower(), "*"), rest.strip()
            if meant and rule in OPT_OUTS:
                return rule
    return None


def is_reserved(values: Iterable[str]) -> bool:
    """True if a TDM-Reservation header is 1: the rights to text and data mining are reserved."""
    return any(value.strip() == "1" for value in values)
