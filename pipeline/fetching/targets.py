"""URLs for requests: parsed, checked, percent-encoded."""

from __future__ import annotations

import dataclasses
import re
from urllib.parse import quote, urlsplit

import can_ada

from pipeline.fetching.errors import Failure
from pipeline.text.clean_rules import ascii_host

LONGEST = 8192
PORTS = {"http": 80, "https": 443}
PATH_SAFE = "/:@!$&'()*+,;=~-._%"
QUERY_SAFE = PATH_SAFE + "?|[]{}^`\\"
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?\.?")
STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes. `host` is lower-case ASCII, without the brackets of an IPv6 address."""

    scheme: str
    host: str
    port: int
    path: str  # with the query

    @property
    def host_header(self) -> str:
        """The Host header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: robots.txt and connections belong to an origin."""
        return self.scheme, self.host, self.port

    @property
    def url(self) -> str:
        """The URL of the request."""
        return f"{self.scheme}://{self.host_header}{self.path}"


def parse(url: str) -> Target:
    """Parses a URL. Blanks and non-ASCII characters are accepted; the canonical form has them encoded.

    Raises:
        Failure: bad_url.
    """
    url = url.strip(" \t\r\n\f")
    if len(url) > LONGEST:
        raise Failure("bad_url", "the URL is too long")
    if CONTROL.search(url):
        raise Failure("bad_url", "the URL has a control character")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").lower()
    except ValueError as error:
        raise Failure("bad_url", f"not a URL: {error}") from error
    scheme = parts.scheme.lower()
    if scheme not in PORTS:
        raise Failure("bad_url", f"the scheme is neither http nor https: {scheme or 'no scheme'}")
    if parts.username is not None or parts.password is not None:
        raise Failure("bad_url", "the URL has a user name or a password")
    if port == 0:
        raise Failure("bad_url", "the URL has port 0")
    path = _quoted(parts.path or "/", PATH_SAFE)
    if parts.query:
        path += "?" + _quoted(parts.query, QUERY_SAFE)
    return Target(scheme, _host(host), port or PORTS[scheme], path if path.startswith("/") else "/" + path)


def follow(target: Target, location: str) -> Target:
    """The target of a redirect, resolved as browsers do (URL standard).

    Raises:
        Failure: bad_redirect.
    """
    try:
        location = location.encode("latin-1").decode("utf-8")  # http.client reads headers as latin-1; sites send UTF-8
    except UnicodeError:
        pass
    try:
        return parse(str(can_ada.parse(target.url) + location))
    except (Failure, ValueError) as error:
        raise Failure("bad_redirect", f"the redirect has no usable target: {error}") from error


def host_of(url: str) -> str:
    """The host whose queue a URL belongs to; "" for a text that is not a URL."""
    try:
        return parse(url).host
    except Failure:
        return ""


def _host(host: str) -> str:
    if ":" in host:
        return host.partition("%")[0]
    if not host.isascii():
        try:
            host = ascii_host(host)
        except ValueError as error:
            raise Failure("bad_url", "not a host name") from error
    if len(host) > 253 or not HOST.fullmatch(host):
        raise Failure("bad_url", "not a host name" if host else "no host")
    return host.rstrip(".")


def _quoted(part: str, safe: str) -> str:
    try:
        return quote(STRAY_PERCENT.sub("%25", part), safe=safe)
    except UnicodeEncodeError as error:
        raise Failure("bad_url", "the URL is not valid Unicode") from error
