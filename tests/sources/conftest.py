"""What the tests of the sources share."""

from __future__ import annotations

import pytest

from pipeline.sources import READERS


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The readers that these tests know, whatever else stands in `READERS`."""
    for name in READERS.keys() - {"wat", "warc", "table"}:
        monkeypatch.delitem(READERS, name)
