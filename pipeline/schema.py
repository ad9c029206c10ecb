"""The schemas of all tables between the stages, in the order of the stages.

This module imports only Arrow and numpy. So the inspector and the tests read a schema without the cost of Beam or
numba. Columns with few different values hold int8 codes, one byte a row. `readable` turns the codes into names when a
table leaves the pipeline, such as those of `TEXT_SOURCES`.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# The names of the stages, in order.
STAGES = ("gather", "match", "dedup", "balance", "fetch", "dedup-images", "publish")

# Where on the page a text, or an image's URL, was found. The code is the position in the tuple: append, never reorder.
TEXT_SOURCES = ("alt", "title", "figcaption", "table", "og:title")
URL_SOURCES = ("src", "lazy", "srcset", "picture", "og:image", "table")

# What a source reader yields: pairs as found, before any cleaning. `offset` is the byte where the record starts in its
# file (a table: the number of the row). `opt_out` lists the page's own signals, comma separated ("noai,noindex").
CANDIDATES = pa.schema(
    [
        pa.field("url", pa.string()),  # absolute, as found; null: a list has none (reason null_url)
        pa.field("text", pa.string()),  # as found, entities of the markup decoded; null: a list has none (null_text)
        pa.field("page_url", pa.string(), nullable=False),  # "" where there is no page (a table)
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("text_source", pa.int8(), nullable=False),
        pa.field("url_source", pa.int8(), nullable=False),
        pa.field("opt_out", pa.string()),  # null: no signal seen
        pa.field("license", pa.string()),  # URL of a rel=license link of the page; null: none
    ]
)

# gather: cleaned pairs. uid = xxh3_128(xxh3_128(url) + xxh3_128(text)), big-endian digests, see hashing.py.
PAIRS = pa.schema(
    [
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("url", pa.string(), nullable=False),  # canonical
        pa.field("text", pa.string(), nullable=False),  # normalised: what is matched and trained on
        pa.field("text_as_found", pa.string()),  # null where equal to `text`
        pa.field("page_url", pa.string(), nullable=False),
        pa.field("source", pa.int32(), nullable=False),  # number of the input file in the run's sorted list
        pa.field("source_offset", pa.int64(), nullable=False),
        pa.field("text_source", pa.int8(), nullable=False),
        pa.field("url_source", pa.int8(), nullable=False),
        pa.field("language", pa.string()),  # ISO 639-1; null if no language was requested
        pa.field("language_score", pa.float32()),  # P(language), 0..1
        pa.field("opt_out", pa.string()),
        pa.field("license", pa.string()),
    ]
)

QUERY_IDS = pa.field("query_ids", pa.list_(pa.int32()), nullable=False)  # ascending, each query once
MATCHED = PAIRS.append(QUERY_IDS)

# dedup: what stays may take texts, their queries and the URL of the largest variant from the other rows of its image.
DEDUPED = MATCHED.append(pa.field("url_as_found", pa.string())).append(  # null where equal to `url`; uid has this URL
    pa.field("texts", pa.list_(pa.string()), nullable=False)  # at least `text`, which is the first
)

SELECTED = DEDUPED.append(pa.field("keep_probability", pa.float32(), nullable=False)).append(
    pa.field("kept_by", pa.list_(pa.int32()), nullable=False)  # the queries that selected the pair, ascending
)

COLOUR_BYTES = 192  # R, G and B of 64 cells
SHADE_BYTES = 256  # the brightness of 16 x 16 cells

# fetch: a row for each selected pair, also for a failure. `image_offset` and `image_bytes` say where the encoded JPEG
# is in the stage's raw file. `status` is "ok" or the class of the failure (fetching/errors.py lists them).
FETCHED = pa.schema(
    [
        *SELECTED,
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),  # the message of the failure
        pa.field("retryable", pa.bool_(), nullable=False),
        pa.field("http_status", pa.int16()),
        pa.field("image_sha256", pa.binary(32)),  # of the bytes as served
        pa.field("image_offset", pa.int64()),
        pa.field("image_bytes", pa.int32()),
        pa.field("stored_sha256", pa.binary(32)),  # of the encoded JPEG
        pa.field("stored_xxh3", pa.uint64()),  # xxh3_64 of the encoded JPEG: publish checks what it reads
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("original_width", pa.int32()),
        pa.field("original_height", pa.int32()),
        pa.field("original_format", pa.string()),
        pa.field("phash", pa.uint64()),  # 64-bit DCT hash of the stored pixels
        pa.field("colours", pa.binary(COLOUR_BYTES)),  # mean colours of 8 x 8 cells of the stored pixels
        pa.field("shades", pa.binary(SHADE_BYTES)),  # brightness of 16 x 16 cells of the stored pixels
        pa.field("grain", pa.uint8()),  # share of neighbouring stored pixels that differ a little, of 255
        pa.field("final_url", pa.string()),  # after redirects; null where it equals url
        pa.field("rights", pa.string()),  # allowed, unstated, refused; null: a failure of another kind
        pa.field("rights_protocol", pa.string()),  # the protocols behind `rights`, comma separated; null: unstated
        pa.field("rights_consulted", pa.string()),  # the protocols that were asked; null: a failure of another kind
    ]
)

# Beside a fetched row: when its server may be asked again, in seconds since 1970, if it asked for a pause.
RETRY_AT = pa.field("retry_at", pa.int64())

# OUT/duplicates.parquet: the rows that dedup-images dropped because another row shows the same, sorted by key.
DUPLICATES_FILE = "duplicates.parquet"
DUPLICATES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # uid of the dropped row, hexadecimal
        pa.field("keeper", pa.string(), nullable=False),  # uid of the row that stayed in its place
        pa.field("kind", pa.string(), nullable=False),  # same_pair, same_image, near_duplicate, near_embedding
        pa.field("distance", pa.uint8(), nullable=False),  # bits in which the perceptual hashes differ
    ]
)

# OUT/contamination.parquet: the rows that dedup-images dropped because they show an evaluation image, sorted by key.
CONTAMINATION_FILE = "contamination.parquet"
CONTAMINATION = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # uid of the dropped row, hexadecimal
        pa.field("set", pa.string(), nullable=False),  # name of the evaluation set
        pa.field("image", pa.string(), nullable=False),  # of the evaluation image in its folder, tar or table
        pa.field("kind", pa.string(), nullable=False),  # bytes: the same file; picture: both hashes agree; embedding
        pa.field("distance", pa.uint8()),  # bits in which the perceptual hashes differ; null: kind embedding
        pa.field("cosine", pa.float32()),  # of the embeddings; null: another kind
    ]
)

# A dropped row that the report may show as an example.
REJECTED = pa.schema(
    [
        pa.field("url", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("hash", pa.uint64(), nullable=False),  # decides which rows a sample keeps
        pa.field("uid", pa.binary(16)),  # null: gather dropped the row, before it had one
    ]
)

# OUT/rejected/*.parquet: REJECTED as it is published. `key` is the uid, in hexadecimal.
PUBLISHED_REJECTED = pa.schema(
    [*(REJECTED.field(name) for name in ("url", "text", "stage", "reason")), pa.field("key", pa.string())]
)


def fill_texts(text: pa.StringArray, texts: pa.ListArray) -> pa.ListArray:
    """The column `texts` without nulls: a row that took no other text has `text` alone."""
    if not texts.null_count:
        return texts
    alone = pa.ListArray.from_arrays(pa.array(np.arange(len(text) + 1, dtype=np.int32)), text)
    return alone if texts.null_count == len(texts) else pc.if_else(texts.is_valid(), texts, alone)


def readable(table: pa.Table, source_names: list[str]) -> pa.Table:
    """The table with names in place of codes.

    `source` becomes the column source_file. text_source and url_source keep their column names.

    Args:
        table: rows of PAIRS or any schema that extends it.
        source_names: the run's sorted input names; `source` is an index into it.
    """
    words = {"source": pa.array(source_names, pa.string()), "text_source": TEXT_SOURCES, "url_source": URL_SOURCES}
    for name, names in words.items():
        if name not in table.column_names:
            continue
        at = table.column_names.index(name)
        column = pc.take(pa.array(names, pa.string()), table.column(name))
        table = table.set_column(at, "source_file" if name == "source" else name, column)
    return table
