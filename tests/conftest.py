"""For all tests: no library asks the network on its own, and tests that need a GPU skip without one."""

from __future__ import annotations

import os
import shutil
import string
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import settings

from pipeline.sources import READERS
from tests import fuzzing

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks the package index at import
os.environ.setdefault("WANDB_MODE", "disabled")

settings.register_profile("suite", derandomize=True, deadline=None)  # no test may fail because a machine is busy
settings.register_profile("fuzz", deadline=None)
settings.load_profile("suite" if fuzzing.SUITE else "fuzz")

# Those that take longest, the longest first. If one of them came last, the other workers would wait for it.
LONGEST = (
    "tests/test_engines.py",
    "tests/test_reliability.py",
    "tests/clip_train/test_clip_train.py",
    "tests/test_wheel.py",
    "tests/test_docs.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, then those with the most tests: a worker gets whole files in this order."""
    sizes = Counter(_file(item) for item in items)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(_file(item), len(LONGEST)), -sizes[_file(item)], _file(item)))


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """`argname`, for bytes that are no short text: gzip holds the time, and all workers must name a test alike."""
    if isinstance(val, bytes) and (len(val) > 60 or not set(val) <= set(string.printable.encode())):
        return argname
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test that this machine cannot run, and gives the reason."""
    if item.get_closest_marker("gpu") and shutil.which("nvidia-smi") is None:
        pytest.skip("needs a CUDA device")


@pytest.fixture
def shipped() -> Iterator[None]:
    """The readers that the tests of the sources know, whatever else stands in `READERS`. Their order stays."""
    before = dict(READERS)
    for name in before.keys() - {"wat", "warc", "table", "set", "webdataset"}:
        del READERS[name]
    yield
    READERS.clear()
    READERS.update(before)
