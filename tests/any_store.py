"""What the tests of all object stores share. It needs the package of none of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Protocol, TypeVar

import pytest

from pipeline.engine import object_store, store_api
from pipeline.engine.object_store import Conflict


class InMemory(Protocol):
    """A store in memory. `patiently` stands for that of `remote`."""

    @property
    def patiently(self) -> Callable[..., object]: ...


Store = TypeVar("Store", bound=InMemory)


@contextlib.contextmanager
def answering(store: Store, scratch: str) -> Iterator[Store]:
    """`store` is the store of all URLs of `object_store` in the block. Inputs are read as ever."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENWIT_SCRATCH", scratch)
        patch.setattr(store_api, "remote", SimpleNamespace(patiently=store.patiently))
        yield store


def check_that_a_replaced_object_is_noticed(url: str) -> None:
    """`url`: of an object that holds b"2". It holds 100,000 times b"4" afterwards."""
    with object_store.ObjectFile(url) as file:
        assert file.range(0, 9) == b"2"
        object_store.write(url, b"4" * 100_000)
        file.size = 100_000  # as if the first piece had not been all of it
        with pytest.raises(Conflict):
            file.range(50_000, 10)
