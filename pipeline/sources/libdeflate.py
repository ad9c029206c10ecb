"""libdeflate's C functions, from the shared library inside the package `deflate`.

To read an archive, one must know where a gzip member ends in the file. The package's Python interface does not tell
this. The C functions do, but they are not part of that interface. So they are looked up and tested, and `functions()`
is None where they are not available.
"""

from __future__ import annotations

import ctypes
import functools
import zlib
from typing import NamedTuple


class Functions(NamedTuple):
    """Addresses as integers, so that compiled kernels can take them as arguments."""

    gunzip: int  # int (decompressor, in, in_bytes, out, out_bytes, *bytes_read, *bytes_written)
    new: int  # void* ()
    free: int  # void (decompressor)


OK, NO_SPACE = 0, 3  # results of gunzip; other numbers: damaged


@functools.lru_cache(maxsize=1)
def functions() -> Functions | None:
    """The functions; None where the package is missing or does not export them."""
    try:
        from deflate import _deflate

        library = ctypes.CDLL(_deflate.__file__)
        names = ("libdeflate_gzip_decompress_ex", "libdeflate_alloc_decompressor", "libdeflate_free_decompressor")
        found = Functions(*(ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names))
    except (ImportError, AttributeError, OSError):
        return None
    return found if all(found) and _works(found) else None


class Decompressor:
    """A decompressor, freed with this object."""

    def __init__(self, library: Functions) -> None:
        self.address: int = ctypes.CFUNCTYPE(ctypes.c_void_p)(library.new)() or 0
        if not self.address:
            raise MemoryError("libdeflate cannot allocate a decompressor")
        self._free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(library.free)

    def __del__(self) -> None:
        if self.address:
            self._free(self.address)


def _works(library: Functions) -> bool:
    """Tests the functions: they must inflate one member and report its end."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    gunzip = ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer, size, pointer, size, pointer, pointer)(library.gunzip)
    packer = zlib.compressobj(wbits=31)
    member = packer.compress(b"trial") + packer.flush()
    data, out = ctypes.create_string_buffer(member + b"more"), ctypes.create_string_buffer(16)
    used, written = size(), size()
    decompressor = Decompressor(library)
    status = gunzip(
        *(decompressor.address, ctypes.addressof(data), len(member) + 4, ctypes.addressof(out), 16),
        *(ctypes.addressof(used), ctypes.addressof(written)),
    )
    return (status, used.value, out.raw[: written.value]) == (OK, len(member), b"trial")
