"""A published set as a source of pairs and of images: a folder with manifest.json, shards/ and metadata/.

It lies on this machine or on an object store. Of a store its files come into the scratch folder, whole.

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

from pipeline.engine import checks, object_cache, object_store, remote, storage
from pipeline.engine.input_errors import InputError, UnreadableInputError
from pipeline.sources.base import SET, Found, Input

MANIFEST = "manifest.json"
FIELDS = ("digest", "files", "ledger")  # of our manifest: other tools have a manifest.json, too
SIZES = "shards/sizes.json"
FOLDERS = ("shards", "metadata")  # those that are read
NEWEST = 5  # format of a set that this version writes; tests compare it with dataset.shards.FORMAT
INSTEAD = "restore it, or name its folder metadata to take its pairs alone, whose images are fetched"

_TAR = re.compile(r"shards/\d{5,9}\.tar")
# The end of the name of a file, a glob or a folder of files on a store: it is not asked whether it is a set.
_NO_SET = re.compile(r"[*?\[]|\.(?:gz|warc|arc|wat|wacz|tar|tgz|parquet|tsv|csv|txt|jsonl?|zst|bz2|xz)$", re.IGNORECASE)


class File(NamedTuple):
    """A file that a manifest lists."""

    bytes: int
    rows: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class PublishedSet:
    """A published set.

    Attributes:
        root: its folder: an absolute path, or the URL of a folder on a store.
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

    def sizes(self) -> dict[str, int]:
        """Path below the folder -> bytes, of all files of its shards and metadata as they lie there."""
        folders = (os.path.join(self.root, name) for name in FOLDERS)
        start = len(self.root) + 1
        return {path[start:].replace(os.sep, "/"): size for some in folders for path, size in storage.sizes(some)}

    def check(self, path: str, there: Mapping[str, int]) -> None:
        """Compares the size of a file with the manifest.

        Args:
            path: below the folder.
            there: as `sizes`.

        Raises:
            UnreadableInputError: the file is missing or cut.
        """
        wanted = self._wanted(path)
        if path not in there:
            raise self._missing(path)
        if there[path] != wanted.bytes:
            raise self._cut(path, there[path], wanted)

    def sound(self, path: str) -> str:
        """The place on this machine of a file whose content is that of the manifest. `path`: below the folder.

        Raises:
            UnreadableInputError: the file is missing or damaged.
        """
        wanted, full = self._wanted(path), os.path.join(self.root, path)
        for again in (storage.is_url(full), False):
            try:
                here = storage.here(full)
                with open(here, "rb") as file:
                    size, digest = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                raise self._missing(path) from None
            if digest == wanted.sha256:
                return here
            if again:
                object_cache.drop(full)  # it may be the copy that is damaged
        if size != wanted.bytes:
            raise self._cut(path, size, wanted)
        raise UnreadableInputError(
            f"{self.root}: {path} is damaged: its sha256 is not that of its manifest: {_remedy(path)}"
        )

    def _wanted(self, path: str) -> File:
        if path not in self.files:
            raise UnreadableInputError(f"{self.root}: its manifest lists no {path}: {_remedy(path)}")
        return self.files[path]

    def _missing(self, path: str) -> UnreadableInputError:
        return UnreadableInputError(f"{self.root}: {path} is missing: {_remedy(path)}")

    def _cut(self, path: str, size: int, wanted: File) -> UnreadableInputError:
        return UnreadableInputError(
            f"{self.root}: {path} has {size:,} bytes, and its manifest says {wanted.bytes:,}: {_remedy(path)}"
        )


def _remedy(path: str) -> str:
    """What to do about a file of a set. The pairs stand in its metadata: without them nothing is left to take."""
    return "restore it" if path.startswith("metadata/") else INSTEAD


def may_be_on_store(spec: str) -> bool:
    """True if a spec may name a set on a store: it names no file and no glob."""
    return spec.partition("://")[0] in object_store.STORES and not _NO_SET.search(spec)


def is_set(folder: str) -> bool:
    """True if a folder holds a published set, or one whose manifest is missing or damaged.

    Raises:
        InputError: a store cannot be asked.
    """
    if storage.is_file(os.path.join(folder, SIZES)) and storage.is_folder(os.path.join(folder, "metadata")):
        return True
    return set(FIELDS) <= set(checks.read_object(os.path.join(folder, MANIFEST)))


def is_gone(root: str) -> bool:
    """True if the set in a folder is not there any more, or its store does not answer at once."""
    try:
        with remote.configured(dataclasses.replace(remote.settings(), patience=0.0)):
            return storage.state(os.path.join(root, MANIFEST)) is None
    except InputError:
        return True


def read_set(root: str) -> PublishedSet:
    """The set in a folder. Only its manifest is read.

    Raises:
        UnreadableInputError: the manifest is missing or damaged, or a newer version wrote it.
    """
    path = os.path.join(root, MANIFEST)
    state = storage.state(path)
    if state is None:
        raise UnreadableInputError(f"{path} is missing, which says what the files of the set are: {INSTEAD}")
    _newest[root] = found = _read_set(root, state)
    return found


_newest: dict[str, PublishedSet] = {}  # by folder, as this process has read it last


def known_set(root: str) -> PublishedSet:
    """The set in a folder as this process has read it last. It costs a request only if it was not read yet.

    Raises:
        UnreadableInputError: as `read_set`.
    """
    return _newest.get(root) or read_set(root)


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
    found = read_set(storage.absolute(root))
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
    return list(dict.fromkeys(root_of(item.path) for item in inputs if item.format == SET))
