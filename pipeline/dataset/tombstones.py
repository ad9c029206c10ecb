"""What was forgotten, as keyed hashes: OUT/forgotten.parquet. Later builds of the folder do not bring it back.

    forgotten.parquet       kind, hash: 16 bytes of BLAKE2b of kind and value, sieve: 32 bits; sealed
    its schema's metadata   the key of the hashes: 32 random bytes, drawn once for each OUT

A set that took in another set has the list of that set, too, with its own key. The file then holds several keys, and
the column `list` says which of them a hash was made with.

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
KEY_BYTES = 32
LIST = pa.field("list", pa.int32(), nullable=False)  # the place of the key; only where there are several
_HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(?P<host>\[[^\]]*\]|[^/?#:]*)"

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Tombstones:
    """The keyed hashes of one folder.

    Attributes:
        key: of the hashes, 32 bytes.
        hashes: (kind, hash) -> the sieve of the value.
        others: the lists of sets that this one took in.
    """

    key: bytes
    hashes: Mapping[tuple[str, bytes], int]
    others: tuple[Tombstones, ...] = ()

    @classmethod
    def load(cls, root: str) -> Tombstones | None:
        """Those of a folder; None if nothing was forgotten there.

        Raises:
            DamagedError: the file is not as it was written.
        """
        path = os.path.join(root, FILE)
        state = storage.state(path)
        return None if state is None else _load(path, state)

    @classmethod
    def new(cls) -> Tombstones:
        """An empty list with a random key."""
        return cls(secrets.token_bytes(KEY_BYTES), {})

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
        return dataclasses.replace(self, hashes={**self.hashes, **more})

    @functools.cached_property
    def lists(self) -> tuple[Tombstones, ...]:
        """The list of this set, and those of the sets that it took in, each alone."""
        own = dataclasses.replace(self, others=()) if self.others else self
        return own, *(one for other in self.others for one in other.lists)

    def join(self, other: Tombstones) -> Tombstones:
        """The list with that of another set."""
        found = {one.key: one for one in self.lists}
        for one in (one for one in other.lists if one.hashes):
            known = found.get(one.key)
            found[one.key] = one if known is None else Tombstones(one.key, {**known.hashes, **one.hashes})
        first, *others = found.values()
        return dataclasses.replace(first, others=tuple(others))

    def includes(self, other: Tombstones) -> bool:
        """True if all that another list covers is in this one."""
        found = {one.key: one.hashes.keys() for one in self.lists}
        return all(one.hashes.keys() <= found.get(one.key, set()) for one in other.lists)

    def write(self, path: str) -> None:
        """Writes the file. Its rows are sorted by their hashes."""
        lists = self.lists
        schema = SCHEMA if len(lists) == 1 else SCHEMA.append(LIST)
        rows = sorted(
            (kind, digest, sieve, number)
            for number, one in enumerate(lists)
            for (kind, digest), sieve in one.hashes.items()
        )
        columns = [[row[place] for row in rows] for place in range(len(schema))]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        keys = b"".join(one.key for one in lists)
        storage.write_table(path, pa.Table.from_arrays(arrays, schema=schema.with_metadata({KEY: keys})))
        storage.make_private(path)

    def has(self, kind: str, value: str) -> bool:
        """True if the value was forgotten. A domain covers its subdomains."""
        return self._has(kind, value) or any(other.has(kind, value) for other in self.others)

    def _has(self, kind: str, value: str) -> bool:
        if kind in ("domain", "page_domain"):
            return any((kind, self._hash(kind, name)) in self.hashes for name in domains_of(value))
        return (kind, self._hash(kind, value)) in self.hashes

    def covers(self, kind: str, value: str) -> bool:
        """`has`, and for a URL also True if its domain was forgotten."""
        return self.has(kind, value) or (kind == "url" and bool(self.among_urls(pa.array([value]))[0]))

    def among_urls(self, urls: pa.Array) -> Mask:
        """True for each canonical URL that was forgotten, or whose domain was: (rows,)."""
        words = hashing.hash_strings(hashing.as_array(urls))[:, 0]
        found = np.zeros(len(urls), np.bool_)
        for one in self.lists:
            found |= one._passed(urls, "url", one._sieve_of_words(words)) | one._among_hosts(urls, "domain")
        return found

    def among_pages(self, urls: pa.Array) -> Mask:
        """True for each page URL whose domain was forgotten: (rows,)."""
        found = np.zeros(len(urls), np.bool_)
        for one in self.lists:
            found |= one._among_hosts(urls, "page_domain")
        return found

    def among_uids(self, uids: pa.Array) -> Mask:
        """True for each uid (16 bytes) that was forgotten: (rows,)."""
        words, found = hashing.uid_words(uids)[0], np.zeros(len(uids), np.bool_)
        for one in self.lists:
            for row in np.flatnonzero(np.isin(one._sieve_of_words(words), one._sieves_by_kind["uid"])).tolist():
                found[row] |= one._has("uid", uids[row].as_py().hex())
        return found

    def among_rows(self, table: pa.Table) -> Mask:
        """True for each row that was forgotten, by those of its columns that the table has: (rows,)."""
        found = self.among_images(table)
        if "page_url" in table.column_names:
            found |= self.among_pages(hashing.as_array(table["page_url"]))
        if "uid" in table.column_names or "key" in table.column_names:
            found |= self._among_keys(table)
        return found

    def among_images(self, table: pa.Table) -> Mask:
        """True for each row whose image was forgotten, by a URL or by its bytes: (rows,)."""
        found = np.zeros(table.num_rows, np.bool_)
        for name in addresses(table):
            found |= self.among_urls(address(table, name))
        for name in ("image_sha256", "original_sha256") if self._covers_images() else ():
            if name in table.column_names:
                digests = (value.hex() if isinstance(value, bytes) else value for value in table[name].to_pylist())
                found |= np.array([value is not None and self.has("sha256", value) for value in digests], np.bool_)
        return found

    def _among_keys(self, table: pa.Table) -> Mask:
        if "uid" in table.column_names and pa.types.is_fixed_size_binary(table["uid"].type):
            return self.among_uids(hashing.as_array(table["uid"]))
        keys = table["key" if "key" in table.column_names else "uid"].to_pylist()
        return self.among_uids(pa.array([bytes.fromhex(key) for key in keys], pa.binary(16)))

    def _covers_images(self) -> bool:
        return any(kind == "sha256" for one in self.lists for kind, _ in one.hashes)

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
            mask[row] = self._has(kind, values[row].as_py())
        return mask

    def _among_hosts(self, urls: pa.Array, kind: str) -> Mask:
        if not len(self._sieves_by_kind[kind]):
            return np.zeros(len(urls), np.bool_)
        return hosts_among(urls, lambda host: self._has(kind, host))

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
def _load(path: str, state: tuple[object, ...]) -> Tombstones:
    del state
    table = storage.read_table(path)
    keys = (table.schema.metadata or {}).get(KEY, b"")
    names = SCHEMA.names if len(keys) == KEY_BYTES else [*SCHEMA.names, LIST.name]
    if not keys or len(keys) % KEY_BYTES or table.column_names != names:
        raise storage.DamagedError.of(path, "it is no list of forgotten pairs of this version")
    found: list[dict[tuple[str, bytes], int]] = [{} for _ in range(len(keys) // KEY_BYTES)]
    for kind, digest, sieve, *number in zip(*(table[name].to_pylist() for name in names), strict=True):
        found[number[0] if number else 0][kind, digest] = sieve
    lists = [Tombstones(keys[at * KEY_BYTES :][:KEY_BYTES], hashes) for at, hashes in enumerate(found)]
    return dataclasses.replace(lists[0], others=tuple(lists[1:]))


def addresses(table: pa.Table) -> list[str]:
    """The columns of a table with URLs of its images."""
    return [name for name in ("url", "url_as_found", "final_url") if name in table.column_names]


def address(table: pa.Table, name: str) -> pa.Array:
    """A column of `addresses` as canonical URLs; "" where there is none."""
    column = hashing.as_array(pc.fill_null(table[name], ""))
    if name != "final_url" or table[name].null_count == len(table):
        return column
    urls, codes = clean.canonical_urls(column)
    return pc.if_else(pa.array(codes == 0), urls, "")  # a server may send any Location


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
