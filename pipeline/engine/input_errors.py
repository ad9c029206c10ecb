"""The errors of inputs, and how messages name an input."""

from __future__ import annotations

import re

_REMOTE = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_HTTP = re.compile(r"^https?://", re.IGNORECASE)


class InputError(ValueError):
    """An input cannot be used. The message names the input, the likely cause and the remedy."""


class ReaderError(InputError):
    """A reader failed with an error of its own: it has a bug, or the input is not what it expects."""


class TransferError(InputError):
    """A transfer broke, or the server did not answer. The input may be read by another try.

    Attributes:
        reached: some server has sent a byte of the input.
        changed: the input is another file now. A stream that is opened anew reads that one.
    """

    def __init__(self, message: str, *, reached: bool = True, changed: bool = False) -> None:
        super().__init__(message)
        self.reached, self.changed = reached, changed


class MissingInputError(InputError):
    """A remote input does not exist."""


class RefusedInputError(InputError):
    """A server refuses to give a remote input, and asking again changes nothing."""


class UnreadableInputError(InputError):
    """No byte of an input can be understood. The same bytes fail again."""


# An input of these errors cannot be had. --skip-bad-inputs goes on without it.
UNAVAILABLE = (MissingInputError, RefusedInputError, UnreadableInputError, TransferError)


def is_remote(path: str) -> bool:
    """True for a URL, False for a path on this machine."""
    return _REMOTE.match(path) is not None


def is_http(path: str) -> bool:
    """True for a URL of a web server."""
    return _HTTP.match(path) is not None


def public(url: str) -> str:
    """A URL without credentials: no user, no query (signatures), no fragment. The published data hold this form."""
    if not is_remote(url):
        return url
    scheme, _, rest = url.partition("://")
    if is_http(url):
        rest = rest.split("?")[0].split("#")[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def one_line(error: BaseException) -> str:
    """The first line of a message. For a missing libjvm, Arrow lists a hundred places on lines of their own."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
