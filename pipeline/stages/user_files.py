"""Files that the user names by an option of a stage: their state, a digest of their content, and what refuses them."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
from collections.abc import Sequence
from typing import Any

import xxhash

from pipeline.engine import storage
from pipeline.engine.cli import UsageError
from pipeline.engine.options import show

State = tuple[Any, ...]  # as `storage.state`


@dataclasses.dataclass(frozen=True)
class UserFiles:
    """The files of one option.

    Attributes:
        flag: the option, such as --scores.
    """

    flag: str

    def refusal(self, path: str, message: str) -> UsageError:
        """The error that names option and file."""
        return UsageError(f"{self.flag} {show(path)}: {message}")

    def states(self, paths: Sequence[str]) -> tuple[State, ...]:
        """The state of each file: a value that is kept for it holds as long as this is the same.

        Raises:
            UsageError: a file cannot be read.
        """
        return tuple(map(self._state, paths))

    def digest(self, paths: Sequence[str]) -> str | None:
        """A digest of the content of the files, in no order; None: there are no files.

        Raises:
            UsageError: a file cannot be read.
        """
        digests = map(_digest, paths, self.states(paths))
        return xxhash.xxh3_128_hexdigest(b"".join(sorted(digests))) if paths else None

    def described(self, paths: Sequence[str], names: Sequence[str] = ()) -> list[dict[str, str]]:
        """The files as the manifest of a set shows them: the name of each, and the digest of its content.

        Args:
            paths: of the files.
            names: what stands for each file; by default the last part of its path.

        Raises:
            UsageError: a file cannot be read.
        """
        shown = names or list(map(os.path.basename, paths))
        return [{"name": name, "digest": str(self.digest([path]))} for name, path in zip(shown, paths, strict=True)]

    def _state(self, path: str) -> State:
        try:
            found = storage.state(path)
        except OSError as error:
            raise self.refusal(path, f"cannot be read ({error.strerror})") from None
        if found is None:
            raise self.refusal(path, f"cannot be read ({os.strerror(errno.ENOENT)})")
        return found


def content_of(flag: str, path: str) -> str:
    """What stands for a file in a fingerprint: its content, wherever it lies.

    Raises:
        UsageError: the file cannot be read.
    """
    return f"a file with the digest {UserFiles(flag).digest([path])}"


def copy_of(flag: str, path: str, folder: str) -> str:
    """Where the copy of a file lies for workers that do not see `path`. The name holds its content.

    Raises:
        UsageError: the file cannot be read.
    """
    return os.path.join(folder, f"{UserFiles(flag).digest([path])}.copy")


def write_copy(path: str, copy: str) -> None:
    """Writes the copy, unless it is there."""
    if path != copy and not storage.is_file(copy):
        storage.copy(path, copy)


@functools.lru_cache(maxsize=256)
def _digest(path: str, state: State) -> bytes:
    del state
    digest = xxhash.xxh3_128()
    with storage.reading(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.digest()
