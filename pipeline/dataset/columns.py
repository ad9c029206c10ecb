"""What each column of the published tables means.

`inspect_shards columns` prints it. docs/architecture.md repeats it.

The types stand in the schemas alone. Scores (`--scores`) are columns of the user, so they have no entry here.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: in the table.
        meaning: of its values.
        unit: of its values; "" for none.
        null: what a null means; "": the column has no nulls.
    """

    name: str
    meaning: str
    unit: str = ""
    null: str = ""


# Table -> its columns, in their order. The tables have these names as views of `inspect_shards sql`, too.
TABLES: dict[str, tuple[Column, ...]] = {
    "pairs": (
        Column("key", "name of the sample in the tar: the uid in hexadecimal"),
        Column("uid", "equal to `key`"),
        Column("url", "canonical; the URL that was fetched"),
        Column(
            "url_as_found",
            "the URL that stood with the text, where a larger variant was fetched; uid is made of it",
            null="equal to `url`",
        ),
        Column("text", "normalised"),
        Column("text_as_found", "before cleaning", null="equal to `text`"),
        Column("texts", "`text`, and further texts of the image (`--captions`)"),
        Column("page_url", '"" where there is no page'),
        Column("source_file", "name of the input"),
        Column("source_offset", "where the record starts in the input", unit="bytes; rows of a table"),
        Column("text_source", "alt, title, figcaption, table or og:title"),
        Column("url_source", "src, lazy, srcset, picture, og:image or table"),
        Column(
            "language",
            "code of the likeliest language, or that of the query list",
            null="not asked for, or not known",
        ),
        Column("language_score", "share of the likeliest language", unit="0 to 1", null="as language"),
        Column("opt_out", "signals of the page", null="none was seen"),
        Column("license", "URL of a rel=license link of the page", null="none was seen"),
        Column("query_ids", "ids in queries.parquet that a text of the sample contains, ascending"),
        Column("keep_probability", "as in SELECTED, over what was fetched", unit="0 to 1"),
        Column("kept_by", "ids of the queries that picked the pair, ascending"),
        Column("final_url", "after redirects", null="equal to `url`"),
        Column("rights", "allowed or unstated: what site and image say of AI training", null="not known"),
        Column("rights_protocol", "the protocols that allow it, with commas between them", null="unstated"),
        Column(
            "rights_consulted",
            "the protocols that were asked, with commas between them (docs/rights.md)",
            null="not known",
        ),
        Column("width", "of the JPEG", unit="pixels"),
        Column("height", "of the JPEG", unit="pixels"),
        Column("original_width", "of the image as served", unit="pixels", null="not known"),
        Column("original_height", "of the image as served", unit="pixels", null="not known"),
        Column("original_format", "of the image as served", null="not known"),
        Column("image_side", "short side of the image as served", unit="pixels", null="not known"),
        Column("aspect", "its long side divided by its short side", null="not known"),
        Column("original_sha256", "of the bytes as served, hexadecimal", null="not known"),
        Column("sha256", "of the JPEG, hexadecimal"),
        Column("phash", "64-bit DCT hash of the stored pixels", null="not known"),
        Column("shard", "number of the tar"),
        Column("jpg_offset", "where the JPEG lies in the tar; its header starts 512 bytes earlier", unit="bytes"),
        Column("jpg_size", "of the JPEG", unit="bytes"),
        Column("json_offset", "where the JSON lies in the tar", unit="bytes"),
        Column("json_size", "of the JSON", unit="bytes"),
        Column("txt_offset", "where the text lies in the tar", unit="bytes"),
        Column("txt_size", "of the text, UTF-8", unit="bytes"),
    ),
    "queries": (
        Column("id", "place in the list, which is sorted by language and form"),
        Column("query", "the string that a text must contain"),
        Column("source", 'the source of the query; "" if the list does not name it'),
        Column(
            "count",
            "occurrences in the source, summed over equal spellings; 0 if the list has no counts",
            unit="occurrences",
        ),
        Column("language", 'code of the language; "" if the list does not name it'),
        Column("flags", '`name`, `slur`, `explicit`, `benchmark`, with blanks between (docs/data.md); "" for none'),
    ),
    "duplicates": (
        Column("key", "uid of the dropped row, in hexadecimal"),
        Column("keeper", "uid of the row that stayed in its place; balancing may have dropped that row later"),
        Column(
            "kind",
            "same_pair, same_image, near_duplicate, or near_embedding (a near-duplicate that only embeddings connect "
            "to its keeper)",
        ),
        Column(
            "distance",
            "in which the perceptual hashes differ; 0 for equal bytes, unless the keeper has other bytes",
            unit="bits",
        ),
    ),
    "contamination": (
        Column("key", "uid of the dropped row, in hexadecimal"),
        Column("set", "name of the evaluation set"),
        Column("image", "name of the evaluation image in its folder, tar or table"),
        Column(
            "kind",
            "bytes: the served file is the evaluation image's file; picture: both hashes agree; "
            "embedding: the embeddings are near",
        ),
        Column("distance", "in which the perceptual hashes differ", unit="bits", null="kind embedding"),
        Column("cosine", "of the two embeddings", unit="-1 to 1", null="another kind"),
    ),
    "rejected": (
        Column("url", "of the dropped row"),
        Column("text", "of the dropped row"),
        Column("stage", "the stage that dropped it"),
        Column("reason", "as in the ledger"),
        Column("key", "uid of the dropped row, in hexadecimal", null="gather dropped the row"),
    ),
}
