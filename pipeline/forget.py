"""Takes pairs out of a set, for good: the published files, the stages' folders, and every later build of the folder.

    python -m pipeline.forget OUT --url https://example.org/a.jpg     an image with all its texts and all its URLs
    python -m pipeline.forget OUT --domain example.org                images of this host and of the hosts below it
    python -m pipeline.forget OUT --page-domain example.org           pairs that were found on pages of these hosts
    python -m pipeline.forget OUT --uid 0d5c...                       one pair, by its key; other texts stay
    python -m pipeline.forget OUT --sha256 9f86...                    an image, by its bytes as served or as stored
    python -m pipeline.forget OUT --list FILE                         many of them, one a line: `domain example.org`

Only the shards with such pairs are written again. The set is then the set before less these pairs: no other pair moves
up. A crash leaves the old set or the new one. OUT/forgotten.parquet keeps keyed hashes of what was forgotten. So later
builds, retries and --redo in this folder do not bring it back. `--dry-run` only says what would go.
"""

from __future__ import annotations

from pipeline.engine import interrupts, log_file, log_options

if __name__ == "__main__":
    interrupts.install("pipeline.forget")  # before the imports, which take a second

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import __version__
from pipeline.dataset import damage, open_set, shrink, tombstones
from pipeline.dataset.errors import Damaged, NotFound
from pipeline.dataset.tombstones import KINDS, Tombstones, address, addresses, hosts_among, normalise, normalise_all
from pipeline.engine import checks, cli, hashing, object_store, object_view, storage, work
from pipeline.engine.cli import BELOW, CRASHED, DONE, MISSING, USAGE, MissingInput, Parser, UsageError, fail
from pipeline.engine.display import sanitize
from pipeline.engine.journal import FOLDER, Change
from pipeline.schema import STAGES
from pipeline.stages import purge
from pipeline.stages.purge import Mask, Uids
from pipeline.stages.selection import JOINED
from pipeline.text import clean, image_variants

PROGRAM = "pipeline.forget"
FLAGS = tuple(kind.replace("_", "-") for kind in KINDS)
SHOWN = 3  # bad lines that a message names
STORE_PATIENCE_S = 600.0  # for a store that holds the folder
VERSIONS = (
    "the bucket may keep older versions of objects, or deleted ones: what was forgotten can be had again, until a "
    "lifecycle rule (S3: NoncurrentVersionExpiration), the end of its soft delete (Google) or you remove them"
)


@dataclasses.dataclass(frozen=True)
class Selection:
    """What to forget, in the form in which the rows hold it.

    Attributes:
        url: canonical URLs of images.
        domain, page_domain: hosts; each covers the hosts below it.
        uid: hexadecimal, 32 digits.
        sha256: hexadecimal, 64 digits.
    """

    url: frozenset[str] = frozenset()
    domain: frozenset[str] = frozenset()
    page_domain: frozenset[str] = frozenset()
    uid: frozenset[str] = frozenset()
    sha256: frozenset[str] = frozenset()

    @classmethod
    def of(cls, given: Iterable[tuple[str, str]]) -> Selection:
        """The selection of (kind, value) pairs, as a user writes them.

        Raises:
            ValueError: a value is not of its kind.
        """
        named: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for kind, value in given:
            named[kind].append(value)
        found = {kind: normalise_all(kind, values) for kind, values in named.items()}
        for error in (value for values in found.values() for value in values if isinstance(value, ValueError)):
            raise error
        return cls(**{kind: frozenset(map(str, values)) for kind, values in found.items()})

    def __len__(self) -> int:
        return sum(len(getattr(self, kind)) for kind in KINDS)

    def rows(self, table: pa.Table) -> Mask:
        """True for each row that the selection covers, by those of its columns that the table has."""
        mask = self.images(table)
        if self.page_domain and "page_url" in table.column_names:
            mask |= hosts_among(table["page_url"], lambda host: _below(host, self.page_domain))
        for name, values in {"uid": self.uid, "key": self.uid}.items():
            mask |= _digests(table, name, values)
        return mask

    def images(self, table: pa.Table) -> Mask:
        """True for each row that the selection covers by its image: all texts of such an image go."""
        mask = np.zeros(table.num_rows, np.bool_)
        for name in addresses(table):
            mask |= self.urls(address(table, name))
        for name in ("image_sha256", "stored_sha256", "original_sha256", "sha256"):
            mask |= _digests(table, name, self.sha256)
        return mask

    def urls(self, column: pa.Array | pa.ChunkedArray) -> Mask:
        """True for each canonical URL that the selection covers by URL, with its variants, or by domain."""
        mask = self._named(column)
        if self.url:
            mask |= np.isin(_variants(column), self._variants)
        return mask

    def with_addresses(self, found: set[str]) -> tuple[Self, bool]:
        """The selection with other URLs of its images, and whether rows may have them that it did not cover."""
        urls = pa.array(sorted(found), pa.string())
        more = urls.filter(pa.array(~self._named(urls)))
        uncovered = not self.urls(more).all()
        return dataclasses.replace(self, url=self.url.union(more.to_pylist())), uncovered

    def _named(self, column: pa.Array | pa.ChunkedArray) -> Mask:
        """True for each URL that stands in the list of tombstones which `buried` makes, alone or by its domain."""
        mask = np.zeros(len(column), np.bool_)
        if self.url:
            mask |= _is_in(column, self.url)
        if self.domain:
            mask |= hosts_among(column, lambda host: _below(host, self.domain))
        return mask

    @functools.cached_property
    def _variants(self) -> npt.NDArray[np.uint64]:
        return np.unique(_variants(pa.array(sorted(self.url), pa.string())))

    def buried(self, stones: Tombstones, uids: Iterable[bytes], images: Iterable[str]) -> Tombstones:
        """The list of tombstones with this selection, the pairs that it covers, and their images as served."""
        for kind in KINDS:
            stones = stones.add(kind, sorted(getattr(self, kind)))
        return stones.add("uid", sorted(uid.hex() for uid in uids)).add("sha256", sorted(images))


@dataclasses.dataclass(frozen=True)
class SelectionOf(Selection):
    """What another set has forgotten. Its list of tombstones joins that of the folder."""

    stones: Tombstones = dataclasses.field(default_factory=Tombstones.new)

    def __len__(self) -> int:
        return sum(len(one.hashes) for one in self.stones.lists)

    def rows(self, table: pa.Table) -> Mask:
        return super().rows(table) | self.stones.among_rows(table)

    def images(self, table: pa.Table) -> Mask:
        return super().images(table) | self.stones.among_images(table)

    def urls(self, column: pa.Array | pa.ChunkedArray) -> Mask:
        return super().urls(column) | self.stones.among_urls(hashing.as_array(column))

    def buried(self, stones: Tombstones, uids: Iterable[bytes], images: Iterable[str]) -> Tombstones:
        return super().buried(stones.join(self.stones), uids, images)


def _variants(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """The hash of the image of each URL: dedup takes the URLs with one hash as one image."""
    return image_variants.variants(hashing.as_array(pc.fill_null(column, "")))[0]


def _below(host: str, domains: frozenset[str]) -> bool:
    return not domains.isdisjoint(tombstones.domains_of(host))


def _is_in(column: pa.Array | pa.ChunkedArray, values: Iterable[Any]) -> Mask:
    found = pc.is_in(column, pa.array(list(values), column.type))
    return hashing.as_array(found).to_numpy(zero_copy_only=False)


def _digests(table: pa.Table, name: str, values: frozenset[str]) -> Mask:
    """True for each row whose digest is given. The column holds bytes or hexadecimal."""
    if not values or name not in table.column_names:
        return np.zeros(table.num_rows, np.bool_)
    is_text = pa.types.is_string(table[name].type)
    width = None if is_text else table[name].type.byte_width
    fitting = [value for value in values if width in (None, len(value) // 2)]
    return _is_in(table[name], fitting if is_text else [bytes.fromhex(value) for value in fitting])


def read_list(path: str) -> list[tuple[str, str]]:
    """(kind, value) of each line of a list. Empty lines and lines that begin with # are left out.

    A line is `KIND VALUE` with a kind of FLAGS, or a URL, a uid or a sha256 alone.

    Raises:
        MissingInput: the file cannot be read.
        UsageError: lines are bad, or there is none.
    """
    try:
        with checks.store_failures() if checks.is_object(path) else contextlib.nullcontext():
            lines = storage.read(path).decode("utf-8-sig", "replace").splitlines()
    except OSError as error:
        raise MissingInput(f"--list {path}: cannot be read ({error.strerror})") from None
    except (UsageError, MissingInput) as error:
        raise type(error)(f"--list {path}: {error}") from None
    found: dict[str, list[tuple[int, str]]] = {kind: [] for kind in KINDS}
    bad: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            kind, value = read_line(line.strip())
            found[kind].append((number, value))
        except ValueError as error:
            bad.append((number, str(error)))
    named: list[tuple[str, str]] = []
    for kind, values in found.items():
        for (number, _), known in zip(values, normalise_all(kind, [value for _, value in values]), strict=True):
            if isinstance(known, ValueError):
                bad.append((number, str(known)))
            else:
                named.append((kind, known))
    if bad:
        shown = "; ".join(f"line {number}: {sanitize(error)[:120]}" for number, error in sorted(bad)[:SHOWN])
        more = f"; and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
        raise UsageError(f"--list {path}: {len(bad):,} bad lines ({shown}{more})")
    if not named:
        raise UsageError(f"--list {path}: must name something to forget; it has no line")
    return named


def read_line(line: str) -> tuple[str, str]:
    """(kind, value) of a line.

    Raises:
        ValueError: the line names no kind.
    """
    first, _, rest = line.partition(" ")
    kind = first.rstrip(":").removeprefix("--")
    if rest and kind in FLAGS:
        return kind.replace("-", "_"), rest
    if re.match(r"https?://", line, re.IGNORECASE):
        return "url", line
    for kind, digits in (("uid", 32), ("sha256", 64)):
        if re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", line):
            return kind, line
    raise ValueError(f"{line!r} must be a URL, a uid, a sha256, or one of {', '.join(FLAGS)} and a value")


# ---------------------------------------------------------------------------------------------------------- the work


@dataclasses.dataclass(frozen=True)
class Forgotten:
    """What was forgotten, or would be.

    Attributes:
        pairs: that any file of the folder held.
        published: of them, pairs of the published set.
        shards: shard number -> its pairs that go.
        files: the number of files that change.
        digest: of the new manifest; None: the folder is not published.
        seconds: that it took.
        older_versions: the bucket keeps older versions of objects, so what was forgotten is still there.
    """

    pairs: int
    published: int
    shards: dict[int, int]
    files: int
    digest: str | None
    seconds: float
    older_versions: bool = False

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {**dataclasses.asdict(self), "shards": {str(number): count for number, count in self.shards.items()}}


def forget(root: str, selection: Selection, *, dry_run: bool = False) -> Forgotten:
    """Takes the pairs of a selection out of a folder.

    Args:
        root: OUT of a run, or a copy of its published files, on this machine or a store.
        selection: what goes.
        dry_run: nothing is changed.

    Raises:
        UsageError: the selection is empty, or the folder does not tell whose texts a sample holds.
        NotFound: the folder is no set.
        Damaged, DamagedError: a file is damaged, or another version wrote the set.
        Busy: a build runs in the folder.
        MissingInput: the store that holds the folder is away, or refuses. A dry run needs no right to write.
    """
    if not len(selection):
        raise UsageError("nothing to forget: name it with " + ", ".join(f"--{flag}" for flag in (*FLAGS, "list")))
    root = storage.absolute(root)
    on_store = checks.is_object(root)
    with checks.store_failures(patience=STORE_PATIENCE_S, writes=True) if on_store else contextlib.nullcontext():
        check_folder(root)
        with _as_it_is(root) if dry_run else work.lock_run_folder(root):
            _refuse_several_captions(root)
            found = _forget(root, selection, dry_run=dry_run)
        return dataclasses.replace(found, older_versions=on_store and object_store.keeps_versions(root))


@contextlib.contextmanager
def _as_it_is(root: str) -> Iterator[None]:
    """The block looks at a folder in which no run works now. Nothing is written, so no right to write is needed.

    Raises:
        Unfinished: a change was interrupted, and this user may not carry it out.
        Busy: a run works there.
    """
    work.settle(root)
    if holder := work.holder_of(root):
        raise work.Busy(root, holder)
    with object_view.glance(root):
        yield


def _forget(root: str, selection: Selection, *, dry_run: bool) -> Forgotten:
    """`forget` in a folder that is locked, or with `dry_run` looked at."""
    start = time.perf_counter()
    if not dry_run:
        storage.remove_stale_files(root)
    published = _published(root)
    images = set[str]()
    found, urls, selection = _find_all(root, published, selection, images)
    uids = Uids(found)
    covers = _covering(uids)
    if dry_run:
        numbers = published.numbers_of(uids.uids) if published else []
        shards = shrink.find(published, numbers, covers) if published else {}
        return Forgotten(len(uids.uids), sum(shards.values()), shards, 0, None, time.perf_counter() - start)
    change = Change(root)
    shards, digest = _prepare(change, published, selection, uids, urls)
    selection.buried(Tombstones.load(root) or Tombstones.new(), uids.uids, images).write(change.place(tombstones.FILE))
    files = len(change.paths()) - 1
    change.commit()
    pairs, seconds = len(uids.uids), time.perf_counter() - start
    return Forgotten(pairs, sum(shards.values()), shards, files, digest, seconds)


def _refuse_several_captions(root: str) -> None:
    """Refuses a copy of a set whose samples hold texts of other pairs: it does not tell whose texts they are.

    Raises:
        UsageError: dedup or dedup-images joined texts of several pairs, and their rows are not there.
    """
    path = os.path.join(root, "manifest.json")
    manifest = open_set.read_manifest(root) if storage.is_file(path) else {"ledger": []}
    dropped = {row["stage"]: row["dropped"] for row in manifest["ledger"]}
    joined = bool(dropped.get("dedup", {}).get(JOINED))
    if manifest.get("options", {}).get("captions", 1) > 1:
        joined |= not {*purge.REASONS["dedup-images"]}.isdisjoint(dropped.get("dedup-images", {}))
    if joined and not any(purge.units_of(root, "match/parts")):
        raise UsageError(
            f"{root!r} was built with --captions N, and is a copy without stages/: it does not tell which texts of a "
            "sample go. Run forget in the folder of the build"
        )


def check_folder(root: str) -> None:
    """Refuses a folder that no run made.

    Raises:
        NotFound: its message says what is missing.
    """
    if not storage.is_folder(root):
        raise NotFound(f"there is no folder {root!r}")
    stages = os.path.join(root, "stages")
    there = set(STAGES) & set(storage.names(stages))
    changing = storage.is_folder(os.path.join(root, FOLDER))
    if not there and not changing and not storage.is_file(os.path.join(root, "manifest.json")):
        raise NotFound(f"{root!r} holds neither manifest.json nor stages/: is it the --output of a run?")


def _published(root: str) -> shrink.Published | None:
    if not storage.is_file(os.path.join(root, "manifest.json")):
        return None
    return shrink.Published.of(root, open_set.read_manifest(root))


def _find_all(
    root: str, published: shrink.Published | None, selection: Selection, images: set[str]
) -> tuple[set[bytes], set[str], Selection]:
    """The uids and URLs of all rows that the selection covers, and the selection with all URLs of its images.

    An image goes with each URL that led to it: those of its variants, and those that were redirected to it. Only the
    rows that were fetched tell them. The rows with other texts were dropped before the fetch.
    """
    uncovered = True
    while uncovered:  # twice, as a rule; a further round needs URLs that the last one has found
        found = set[str]()
        uids, urls = _find(root, published, selection, images, found)
        selection, uncovered = selection.with_addresses(found)
    return uids, urls, selection


def _find(
    root: str, published: shrink.Published | None, selection: Selection, images: set[str], found_urls: set[str]
) -> tuple[set[bytes], set[str]]:
    """The uids and URLs of all rows that the selection covers, in the stages' folders and in the published metadata.

    `images` gets the sha256, as served, of the rows that the selection covers by a sha256. `found_urls` gets the URLs
    of the rows that it covers by their image.
    """
    by_hash = Selection(sha256=selection.sha256)  # of a list of tombstones: none, since it names the images as served

    def covers(table: pa.Table) -> Mask:
        for name in ("image_sha256", "original_sha256") if selection.sha256 else ():
            if name in table.column_names:
                found = table[name].filter(pa.array(by_hash.rows(table))).drop_null().to_pylist()
                images.update(value if isinstance(value, str) else value.hex() for value in found)
        by_image = selection.images(table)
        if by_image.any():
            some = table.select(addresses(table)).filter(pa.array(by_image))
            for name in some.column_names:
                values = address(some, name)
                if name == "final_url":  # the row may be covered by the URL that it was redirected from
                    values = values.filter(pa.array(selection.urls(values)))
                found_urls.update(values.to_pylist())
            found_urls.discard("")
        return selection.rows(table)

    uids, urls = purge.find(root, covers)
    if published is None:
        return uids, urls
    if selection == Selection(uid=selection.uid):
        numbers = published.numbers_of(bytes.fromhex(uid) for uid in selection.uid)
    elif any(True for _ in purge.wide_files(root)):
        numbers = []  # the stages hold every published row
    else:
        numbers = list(published.infos)
    columns = ["key", "url", "url_as_found", "final_url", "page_url", "original_sha256", "sha256"]
    for number in numbers:
        table = published.metadata(number, columns)
        rows = table.filter(pa.array(covers(table)))
        uids.update(bytes.fromhex(key) for key in rows["key"].to_pylist())
        urls.update(rows["url"].to_pylist())
    return uids, urls


def _covering(uids: Uids) -> Callable[[pa.Table], Mask]:
    keys = pa.array(sorted(uid.hex() for uid in uids.uids), pa.string())
    return lambda table: hashing.as_array(pc.is_in(table["key"], keys)).to_numpy(zero_copy_only=False)


def _prepare(
    change: Change,
    published: shrink.Published | None,
    selection: Selection,
    uids: Uids,
    urls: set[str],
) -> tuple[dict[int, int], str | None]:
    """Prepares all files. Returns the pairs that leave each shard, and the digest of the new manifest."""
    root = change.root
    own = urls - _shared(root, uids, urls)
    purging = purge.Purge(
        change,
        uids,
        covers_rejected=_covering_rejected(selection, uids),
        covers_urls=lambda table: selection.rows(table) | _is_in(table["url"], urls),
        covers_images=lambda table: selection.urls(table["url"]) | _is_in(table["url"], own),
        by_image=selection != Selection(page_domain=selection.page_domain, uid=selection.uid),
    )
    counts = purging.run()
    if published is None:
        if storage.is_folder(os.path.join(root, "stages")):
            for name in ("shards", "metadata", "report", "README.md", "croissant.json"):
                if storage.exists(os.path.join(root, name)):
                    change.remove(name)  # of a publication that was interrupted
        purging.correct_infos(published=0)
        return {}, None
    numbers = published.numbers_of(uids.uids | purging.joined.uids)
    shrunk = shrink.shrink(change, published, numbers, _covering(uids), purging.joined.without)
    for table in shrunk.gone:
        found = [counts.row_hash.get(bytes.fromhex(key), 0) for key in table["key"].to_pylist()]
        hashes = hashing.mix(np.array(found, np.uint64), hashing.column_hash(hashing.as_array(table["kept_by"])))
        counts.add("publish", hashes, {})
    purging.correct_infos(published=shrunk.rows)
    rows = (counts.corrected(row, published=shrunk.rows) for row in published.manifest["ledger"])
    ledger = [purging.without_examples(row) for row in rows]
    manifest = shrink.publish(change, published, shrunk, ledger)
    shards = {
        number: info.rows - _rows(shrunk, number) for number, info in published.infos.items() if number in shrunk.tables
    }
    return shards, manifest["digest"]


def _rows(shrunk: shrink.Shrunk, number: int) -> int:
    return shrunk.infos[number].rows if number in shrunk.infos else 0


def _covering_rejected(selection: Selection, uids: Uids) -> Callable[[pa.Table], Mask]:
    """REJECTED rows with a URL of the selection, and the pairs that go. gather keeps URLs there as it found them."""

    keys_among = _covering(uids)

    def covers(table: pa.Table) -> Mask:
        if not table.num_rows:
            return np.zeros(0, np.bool_)
        urls, _ = clean.canonical_urls(table["url"])
        pairs = hashing.pair_keys(urls, hashing.as_array(table["text"])).uid
        found = selection.urls(urls) | uids.mask(pairs)
        if "uid" in table.column_names:  # that of a row whose URL is now that of a larger variant is another one
            found |= uids.mask(pc.fill_null(table["uid"], bytes(16)))
        return found | (keys_among(table) if "key" in table.column_names else False)

    return covers


def _shared(root: str, uids: Uids, urls: set[str]) -> set[str]:
    """Those of the URLs that pairs have which stay. They matter where archives hold images."""
    if not storage.is_folder(os.path.join(root, "stages/gather/images")):
        return set()
    return purge.find(root, lambda table: ~uids.mask(table["uid"]) & _is_in(table["url"], urls))[1]


# ------------------------------------------------------------------------------------------------------ command line


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Selection]:
    """The command line and its selection.

    Raises:
        UsageError, MissingInput: it is not valid.
    """
    parser = Parser(
        prog=f"python -m {PROGRAM}",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", metavar="OUT", help="folder of a run, or a copy of its published files; s3:// and gs://"
    )
    for flag, name in zip(FLAGS, ("URL", "HOST", "HOST", "KEY", "HEX"), strict=True):
        parser.add_argument(f"--{flag}", metavar=name, action="append", default=[], help="may be repeated")
    parser.add_argument("--list", metavar="FILE", action="append", default=[], help="one a line; # begins a comment")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and change nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    log_options.add_arguments(parser)
    parser.add_argument("--version", action="version", version=f"openwit {__version__}")
    cli.check_flags(argv, parser)
    args = parser.parse_args(argv)
    given = [pair for path in args.list for pair in read_list(path)]
    for flag in FLAGS:
        kind = flag.replace("-", "_")
        for value in getattr(args, kind):
            try:
                given.append((kind, normalise(kind, value)))
            except ValueError as error:
                raise UsageError(f"--{flag}: {sanitize(error)}") from None
    return args, Selection.of(given)


def report(found: Forgotten, *, dry_run: bool) -> str:
    """What was done, in lines for people."""
    shards = ", ".join(f"{number} ({count:,})" for number, count in list(found.shards.items())[:10])
    more = f" and {len(found.shards) - 10:,} more" if len(found.shards) > 10 else ""
    verb = "would forget" if dry_run else "forgot"
    lines = [f"{verb} {found.pairs:,} pairs, {found.published:,} of them published"]
    if found.shards:
        lines.append(f"shards (pairs): {shards}{more}")
    if not found.pairs:
        lines.append("no pair of the folder fits" + ("" if dry_run else "; later builds will leave such pairs out"))
    if not dry_run:
        lines.append(f"{found.files:,} files changed in {found.seconds:.1f} s")
    if found.digest:
        lines.append(f"digest {found.digest}")
    if found.older_versions and not dry_run:
        lines.append(VERSIONS)
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 busy or crash, 2 usage, 3 damaged, 4 nothing there."""
    words = sys.argv[1:] if argv is None else argv
    try:
        args, selection = parse(words)
        settings = log_options.settings_of(args)
        # The words are not logged: they name what is to be forgotten.
        with log_options.logging_for(settings, PROGRAM, (), output=args.folder) as ended:
            return ended(carry_out(args, selection))
    except UsageError as error:
        return fail(PROGRAM, error, USAGE)
    except MissingInput as error:
        return fail(PROGRAM, error, MISSING)
    except KeyboardInterrupt:
        return interrupts.report(PROGRAM)


def carry_out(args: argparse.Namespace, selection: Selection) -> int:
    """Does what the command line asks for; returns the exit code."""
    try:
        found = forget(args.folder, selection, dry_run=args.dry_run)
        log_file.note("done", dry_run=args.dry_run, pairs=found.pairs, published=found.published, files=found.files)
        if args.json:
            print(json.dumps(found.to_json(), indent=1))
        elif not args.quiet or args.dry_run:
            print(report(found, dry_run=args.dry_run))
        return DONE
    except UsageError as error:
        return fail(PROGRAM, error, USAGE)
    except (MissingInput, NotFound) as error:
        return fail(PROGRAM, error, MISSING)
    except Damaged as error:
        return fail(PROGRAM, error, BELOW)
    except storage.DamagedError as error:
        return fail(PROGRAM, damage.with_remedy(error), CRASHED)
    except (work.Busy, OSError) as error:
        return fail(PROGRAM, cli.with_next_step(error) if isinstance(error, OSError) else error, CRASHED)
    except KeyboardInterrupt:
        return interrupts.report(PROGRAM)


if __name__ == "__main__":
    sys.exit(interrupts.ending(main()))
