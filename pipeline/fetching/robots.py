"""What sites forbid: robots.txt with its statements on AI training, and X-Robots-Tag headers."""

from __future__ import annotations

import os
import re
import threading
from array import array
from collections.abc import Container, Iterable, Iterator
from typing import Any, NamedTuple

from protego import Protego

from pipeline.fetching.recent import Recent
from pipeline.text import rights
from pipeline.text.robots_tag import OPT_OUTS, header_rules
from pipeline.text.url_patterns import matches, path_of, spelling

LARGEST = 500 << 10  # bytes that are read: RFC 9309 asks for at least 500 KiB
PARSED_BYTES = 72  # that a byte of rules takes when it is parsed (measured: 14 in a usual file, 72 in a hostile one)
MOST_PARSED, LARGEST_PARSED = 20_000, 64 << 20
LONGEST_CITED = 120  # characters of a value in an evidence
LONGEST_DELAY_S = 30.0  # a longer Crawl-delay counts as this

_LINE_WITHOUT_COLON = re.compile(r"\s*([^:#\s]+)\s+([^:#\s]+)\s*(?:#.*)?")  # "disallow /": the meaning is plain
_AGENT = re.compile(r"[A-Za-z_-]*")
_SPELLINGS = {  # of the lines that are read, wrong ones too
    **dict.fromkeys(("user-agent", "user agent", "useragent"), "user-agent"),
    **dict.fromkeys(("disallow", "dissallow", "dissalow", "disalow", "diasllow", "disallaw"), "disallow"),
    "allow": "allow",
    "crawl-delay": "crawl-delay",
    rights.USAGE: rights.USAGE,
    **dict.fromkeys((rights.SIGNAL, "content-signals"), rights.SIGNAL),
    "license": "license",
}
_STATEMENTS = {rights.USAGE: rights.content_usage, rights.SIGNAL: rights.content_signal}
_ENDS_AGENTS = frozenset({"allow", "disallow", rights.USAGE})  # lines after which a User-agent begins a new group
MOST_LICENSES = 8  # of one robots.txt


class Line(NamedTuple):
    """A line of a robots.txt that is read."""

    number: int  # from 1
    key: str
    value: str


class Refusal(NamedTuple):
    """Why a URL must not be fetched for a training set."""

    status: str  # "robots": it must not be crawled; "opt_out": it must not be trained on
    protocol: str  # one of rights.PROTOCOLS
    evidence: str


class Statement(NamedTuple):
    """A Content-Usage or Content-Signal line: what it says about training on the paths that the pattern matches."""

    pattern: str  # "": all paths
    allowed: bool
    line: int
    key: str
    value: str


class Rules:
    """One site's robots.txt, read for one user agent (RFC 9309) and the crawlers that the site may mean as well.

    All groups of an agent count together; if the file names it in none, those of "*". Groups are found here, since
    Protego ends a group at an unknown line and does not see that "OpenWIT/1.0" is OpenWIT. Protego matches the paths.
    """

    def __init__(self, body: bytes, agent: str, others: Iterable[str] = ()) -> None:
        """Reads the file.

        Args:
            body: of the file; what follows after LARGEST bytes is not read.
            agent: ours. Groups of "*" count for it where no group names it.
            others: crawlers of data sets. A group counts only if it names one of them.
        """
        lines = list(_read_lines(body[:LARGEST].decode("utf-8-sig", "replace")))
        ours = _product(agent)
        self._groups = [_Group(ours, _lines_for(lines, ours, or_all=True))]
        for name in dict.fromkeys(map(_product, others)):
            if name not in ("", "*", ours) and (named := _lines_for(lines, name, or_all=False)):
                self._groups.append(_Group(name, named))
        self.licenses = [line for line in lines if line.key == "license" and line.value][:MOST_LICENSES]
        with _PARSING:
            delay = self._groups[0].parsed().crawl_delay("*")
        self.delay_s = min(float(delay), LONGEST_DELAY_S) if delay and delay > 0 else 0.0

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return sum(group.size for group in self._groups) + sum(len(line.value) for line in self.licenses)

    def allow(self, url: str) -> bool:
        """True if the URL may be fetched by our agent."""
        return self._groups[0].allow(url)

    def refusal(self, url: str, ignored: Container[str] = ()) -> Refusal | None:
        """Why the URL must not be crawled, or not be trained on; None: this file does not forbid it.

        Args:
            url: of the request.
            ignored: protocols that do not count.
        """
        for group in self._groups:
            protocol = "robots" if group is self._groups[0] else "robots-agents"
            if protocol not in ignored and not group.allow(url):
                return Refusal("robots", protocol, group.evidence(url, name=group is not self._groups[0]))
        for key in _STATEMENTS:
            for group in self._groups if key not in ignored else ():
                found = group.statement(url, key)
                if found is not None and not found.allowed:
                    return Refusal("opt_out", key, _cite(found.line, found.key, found.value))
        return None

    def allowing(self, url: str) -> list[str]:
        """The protocols in which a line says that training on the URL is allowed."""
        said = [group.statement(url, key) for key in _STATEMENTS for group in self._groups]
        return [one.key for one in said if one is not None and one.allowed]


class _Group:
    """The lines of all groups of one agent."""

    def __init__(self, agent: str, lines: list[Line]) -> None:
        self.agent = agent
        paths = [line for line in lines if line.key not in _STATEMENTS]
        self._text = "\n".join(["User-agent: *", *(f"{line.key}: {line.value}" for line in paths)])
        self._numbers = array("I", (line.number for line in paths))
        statements = [found for line in lines if line.key in _STATEMENTS for found in _statements(line)]
        self._statements = sorted(statements, key=lambda found: (-len(found.pattern), found.allowed))

    @property
    def size(self) -> int:
        return len(self._text) + 4 * len(self._numbers) + sum(200 + len(s.pattern) for s in self._statements)

    def allow(self, url: str) -> bool:
        with _PARSING:
            return bool(self.parsed().can_fetch(url, "*"))

    def parsed(self) -> Any:
        """What Protego made of the text. It takes 70 times as much memory as the text, so only the latest are kept."""
        return _parsed.get_or_make(self._text, lambda: _Parsed(self._text)).rules

    def statement(self, url: str, key: str) -> Statement | None:
        """The line that holds for the URL: that with the longest pattern, of equal ones the stricter."""
        if not self._statements:
            return None
        path = path_of(url)
        return next((s for s in self._statements if s.key == key and matches(s.pattern, path)), None)

    def evidence(self, url: str, *, name: bool) -> str:
        """The line that forbids the URL, with its number, and with the agent of its group if `name`."""
        path, best = path_of(url), (-1, 0, "")
        for number, line in zip(self._numbers, self._text.split("\n")[1:], strict=True):
            key, _, value = line.partition(": ")
            if key == "disallow" and value and len(value) > best[0] and matches(spelling(value), path):
                best = (len(value), number, value)
        return _cite(best[1], "disallow", best[2], self.agent if name else "") if best[1] else "robots.txt forbids it"


def _cite(line: int, key: str, value: str, agent: str = "") -> str:
    """The evidence of a line: "robots.txt line 3: Content-Usage: train-ai=n"."""
    group = f" (group of {agent})" if agent else ""
    value = value if len(value) <= LONGEST_CITED else f"{value[:LONGEST_CITED]}..."
    return f"robots.txt line {line}: {key.title()}: {value}{group}"


def _statements(line: Line) -> Iterator[Statement]:
    """What a Content-Usage or Content-Signal line says of training; nothing if it says nothing of that.

    A value that begins with "/" begins with a path (draft-ietf-aipref-attach-05, "Processing Content-Usage Rules").
    """
    path, rest = "", line.value
    if rest.startswith("/"):
        path, *more = rest.split(None, 1)
        rest = more[0] if more else ""
    allowed = _STATEMENTS[line.key](rest)
    if allowed is not None:
        yield Statement(spelling(path), allowed, line.number, line.key, line.value)


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


def _lines_for(lines: Iterable[Line], agent: str, *, or_all: bool) -> list[Line]:
    """The lines of the groups of an agent. Only a rule ends the list of agents of a group.

    Statements on training before the first group concern every agent: no draft gives them a meaning, but it is plain.

    Args:
        lines: of the file.
        agent: a product token in lower case.
        or_all: the groups of "*" count if no group names the agent.
    """
    found: dict[str, list[Line]] = {}
    for_all: list[Line] = []
    named: set[str] | None = None
    in_rules = False
    for line in lines:
        if line.key == "license":  # it belongs to no group (RSL 1.0)
            continue
        if line.key == "user-agent":
            named = {_product(line.value)} | (set() if in_rules or named is None else named)
            in_rules = False
            for name in named & {agent, "*"}:
                found.setdefault(name, [])
            continue
        if named is None:
            for_all += [line] if line.key in _STATEMENTS else []
            continue
        in_rules = in_rules or line.key in _ENDS_AGENTS
        for name in named & {agent, "*"}:
            found[name].append(line)
    own = found.get(agent, found.get("*", []) if or_all else [])
    return [*(for_all if or_all else []), *own]


def _read_lines(text: str) -> Iterator[Line]:
    """The lines that are read."""
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        name, colon, value = line.partition("#")[0].partition(":")
        if not colon:
            match = _LINE_WITHOUT_COLON.fullmatch(line)
            name, value = match.groups() if match else ("", "")
        key = _SPELLINGS.get(name.strip().lower())
        if key:
            yield Line(number, key, value.strip())


def forbidding_tag(values: Iterable[str], agent: str) -> str | None:
    """The first X-Robots-Tag rule that forbids the image to this agent, in lower case; None if there is none."""
    agents = (agent.lower(),)
    return next((rule for value in values for rule in header_rules(value, agents) if rule in OPT_OUTS), None)
