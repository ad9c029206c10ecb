"""Politeness towards one host: how many requests at once, how far apart, and when to pause."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from pipeline.fetching.errors import NOT_TRIED, Failure
from pipeline.fetching.options import FetchOptions

# After so many failures of these classes in a row the host rests. Its other URLs fail at once, as retryable. So a dead
# host with a thousand URLs costs a minute, not a night.
FAILURES_IN_A_ROW = 12
TROUBLE = frozenset({"tcp", "timeout", "rate_limited", "http_5xx"})
REST_S = 300.0
# The most seconds of delay (Crawl-delay) for one host in one run of a task. Its other URLs are left for a later run.
PATIENCE_S = 900.0
# The pace of a host that answered 429: seconds between two of its requests. The first refusal sets FIRST_PACE_S. Each
# further one doubles it, up to SLOWEST_PACE_S. Each answer that is no refusal makes it a tenth shorter. So a few URLs
# that are always refused cost their host some seconds. A host that refuses by rate settles at about 13 % refusals.
FIRST_PACE_S, SLOWEST_PACE_S = 0.2, 15.0
SPEED_UP = 0.9
FULL_SPEED_S = 0.02  # a shorter pace is none


class Host:
    """The queue of one host name."""

    def __init__(self, options: FetchOptions) -> None:
        self._options = options
        self._slots = threading.BoundedSemaphore(options.per_host)
        self._lock = threading.Lock()
        self._next_start = 0.0
        self._spent_s = 0.0
        self._run = 0
        self._failures = 0
        self._resting_until = 0.0
        self._last: Failure | None = None
        self._pace_s = 0.0
        self.delay_s = options.delay_s

    @contextlib.contextmanager
    def turn(self, run: int) -> Iterator[None]:
        """Waits for a slot and for the time of the next request.

        Raises:
            Failure: retryable; the host is resting, or asked for a longer wait than ours.
        """
        self._check_rest()
        with self._slots:
            self._check_rest()
            wait = self._reserve(run)
            if wait:
                time.sleep(wait)
            yield

    def slow_down(self) -> None:
        """Makes the pace of the host slower, because it refused a URL for now (429, or 503 with a pause).

        The pause that the answer names holds for its URL alone: a single URL must not stop the others of its host.
        """
        with self._lock:
            self._pace_s = min(max(2 * self._pace_s, FIRST_PACE_S), SLOWEST_PACE_S)
            self._next_start = max(self._next_start, time.monotonic() + self._pace_s)

    def try_again(self) -> None:
        """Ends the rest of the host. If it rested, one more failure lets it rest again."""
        with self._lock:
            if self._last is not None:
                self._resting_until, self._last = 0.0, None
                self._failures = FAILURES_IN_A_ROW - 1

    def note(self, failure: Failure | None) -> None:
        """Counts failures in a row; None: a request succeeded."""
        with self._lock:
            if failure is None or failure.status not in TROUBLE:
                self._failures = 0
                self._pace_s = self._pace_s * SPEED_UP if self._pace_s * SPEED_UP > FULL_SPEED_S else 0.0
                return
            self._failures += 1
            if self._failures >= FAILURES_IN_A_ROW:
                self._last = failure
                self._resting_until = time.monotonic() + REST_S
                self._failures = 0

    def _check_rest(self) -> None:
        if time.monotonic() < self._resting_until and self._last is not None:
            sentence = f"{NOT_TRIED}the host failed {FAILURES_IN_A_ROW} times in a row ({self._last})"
            failure = Failure(self._last.status, sentence, retryable=True, http_status=self._last.http_status)
            failure.tried = False
            raise failure

    def _reserve(self, run: int) -> float:
        """Reserves the time of the next request; returns the seconds until then."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next_start)
            if run != self._run:
                self._run, self._spent_s = run, 0.0
            if start - now > self._options.longest_wait_s or self._spent_s > PATIENCE_S:
                raise Failure("rate_limited", "left for a later run: the host asks for longer pauses")
            self._spent_s += start - now
            self._next_start = start + max(self.delay_s, self._pace_s)
            return start - now
