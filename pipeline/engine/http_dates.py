"""Times in headers of HTTP (RFC 9110, sections 5.6.7 and 10.2.3)."""

from __future__ import annotations

import datetime
import email.utils
import time


def timestamp(value: str) -> float:
    """Seconds since 1970 of a date in a header. A date without a zone is in UTC.

    Raises:
        ValueError, TypeError, OverflowError: it is no date.
    """
    moment = email.utils.parsedate_to_datetime(value)
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def retry_after(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or as a date; None: it asks for none."""
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, timestamp(value) - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
