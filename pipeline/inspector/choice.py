"""Which pairs a command takes: by words, query, language, domain and an expression; and random ones among them."""

from __future__ import annotations

import argparse
import dataclasses
import heapq
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.dataset.errors import NotFound
from pipeline.engine.cli import UsageError
from pipeline.inspector.output import count

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.inspector.pairs import Pairs
    from pipeline.stages.keep_rule import KeepRule


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that choose pairs."""
    add = parser.add_argument
    add("--query", metavar="QUERY", help="that hold this query only")
    add("--language", metavar="CODE", help="of this language only")
    add("--domain", metavar="DOMAIN", help="whose image is on this host, or on one below it")
    add("--keep", metavar="EXPR", help="for which this holds, such as 'width >= 200 and aspect < 2'")


def random_arguments(parser: argparse.ArgumentParser, *, default: int | None) -> None:
    """The flags for random pairs."""
    shown = " (default: %(default)s)" if default is not None else " (default: all)"
    parser.add_argument("-n", "--count", type=count, default=default, metavar="N", help=f"random samples{shown}")
    parser.add_argument(
        "--seed", type=count, default=0, metavar="N", help="another seed takes other samples (default: %(default)s)"
    )


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which pairs are taken.

    Attributes:
        query: the id of a query that they hold.
        language: of the text.
        domain: in lower case.
        keep: an expression over the columns of numbers and truth values.
    """

    query: int | None = None
    language: str | None = None
    domain: str | None = None
    keep: KeepRule | None = None

    @classmethod
    def of(cls, args: argparse.Namespace, pairs: Pairs) -> Choice:
        """The choice that the flags make.

        Raises:
            UsageError: the expression is not of the language, or names a column that is not there.
            NotFound: there is no such query, or the pairs have no such column.
        """
        number = None if args.query is None else query_id(pairs, args.query)
        for name, given in (("language", args.language), ("url", args.domain)):
            if given is not None and not pairs.has(name):
                raise NotFound(f"the pairs have no column {name!r}")
        domain = None if args.domain is None else args.domain.lower().strip(".")
        return cls(number, args.language, domain, None if args.keep is None else _rule(args.keep, pairs.schema))

    @property
    def columns(self) -> list[str]:
        """The columns that `mask` needs."""
        names = [] if self.keep is None else self.keep.names()
        names += ["query_ids"] if self.query is not None else []
        names += ["language"] if self.language is not None else []
        return names + (["url"] if self.domain is not None else [])

    def __call__(self, table: pa.Table) -> pa.Table:
        """The rows of a table that are taken."""
        import pyarrow as pa
        import pyarrow.compute as pc

        from pipeline.dataset.summary import hosts

        if self.language is not None:
            table = table.filter(pc.equal(table["language"], self.language))
        if self.domain is not None:
            host = pc.replace_substring_regex(pc.utf8_lower(hosts(table["url"])), r"^.*@|:\d*$|\.$", "")
            table = table.filter(pc.or_(pc.equal(host, self.domain), pc.ends_with(host, "." + self.domain)))
        if self.query is not None:
            lists = table["query_ids"].combine_chunks()
            holds = pc.unique(pc.list_parent_indices(lists).filter(pc.equal(pc.list_flatten(lists), self.query)))
            table = table.take(holds)
        if self.keep is not None:
            columns = {name: _one(table[name]) for name in self.keep.names()}
            table = table.filter(self.keep.keeps(columns, table.num_rows))
        assert isinstance(table, pa.Table)
        return table


def query_id(pairs: Pairs, query: str) -> int:
    """The id of a query, in upper or lower case.

    Raises:
        NotFound: the list has no such query.
    """
    import pyarrow.compute as pc

    number = pc.index(pc.utf8_lower(pairs.queries["query"]), query.lower()).as_py()
    if number < 0 or not pairs.has("query_ids"):
        raise NotFound(f"no query of this set is {query!r}: `queries OUT --grep WORDS` finds some")
    return number


def _rule(text: str, schema: pa.Schema) -> KeepRule:
    """The parsed expression, with its names and types checked."""
    import pyarrow as pa

    from pipeline.stages.keep_rule import KeepRule

    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    types = {field.name: field.type for field in schema if any(is_kind(field.type) for is_kind in kinds)}
    try:
        rule = KeepRule.parse(text)
        rule.check(types)
    except UsageError as error:
        raise UsageError(f"--keep {text}: {error}") from None
    return rule


def _one(column: pa.ChunkedArray) -> pa.Array:
    import pyarrow as pa

    found = column.combine_chunks()
    return pa.concat_arrays(found.chunks) if isinstance(found, pa.ChunkedArray) else found


def chosen(
    pairs: Pairs, choice: Choice, columns: Sequence[str], *, number: int | None = None, seed: int = 0
) -> Iterator[pa.Table]:
    """The chosen pairs, table by table.

    Args:
        pairs: to choose from.
        choice: of the flags.
        columns: of the tables.
        number: so many random ones; None: all.
        seed: another one takes others.
    """
    keys = None if number is None else [row["key"] for row in random_rows(pairs, choice, ["key"], number, seed)]
    yield from _chosen(pairs, choice, columns, keys)


def _chosen(pairs: Pairs, choice: Choice, columns: Sequence[str], keys: list[str] | None) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = list(dict.fromkeys([*columns, *choice.columns, *([] if keys is None else ["key"])]))
    for table in pairs.tables(wanted):
        table = choice(table)
        if keys is not None:
            table = table.filter(pc.is_in(table["key"], pa.array(keys, pa.string())))
        if table.num_rows:
            yield table.select(list(columns))


def random_rows(pairs: Pairs, choice: Choice, columns: Sequence[str], number: int, seed: int) -> list[dict[str, Any]]:
    """Random rows: those whose keys have the smallest hashes. The same seed takes the same ones.

    Args:
        pairs: to choose from.
        choice: of the flags.
        columns: of the rows; `key` is among them.
        number: of rows.
        seed: of the hash.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.engine.hashing import column_hash, mix

    best: list[tuple[int, str, dict[str, Any]]] = []
    for table in _chosen(pairs, choice, columns, None):
        hashes = pa.array(mix(column_hash(table["key"]), seed))
        first = pc.sort_indices(hashes)[:number]
        rows = table.take(first).to_pylist()
        best += [(rank, row["key"], row) for rank, row in zip(hashes.take(first).to_pylist(), rows, strict=True)]
        best = heapq.nsmallest(number, best, key=lambda found: found[:2])
    return [row for _, _, row in best]
