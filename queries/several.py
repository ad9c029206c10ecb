"""Several query lists as one: a list for each language, as MetaCLIP 2 builds its sets.

A list is named by its file, by `en=FILE`, or by a folder with one file for each language, such as `en.txt` and
`de.parquet`. All lists together are one table, sorted by language and query, with one digest. So one file with a column
`language` is equal to a file for each language.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import storage
from pipeline.engine.input_errors import is_remote
from queries import load
from queries.load import QueryError, QueryList

_NAMED = re.compile(r"([A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8})*)=(.+)", re.DOTALL)
SUFFIXES = (".txt", ".json", ".tsv", ".csv", ".parquet")


def parse_name(spec: str) -> tuple[str, str]:
    """(language, path) of `en=FILE`; ("", path) of a path alone. A file named so is given as `./en=FILE`."""
    found = _NAMED.fullmatch(spec)
    return (found[1].lower(), found[2]) if found else ("", spec)


def files_of(spec: str) -> list[tuple[str, str]]:
    """(language, path) of each list that the text names: one, or those of a folder.

    Raises:
        QueryError: a folder without a list, or with a list whose name is no language.
    """
    language, path = parse_name(spec)
    if not _is_folder(path):
        return [(language, path)]
    names = sorted(name for name in storage.names(path) if name.lower().removesuffix(".gz").endswith(SUFFIXES))
    if language or not names:
        cause = "is a folder" if language else "is a folder without a query list"
        raise QueryError(path, cause, "Name a file, or a folder with files such as en.txt and de.txt.")
    return [(name.partition(".")[0].lower(), os.path.join(path, name)) for name in names]


def _is_folder(path: str) -> bool:
    """True for a folder of lists, of this machine or on a store."""
    if not is_remote(path):
        return os.path.isdir(path)
    is_list = path.lower().removesuffix(".gz").endswith(SUFFIXES)
    return path.startswith(("s3://", "gs://")) and not is_list and storage.is_folder(path)


def load_lists(specs: Sequence[str]) -> QueryList:
    """All queries of the lists that the texts name; those of the list of the project if there is none.

    Raises:
        QueryError: a list cannot be read, or names another language than it was given for; or only some of the queries
            have a language.
        FileNotFoundError: there is no such file.
    """
    files = [found for spec in specs for found in files_of(spec)] or [("", load.default_list())]
    lists = [_in_language(load.load_queries(path), language, path) for language, path in files]
    whole = lists[0] if len(lists) == 1 else join(lists)
    languages = pc.unique(whole.table["language"]).to_pylist()
    if "" in languages and len(languages) > 1:
        cause = "names a language for some of its queries only"
        named = " ".join(path for _, path in files)
        raise QueryError(named, cause, "Give each list as LANGUAGE=FILE, or fill the column language.")
    return whole


def join(lists: Sequence[QueryList]) -> QueryList:
    """The queries of several lists. Of equal queries of one language the first one stays."""
    return load.assemble(pa.concat_tables([given.table for given in lists]), left_out=lists)


def _in_language(given: QueryList, language: str, path: str) -> QueryList:
    """The list with a language for each query that has none."""
    if not language:
        return given
    if not load.is_language(language):
        raise QueryError(path, f"is given for the language {language!r}", "Give codes such as en, de or zh-yue.")
    column = given.table["language"].combine_chunks()
    others = sorted(set(pc.unique(column).to_pylist()) - {"", language})
    if others:
        raise QueryError(path, f"is given for {language}, but its column language names {others[0]}", "Correct one.")
    at = given.table.column_names.index("language")
    table = given.table.set_column(at, given.table.schema.field(at), pa.array([language] * len(given), pa.string()))
    return dataclasses.replace(load.assemble(table, left_out=[given]), duplicates=given.duplicates)
