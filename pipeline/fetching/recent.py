"""A map of the keys used last. A long-lived process keeps in it what it learns about hosts, which have no end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A map of at most `max_entries` entries. The least recently used one is removed first. Callers hold a lock.

    With `weigh`, the entries together weigh at most `max_weight`. An entry is weighed when it is stored.
    """

    def __init__(self, max_entries: int, *, weigh: Callable[[V], int] = lambda _: 0, max_weight: int = 0) -> None:
        self._max_entries = max_entries
        self._weigh, self._max_weight = weigh, max_weight
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._weights: dict[K, int] = {}
        self._weight = 0

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
        weight = self._weigh(value)
        self._weight += weight - self._weights.get(key, 0)
        self._weights[key] = weight
        while len(self._entries) > self._max_entries or (self._weight > self._max_weight and len(self._entries) > 1):
            oldest, _ = self._entries.popitem(last=False)
            self._weight -= self._weights.pop(oldest)
        return value

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """The entry. It is made if there is none."""
        found = self.get(key)
        return self.put(key, make()) if found is None else found

    def __iter__(self) -> Iterator[V]:
        return iter(list(self._entries.values()))
