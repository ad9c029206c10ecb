"""http_dates: the forms of Retry-After, and dates without a zone."""

from __future__ import annotations

import time

import pytest

from pipeline.engine import http_dates

NOW = 1445412480.0  # Wed, 21 Oct 2015 07:28:00 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("12", 12.0),
        (" 0 ", 0.0),
        ("9" * 40, 999999999.0),
        ("Wed, 21 Oct 2015 07:30:00 GMT", 120.0),
        ("Wed, 21 Oct 2015 07:30:00", 120.0),  # without a zone
        ("Wed, 21 Oct 2015 07:30:00 -0000", 120.0),
        ("Wed, 21 Oct 2015 09:30:00 +0200", 120.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
        ("Wed, 21 Oct 99999 07:27:00 GMT", None),
        ("", None),
        (None, None),
        ("soon", None),
        ("-3", None),
        ("1.5", None),
        ("\u00b2", None),  # a digit for str.isdigit, but no number
        ("\u0661\u0662", None),
    ],
)
def test_the_forms_of_retry_after(monkeypatch: pytest.MonkeyPatch, value: str | None, seconds: float | None) -> None:
    monkeypatch.setattr(http_dates.time, "time", lambda: NOW)
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Kathmandu")
        time.tzset()
        found = http_dates.retry_after(value)
    time.tzset()
    assert found == seconds
