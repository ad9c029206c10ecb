"""A bound on the memory of the fetch: the bytes of bodies and decoded pixels that one process holds at a time.

Each download has a share. It grows while the body arrives, and is freed when the picture is encoded. A share that does
not fit waits. Its connection stays open, and its clock stops. No order of events can block all of them for ever:

- Bodies that are complete only wait for the decoder. It needs no more than SMALL for them, which is set aside.
- If only incomplete bodies hold the memory, the oldest of them goes on beyond the bound, until it is complete.
- A picture that needs more than SMALL gives up its body's bytes (the caller puts them into a file) and waits for its
  turn. Meanwhile no new body begins. A picture that is larger than the bound is decoded alone.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

SMALL = 64 << 20  # bytes that most pictures need to be decoded


class Share:
    """What one download holds.

    Attributes:
        size: bytes that it holds.
        waited_s: seconds that the request under way has waited for memory. The caller adds them to its deadline.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.size = 0
        self.waited_s = 0.0

    def begin(self) -> None:
        """A new request begins: gives everything back."""
        self.waited_s = 0.0
        self.shrink(0)

    def fits(self, size: int) -> bool:
        """Grows by `size` bytes if they can be had at once."""
        return self._memory.grow(self, size, wait=False)

    def grow(self, size: int) -> None:
        """Grows by `size` bytes. Waits until it may."""
        self._memory.grow(self, size, wait=True)

    def complete(self) -> None:
        """The body has arrived: the share only waits to be decoded."""
        self._memory.complete(self)

    def shrink(self, size: int) -> None:
        """Gives back all but `size` bytes."""
        self._memory.shrink(self, size)

    def claim(self, size: int) -> bool:
        """Grows by `size` bytes for pixels if they can be had at once."""
        return self._memory.claim(self, size, wait=False)

    def wait_for(self, size: int) -> None:
        """Grows by `size` bytes for pixels. Waits for its turn. The share must be empty."""
        self._memory.claim(self, size, wait=True)


class Memory:
    """The bound of one process. Threads share it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._incomplete: dict[Share, None] = {}  # the oldest first
        self._claims: deque[Share] = deque()
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Bytes that all shares hold."""
        return self._used

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """Yields an empty share, which is freed in the end. Waits first while memory is scarce."""
        with self._changed:
            self._changed.wait_for(lambda: not self._claims and (not self._used or 2 * self._used < self._limit))
        share = Share(self)
        try:
            yield share
        finally:
            share.shrink(0)

    def grow(self, share: Share, size: int, *, wait: bool) -> bool:
        """Grows a share by bytes of its body. False: it does not fit, and `wait` is False."""
        with self._changed:
            if not self._may_grow(share, size):
                if not wait:
                    return False
                self._changed.wait_for(lambda: self._may_grow(share, size))
            self._incomplete[share] = None
            self._add(share, size)
            return True

    def complete(self, share: Share) -> None:
        """The body of a share is complete."""
        with self._changed:
            self._incomplete.pop(share, None)
            self._changed.notify_all()

    def shrink(self, share: Share, size: int) -> None:
        """Reduces a share to at most `size` bytes."""
        with self._changed:
            if not size:
                self._incomplete.pop(share, None)
            if share.size > size:
                self._add(share, size - share.size)
                self._changed.notify_all()

    def claim(self, share: Share, size: int, *, wait: bool) -> bool:
        """Grows a share by bytes of pixels. False: it does not fit, and `wait` is False."""
        with self._changed:
            if not wait:
                fits = not self._claims and self._used + size <= self._limit
            else:
                self._claims.append(share)
                self._changed.wait_for(lambda: self._claims[0] is share and self._is_free_for(size))
                self._claims.popleft()
                fits = True
            if fits:
                self._add(share, size)
                self._changed.notify_all()
            return fits

    def _is_free_for(self, size: int) -> bool:
        return not self._used or self._used + size <= self._limit

    def _may_grow(self, share: Share, size: int) -> bool:
        if share not in self._incomplete and self._claims:
            return False
        if not self._used or self._used + size <= self._limit - SMALL:
            return True
        oldest = next(iter(self._incomplete), None)
        return oldest is share and self._used == sum(other.size for other in self._incomplete)

    def _add(self, share: Share, size: int) -> None:
        share.size += size
        self._used += size
