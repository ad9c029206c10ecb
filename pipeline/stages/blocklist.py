"""Lists of content that must not enter a set: --blocklist. gather asks them before the fetch, fetch after it.

    https://a.example/picture.jpg     a URL, of an image or of a page; without a scheme: under http and https
    bad.example                       a domain with its subdomains; also *.bad.example, ||bad.example^ and hosts files
    d41d8cd98f00b204e9800998ecf8427e  md5 (32 digits), sha1 (40) or sha256 (64) of the file of an image, as served
    e0f0f8f8fcfcfefe                  perceptual hash (16 digits), as the column `phash`; /2: the bits that may differ
    pdq:f8f8f0cc...                   PDQ hash (64 digits; needs the package pdqhash); /31: the bits that may differ
    sha256:... url:... domain:...     the same with the kind before it
    # a comment

The lists are read in pieces. Only hashes of the entries are kept: 16 to 32 bytes an entry, sorted, in files that the
workers map. Nothing of a listed URL is written in OUT.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline.dataset.tombstones import domains_of, hosts
from pipeline.engine import checks, hashing, storage
from pipeline.engine.options import option, show
from pipeline.engine.work import StageFolder, StepFolder
from pipeline.fetching.picture import Picture
from pipeline.schema import COLOUR_BYTES
from pipeline.stages.similar import has_contrast
from pipeline.stages.user_files import State, UserFiles
from pipeline.text import clean

LISTS = UserFiles("--blocklist")
BLOCKED = "blocklisted"  # the reason of a drop in gather and in fetch
ADDRESSES = ("url", "domain")  # kinds that gather asks for
FILES = {"md5": 32, "sha1": 40, "sha256": 64}  # kinds of files -> hexadecimal digits
PICTURES = {"phash": 16, "pdq": 64}  # kinds of pictures -> hexadecimal digits
UNKNOWN_LATER = ("md5", "sha1", "pdq")  # kinds that a fetched row does not tell
KINDS = (*ADDRESSES, *FILES, *PICTURES)
DISTANCES = {"phash": (2, 16), "pdq": (31, 64)}  # bits: where an entry names none, and the most that it may name
NEVER_FETCHED = ("bad_scheme", "url_too_long", "user_info", "svg_url")  # gather drops such URLs anyway
PIECE = 1 << 20  # bytes of a list that are read at a time
SHOWN = 3  # bad lines that a message names

Mask = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]  # (n, 2) or (n,)

# Forms of other lists -> the form above. A hosts file names the machine itself, too.
_REWRITES = (
    (r"(?:^|\s)#.*$", ""),
    (r"^!.*$", ""),
    (r"^(?:0\.0\.0\.0|127\.0\.0\.1|::1?)\s+(?:localhost\S*|0\.0\.0\.0|local|broadcasthost|ip6-\S+)$", ""),
    (r"^(?:0\.0\.0\.0|127\.0\.0\.1|::1?)\s+(\S+)$", r"domain:\1"),
    (r"^\|\|([^/^$|]+)\^?$", r"domain:\1"),
    (r"^\*\.([^/]+)$", r"domain:\1"),
)
# The kind of an entry without a prefix: the first pattern that fits.
_SHAPES = (
    *((kind, rf"^[0-9a-fA-F]{{{digits}}}$") for kind, digits in FILES.items()),
    ("phash", rf"^[0-9a-fA-F]{{{PICTURES['phash']}}}(?:/\d+)?$"),
    ("url", r"^[A-Za-z][A-Za-z0-9+.-]*://"),
    ("path", r"/"),
    ("domain", r"^[^\s:@]+$"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlocklistSettings:
    """The option that names the lists. gather declares it, and fetch reads it, too."""

    title: ClassVar[str] = ""

    blocklist: tuple[str, ...] = option(
        (),
        help="lists of URLs, domains, md5, sha1, sha256 of images and perceptual hashes, one a line, that never enter "
        "the set (docs/data.md)",
        default_text="none",
        metavar="FILE",
        check=checks.readable_file,
        published=LISTS.described,
    )


@dataclasses.dataclass(frozen=True)
class Blocklist:
    """The entries of all lists.

    Attributes:
        entries: kind -> (n, w) sorted words without repetition: the 128-bit hash of a URL or domain (w = 2), the first
            16 bytes of the hash of a file (2), a perceptual hash and the bits that may differ (2; of PDQ 5).
    """

    entries: Mapping[str, Words]

    @classmethod
    def read(cls, paths: Sequence[str]) -> Blocklist:
        """Reads lists. The last result is kept.

        Raises:
            UsageError: a list cannot be read, has no entry, or has a line that is none.
        """
        return _read(tuple(paths), LISTS.states(paths))

    def digest(self, *kinds: str) -> str | None:
        """A digest of the entries of some kinds; None: there are none."""
        found = [self.entries[kind] for kind in kinds]
        if not sum(map(len, found)):
            return None
        state = xxhash.xxh3_128()
        for words in found:
            state.update(len(words).to_bytes(8, "little"))
            state.update(words.tobytes())
        return state.hexdigest()

    def write(self, folder: StepFolder) -> None:
        """Writes the files that `load` maps, unless they are there."""
        digest = self.digest(*KINDS)
        if (folder.manifest(0) or {}).get("digest") == digest:
            return
        storage.remove(folder.path)
        for kind, words in self.entries.items():
            storage.save_array(folder.file(0, kind), words)
        folder.write_manifest(0, {"digest": digest, **{kind: len(words) for kind, words in self.entries.items()}})

    @classmethod
    def load(cls, folder: StepFolder) -> Blocklist | None:
        """Maps the files of `write`, once for each worker; None: there are none."""
        return _load(folder, storage.changed(folder.path))

    # ------------------------------------------------------------------------------------------------------ questions

    def among_urls(self, urls: pa.Array) -> Mask:
        """True for each canonical URL that is listed, or whose host is in a listed domain: (rows,)."""
        found = _among(hashing.hash_strings(urls), self.entries["url"])
        if not len(self.entries["domain"]):
            return found
        encoded = hosts(urls).dictionary_encode()
        names = [domains_of(host.rstrip(".")) or [""] for host in encoded.dictionary.to_pylist()]
        if not names:
            return found
        flat = hashing.hash_strings(pa.array([name for some in names for name in some], pa.string()))
        starts = np.cumsum([0, *map(len, names)])[:-1]
        listed = np.logical_or.reduceat(_among(flat, self.entries["domain"]), starts)
        return found | listed[encoded.indices.to_numpy()]

    def among_pages(self, urls: pa.Array) -> Mask:
        """`among_urls` for the URLs of pages, as found."""
        encoded = urls.dictionary_encode()
        if not len(encoded.dictionary) or not any(len(self.entries[kind]) for kind in ADDRESSES):
            return np.zeros(len(urls), np.bool_)
        return self.among_urls(clean.canonical_urls(encoded.dictionary)[0])[encoded.indices.to_numpy()]

    def served(self, body: bytes | bytearray | memoryview, sha256: bytes, final_url: str | None) -> bool:
        """True if an image is listed by its bytes as served, or by the URL behind redirects."""
        for kind in FILES:
            if len(self.entries[kind]):
                digest = sha256 if kind == "sha256" else hashlib.new(kind, body, usedforsecurity=False).digest()
                if _among(_file_words([digest]), self.entries[kind])[0]:
                    return True
        return final_url is not None and bool(self.among_urls(clean.canonical_urls(pa.array([final_url]))[0])[0])

    def among_fetched(self, rows: pa.Table) -> Mask:
        """True for each row of FETCHED that is listed by what the row has: final_url, sha256, perceptual hash.

        Its md5, sha1 and PDQ hash are not known (UNKNOWN_LATER).
        """
        final = hashing.as_array(rows["final_url"].fill_null(""))
        listed = self.among_urls(clean.canonical_urls(final)[0]) & rows["final_url"].is_valid().to_numpy()
        good = np.flatnonzero(pc.equal(rows["status"], "ok").to_numpy())
        columns = [rows[name].take(pa.array(good)).to_pylist() for name in ("image_sha256", "phash", "colours")]
        for row, sha256, phash, colours in zip(good.tolist(), *columns, strict=True):
            listed[row] |= bool(_among(_file_words([sha256]), self.entries["sha256"])[0])
            listed[row] |= self._is_shown(phash, colours)
        return listed

    def shown(self, picture: Picture) -> bool:
        """True if a picture is listed by a perceptual hash. A plain picture is not: its hash is noise."""
        if len(listed := self.entries["pdq"]) and picture.pdq is not None:
            found = np.frombuffer(bytes.fromhex(picture.pdq), ">u8").astype(np.uint64)
            if (np.bitwise_count(listed[:, :4] ^ found).sum(axis=1) <= listed[:, 4]).any():
                return True
        return self._is_shown(picture.phash, picture.colours)

    def _is_shown(self, phash: int, colours: bytes) -> bool:
        listed = self.entries["phash"]
        near = np.bitwise_count(listed[:, 0] ^ np.uint64(phash)) <= listed[:, 1]
        return bool(near.any()) and bool(has_contrast(np.frombuffer(colours, np.uint8).reshape(1, COLOUR_BYTES))[0])


def _among(words: Words, ascending: Words) -> Mask:
    """True for each pair of words (n, 2) that is among sorted ones."""
    found = np.zeros(len(words), np.bool_)
    if not len(ascending) or not len(words):
        return found
    high = ascending[:, 0]
    place, last = np.searchsorted(high, words[:, 0]), np.searchsorted(high, words[:, 0], "right")
    for row in np.flatnonzero(last > place).tolist():
        found[row] = bool((ascending[place[row] : last[row], 1] == words[row, 1]).any())
    return found


def _file_words(digests: Sequence[bytes]) -> Words:
    """The first 16 bytes of digests: (n, 2)."""
    return np.frombuffer(b"".join(digest[:16] for digest in digests), ">u8").astype(np.uint64).reshape(-1, 2)


def blocklist_of(gather: StageFolder) -> StepFolder:
    """Where the stage gather keeps the entries."""
    return gather.step("blocklist")


@functools.lru_cache(maxsize=2)
def _load(folder: StepFolder, changed: int | None) -> Blocklist | None:
    if changed is None or folder.manifest(0) is None:
        return None
    return Blocklist({kind: storage.map_array(folder.file(0, kind)) for kind in KINDS})


# ------------------------------------------------------------------------------------------------------------ reading


@functools.lru_cache(maxsize=1)
def _read(paths: tuple[str, ...], states: tuple[State, ...]) -> Blocklist:
    del states
    found: dict[str, list[Words]] = {kind: [_none(kind)] for kind in KINDS}
    for path in paths:
        count = 0
        for first, lines in _pieces(path):
            for kind, words in parse(lines, path=path, first=first).items():
                found[kind].append(words)
                count += len(words)
        if not count:
            raise LISTS.refusal(path, "holds no entry")
    return Blocklist({kind: _distinct(np.concatenate(parts)) for kind, parts in found.items()})


def _none(kind: str) -> Words:
    return np.zeros((0, 5 if kind == "pdq" else 2), np.uint64)


def _distinct(words: Words) -> Words:
    words = words[np.lexsort(words.T[::-1])]
    return words[np.append(True, (words[1:] != words[:-1]).any(axis=1))[: len(words)]]


def _pieces(path: str) -> Iterator[tuple[int, pa.Array]]:
    """(number of the first line, lines) of a text file, which may be packed with gzip."""
    number, rest = 1, b""
    try:
        packed = checks.begins_with(path, b"\x1f\x8b")
        with gzip.open(storage.here(path), "rb") if packed else storage.reading(path) as file:
            while data := file.read(PIECE):
                whole, _, rest = (rest + data).rpartition(b"\n")
                if whole:
                    lines = whole.decode("utf-8", "replace").split("\n")
                    yield number, pa.array(lines, pa.string())
                    number += len(lines)
                if len(rest) > PIECE:
                    raise LISTS.refusal(path, f"line {number:,} is longer than {PIECE >> 20} MiB")
        if rest:
            yield number, pa.array([rest.decode("utf-8", "replace")], pa.string())
    except (OSError, EOFError) as error:
        raise LISTS.refusal(path, f"cannot be read ({error})") from None


def parse(lines: pa.Array, *, path: str = "", first: int = 1) -> dict[str, Words]:
    """The entries of some lines, by kind, as `Blocklist.entries`.

    Args:
        lines: of a list.
        path: of the list, for messages.
        first: the number of the first line.

    Raises:
        UsageError: lines are no entries. The message names the first of them.
    """
    text = pc.utf8_trim_whitespace(pc.replace_substring(lines, "\ufeff", ""))
    for pattern, form in _REWRITES:
        text = pc.replace_substring_regex(text, pattern, form)
    text = pc.utf8_trim_whitespace(text)
    filled = pc.greater(pc.binary_length(text), 0)
    numbers = np.flatnonzero(filled.to_numpy(zero_copy_only=False))
    text = text.filter(filled)
    kinds, values = _kinds(text)
    found: dict[str, list[Words]] = {kind: [] for kind in KINDS}
    bad = np.array([kind == "" for kind in kinds], np.bool_)
    for kind in dict.fromkeys(kinds[~bad].tolist()):
        rows = np.flatnonzero(kinds == kind)
        for target, words, wrong in _words(kind, values.take(pa.array(rows))):
            found[target].append(words)
            bad[rows[wrong]] = True
    if bad.any():
        places = np.flatnonzero(bad)
        some = ", ".join(f"line {first + numbers[at]:,} ({show(text[at].as_py())})" for at in places[:SHOWN].tolist())
        more = " and more" if len(places) > SHOWN else ""
        raise LISTS.refusal(path, f"{some}{more}: must be a URL, a domain, md5, sha1, sha256 or a perceptual hash")
    return {kind: _distinct(np.concatenate([_none(kind), *parts])) for kind, parts in found.items()}


def _kinds(text: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """The kind of each entry ("": none), and the entry without its prefix."""
    parts = pc.extract_regex(text, rf"^(?P<kind>(?i:{'|'.join(KINDS)})):\s*(?P<value>\S.*)$")
    named = parts.is_valid()
    values = pc.if_else(named, pc.struct_field(parts, "value"), text)
    kinds = np.array(pc.utf8_lower(pc.struct_field(parts, "kind")).fill_null("").to_pylist(), object)
    bare = pc.invert(pc.match_substring(values, "://")).to_numpy(zero_copy_only=False)
    kinds[(kinds == "url") & bare] = "path"
    for kind, pattern in _SHAPES:
        fits = pc.match_substring_regex(text, pattern).to_numpy(zero_copy_only=False)
        kinds[(kinds == "") & fits] = kind
    return kinds, values


def _words(kind: str, values: pa.Array) -> Iterator[tuple[str, Words, Mask]]:
    """(kind, words of the good entries, True for each bad entry) of entries of one kind."""
    if kind == "path":  # a URL without a scheme
        for scheme in ("http", "https"):
            yield from _words("url", pc.binary_join_element_wise(f"{scheme}://", values, ""))
        return
    if kind in ADDRESSES:
        yield kind, *(_url_words(values) if kind == "url" else _domain_words(values))
        return
    digits = {**FILES, **PICTURES}[kind]
    good = pc.match_substring_regex(values, rf"^[0-9a-fA-F]{{{digits}}}{'' if kind in FILES else '(?:/[0-9]{1,2})?'}$")
    wrong = ~good.to_numpy(zero_copy_only=False)
    entries = values.filter(good).to_pylist()
    if kind in FILES:
        yield kind, _file_words([bytes.fromhex(entry) for entry in entries]), wrong
        return
    usual, most = DISTANCES[kind]
    hashes = b"".join(bytes.fromhex(entry[:digits]) for entry in entries)
    bits = np.array([int(entry[digits + 1 :] or usual) for entry in entries], np.uint64)
    words = np.column_stack([np.frombuffer(hashes, ">u8").astype(np.uint64).reshape(len(entries), digits // 16), bits])
    wrong[np.flatnonzero(~wrong)[bits > most]] = True
    yield kind, words[bits <= most], wrong


def _url_words(values: pa.Array) -> tuple[Words, Mask]:
    urls, codes = clean.canonical_urls(values)
    ignored = np.isin(codes, [clean.URL_REASONS.index(reason) for reason in NEVER_FETCHED])
    return hashing.hash_strings(urls.filter(pa.array(codes == 0))), (codes > 0) & ~ignored


def _domain_words(values: pa.Array) -> tuple[Words, Mask]:
    """Domains as canonical URLs hold them."""
    names = pc.utf8_trim(values, ".")
    urls, codes = clean.canonical_urls(pc.binary_join_element_wise("http://", names, "/", ""))
    strange = pc.match_substring_regex(names, r"[/?#@:\s]").to_numpy(zero_copy_only=False)
    wrong = (codes > 0) | strange
    found = pc.utf8_rtrim(hosts(urls.filter(pa.array(~wrong))), ".")
    return hashing.hash_strings(hashing.as_array(found)), wrong
