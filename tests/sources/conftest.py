"""What the tests of the sources share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.sources import READERS


@pytest.fixture
def shipped() -> Iterator[None]:
    """The readers that these tests know, whatever else stands in `READERS`. Their order stays."""
    before = dict(READERS)
    for name in before.keys() - {"wat", "warc", "table"}:
        del READERS[name]
    yield
    READERS.clear()
    READERS.update(before)
