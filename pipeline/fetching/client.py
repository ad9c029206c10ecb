"""The client: it takes a URL and returns the body of a 200, or raises a Failure with its class.

Every hop of every URL is checked: the scheme is http(s), all addresses of the host are public, robots.txt allows the
URL, and the host's queue has a slot. Proxies and cookies are never used. One client serves a process. It keeps what it
learns about hosts (addresses, robots.txt, pauses) for the next call.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import threading
import time
from collections.abc import Collection, Iterable
from typing import NamedTuple

from pipeline.engine.http_dates import retry_after
from pipeline.fetching import robots
from pipeline.fetching.addresses import MOST_HOSTS, Gate, Lookup, Resolver, look_up
from pipeline.fetching.answer import Answer, Body
from pipeline.fetching.archived import MOST_REDIRECTS, PATH, REDIRECTS, ArchivedRules, Captures
from pipeline.fetching.errors import Failure
from pipeline.fetching.hosts import Host
from pipeline.fetching.memory import Memory, Share
from pipeline.fetching.network import Network
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.recent import Recent
from pipeline.fetching.targets import Target, follow, parse
from pipeline.fetching.terms import TDMREP, NoLicence, Terms, read_rsl, read_tdmrep
from pipeline.fetching.verdict import IN_ANSWER, IN_ROBOTS_TXT, STATED_IN_ROBOTS_TXT, Verdict
from pipeline.fetching.wire import Wire
from pipeline.text import rights

PASSING = frozenset({"dns", "tcp", "http_5xx", "rate_limited"})  # retried at once; a timeout only in a later run
# A pause (Retry-After) up to this is waited for at once. A URL with a longer one is left for the end of the fetch.
SHORT_PAUSE_S = 2.0
# Statuses that may pass. 520 to 524 are Cloudflare's: it did not reach the server behind it, or got no whole answer.
PASSING_5XX = frozenset({500, 502, 503, 504, 520, 521, 522, 523, 524})
MOST_LICENCES = 8  # that the headers of an answer name; they are asked for
OUTAGES = 3  # of the network, after which a URL is tried once more
ROBOTS_S = 10.0
LARGEST_RULES = 64 << 20  # bytes of robots.txt files that a client remembers; older ones are asked for again
LARGEST_FILES = 32 << 20  # bytes of the same files as they were sent, for the rounds of other processes
RULES_LIFETIME_S = 24 * 3600.0
FAILED_RULES_LIFETIME_S = 60.0
PASSING_RULES_LIFETIME_S = 0.2  # shorter than the wait before a retry


@dataclasses.dataclass(frozen=True, slots=True)
class Fetched:
    """The result of a URL."""

    body: Body
    http_status: int
    final_url: str | None  # None: no redirect
    verdict: Verdict


class _Clock:
    """The time on the wire that a URL has left. The clock stops while the URL waits in its host's queue."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def run(self) -> float:
        """Starts; returns the deadline on time.monotonic()."""
        self._started = time.monotonic()
        return self._started + self.left

    def stop(self) -> None:
        self.left -= time.monotonic() - self._started


class SiteFile(NamedTuple):
    """A robots.txt or tdmrep.json that was asked for."""

    url: str
    body: bytes | None  # None: there is none
    until: float  # it holds until then, in seconds since 1970

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return 200 + len(self.body or b"")


class SiteTerms(NamedTuple):
    """What a file of a site says: its protocol, the terms (None: they cannot be read), and the words that name them."""

    protocol: str
    terms: Terms | None
    where: str = ""


class _Site:
    """robots.txt of one origin. The first thread that needs it fetches it; the others wait."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.rules: robots.Rules | None = None  # None: everything is allowed
        self.terms: list[SiteTerms] = []
        self.failure: Failure | None = None
        self.expires = float("inf")

    def size(self) -> int:
        """Bytes that it takes, about."""
        rules = self.rules.size if self.rules is not None else 0
        return rules + sum(said.terms.size for said in self.terms if said.terms is not None)


class Client:
    """Fetches URLs from many threads at once."""

    def __init__(self, options: FetchOptions, lookup: Lookup = look_up) -> None:
        self.options = options
        self._hosts: Recent[str, Host] = Recent(MOST_HOSTS)
        self._sites: Recent[tuple[str, str, int], _Site] = Recent(
            MOST_HOSTS, weigh=_Site.size, max_weight=LARGEST_RULES
        )
        self._licences: Recent[str, tuple[Terms | None]] = Recent(
            MOST_HOSTS, weigh=lambda kept: kept[0].size if kept[0] else 0, max_weight=LARGEST_RULES
        )
        self._files: Recent[str, SiteFile] = Recent(MOST_HOSTS, weigh=lambda file: file.size, max_weight=LARGEST_FILES)
        self._lock = threading.Lock()
        self._run = 0
        gate = Gate(options.allow_addresses)
        self._resolver = Resolver(gate, lookup)
        self.network = Network(gate, lookup, self._forget_failures)
        self._wire = Wire(options)
        self.memory = Memory(options.memory)
        self._captures: Captures | None = None
        self._archived: ArchivedRules | None = None

    def begin(self, *, again: bool = False, captures: Captures | None = None) -> None:
        """Starts a new run of work: the time that hosts may ask for starts from zero.

        Args:
            again: the URLs failed before. What is known of failures is forgotten: each host is tried once more.
            captures: robots.txt as archives hold it. What they refuse is never requested.
        """
        with self._lock:
            self._run += 1
            self.network.again = again
            if captures != self._captures:
                self._captures = captures
                self._archived = ArchivedRules(captures, self.options) if captures is not None else None
        if again:
            self._forget_failures()

    def site_files(self, hosts: Collection[str]) -> list[SiteFile]:
        """What is known of the sites of these hosts, for another client."""
        with self._lock:
            return [file for file in self._files if parse(file.url).host in hosts]

    def remember(self, files: Iterable[SiteFile]) -> None:
        """Takes over what another client knows of sites. They are not asked again."""
        with self._lock:
            for file in files:
                self._files.put(file.url, file)

    def _forget_failures(self) -> None:
        with self._lock:
            self._resolver.forget_failures()
            for host in self._hosts:
                host.try_again()
            for site in self._sites:
                if site.failure is not None and site.failure.retry_after is None:
                    site.expires = 0.0

    def fetch(self, url: str, share: Share | None = None) -> Fetched:
        """The body of a URL.

        Args:
            url: of an image.
            share: of `memory`; it has the size of the body afterwards. None: the body counts only while it arrives.

        Raises:
            Failure: the URL cannot be fetched, for any reason.
            NetworkError: the network went away and did not come back.
        """
        if share is None:
            with self.memory.share() as own:
                return self.fetch(url, own)
        first = parse(url)
        for tries_left in range(OUTAGES, -1, -1):
            self.network.wait(first)
            try:
                fetched = self._fetch(first, url, share)
            except Failure as failure:
                if failure.http_status is not None:
                    self.network.answered(first)
                away = self.network.failed(first, failure)
                if not (away and tries_left):
                    raise
                continue
            self.network.answered(first)
            return fetched
        raise AssertionError("unreachable")

    def _fetch(self, first: Target, url: str, share: Share) -> Fetched:
        """Tries the URL, with quick retries."""
        clock = _Clock(self.options.deadline_s)
        for attempt in range(self.options.retries + 1):
            try:
                return self._follow(first, clock, share)
            except Failure as failure:
                last = attempt == self.options.retries or clock.left <= 0
                if last or failure.status not in PASSING or not failure.retryable or not failure.tried:
                    raise
                asked = failure.retry_after or 0.0
                if asked > SHORT_PAUSE_S:
                    raise
                time.sleep(max(asked, self._pause(url, attempt)))
        raise AssertionError("unreachable")

    def _pause(self, url: str, attempt: int) -> float:
        """Seconds before the next try. They double each time. A hash spreads them, the same in every run."""
        spread = int.from_bytes(
            hashlib.blake2b(f"{attempt} {url}".encode("utf-8", "replace"), digest_size=4).digest(), "big"
        )
        return self.options.backoff_s * 2**attempt * (0.5 + spread / 2**32)

    def _follow(self, first: Target, clock: _Clock, share: Share) -> Fetched:
        target, verdict = first, Verdict(self.options.ignore_rights)
        try:
            for _ in range(self.options.redirects + 1):
                self._ask_leave(target, clock, verdict)
                answer = self._request(target, clock, self.options.max_bytes, share)
                self._check_headers(answer, verdict)
                if answer.status not in REDIRECTS:
                    self._check_status(target, answer)
                    self._check_licences(target, answer, verdict)
                    return Fetched(answer.body, answer.status, None if target is first else target.url, verdict)
                location = answer.first("Location")
                if not location:
                    raise Failure("bad_redirect", "a redirect without Location", http_status=answer.status)
                target = follow(target, location)
            raise Failure(
                "too_many_redirects", f"more than {self.options.redirects} redirects", http_status=answer.status
            )
        except Failure as failure:
            failure.final_url = None if target is first else target.url
            failure.consulted = verdict.names
            raise

    def _check_headers(self, answer: Answer, verdict: Verdict) -> None:
        verdict.consult(*IN_ANSWER)
        rule = robots.forbidding_tag(answer.all("X-Robots-Tag"), self.options.user_agent)
        if rule is not None and self.options.respects("robots-tag"):
            sentence = f"X-Robots-Tag: {rule}"
            raise Failure("opt_out", sentence, http_status=answer.status, protocol="robots-tag")
        for name, protocol in rights.HEADERS.items():
            if not self.options.respects(protocol):
                continue
            said = rights.statement(name, values := answer.all(name))
            if said:
                verdict.allow(protocol)
            if said is False:
                sentence = f"{name.title()}: {', '.join(values)}"
                raise Failure("opt_out", sentence, http_status=answer.status, protocol=protocol)

    def _check_licences(self, target: Target, answer: Answer, verdict: Verdict) -> None:
        """Checks the RSL licences that the Link headers of an answer name.

        Raises:
            Failure: opt_out; or a licence cannot be read now.
        """
        named = [url for value in answer.all(rights.LINK) for url in rights.licences(value)]
        for written in named[:MOST_LICENCES] if self.options.respects("rsl") else ():
            try:
                terms = self._licence(follow(target, written).url)
                _check_terms(terms, target.url, "rsl", verdict, where="Link header: ")
            except Failure as failure:
                if failure.status == "bad_redirect":
                    failure = Failure("opt_out", f"Link header: {written} is no URL of a licence", protocol="rsl")
                failure.http_status = answer.status
                raise failure from None

    def _check_status(self, target: Target, answer: Answer) -> None:
        status = answer.status
        if status == 200:
            return
        pause = retry_after(answer.first("Retry-After")) if status in (429, 503) else None
        if status == 429 or pause is not None:
            self._host(target).slow_down()
        if status == 429:
            failure = Failure("rate_limited", "the server answered 429", http_status=status, retry_after=pause)
        elif 400 <= status < 500:
            failure = Failure(
                "http_4xx", f"the server answered {status}", http_status=status, retryable=status in (408, 425)
            )
        elif 500 <= status < 600:
            passing = status in PASSING_5XX
            failure = Failure(
                "http_5xx", f"the server answered {status}", http_status=status, retryable=passing, retry_after=pause
            )
        else:
            failure = Failure("http_other", f"the server answered {status}", http_status=status)
        self._host(target).note(failure)
        raise failure

    def _request(self, target: Target, clock: _Clock, limit: int, share: Share, *, cut: bool = False) -> Answer:
        """Sends one request when the host's queue allows it."""
        host = self._host(target)
        share.begin()
        with host.turn(self._run):
            deadline = clock.run()
            try:
                addresses = self._resolver.addresses(target.host, target.port, deadline - time.monotonic())
                answer = self._wire.get(target, addresses, limit=limit, deadline=deadline, share=share, cut=cut)
            except Failure as failure:
                host.note(failure)
                raise
            finally:
                clock.stop()
                clock.left += share.waited_s
        if answer.status != 429 and answer.status not in PASSING_5XX:
            host.note(None)
        return answer

    def _ask_leave(self, target: Target, clock: _Clock, verdict: Verdict) -> None:
        """Checks the archives, then the address, then robots.txt: no host is asked for it that may not be reached."""
        self.check_archives(target, verdict)
        deadline = clock.run()
        try:
            self._resolver.addresses(target.host, target.port, deadline - time.monotonic())
        finally:
            clock.stop()
        if not self.options.respects(*IN_ROBOTS_TXT, "tdmrep"):
            return
        site = self._site(target)
        rules = site.rules
        verdict.consult(*IN_ROBOTS_TXT)
        refusal = rules.refusal(target.url, self.options.ignore_rights) if rules is not None else None
        if refusal is not None:
            raise Failure(refusal.status, refusal.evidence, protocol=refusal.protocol)
        for said in site.terms:
            _check_terms(said.terms, target.url, said.protocol, verdict, where=said.where)
        if rules is None:
            return
        for protocol in rules.allowing(target.url):
            verdict.allow(protocol)
        host = self._host(target)
        host.delay_s = max(self.options.delay_s, rules.delay_s)

    def check_archives(self, target: Target, verdict: Verdict) -> None:
        """Checks what the robots.txt archives say of a URL. Nothing is sent to its host.

        Raises:
            Failure: robots or opt_out; or an archive cannot be read now.
        """
        if self._archived is None:
            return
        refusal = self._archived.refusal(target)
        if refusal is not None:
            raise Failure(refusal.status, refusal.evidence, protocol=refusal.protocol)
        if self._archived.of(target) is not None:
            verdict.consult(*STATED_IN_ROBOTS_TXT)

    def _site(self, target: Target) -> _Site:
        """What is known of the origin. The first thread that asks reads it; the others wait.

        Raises:
            Failure: robots.txt, or a licence that it names, cannot be read now.
        """
        with self._lock:
            site = self._sites.get(target.origin)
            mine = site is None or site.expires <= time.monotonic()
            if mine or site is None:
                site = self._sites.put(target.origin, _Site())
        if mine:
            self._read_rules(target, site)
        site.done.wait()
        if site.failure is not None:
            raise site.failure.again("robots.txt: ")
        return site

    def _read_rules(self, target: Target, site: _Site) -> None:
        lifetime = RULES_LIFETIME_S
        try:
            known = self._archived.of(target) if self._archived is not None else None
            age = time.time() - known.date if known is not None else -1.0
            if known is not None and 0 <= age < RULES_LIFETIME_S:  # a date to come proves nothing
                site.rules, lifetime = known.rules, RULES_LIFETIME_S - age
            elif self.options.respects(*IN_ROBOTS_TXT) and (body := self._robots_txt(target)) is not None:
                site.rules = robots.Rules(body, self.options.user_agent, self.options.robots_agents)
            site.terms = self._read_terms(target, site.rules)
        except Failure as failure:
            site.failure = failure
            passing = failure.status in PASSING and failure.retryable
            lifetime = PASSING_RULES_LIFETIME_S if passing else FAILED_RULES_LIFETIME_S
            lifetime = max(lifetime, min(failure.retry_after or 0.0, RULES_LIFETIME_S))
        except Exception as error:  # after a bug the waiting threads must not wait for ever
            site.failure = Failure("robots", f"cannot be read: {type(error).__name__}: {error}", retryable=True)
            lifetime = FAILED_RULES_LIFETIME_S
        finally:
            site.expires = time.monotonic() + lifetime
            site.done.set()
            with self._lock:
                self._sites.put(target.origin, site)  # it has its weight now

    def _read_terms(self, target: Target, rules: robots.Rules | None) -> list[SiteTerms]:
        """The site's tdmrep.json and the licences that its robots.txt names, a request for each."""
        at = dataclasses.replace(target, path=TDMREP)
        found: list[SiteTerms] = []
        forbidden = rules is not None and rules.refusal(at.url, self.options.ignore_rights) is not None
        if self.options.respects("tdmrep") and not forbidden:
            try:
                body = self._kept_file(at)
            except Failure:  # the protocol gives a failure no meaning; robots.txt of the host could be read
                body = None
            found += [SiteTerms("tdmrep", read_tdmrep(body))] if body is not None else []
        for line in rules.licenses if rules is not None and self.options.respects("rsl") else ():
            found.append(SiteTerms("rsl", self._licence(line.value), f"robots.txt line {line.number}: "))
        return found

    def _licence(self, url: str) -> Terms | None:
        """The terms of an RSL licence; None: it can never be read, and so it grants nothing.

        Raises:
            Failure: it cannot be read now.
        """
        with self._lock:
            known = self._licences.get(url)
        if known is None:
            try:
                at = parse(url)
                self._resolver.addresses(at.host, at.port, min(ROBOTS_S, self.options.deadline_s))
                body = self._site_file(at)
                known = (None if body is None else read_rsl(body, url),)
            except NoLicence:
                known = (None,)
            except Failure as failure:
                if failure.retryable:
                    raise
                known = (None,)
            with self._lock:
                self._licences.put(url, known)
        return known[0]

    def check_page(self, page_url: str, licence_url: str, verdict: Verdict) -> None:
        """Checks the RSL licence that the page of an image names.

        Raises:
            Failure: opt_out; or the licence cannot be read now.
        """
        if self.options.respects("rsl"):
            _check_terms(self._licence(licence_url), page_url, "rsl", verdict, where="the page: ")

    def _robots_txt(self, target: Target) -> bytes | None:
        """The body, or None: a 4xx allows everything. A 5xx forbids everything for now (RFC 9309)."""
        return self._kept_file(dataclasses.replace(target, path=PATH))

    def _kept_file(self, at: Target) -> bytes | None:
        """As `_site_file`. A file that another client asked for in this run is not asked for again."""
        with self._lock:
            known = self._files.get(at.url)
        if known is None or known.until <= time.time():
            known = SiteFile(at.url, self._site_file(at), time.time() + RULES_LIFETIME_S)
            with self._lock:
                self._files.put(at.url, known)
        return known.body

    def _site_file(self, at: Target) -> bytes | None:
        """The body of a file about the site; None: there is none.

        Raises:
            Failure: it cannot be read now; class "robots" if a server answered so.
        """
        clock = _Clock(min(ROBOTS_S, self.options.deadline_s))
        for hop in range(MOST_REDIRECTS + 1):
            if hop or at.path != PATH:
                self._check_host(at)
            with self.memory.share() as share:
                answer = self._request(at, clock, robots.LARGEST, share, cut=True)
            if answer.status == 200:
                return bytes(answer.body)
            if answer.status == 429:
                self._check_status(at, answer)
            if answer.status >= 500:
                failure = Failure(
                    "robots", f"the server answered {answer.status}", retryable=True, http_status=answer.status
                )
                self._host(at).note(failure)
                raise failure
            location = answer.first("Location")
            if answer.status not in REDIRECTS or not location:
                return None
            try:
                at = follow(at, location)
            except Failure:
                return None
        return None

    def _check_host(self, at: Target) -> None:
        """Raises Failure(robots) if an archive forbids to request a file about a site."""
        refusal = self._archived.refusal(at) if self._archived is not None else None
        if refusal is not None and refusal.status == "robots":
            raise Failure("robots", refusal.evidence, protocol=refusal.protocol)

    def _host(self, target: Target) -> Host:
        with self._lock:
            return self._hosts.get_or_make(target.host, lambda: Host(self.options))


def _check_terms(terms: Terms | None, url: str, protocol: str, verdict: Verdict, *, where: str = "") -> None:
    """Raises Failure(opt_out) if the terms refuse the training on a URL, or cannot be read.

    `where` says in the evidence what names the terms.
    """
    verdict.consult(protocol)
    if terms is None:
        raise Failure("opt_out", f"{where}the licence that is named cannot be read", protocol=protocol)
    rule = terms.rule(url)
    if rule is not None and rule.said:
        verdict.allow(protocol)
    if rule is not None and rule.said is False:
        raise Failure("opt_out", where + terms.evidence(rule), protocol=protocol)


@functools.lru_cache(maxsize=4)
def shared_client(options: FetchOptions) -> Client:
    """The process's client for these options."""
    return Client(options)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shared_client.cache_clear)
