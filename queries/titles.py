"""Counts the views of article titles in Wikimedia's pageview files.

Two formats are read: months and days of pageview_complete (`en.wikipedia Title page_id access views ...`), and single
hours (`en Title views bytes`; `en.m` is the mobile site). MetaCLIP takes only the hours of the desktop site, and only
titles with at least 50 views in an hour.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from queries import rules
from queries.counts import COUNTED

LEAST_VIEWS = 70
LEAST_LINKS = 20  # from other articles, if there are no views
METACLIP_LEAST_IN_HOUR = 50

# A title of another namespace ("Talk:Cat", "File:Cat.jpg"). In an article's title ("Alien: Covenant") a blank follows.
_PREFIX = r"^[^:]+:[^ ]"
_IN_BRACKETS = r"^(.*\S) \([^()]*\)$"  # "Mercury (planet)"


def read_views(block: bytes, language: str, profile: str = "wit") -> tuple[pa.Table, int]:
    """Reads some lines. Lines of other projects are left out.

    Returns:
        The views by title (COUNTED, each title once), and the number of malformed lines.
    """
    code = language.encode()
    if b"\n" + code not in block and not block.startswith(code):
        return COUNTED.empty_table(), 0
    lines = pa.array(block.decode("utf-8", "replace").split("\n"), pa.large_string())
    hours = _own(lines, (f"{language} ", f"{language}.m ") if profile == "wit" else (f"{language} ",))
    months = _own(lines, (f"{language}.wikipedia ",))
    tables, malformed = [], 0
    for found, form, min_views in (
        (hours, r"^\S+ (?P<title>\S+) (?P<views>\d{1,15})(?: \d+)?$", METACLIP_LEAST_IN_HOUR),
        (months, r"^\S+ (?P<title>\S+) (?:\S+ )?(?P<access>\S+) (?P<views>\d{1,15})(?: \S+)?$", 0),
    ):
        fields = pc.extract_regex(found, form)
        malformed += fields.null_count
        fields = fields.drop_null()
        if profile != "wit" and found is months:
            fields = fields.filter(pc.equal(pc.struct_field(fields, "access"), "desktop"))
        views = pc.struct_field(fields, "views").cast(pa.int64())
        titles = pc.replace_substring(pc.struct_field(fields, "title").cast(pa.string()), "_", " ")
        table = pa.table([titles, views], schema=COUNTED)
        if profile != "wit":
            table = table.filter(pc.greater_equal(table["count"], min_views))
        tables.append(table)
    return add(tables), malformed


def _own(lines: pa.Array, prefixes: tuple[str, ...]) -> pa.Array:
    mask = pc.starts_with(lines, prefixes[0])
    for prefix in prefixes[1:]:
        mask = pc.or_(mask, pc.starts_with(lines, prefix))
    return lines.filter(mask)


def add(tables: list[pa.Table]) -> pa.Table:
    """The sum of tables of COUNTED, in no order."""
    together = pa.concat_tables([COUNTED.empty_table(), *tables])
    summed = together.group_by("query", use_threads=False).aggregate([("count", "sum")])
    return summed.rename_columns(COUNTED.names).cast(COUNTED)


def resolve(views: pa.Table, redirects: pa.Table) -> pa.Table:
    """Adds the views of each redirect (columns `title`, `target`) to those of its article."""
    if not len(redirects):
        return views
    at = pc.index_in(views["query"], redirects["title"].combine_chunks())
    target = redirects["target"].combine_chunks().take(_whole(at))
    return add([pa.table([pc.coalesce(target, _whole(views["query"])), views["count"]], schema=COUNTED)])


def in_dump(views: pa.Table, articles: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The rows whose title is an article of the dump: no file, no list of another wiki, no name of an error."""
    return views.filter(pc.is_in(views["query"], _whole(articles)))


def title_queries(views: pa.Table, *, min_count: int, max_titles: int, profile: str = "wit") -> pa.Table:
    """COUNTED: the `max_titles` titles with the highest counts, none with a count below `min_count`.

    Pages of other namespaces are left out. Profile `wit` also leaves out lists, years, files and errors
    (`rules.is_title`), and cuts off brackets at the end: "Mercury (planet)" -> "Mercury".
    """
    titles = _whole(views["query"])
    counts = _whole(views["count"])
    if profile == "wit":
        article = pc.invert(pc.match_substring_regex(titles, f"{_PREFIX}|{rules.NO_TITLE}"))
        titles = pc.replace_substring_regex(titles, _IN_BRACKETS, r"\1")
    else:
        article = pc.invert(pc.match_substring(titles, ":"))
    table = add([pa.table([titles, counts], schema=COUNTED).filter(article)])
    table = table.filter(pc.greater_equal(table["count"], min_count))
    return table.sort_by([("count", "descending"), ("query", "ascending")]).slice(0, max_titles).combine_chunks()


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
