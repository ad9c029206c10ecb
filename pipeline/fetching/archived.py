"""What the archives of a crawl say of robots.txt, before any host is asked.

A refusal in an archive is final: nothing is sent to the host for that URL, not even a question for its address. What an
archive allows holds for RULES_LIFETIME_S after the date of the record (RFC 9309, section 2.4). Then the host is asked.
An answer 5xx or 429 says nothing: the crawler could not read the file.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import NamedTuple

from pipeline.fetching.addresses import MOST_HOSTS
from pipeline.fetching.errors import Failure
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.recent import Recent
from pipeline.fetching.robots import Refusal, Rules
from pipeline.fetching.targets import PORTS, Target, follow

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MOST_REDIRECTS = 5  # RFC 9309, section 2.3.1.2
LARGEST_KEPT = 32 << 20  # bytes of rules that a process remembers
PATH = "/robots.txt"


class Capture(NamedTuple):
    """An archived answer to a request for a robots.txt.

    Attributes:
        status: of HTTP.
        location: of a redirect, as written; "": none.
        body: of a 200.
        date: of the record, in seconds since 1970; 0: not known.
        place: the words that name the record in an evidence.
    """

    status: int
    location: str
    body: bytes
    date: float
    place: str


Captures = Callable[[str], Capture | None]  # the newest telling answer for a URL; None: no archive holds one


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """What the archives say of one origin.

    Attributes:
        rules: of its robots.txt; None: it has none, so everything is allowed.
        date: of the oldest record on the way to the file, in seconds since 1970; 0: not known.
        place: the words that name the record.
    """

    rules: Rules | None
    date: float
    place: str

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return 200 + (self.rules.size if self.rules is not None else 0)


class ArchivedRules:
    """robots.txt of origins as archives hold it. Used by many threads."""

    def __init__(self, captures: Captures, options: FetchOptions) -> None:
        self._captures, self._options = captures, options
        self._lock = threading.Lock()
        self._known: Recent[tuple[str, str, int], tuple[Known | None]] = Recent(
            MOST_HOSTS, weigh=lambda kept: kept[0].size if kept[0] else 0, max_weight=LARGEST_KEPT
        )

    def of(self, target: Target) -> Known | None:
        """What the archives say of the origin; None: nothing.

        Raises:
            Failure: an archive cannot be read now.
        """
        with self._lock:
            kept = self._known.get(target.origin)
        if kept is None:
            kept = (self._read(target),)
            with self._lock:
                self._known.put(target.origin, kept)
        return kept[0]

    def refusal(self, target: Target) -> Refusal | None:
        """Why the archives refuse the URL; None: they do not. The host's other scheme refuses as well.

        Raises:
            Failure: an archive cannot be read now.
        """
        ignored = self._options.ignore_rights
        for at in (target, _other_scheme(target)):
            known = self.of(at) if at is not None else None
            if known is None or known.rules is None:
                continue
            refusal = known.rules.refusal(target.url, ignored)
            if refusal is not None:
                return refusal._replace(evidence=f"{refusal.evidence} ({known.place})")
        return None

    def _read(self, target: Target) -> Known | None:
        at, date = dataclasses.replace(target, path=PATH), float("inf")
        for _ in range(MOST_REDIRECTS + 1):
            found = self._captures(at.url)
            if found is None:
                return None
            date = min(date, found.date)
            if found.status == 200:
                rules = Rules(found.body, self._options.user_agent, self._options.robots_agents)
                return Known(rules, date, found.place)
            if found.status not in REDIRECTS:
                return Known(None, date, found.place) if 400 <= found.status < 500 and found.status != 429 else None
            try:
                at = follow(at, found.location)
            except Failure:
                return None  # the way to the file is not known: the host is asked
        return None


def _other_scheme(target: Target) -> Target | None:
    """The same host under the other scheme; None: it has a port of its own."""
    if target.port != PORTS[target.scheme]:
        return None
    scheme = "https" if target.scheme == "http" else "http"
    return dataclasses.replace(target, scheme=scheme, port=PORTS[scheme])
