"""CSV and TSV: the names of the columns, and batches of the wanted ones.

A CSV is quoted as in RFC 4180. A TSV is read without quoting, unless its header or its first rows prove the opposite.
`pipeline.text.quoting` finds quotes that never close. The rows are counted against the lines of the file.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv

from pipeline.engine.input_errors import UnreadableInputError
from pipeline.engine.ledger import Ledger
from pipeline.sources.text_stream import MAX_LINE, damage, describe_head
from pipeline.text import quoting

BLOCK = 4 << 20  # bytes that are parsed together; also the longest line
SAMPLE = 1 << 20  # bytes that tell how a TSV is quoted
DELIMITERS = (b",", b"\t", b";", b"|")


_SEPARATOR = re.compile(rb"sep=([,;|\t])\r?\n", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a file is written.

    Attributes:
        delimiter: between two cells.
        names: of the columns.
        quoted: the names stand in quotes.
        unread: the first line, if it is a row and not the names.
    """

    delimiter: bytes
    names: tuple[str, ...]
    quoted: bool = False
    unread: bytes = b""


def layout(stream: io.BufferedReader, name: str, usual: bytes, given: Sequence[str] = ()) -> Layout:
    """The layout by the first line that is not blank. The stream stands after that line.

    Args:
        stream: from its first byte on.
        name: of the file, for messages.
        usual: the delimiter that the file's name tells. Another one is used if the line does not hold the usual one.
        given: the names of the columns, of a file that has no line with them.

    Raises:
        UnreadableInputError: the file is empty, is no table, or its names are not UTF-8.
    """
    line = b"\n"
    while line and not line.strip():
        line = stream.readline(MAX_LINE)
    if found := _SEPARATOR.fullmatch(line):  # Excel's own line
        usual, line = found[1], stream.readline(MAX_LINE)
    if not line:
        if error := damage(stream):
            raise UnreadableInputError(f"{name!r} cannot be read as a table: {error}")
        raise UnreadableInputError(f"{name!r} is empty: it has no line with the names of its columns")
    if seems := describe_head(line):
        raise UnreadableInputError(f"{name!r} cannot be read as a table: {seems}")
    if b"\0" in line:
        raise UnreadableInputError(f"{name!r} holds zero bytes: save it as UTF-8")
    whole, line = line, line.rstrip(b"\r\n")
    delimiter = usual
    if usual not in line:
        delimiter = max(DELIMITERS, key=lambda sign: (line.count(sign), sign == usual))
    quoted = line.startswith(b'"')
    try:
        cells = next(csv.reader([line.decode()], delimiter=delimiter.decode(), strict=True))
    except csv.Error:
        cells = line.decode().split(delimiter.decode())
    except UnicodeDecodeError as error:
        raise UnreadableInputError(f"{name!r} names its columns in another encoding than UTF-8: convert it") from error
    if given and [cell.lower() for cell in cells] != [column.lower() for column in given]:
        return Layout(delimiter, tuple(given), unread=whole)
    return Layout(delimiter, tuple(cells), quoted)


def read_rows(
    stream: io.BufferedReader, made: Layout, read: Sequence[int], url_at: int, ledger: Ledger
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Batches of the wanted columns as binary values, and the numbers of their rows.

    The ledger counts rows that are lost: those with another number of cells than the header (`bad_table_row`), those
    over BLOCK bytes (`table_line_too_long`), and the rest of a damaged file (`table_rest_unreadable`).

    Args:
        stream: after the header.
        made: the layout of the file.
        read: the numbers of the wanted columns. They name the columns of the batches.
        url_at: the number of the column with the URL.
        ledger: counts what is lost.
    """
    shape = quoting.Shape(made.delimiter, len(made.names), url_at)
    quoted = made.delimiter != b"\t" or made.quoted
    at, rest, first = 0, made.unread, True
    while True:
        block, rest, at_end = _next_block(stream, rest, ledger)
        block = quoting.without_lone_returns(block)
        if first and not quoted:
            sample = block[: block.rfind(b"\n", 0, SAMPLE) + 1] or block
            quoted = quoting.uses_quotes(sample, shape)
        first = False
        if quoted:
            repaired = quoting.repair(block, shape, at_end=at_end)
            rest = block[repaired.used :] + rest
        else:
            repaired = quoting.Repaired(block, False, quoting.count_rows(block), len(block))
        if repaired.literal:
            ledger.notes["unclosed_quote"] += repaired.literal
        for batch, numbers in _parse(repaired, shape, read, ledger):
            yield batch, at + numbers
        at += repaired.rows
        if at_end:
            break
    if damage(stream) is not None:
        ledger.records_in += 1
        ledger.lose("table_rest_unreadable")


def _next_block(stream: io.BufferedReader, rest: bytes, ledger: Ledger) -> tuple[bytes, bytes, bool]:
    """(whole lines, the bytes after them, True at the end of the stream). A line over BLOCK bytes is lost."""
    data = stream.read(BLOCK)
    at_end = len(data) < BLOCK
    data = rest + data
    end = len(data) if at_end else data.rfind(b"\n") + 1
    if not at_end and len(data) - end >= BLOCK:
        ledger.records_in += 1
        ledger.lose("table_line_too_long")
        while (line := stream.readline(BLOCK)) and not line.endswith(b"\n"):
            continue
        return data[:end], b"", False
    return data[:end], data[end:], at_end


def _parse(
    block: quoting.Repaired, shape: quoting.Shape, read: Sequence[int], ledger: Ledger
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """The wanted columns of a block, and the number of each row in it. Rows that do not come out are lost."""
    bad: list[int] = []

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        bad.append(row.number - 1)
        return "skip"

    names = [str(number) for number in range(shape.width)]
    wanted = [names[number] for number in read]
    convert = pyarrow.csv.ConvertOptions(
        include_columns=wanted,
        column_types={name: pa.binary() for name in wanted},  # so that bad UTF-8 loses one character, not the file
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
        check_utf8=False,
    )
    parse = pyarrow.csv.ParseOptions(
        delimiter=shape.delimiter.decode(),
        quote_char='"' if block.quoted else False,
        newlines_in_values=block.quoted,
        invalid_row_handler=skip,
    )
    options = pyarrow.csv.ReadOptions(column_names=names, block_size=len(block.data) + 1, use_threads=False)
    batches: list[pa.RecordBatch] = []
    if block.rows:
        with contextlib.suppress(pa.ArrowException):  # all rows of the block are lost then, and counted
            source = pa.BufferReader(block.data)
            table = pyarrow.csv.read_csv(source, read_options=options, parse_options=parse, convert_options=convert)
            batches = table.to_batches()
    count = sum(batch.num_rows for batch in batches)
    lost = max(0, block.rows - count)
    ledger.records_in += lost
    ledger.lose("bad_table_row", lost)
    numbers = np.delete(np.arange(count + len(bad)), bad) if bad else np.arange(count)
    done = 0
    for batch in batches:
        yield batch, numbers[done : done + batch.num_rows]
        done += batch.num_rows
