"""A map of the keys used last. A long-lived process keeps in it what it learns about hosts, which have no end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A map of at most `max_entries` entries. The least recently used one is removed first. Callers hold a lock."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The entry, which becomes the latest one; None if there is none."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: K, value: V) -> V:
        """Stores the entry as the latest one."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
        return value

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """The entry. It is made if there is none."""
        found = self.get(key)
        return self.put(key, make()) if found is None else found

    def __iter__(self) -> Iterator[V]:
        return iter(list(self._entries.values()))
