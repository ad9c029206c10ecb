"""A published set as a source of pairs and of images: a folder with manifest.json, shards/ and metadata/.

    OTHER/shards/00007.tar      one input: its pairs are the rows of OTHER/metadata/00007.parquet
    set-<digest>/shards/00007.tar      its name: it names the content, so a set that is moved or renamed is the same

What is read is compared with the sha256 in the manifest. A set that changes has another digest, so its inputs are
others.
`set_reader` reads them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.engine import checks, storage
from pipeline.engine.input_errors import InputError, UnreadableInputError, is_remote
from pipeline.sources.base import SET, Found, Input

MANIFEST = "manifest.json"
SIZES = "shards/sizes.json"
NEWEST = 5  # format of a set that this version writes; tests compare it with dataset.shards.FORMAT
INSTEAD = "restore it, or name its folder metadata to take its pairs alone, whose images are fetched"

_TAR = re.compile(r"shards/\d{5,9}\.tar")


class File(NamedTuple):
    """A file that a manifest lists."""

    bytes: int
    rows: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class PublishedSet:
    """A published set.

    Attributes:
        root: its folder, absolute.
        digest: of its files, hexadecimal.
        files: path below the folder -> file.
        options: those of its build.
        result: of its version: what decides the rows; "": not known.
    """

    root: str
    digest: str
    files: Mapping[str, File]
    options: Mapping[str, Any]
    result: str

    @property
    def tars(self) -> list[str]:
        """The paths of its shards below the folder, sorted."""
        return sorted(path for path in self.files if _TAR.fullmatch(path))

    def name_of(self, path: str) -> str:
        """The name of the input that a tar becomes."""
        return f"set-{self.digest[:12]}/{path}"

    def check(self, path: str, *, content: bool) -> None:
        """Compares a file with the manifest: its size, and its sha256 where `content` is set.

        Raises:
            UnreadableInputError: the file is missing or damaged.
        """
        wanted = self.files.get(path)
        if wanted is None:
            raise UnreadableInputError(f"{self.root}: its manifest lists no {path}: {INSTEAD}")
        try:
            with open(os.path.join(self.root, path), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                whole = size == wanted.bytes
                sound = whole and (not content or hashlib.file_digest(file, "sha256").hexdigest() == wanted.sha256)
        except FileNotFoundError:
            raise UnreadableInputError(f"{self.root}: {path} is missing: {INSTEAD}") from None
        if not whole:
            raise UnreadableInputError(
                f"{self.root}: {path} has {size:,} bytes, and its manifest says {wanted.bytes:,}: {INSTEAD}"
            )
        if not sound:
            raise UnreadableInputError(
                f"{self.root}: {path} is damaged: its sha256 is not that of its manifest: {INSTEAD}"
            )


def is_set(folder: str) -> bool:
    """True if a folder of this machine holds a published set, or one whose manifest is missing or damaged."""
    if {"digest", "files", "ledger"} <= set(checks.read_object(os.path.join(folder, MANIFEST))):
        return True
    return os.path.isfile(os.path.join(folder, SIZES)) and os.path.isdir(os.path.join(folder, "metadata"))


def read_set(root: str) -> PublishedSet:
    """The set in a folder. Only its manifest is read.

    Raises:
        UnreadableInputError: the manifest is missing or damaged, or a newer version wrote it.
    """
    path = os.path.join(root, MANIFEST)
    state = storage.state(path)
    if state is None:
        raise UnreadableInputError(f"{path} is missing, which says what the files of the set are: {INSTEAD}")
    return _read_set(root, state)


@functools.lru_cache(maxsize=4)
def _read_set(root: str, state: tuple[Any, ...]) -> PublishedSet:
    del state
    path = os.path.join(root, MANIFEST)
    try:
        manifest = storage.read_json(path, sealed=False) or {}
        form = manifest.get("format", NEWEST)
        if not isinstance(form, int) or form > NEWEST:
            raise UnreadableInputError(
                f"{path} has format {form!r} and this version reads {NEWEST}: use a newer version of OpenWIT"
            )
        files = {item["path"]: File(item["bytes"], item["rows"], item["sha256"]) for item in manifest["files"]}
        lines = "".join(f"{file.sha256}  {name}\n" for name, file in sorted(files.items()))
        digest, options = str(manifest["digest"]), dict(manifest["options"])
        result = str(dict(manifest["versions"]).get("result", ""))
    except (storage.DamagedError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise UnreadableInputError(f"{path} is damaged: {INSTEAD}") from error
    if hashlib.sha256(lines.encode()).hexdigest() != digest:
        raise UnreadableInputError(f"{path} is damaged: its digest is not that of the files that it lists")
    return PublishedSet(root, digest, files, options, result)


def files_of(root: str) -> list[Found]:
    """The inputs of the set in a folder.

    Raises:
        UnreadableInputError: as `read_set`; or the set holds no image.
    """
    found = read_set(os.path.abspath(root))
    if not found.tars:
        raise UnreadableInputError(f"{root} is a published set without a shard")
    paths = [(path, os.path.join(found.root, path)) for path in found.tars]
    return [Found(found.name_of(path), full, "", found.files[path].bytes, SET) for path, full in paths]


def root_of(path: str) -> str:
    """The folder of the set in which a tar lies."""
    return os.path.dirname(os.path.dirname(path))


def below(path: str) -> str:
    """The path of a tar below the folder of its set."""
    return f"shards/{os.path.basename(path)}"


def metadata_of(tar: str) -> str:
    """The path of the metadata of a shard below the folder, by that of its tar."""
    return f"metadata/{os.path.basename(tar).removesuffix('.tar')}.parquet"


def sets_among(inputs: Sequence[Input]) -> list[str]:
    """The folders of the published sets that inputs belong to, each once."""
    return list(dict.fromkeys(root_of(item.path) for item in inputs if item.format == SET and not is_remote(item.path)))
