"""What a fetch learns of the rights in an image: which protocols were consulted, and what they say."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.text.rights import PROTOCOLS

ALLOWED, UNSTATED, REFUSED = "allowed", "unstated", "refused"
STATED_IN_ROBOTS_TXT = ("robots", "robots-agents", "content-usage", "content-signal")
IN_ROBOTS_TXT = (*STATED_IN_ROBOTS_TXT, "rsl")  # it names an RSL licence, which is another file
IN_ANSWER = ("content-usage", "content-signal", "tdmrep", "robots-tag")
IN_IMAGE = ("iptc", "c2pa")


class Verdict:
    """The protocols of one image. A refusal is no part of it: the first one ends the fetch as a Failure."""

    def __init__(self, ignored: Iterable[str] = ()) -> None:
        """`ignored` are protocols that never count."""
        self._ignored = frozenset(ignored)
        self._consulted: set[str] = set()
        self._allowing: set[str] = set()

    def consult(self, *protocols: str) -> None:
        """Notes that the protocols were consulted."""
        self._consulted.update(name for name in protocols if name not in self._ignored)

    def allow(self, protocol: str) -> None:
        """Notes that a protocol allows training in so many words."""
        if protocol not in self._ignored:
            self._allowing.add(protocol)

    def add(self, other: Verdict) -> None:
        """Takes over what another one holds."""
        self._consulted |= other._consulted
        self._allowing |= other._allowing

    @property
    def word(self) -> str:
        """ALLOWED or UNSTATED."""
        return ALLOWED if self._allowing else UNSTATED

    @property
    def protocol(self) -> str | None:
        """The protocols that allow training, with commas between them; None: none does."""
        return _listed(self._allowing) or None

    @property
    def names(self) -> tuple[str, ...]:
        """The protocols that were consulted."""
        return tuple(name for name in PROTOCOLS if name in self._consulted)

    @property
    def consulted(self) -> str:
        """The protocols that were consulted, with commas between them."""
        return ",".join(self.names)


def _listed(names: set[str]) -> str:
    return ",".join(name for name in PROTOCOLS if name in names)
