"""Why an image could not be fetched: one class for each cause, and whether a later run should try again."""

from __future__ import annotations

OK = "ok"

# Class of failure -> True if a later run should try again. A single failure may override it.
RETRYABLE = {
    "dns": True,  # no answer, or no such name
    "tcp": True,  # refused, reset, or closed before the end of the body
    "tls": False,  # certificate or protocol
    "timeout": True,  # the URL's time was used up, in any phase
    "http_4xx": False,
    "http_5xx": True,
    "http_other": False,  # a status that is neither 200 nor an error: 204, 206, 304
    "rate_limited": True,  # 429, or the host asked for a longer pause than ours
    "bad_http": False,  # the answer is not HTTP, or its lengths contradict each other
    "too_large": False,
    "too_many_redirects": False,
    "bad_redirect": False,
    "blocked_address": False,  # the host has an address that is not public
    "bad_url": False,
    "robots": False,  # robots.txt
    "opt_out": False,  # a statement against AI training, in any protocol of text/rights.py
    "forgotten": False,  # `pipeline.forget` took this image, or the address that it moved to, out of the folder
    "blocklisted": False,  # a list of the user names this image, or the address that it moved to
    "not_an_image": False,
    "too_many_pixels": False,
    "too_small": False,
    "aspect": False,  # far longer than wide
    "decode": False,  # an image that cannot be decoded
    "internal": True,  # a bug of ours met this row
}

STATUSES = (OK, *sorted(RETRYABLE))
LONGEST_SENTENCE = 400  # the evidence of an archive names the record and the file

NOT_TRIED = "not tried: "  # begins the message of a failure for which nothing was sent


class Failure(Exception):
    """An image could not be fetched.

    Attributes:
        status: one of STATUSES.
        retryable: True if a later run should try again.
        http_status: the status, if a server answered.
        retry_after: the pause in seconds, if the server asked for one.
        protocol: the one that refuses, of rights.PROTOCOLS; None: no refusal.
        consulted: the protocols that were asked before.
        final_url: the last URL after redirects; None: no redirect.
        tried: False if nothing was sent, because the host rests after earlier failures.
    """

    def __init__(
        self,
        status: str,
        sentence: str,
        *,
        retryable: bool | None = None,
        http_status: int | None = None,
        retry_after: float | None = None,
        protocol: str | None = None,
    ) -> None:
        super().__init__(printable(sentence))
        self.status = status
        self.retryable = RETRYABLE[status] if retryable is None else retryable
        self.http_status = http_status
        self.retry_after = retry_after
        self.protocol = protocol
        self.consulted: tuple[str, ...] = ()
        self.final_url: str | None = None
        self.tried = True

    def again(self, prefix: str = "") -> Failure:
        """The same failure for another URL, as a new exception: one raised twice would keep its first traceback."""
        failure = Failure(
            self.status,
            f"{prefix}{self}",
            retryable=self.retryable,
            http_status=self.http_status,
            retry_after=self.retry_after,
            protocol=self.protocol,
        )
        failure.tried = self.tried
        return failure


class NetworkError(RuntimeError):
    """The network went away and did not come back. The fetch stops; a later run continues."""


def printable(sentence: str) -> str:
    """At most LONGEST_SENTENCE characters, no control characters: an untrusted server may have sent parts of it."""
    cut = sentence[: LONGEST_SENTENCE * 2]
    return "".join(c if c.isprintable() else " " for c in cut).strip()[:LONGEST_SENTENCE]
