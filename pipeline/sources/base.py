"""What a reader is: one object for each format. It finds, checks and reads the inputs of that format.

A new source is one file with a subclass of `Reader` and one entry in `READERS`. Nothing else in the project knows the
formats. These all ask the readers: `--input-format`, the messages that list the formats, the checks before a run, the
estimate of `--plan`, and the stages gather and fetch.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import IO, Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.input_errors import InputError, UnreadableInputError, is_remote, public
from pipeline.engine.ledger import Ledger
from pipeline.engine.opening import open_input, read_start
from pipeline.schema import CANDIDATES, TEXT_SOURCES, URL_SOURCES
from pipeline.sources.pieces import Piece

T = TypeVar("T")

BATCH_ROWS = 65_536
MOST_OPENED = 16  # remote inputs of a format that a check opens, at most: a crawl has 90,000
OPENED_AT_ONCE = 8
ITEMS_OF_CALL = 64  # of a thread, at most
SNIFF_BYTES = 64 * 1024  # from the start of a file, that tell its format
SET = "set"  # the format of a published set
WEBDATASET = "webdataset"  # the format of a tar of samples
MAX_WHOLE = 256 << 20  # bytes of a file that is read as a whole, unpacked
GZIP = b"\x1f\x8b"  # begins a gzip file

# Where an image lies inside an input. Fetch reads it from there.
ARCHIVED_IMAGES = pa.schema(
    [
        pa.field("url", pa.string(), nullable=False),  # as in the archive
        pa.field("offset", pa.int64(), nullable=False),  # of the record
        pa.field("length", pa.int32(), nullable=False),  # bytes of the image
        pa.field("mime", pa.string(), nullable=False),
    ]
)


class SettingsError(InputError):
    """The options do not fit an input. Other options can read it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A file that the user named.

    `root` is the folder (or the base URL) that `name` is relative to. `format` is told by the place of the file, where
    its name and its bytes do not tell.
    """

    name: str
    path: str
    root: str = ""
    size: int | None = None
    format: str | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Input:
    """One file to read, or one part of a large file.

    Attributes:
        name: stable name, source_file in the output; the parts of one file share it.
        path: what is opened, an absolute path or a URL.
        format: the key of its reader in `READERS`.
        bytes: size of the whole file; None if only a server knows it.
        part: first and last (exclusive) piece, as the reader counts pieces; None for the whole file.
        found: the file as the user named it; None: not known.
    """

    name: str
    path: str
    format: str
    bytes: int | None = None
    part: tuple[int, int] | None = None
    found: Found | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class ReadSettings:
    """The options that decide what is read. A reader uses those that concern its format."""

    url_column: str = "url"
    text_column: str = "text"
    columns: tuple[str, ...] = ()  # the names of the columns of CSV and TSV files that do not hold them


class Reader(abc.ABC):
    """Everything about one format. A reader holds no state, so all threads and processes share one instance.

    Attributes:
        name: its key in `READERS`, and a value of --input-format.
        suffixes: the ends of file names in lower case, with those of compressed files.
        name_is_vague: files of other formats may have these names, so the first bytes of local files decide.
        vague_suffixes: ends of names that tell little. Of such a file in a folder, `holds_pairs` decides.
        is_general: more special formats begin in the same way, so its `sniff` is asked last.
        knows_pages: the pairs come from pages of any language, so gather names their language by default.
        bytes_per_pair: bytes of input for each pair before any drop, for estimates.
        unknown_bytes: the size that is assumed for an input without a known size.
        kernels: modules that `read` loads where enough is read.
        piece_bytes: of a piece of an input for a sample, about.
        stores_images: its images come from another data set, which knows more of them (`read_stored`).
        keeps_form: they are encoded as the fetch stores them.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    bytes_per_pair: ClassVar[float]
    name_is_vague: ClassVar[bool] = False
    vague_suffixes: ClassVar[tuple[str, ...]] = ()
    is_general: ClassVar[bool] = False
    knows_pages: ClassVar[bool] = False
    unknown_bytes: ClassVar[int] = 350 << 20  # of a WAT file of Common Crawl
    kernels: ClassVar[tuple[str, ...]] = ()
    piece_bytes: ClassVar[int] = 2 << 20
    stores_images: ClassVar[bool] = False
    keeps_form: ClassVar[bool] = False

    def claims(self, name: str) -> bool:
        """True if the name is that of a file of this format."""
        return name.lower().endswith(self.suffixes)

    @abc.abstractmethod
    def sniff(self, head: bytes) -> bool:
        """True if a file of this format may begin with `head`: up to SNIFF_BYTES bytes, gzip undone."""

    def holds_pairs(self, head: bytes) -> bool:
        """True if a local file with one of `vague_suffixes` that begins with `head` holds pairs, for sure."""
        return False

    def expand(self, found: Found) -> list[Input]:
        """The inputs of a file: one, or the parts of a large file, or the members of a pack.

        Raises:
            InputError, OSError: the file must be opened for this, and cannot be read.
        """
        return [Input(found.name, found.path, self.name, found.size)]

    def check(self, inputs: Sequence[Input], settings: ReadSettings) -> None:
        """Checks the inputs of this format before anything is written. The default opens the first remote inputs.

        Raises:
            SettingsError: the options do not fit an input.
            InputError, OSError: an input cannot be read.
        """
        remote = [item for item in inputs if is_remote(item.path)]
        for_each(lambda item: open_input(item.path).stream.close(), remote[:MOST_OPENED])

    @abc.abstractmethod
    def read(
        self, source: Input, *, ledger: Ledger, images: list[pa.RecordBatch], settings: ReadSettings
    ) -> Iterator[pa.RecordBatch]:
        """The pairs of an input before any cleaning, in batches of CANDIDATES, always in the same order.

        Args:
            source: an input that `expand` made.
            ledger: counts records and rows: rows_in = rows + drops. A record that cannot be read is a lost record.
            images: the reader appends batches of ARCHIVED_IMAGES, if the input holds images.
            settings: the options of the user.

        Raises:
            UnreadableInputError: the input has another format.
            InputError: its transfer broke.
        """

    def read_image(self, path: str, offset: int, *, max_bytes: int) -> bytes | None:
        """The image that `read` noted at `offset`; None if it is missing or larger than `max_bytes`.

        Raises:
            InputError: the input cannot be read now.
        """
        return None

    def read_stored(self, path: str, offset: int, *, max_bytes: int) -> tuple[bytes, dict[str, Any]] | None:
        """As `read_image`, with what the input knows of the image, for a reader with `stores_images`."""
        return None

    def result_of(self, path: str) -> str:
        """The version of the rows behind stored images; "": not known."""
        return ""

    def understands(self, source: Input) -> bool:
        """True if any byte of an input can be understood. It is asked if all records of the input are lost.

        Raises:
            InputError, OSError: the input cannot be opened.
        """
        return True

    def size(self, item: Input) -> int:
        """Bytes of the whole file, or an assumed number where the size is not known."""
        return self.unknown_bytes if item.bytes is None else item.bytes

    def unit(self, item: Input) -> str:
        """What `amount` and the pieces of an input count: "bytes", or "rows" where the file tells their number."""
        return "bytes"

    def amount(self, item: Input) -> float | None:
        """How much there is of an input, in its `unit`; None: it is not known without a request.

        Raises:
            InputError, OSError: a local file cannot be read.
        """
        return item.bytes

    def slots(self, item: Input, size: int) -> int:
        """The number of pieces of about `size` bytes; 0: the reader takes whole inputs only, so there are none."""
        return 0

    def cut(self, item: Input, slot: int, size: int, target: str, settings: ReadSettings) -> Piece:
        """Writes a slot of an input to the file `target`, which `read` takes. See `sources.pieces`.

        Args:
            item: an input that `expand` made.
            slot: number of the piece; if the input turns out to have fewer, it counts on from the first one.
            size: of a piece in bytes, about.
            target: path of the file. It is not written if nothing begins in the slot.
            settings: the options of the user.

        Raises:
            InputError, OSError: the input cannot be read.
        """
        raise NotImplementedError

    def expected_rows(self, item: Input) -> float:
        """A rough number of pairs in an input. It sizes the exchanges. The result does not depend on it."""
        return self.size(item) / self.bytes_per_pair


# ---- for readers


def packed(*suffixes: str, by: Iterable[str]) -> tuple[str, ...]:
    """Each suffix alone and with each compression: packed(".csv", by=[".gz"]) is (".csv", ".csv.gz")."""
    return tuple(suffix + compression for suffix in suffixes for compression in ("", *by))


def file_name(path: str) -> str:
    """The last part of a path, or of a URL without its query. Formats are told by it."""
    return PurePosixPath(public(path).replace(os.sep, "/")).name


def open_bytes(path: str) -> IO[bytes]:
    """Opens an input for one read from its first byte on; see `pipeline.engine.opening`."""
    return open_input(path).stream


def read_head(path: str) -> bytes:
    """The first bytes of a file, SNIFF_BYTES at most of a plain file, gzip undone: what `Reader.sniff` takes.

    Raises:
        InputError: the input cannot be opened, or a transfer broke.
        OSError: a local file cannot be read.
    """
    head = read_start(path, SNIFF_BYTES)
    return _inflate(head) if head.startswith(GZIP) else head


def _inflate(data: bytes) -> bytes:
    """What the gzip members at the start of `data` hold, as far as they go."""
    out = io.BytesIO()
    while data[:2] == GZIP and out.tell() < SNIFF_BYTES:
        member = zlib.decompressobj(31)
        try:
            out.write(member.decompress(data, SNIFF_BYTES))
        except zlib.error:
            break
        data = member.unused_data
    return out.getvalue()


def read_whole(path: str, *, max_bytes: int = MAX_WHOLE) -> bytes:
    """The whole content of a file, for files that must be in memory. gzip is undone, as the first bytes tell.

    Raises:
        InputError: the file has more than `max_bytes`, or the gzip is cut or damaged, or a transfer broke.
        OSError: a local file cannot be read.
    """
    with open_bytes(path) as file:
        data = file.read(max_bytes + 1)
    if data.startswith(GZIP) and len(data) <= max_bytes:
        try:
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(max_bytes + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{public(path)!r} is no whole gzip file (cut or damaged?): {error}") from error
    if len(data) > max_bytes:
        raise InputError(f"{public(path)!r} has over {max_bytes:,} bytes unpacked: cut it into several files")
    return data


def several_at_once(function: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
    """What the function gives for every item, in their order. A few threads call it, since it waits for disks."""
    every = list(items)
    size = min(ITEMS_OF_CALL, 1 + len(every) // OPENED_AT_ONCE)  # a future for each of 90,000 files takes longer
    pieces = (every[first : first + size] for first in range(0, len(every), size))
    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        for found in pool.map(lambda some: [function(item) for item in some], pieces):
            yield from found


def for_each(function: Any, items: Iterable[Any]) -> None:
    """Calls the function with every item, several at once, since it waits for disks and servers.

    Raises:
        Exception: the first error that says more than that an input is unreadable; else the first one that says so. It
            counts the further ones.
    """

    def error_of(item: Any) -> Exception | None:
        try:
            function(item)
        except Exception as error:
            return error
        return None

    errors = [error for error in several_at_once(error_of, items) if error is not None]
    for error in errors:
        if not isinstance(error, UnreadableInputError):
            raise error
    if len(errors) > 1:
        more = f"{len(errors) - 1:,} more {'input is' if len(errors) == 2 else 'inputs are'}"
        raise UnreadableInputError(f"{errors[0]}; {more} unreadable, too")
    if errors:
        raise errors[0]


def candidates_of_pairs(
    url: pa.Array, text: pa.Array, offsets: np.ndarray, ledger: Ledger, *, page: pa.Array | None = None
) -> pa.RecordBatch:
    """CANDIDATES of pairs from a table. `gather` drops those without a URL or a text, and counts them.

    Args:
        url, text: strings, nulls allowed; at most BATCH_ROWS.
        offsets: int64, the row number of each pair in its input.
        ledger: counts rows_in.
        page: the URL of each pair's page, nulls allowed; None: not known.
    """
    ledger.rows_in += len(url)
    place = pa.array(offsets, pa.int64())
    rows = len(url)
    if page is None:
        page = _constant("", pa.string(), rows)
    elif page.null_count:
        page = pc.fill_null(page, "")
    text_source = _constant(TEXT_SOURCES.index("table"), pa.int8(), rows)
    url_source = _constant(URL_SOURCES.index("table"), pa.int8(), rows)
    nothing = pa.nulls(rows, pa.string())  # neither opt-out nor license
    columns = [url, text, page, place, text_source, url_source, nothing, nothing]
    return pa.RecordBatch.from_arrays(columns, schema=CANDIDATES)


@functools.lru_cache(maxsize=8)
def _constant_block(value: Any, kind: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), BATCH_ROWS)


def _constant(value: Any, kind: pa.DataType, rows: int) -> pa.Array:
    if rows > BATCH_ROWS:
        raise ValueError(f"a batch has {rows} rows; the most is {BATCH_ROWS}")
    return _constant_block(value, kind).slice(0, rows)
