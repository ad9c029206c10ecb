"""Parquet files that do not tell which pyarrow wrote them.

pyarrow puts its own version into the footer (`created_by`) and offers no way to set it, so that equal tables would give
other bytes, and another digest of the manifest, after each upgrade. The footer is the last thing in a file and nothing
points into it; so its one field is exchanged:

    ... pages ...  footer (Thrift, compact)  4 bytes: its length  PAR1
                   ... field 6: type and number, length, "parquet-cpp-arrow version 25.0.1" ...
"""

from __future__ import annotations

import functools
import os
import re

import pyarrow as pa
import pyarrow.parquet as pq

MAGIC = b"PAR1"
WRITER = b"openwit version 1"  # readers expect "application version number"; raised with what write_table asks for
BINARY = 8  # a type of Thrift's compact protocol
# The list of the columns' orders (each a union whose first member, an empty struct, is set), and the end of the footer.
ORDERS = re.compile(rb"(\x19([\x0c-\xec]|\xfc[\x80-\xff]*[\x00-\x7f])(\x1c\x00\x00)*)?\x00", re.DOTALL)


class FooterError(ValueError):
    """The file does not end as a Parquet file of this pyarrow does."""


def set_created_by(path: str) -> None:
    """Puts our name into the footer of a file that this pyarrow has just written.

    Raises:
        FooterError: it is not such a file; it is left as it was.
    """
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 8))
        tail = file.read(8)
        size = int.from_bytes(tail[:4], "little")
        if tail[4:] != MAGIC or not 0 < size <= end - 8:
            raise FooterError(f"{path} does not end as a Parquet file")
        file.seek(end - 8 - size)
        footer = rename(file.read(size), writer())
        file.seek(end - 8 - size)
        file.write(footer + len(footer).to_bytes(4, "little") + MAGIC)
        file.truncate()


def rename(footer: bytes, old: bytes) -> bytes:
    """The footer with our name in the place of the old one.

    What data can speak in (statistics, key-values) comes before the field; after it there is one more at most, the
    orders of the columns, which has no room for a name.

    Raises:
        FooterError: there is no such field.
    """
    at = footer.rfind(bytes([len(old)]) + old)
    after = at + 1 + len(old)
    if at < 1 or footer[at - 1] & 0xF != BINARY or not ORDERS.fullmatch(footer, after):
        raise FooterError(f"the footer does not say that {old.decode()!r} wrote it")
    return footer[:at] + bytes([len(WRITER)]) + WRITER + footer[after:]


@functools.lru_cache(maxsize=1)
def writer() -> bytes:
    """What this pyarrow calls itself in the files that it writes; less than 128 bytes, so that one says its length."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": pa.array([], pa.int8())}), sink)
    name = pq.read_metadata(pa.BufferReader(sink.getvalue())).created_by.encode()
    if len(name) > 127:
        raise FooterError(f"the writer's name is too long: {name.decode()!r}")
    return name
