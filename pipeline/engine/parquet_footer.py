"""Replaces the version of pyarrow in Parquet files.

pyarrow writes its own version into the footer (`created_by`) and has no option to set it. So equal tables would give
other bytes, and another digest of the manifest, after each upgrade. The footer is at the end of the file and no offset
points into it. So this one field can be replaced:

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
WRITER = b"openwit version 1"  # readers expect "application version number"; raise it when write_table's options change
BINARY = 8  # a type of Thrift's compact protocol
# The list of column orders (each is a union whose first member, an empty struct, is set), and the end of the footer.
ORDERS = re.compile(rb"(\x19([\x0c-\xec]|\xfc[\x80-\xff]*[\x00-\x7f])(\x1c\x00\x00)*)?\x00", re.DOTALL)


class FooterError(ValueError):
    """The file does not end like a Parquet file of this pyarrow."""


def set_created_by(path: str) -> None:
    """Sets `created_by` to WRITER in a file that this pyarrow has just written.

    Raises:
        FooterError: this pyarrow did not write the file. The file is not changed.
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
    """The footer with WRITER in place of the name `old`.

    Fields that contain data (statistics, key-values) come before this field. Only the column orders may follow it, and
    they cannot contain a name.

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
    """The name that this pyarrow writes into its files. It has at most 127 bytes, so that one byte holds its length."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": pa.array([], pa.int8())}), sink)
    name = pq.read_metadata(pa.BufferReader(sink.getvalue())).created_by.encode()
    if len(name) > 127:
        raise FooterError(f"the writer's name is too long: {name.decode()!r}")
    return name
