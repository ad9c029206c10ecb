"""Cleans texts and makes URLs canonical, whole columns at a time.

The compiled kernel finds the rows that need work. The result is the same without it. `clean_rules` lists the steps of
cleaning and the reasons for a drop.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import jit
from pipeline.engine.hashing import as_array
from pipeline.text.clean_rules import TEXT_REASONS, URL_REASONS, canonical_url, clean_one_text, tidy

__all__ = ["TEXT_REASONS", "URL_REASONS", "canonical_urls", "clean_text"]

Codes = npt.NDArray[np.uint8]


def clean_text(texts: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, Codes]:
    """Cleans texts. Returns the clean texts and a code for each, an index into TEXT_REASONS (0: keep)."""
    array = as_array(texts)
    kernel = jit.kernel("pipeline.text.clean_kernel", len(array))
    if not kernel:
        return _apply(array, clean_one_text, np.ones(len(array), np.bool_))
    work = kernel.text_work(array)
    rows = np.flatnonzero(work == kernel.TIDY)
    if not len(rows):
        return _apply(array, clean_one_text, work != kernel.FINE)
    tidied = tidy(array.take(pa.array(rows)))
    fine = kernel.text_work(tidied) == kernel.FINE
    return _apply(array, clean_one_text, work != kernel.FINE, (rows[fine], tidied.filter(pa.array(fine))))


def canonical_urls(urls: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, Codes]:
    """Makes URLs canonical. Returns the URLs and a code for each, an index into URL_REASONS (0: keep).

    A dropped URL is returned as found, but for bytes that are not UTF-8.
    """
    array = as_array(urls)
    kernel = jit.kernel("pipeline.text.clean_kernel", len(array))
    return _apply(array, canonical_url, kernel.url_needs_work(array) if kernel else np.ones(len(array), np.bool_))


def _apply(
    array: pa.Array,
    function: Callable[[bytes], tuple[str, int]],
    flags: npt.NDArray[np.bool_],
    known: tuple[npt.NDArray[np.int64], pa.Array] | None = None,
) -> tuple[pa.Array, Codes]:
    """Runs `function` on the flagged rows. `known` holds flagged rows that are already clean, and their new forms."""
    codes = np.zeros(len(array), np.uint8)
    todo = flags.copy()
    if known is not None:
        todo[known[0]] = False
    rows = np.flatnonzero(todo)
    if len(rows) == 0 and known is None:
        return array, codes
    raw_type = pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary()
    results = [function(value) for value in array.view(raw_type).take(pa.array(rows)).to_pylist()]
    codes[rows] = [code for _, code in results]
    values = pa.array([value for value, _ in results], array.type)
    if known is not None:
        order = np.argsort(np.concatenate([known[0], rows]), kind="stable")
        values = pa.concat_arrays([known[1].cast(array.type), values]).take(pa.array(order))
    return (values if len(values) == len(array) else pc.replace_with_mask(array, pa.array(flags), values)), codes
