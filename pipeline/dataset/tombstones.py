"""What was forgotten, as keyed hashes: OUT/forgotten.parquet. Later builds of the folder do not bring it back.

    forgotten.parquet       kind, hash: 16 bytes of BLAKE2b of kind and value, sieve: 32 bits; sealed
    its schema's metadata   the key of the hashes: 32 random bytes, drawn once for each OUT

The file holds no URL. Whoever has it can test a guess, so it is not published: it is readable by its owner only and the
manifest does not list it. A row is tested against the sieve first, many rows at once. Only rows that pass it are hashed
with the key.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import hashing, storage
from pipeline.text import clean

FILE = "forgotten.parquet"
KINDS = ("url", "domain", "page_domain", "uid", "sha256")
SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("hash", pa.binary(16), nullable=False),
        pa.field("sieve", pa.uint32(), nullable=False),
    ]
)
KEY = b"openwit.key"
_HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(?P<host>\[[^\]]*\]|[^/?#:]*)"

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Tombstones:
    """The keyed hashes of one folder.

    Attributes:
        key: of the hashes, 32 bytes.
        hashes: (kind, hash) -> the sieve of the value.
    """

    key: bytes
    hashes: Mapping[tuple[str, bytes], int]

    @classmethod
    def load(cls, root: str) -> Tombstones | None:
        """Those of a folder; None if nothing was forgotten there.

        Raises:
            DamagedError: the file is not as it was written.
        """
        path = os.path.join(root, FILE)
        if not os.path.exists(path):
            return None
        return _load(path, os.stat(path).st_mtime_ns)

    @classmethod
    def new(cls) -> Tombstones:
        """An empty list with a random key."""
        return cls(secrets.token_bytes(32), {})

    def add(self, kind: str, values: Iterable[str]) -> Tombstones:
        """The list with more values.

        Args:
            kind: of KINDS.
            values: canonical URLs, hosts as `host_of` gives them, uids or sha256 as lower-case hexadecimal.
        """
        given = list(values)
        if not given:
            return self
        sieves = self._sieves(kind, given)
        more = {(kind, self._hash(kind, value)): int(sieve) for value, sieve in zip(given, sieves, strict=True)}
        return Tombstones(self.key, {**self.hashes, **more})

    def write(self, path: str) -> None:
        """Writes the file. Its rows are sorted by their hashes."""
        rows = sorted((kind, digest, sieve) for (kind, digest), sieve in self.hashes.items())
        columns = [[row[place] for row in rows] for place in range(3)]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        storage.write_table(path, pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata({KEY: self.key})))
        os.chmod(path, 0o600)

    def has(self, kind: str, value: str) -> bool:
        """True if the value was forgotten. A domain covers its subdomains."""
        if kind in ("domain", "page_domain"):
            return any((kind, self._hash(kind, name)) in self.hashes for name in domains_of(value))
        return (kind, self._hash(kind, value)) in self.hashes

    def covers(self, kind: str, value: str) -> bool:
        """`has`, and for a URL also True if its domain was forgotten."""
        return self.has(kind, value) or (kind == "url" and bool(self.among_urls(pa.array([value]))[0]))

    def among_urls(self, urls: pa.Array) -> Mask:
        """True for each canonical URL that was forgotten, or whose domain was: (rows,)."""
        found = self._passed(urls, "url", self._sieve_of_words(hashing.hash_strings(urls)[:, 0]))
        return found | self._among_hosts(urls, "domain")

    def among_pages(self, urls: pa.Array) -> Mask:
        """True for each page URL whose domain was forgotten: (rows,)."""
        return self._among_hosts(urls, "page_domain")

    def among_uids(self, uids: pa.Array) -> Mask:
        """True for each uid (16 bytes) that was forgotten: (rows,)."""
        mask = np.isin(self._sieve_of_words(hashing.uid_words(uids)[0]), self._sieves_by_kind["uid"])
        for row in np.flatnonzero(mask).tolist():
            mask[row] = self.has("uid", uids[row].as_py().hex())
        return mask

    def among_fetched(self, digest: bytes, final_url: str | None) -> bool:
        """True if an image was forgotten.

        Args:
            digest: sha256 of its bytes as served.
            final_url: where it was, after redirects; None: where it was asked for.
        """
        if self.has("sha256", digest.hex()):
            return True
        return final_url is not None and bool(self.among_urls(clean.canonical_urls(pa.array([final_url]))[0])[0])

    def _passed(self, values: pa.Array, kind: str, sieves: npt.NDArray[np.uint32]) -> Mask:
        mask = np.isin(sieves, self._sieves_by_kind[kind])
        for row in np.flatnonzero(mask).tolist():
            mask[row] = self.has(kind, values[row].as_py())
        return mask

    def _among_hosts(self, urls: pa.Array, kind: str) -> Mask:
        if not len(self._sieves_by_kind[kind]):
            return np.zeros(len(urls), np.bool_)
        return hosts_among(urls, lambda host: self.has(kind, host))

    @functools.cached_property
    def _sieves_by_kind(self) -> dict[str, npt.NDArray[np.uint32]]:
        found: dict[str, list[int]] = {kind: [] for kind in KINDS}
        for (kind, _), sieve in self.hashes.items():
            found[kind].append(sieve)
        return {kind: np.unique(np.array(sieves, np.uint32)) for kind, sieves in found.items()}

    def _sieves(self, kind: str, values: list[str]) -> npt.NDArray[np.uint32]:
        if kind == "url":
            return self._sieve_of_words(hashing.hash_strings(pa.array(values, pa.string()))[:, 0])
        if kind == "uid":
            uids = pa.array([bytes.fromhex(value) for value in values], pa.binary(16))
            return self._sieve_of_words(hashing.uid_words(uids)[0])
        return np.zeros(len(values), np.uint32)  # few values: they are compared by their hashes alone

    def _sieve_of_words(self, words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
        seed = int.from_bytes(hashlib.blake2b(b"sieve", key=self.key, digest_size=8).digest(), "little")
        return (hashing.mix(words, seed) >> np.uint64(32)).astype(np.uint32)

    def _hash(self, kind: str, value: str) -> bytes:
        return hashlib.blake2b(f"{kind}\0{value}".encode(), key=self.key, digest_size=16).digest()


@functools.lru_cache(maxsize=2)
def _load(path: str, changed: int) -> Tombstones:
    del changed
    table = storage.read_table(path)
    key = (table.schema.metadata or {}).get(KEY, b"")
    if len(key) != 32 or table.column_names != SCHEMA.names:
        raise storage.DamagedError.of(path, "it is no list of forgotten pairs of this version")
    columns = (table[name].to_pylist() for name in SCHEMA.names)
    return Tombstones(key, {(kind, digest): sieve for kind, digest, sieve in zip(*columns, strict=True)})


def normalise(kind: str, value: str) -> str:
    """A value as the rows hold it.

    Raises:
        ValueError: it is not of its kind.
    """
    value = value.strip()
    if kind == "url":
        urls, codes = clean.canonical_urls(pa.array([value]))
        if codes[0]:
            raise ValueError(f"{value!r} is no http or https URL")
        return urls[0].as_py()
    if kind in ("domain", "page_domain"):
        host = host_of(value)
        if host is None:
            raise ValueError(f"{value!r} is no domain such as example.org")
        return host
    digits = 32 if kind == "uid" else 64
    if not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", value):
        raise ValueError(f"{value!r} is not {digits} hexadecimal digits")
    return value.lower()


def normalise_all(kind: str, values: Sequence[str]) -> list[str | ValueError]:
    """`normalise` of many values. An error stands in the place of a value that is not of its kind."""
    if kind == "url":
        urls, codes = clean.canonical_urls(pa.array([value.strip() for value in values], pa.string()))
        good = [None if code else url for url, code in zip(urls.to_pylist(), codes.tolist(), strict=True)]
    else:
        good = [None] * len(values)
    return [_normalised(kind, value) if url is None else url for url, value in zip(good, values, strict=True)]


def _normalised(kind: str, value: str) -> str | ValueError:
    try:
        return normalise(kind, value)
    except ValueError as error:
        return error


def host_of(name: str) -> str | None:
    """A domain as canonical URLs hold it: lower case, ASCII, without a dot at its end. None: it is no domain."""
    urls, codes = clean.canonical_urls(pa.array([f"http://{name.strip().strip('.')}/"]))
    if codes[0] or any(sign in name for sign in "/?#@: \t"):
        return None
    host = hosts(urls)[0].as_py()
    return host.rstrip(".") or None


def domains_of(host: str) -> list[str]:
    """a.b.c -> [a.b.c, b.c, c]"""
    labels = host.split(".")
    return [".".join(labels[first:]) for first in range(len(labels))]


def hosts(urls: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The host of each URL, in lower case, without a port; "" where there is none."""
    found = pc.struct_field(pc.extract_regex(urls, _HOST), "host").fill_null("")
    return hashing.as_array(pc.utf8_lower(found))


def hosts_among(urls: pa.Array | pa.ChunkedArray, wanted: Callable[[str], bool]) -> Mask:
    """True for each URL whose host is wanted. Each different host is asked for once."""
    encoded = hosts(urls).dictionary_encode()
    asked = [bool(host) and wanted(_ascii(host)) for host in encoded.dictionary.to_pylist()]
    if not any(asked):
        return np.zeros(len(urls), np.bool_)
    return np.array(asked, np.bool_)[encoded.indices.to_numpy()]


@functools.lru_cache(maxsize=4096)
def _ascii(host: str) -> str:
    return host.rstrip(".") if host.isascii() else host_of(host) or host
