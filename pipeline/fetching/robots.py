"""What sites forbid: robots.txt, X-Robots-Tag headers, and the TDM reservation protocol."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from protego import Protego

from pipeline.fetching.recent import Recent
from pipeline.text.robots_tag import OPT_OUTS, header_rules

LARGEST = 500 << 10  # bytes that are read: RFC 9309 asks for at least 500 KiB
PARSED_BYTES = 72  # that a byte of rules takes when it is parsed (measured: 14 in a usual file, 72 in a hostile one)
MOST_PARSED, LARGEST_PARSED = 20_000, 64 << 20
LONGEST_DELAY_S = 30.0  # a longer Crawl-delay counts as this

_LINE = re.compile(r"\s*([^:#\s][^:#]*?)\s*:\s*([^#]*)")
_LINE_WITHOUT_COLON = re.compile(r"\s*([^:#\s]+)\s+([^:#\s]+)\s*(?:#.*)?")  # "disallow /": the meaning is plain
_AGENT = re.compile(r"[A-Za-z_-]*")
_SPELLINGS = {  # of the lines that are read, wrong ones too
    **dict.fromkeys(("user-agent", "user agent", "useragent"), "user-agent"),
    **dict.fromkeys(("disallow", "dissallow", "dissalow", "disalow", "diasllow", "disallaw"), "disallow"),
    "allow": "allow",
    "crawl-delay": "crawl-delay",
}


class Rules:
    """One site's robots.txt, read for one user agent (RFC 9309).

    All groups of an agent count together; if the file names it in none, those of "*". Groups are found here, since
    Protego ends a group at an unknown line and does not see that "OpenWIT/1.0" is OpenWIT. Protego matches the paths.
    """

    def __init__(self, body: bytes, agent: str) -> None:
        lines = _lines_for(body[:LARGEST].decode("utf-8-sig", "replace"), _product(agent))
        self._text = "\n".join(["User-agent: *", *lines])
        with _PARSING:
            delay = self._parsed().crawl_delay("*")
        self.delay_s = min(float(delay), LONGEST_DELAY_S) if delay and delay > 0 else 0.0

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return len(self._text)

    def allow(self, url: str) -> bool:
        """True if the URL may be fetched."""
        with _PARSING:
            return bool(self._parsed().can_fetch(url, "*"))

    def _parsed(self) -> Any:
        """What Protego made of the text. It takes 70 times as much memory as the text, so only the latest are kept."""
        return _parsed.get_or_make(self._text, lambda: _Parsed(self._text)).rules


class _Parsed:
    def __init__(self, text: str) -> None:
        self.rules = Protego.parse(text)
        self.size = PARSED_BYTES * len(text)


_PARSING = threading.Lock()  # one text is parsed at a time; Protego builds its index on the first question
_parsed: Recent[str, _Parsed] = Recent(MOST_PARSED, weigh=lambda parsed: parsed.size, max_weight=LARGEST_PARSED)


def _forget_lock() -> None:
    """Gives a forked child a lock that no thread of its parent holds."""
    global _PARSING
    _PARSING = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


def _product(agent: str) -> str:
    """The product token of an agent, in lower case: the letters, _ and - at its beginning; "*" for all robots."""
    if agent.startswith("*") and agent[1:2].strip() == "":
        return "*"
    return _AGENT.match(agent)[0].lower()  # type: ignore[index]


def _lines_for(text: str, agent: str) -> list[str]:
    """The lines of the groups of an agent. Only an allow or disallow line ends the list of agents of a group."""
    found: dict[str, list[str]] = {}
    named: set[str] = set()
    in_rules = False
    for key, value in _fields(text):
        if key == "user-agent":
            named = {_product(value)} | (set() if in_rules else named)
            in_rules = False
            for name in named & {agent, "*"}:
                found.setdefault(name, [])
            continue
        in_rules = in_rules or key != "crawl-delay"
        for name in named & {agent, "*"}:
            found[name].append(f"{key}: {value}")
    return found.get(agent, found.get("*", []))


def _fields(text: str) -> Iterator[tuple[str, str]]:
    """The lines that are read, as (key, value)."""
    for line in re.split(r"\r\n|\r|\n", text):
        match = _LINE.match(line) or _LINE_WITHOUT_COLON.fullmatch(line)
        key = _SPELLINGS.get(match[1].lower()) if match else None
        if match and key:
            yield key, match[2].strip()


def forbidding_tag(values: Iterable[str], agent: str) -> str | None:
    """The first X-Robots-Tag rule that forbids the image to this agent, in lower case; None if there is none."""
    agents = (agent.lower(),)
    return next((rule for value in values for rule in header_rules(value, agents) if rule in OPT_OUTS), None)


def is_reserved(values: Iterable[str]) -> bool:
    """True if a TDM-Reservation header is 1: the rights to text and data mining are reserved."""
    return any(value.strip() == "1" for value in values)
