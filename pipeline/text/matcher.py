"""Finds the queries that a text contains. It is exact, and does a million texts a second with half a million queries.

Two modes define "contain". `naive_match` is each of them in a few lines. It is the oracle of the tests.

- `wide` (the default): query and text pass the same normaliser (`pipeline.text.normalize`). The query matches where its
  tokens follow each other in the text. Each letter of a script without blanks is a token, so such scripts match as
  substrings.
- `metaclip`: what the published MetaCLIP does, to the byte. The text becomes " " + text + " ". Blanks are put around
  each of `, . ; : ? ! \\``. Tab, newline and return become blanks. A query matches where " " + query + " "
  occurs. Queries are not changed, so some, like "St. Louis", can never match (`Matcher.dead`).

In both modes text and query are split at single blanks, and the query's tokens are searched in the text's tokens. All
queries together form a tree of tokens. From each token of the text the search follows the tree while some query
continues. `matcher_kernel` holds the tree in two hash tables. A run builds them once, saves them, and every worker maps
them. Without compiled code, numpy walks an equal tree (`_Tree`) level by level and gives the same rows.
"""

from __future__ import annotations

import functools
import os
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import jit, storage
from pipeline.text import normalize

MODES = ("wide", "metaclip")
VERSION = 3  # of the saved folder and of the rules above; a folder of another version is refused

# The characters that metaclip mode replaces in a text.
_SPACED = {mark: f" {mark} " for mark in ",.;:?!`"} | dict.fromkeys("\t\n\r", " ")
# Queries that no text can match in metaclip mode. There blanks surround each mark, so two marks have two between them.
_DEAD_IN_METACLIP = r"[\t\n\r]|[^ ][,.;:?!`]|[,.;:?!`][^ ]|[,.;:?!`] [,.;:?!`]"
_BATCH = 65_536  # texts of a kernel call; it bounds the scratch space


def default_case(mode: str) -> str:
    """The default of --case: `wide` folds, and `metaclip` is exact, as published."""
    return "fold" if mode == "wide" else "exact"


def naive_match(
    text: str, queries: list[str], mode: str = "wide", case: str = "exact", language: str = ""
) -> list[int]:
    """The ids (positions) of the queries that `text` contains, by the definition. It is slow."""
    if mode == "wide":
        text = f" {normalize.normalize_text(text, case, language)} "
        forms = [normalize.normalize_text(query, case, language) for query in queries]
        return [number for number, form in enumerate(forms) if form and f" {form} " in text]
    if case == "fold":
        text, queries = fold(text), [fold(query) for query in queries]
    text = f" {text} "
    for mark, spaced in _SPACED.items():
        text = text.replace(mark, spaced)
    return [number for number, query in enumerate(queries) if f" {query} " in text]


def forms_of(queries: pa.Array, *, mode: str, case: str, language: str = "") -> pa.Array:
    """The form of each query in a prepared text. Queries with equal forms are one query."""
    if mode == "wide":
        return normalize.normalize_array(queries, case, language)
    return _fold_array(queries) if case == "fold" else queries


def fold(text: str) -> str:
    """The text case-folded and in NFC. Metaclip mode folds nothing else."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


class Matcher:
    """All queries of a list, compiled for matching. Build it once, save it, and load it in each worker.

    Several threads may use one matcher. The kernel releases Python's lock while it runs.
    """

    def __init__(
        self, forms: pa.LargeStringArray, *, mode: str, case: str, language: str, dead: list[int], tables: Any
    ) -> None:
        self.mode = mode
        self.case = case
        self.language = language  # of the texts, where its letters fold in a special way; else ""
        self.dead = dead  # ids that no text can match
        self._forms = forms  # the form of each query in a prepared text, by id
        self._tables = tables  # matcher_kernel.Tables, or None until the kernel needs them

    @classmethod
    def build(cls, queries: pa.StringArray, *, mode: str = "wide", case: str = "exact", language: str = "") -> Matcher:
        """A matcher for the queries. Their positions are their ids. Queries with equal forms all match together."""
        if mode not in MODES or case not in normalize.CASES:
            raise ValueError(f"mode must be wide or metaclip, case exact or fold: not {mode}, {case}")
        if isinstance(queries, pa.ChunkedArray):
            queries = queries.combine_chunks()
        if queries.null_count:
            raise ValueError(f"{queries.null_count} nulls among the queries")
        queries = queries.cast(pa.large_string())
        forms = forms_of(queries, mode=mode, case=case, language=language)
        is_dead = pc.equal(forms, "") if mode == "wide" else pc.match_substring_regex(forms, _DEAD_IN_METACLIP)
        dead = np.flatnonzero(is_dead.to_numpy(zero_copy_only=False)).tolist()
        matcher = cls(forms, mode=mode, case=case, language=language, dead=dead, tables=None)
        if matcher._kernel(0):
            matcher._build_tables()
        return matcher

    def __len__(self) -> int:
        return len(self._forms)

    @property
    def nbytes(self) -> int:
        """The bytes of the kernel's tables; 0 without tables."""
        return sum(array.nbytes for array in self._tables) if self._tables else 0

    def among(self, queries: list[str]) -> npt.NDArray[np.bool_]:
        """For each query of the matcher: True if one of `queries` is equal to it."""
        given = pa.array(queries, self._forms.type)
        forms = forms_of(given, mode=self.mode, case=self.case, language=self.language)
        return np.asarray(pc.is_in(self._forms, forms))

    def match(self, texts: pa.StringArray | pa.LargeStringArray | pa.ChunkedArray) -> pa.ListArray:
        """list<int32>: for each text the ids of the queries that it contains, ascending, each once."""
        if texts.null_count:
            raise ValueError(f"{texts.null_count} nulls among the texts: fill them before matching")
        match_batch = self._match_kernel if self._kernel(len(texts)) else self._match_plain
        sizes, ids = [np.zeros(1, np.int64)], [np.empty(0, np.int32)]
        for batch in _batches(texts):
            batch_sizes, batch_ids = match_batch(batch)
            sizes.append(batch_sizes)
            ids.append(batch_ids)
        offsets = np.cumsum(np.concatenate(sizes))
        if offsets[-1] > np.iinfo(np.int32).max:
            raise ValueError(f"{offsets[-1]} matches are too many for one list array: match fewer texts at a time")
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(np.concatenate(ids)))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the matcher into `folder`, for `load`. The json file is written last and marks it as complete."""
        folder = os.fspath(folder)
        data, offsets = _buffers(self._forms)
        arrays: dict[str, npt.NDArray] = {"forms": data, "form_offsets": offsets, "dead": np.array(self.dead, np.int32)}
        if self._tables:
            arrays |= self._tables._asdict()
        for name, array in arrays.items():
            storage.save_array(os.path.join(folder, f"{name}.npy"), array)
        tables = list(self._tables._asdict()) if self._tables else []
        about = {
            "version": VERSION,
            "mode": self.mode,
            "case": self.case,
            "language": self.language,
            "queries": len(self),
            "tables": tables,
        }
        storage.write_json(os.path.join(folder, "matcher.json"), about)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Matcher:
        """The matcher that `save` wrote to `folder`. Its tables are checked and then mapped."""
        folder = os.fspath(folder)
        about = storage.read_json(os.path.join(folder, "matcher.json"))
        if about is None:
            raise FileNotFoundError(f"there is no matcher in {folder}")
        if about["version"] != VERSION:
            raise ValueError(f"matcher {folder} has version {about['version']}, not {VERSION}: build it again")
        data, offsets, dead = (_map(folder, name) for name in ("forms", "form_offsets", "dead"))
        forms = normalize.strings(data, offsets, pa.large_string())
        tables = None
        if about["tables"] and jit.available():
            from pipeline.text import matcher_kernel

            tables = matcher_kernel.Tables(**{name: _map(folder, name) for name in about["tables"]})
        how = {name: about[name] for name in ("mode", "case", "language")}
        return cls(forms, **how, dead=dead.tolist(), tables=tables)

    def _kernel(self, rows: int) -> Any:
        # With many queries the kernel pays even for few texts: without it, every process builds the tree itself.
        return jit.kernel("pipeline.text.matcher_kernel", max(rows, len(self)))

    def _build_tables(self) -> Any:
        from pipeline.text import matcher_kernel

        ids, forms = self._living_forms()
        self._tables = matcher_kernel.build(forms, ids)
        return self._tables

    def _match_kernel(self, texts: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        from pipeline.text import matcher_kernel, normalize_kernel

        if self.mode == "wide":
            settled = normalize.settle_array(texts, self.case, self.language)
            prepared = normalize_kernel.segment(settled, self.case == "fold", True)
        else:
            prepared = matcher_kernel.space_out(_fold_array(texts) if self.case == "fold" else texts)
        return matcher_kernel.match(self._tables or self._build_tables(), *prepared)

    def _match_plain(self, texts: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        if self.mode == "wide":
            prepared = normalize.normalize_array(texts, self.case, self.language)
        else:
            prepared = _fold_array(texts) if self.case == "fold" else texts
            for mark, spaced in _SPACED.items():
                prepared = pc.replace_substring(prepared, mark, spaced)
        return self._tree.match(prepared)

    @functools.cached_property
    def _tree(self) -> _Tree:
        ids, forms = self._living_forms()
        return _Tree.build(forms, ids)

    def _living_forms(self) -> tuple[npt.NDArray[np.int32], pa.LargeStringArray]:
        """The ids and forms of the queries that have a token."""
        ids = np.arange(len(self), dtype=np.int32)
        if self.mode == "metaclip":  # here even an empty form has a token, the empty one
            return ids, self._forms
        ids = np.delete(ids, self.dead)
        return ids, self._forms.take(pa.array(ids))


class _Tree(NamedTuple):
    """The tree of tokens in numpy arrays. `matcher_kernel.Tables` is its form for compiled code.

    A node is a number, and stands for the first tokens of a query. The node of one token is the token's index in
    `vocabulary`. A longer beginning is a key in `edges` (the node before << 32 | next token). Its node is the index of
    the key plus the number of tokens. Longer beginnings have higher nodes. So the keys are sorted, level after level.
    """

    vocabulary: pa.StringArray
    edges: npt.NDArray[np.int64]
    goes_on: npt.NDArray[np.bool_]  # by node: True if a longer beginning exists
    starts: npt.NDArray[np.int64]  # by node: the place in `ids` of the queries that end there
    ids: npt.NDArray[np.int32]

    @classmethod
    def build(cls, forms: pa.LargeStringArray, ids: npt.NDArray[np.int32]) -> _Tree:
        words = pc.split_pattern(forms, " ")
        encoded = words.flatten().dictionary_encode()
        tokens, first = encoded.indices.to_numpy().astype(np.int64), words.offsets.to_numpy()[:-1]
        lengths = pc.list_value_length(words).to_numpy()
        node = tokens[first] if len(first) else np.empty(0, np.int64)
        nodes = len(encoded.dictionary)
        levels = [np.empty(0, np.int64)]
        for depth in range(1, int(lengths.max(initial=1))):
            longer = np.flatnonzero(lengths > depth)
            keys, place = np.unique(node[longer] << 32 | tokens[first[longer] + depth], return_inverse=True)
            levels.append(keys)
            node[longer] = nodes + place
            nodes += len(keys)
        edges = np.concatenate(levels)
        goes_on = np.zeros(nodes, np.bool_)
        goes_on[edges >> 32] = True
        starts = np.concatenate([[0], np.cumsum(np.bincount(node, minlength=nodes))])
        return cls(encoded.dictionary, edges, goes_on, starts, ids[np.argsort(node, kind="stable")])

    def match(self, prepared: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """(number of queries of each text, their ids text after text). A text is tokens with single blanks between."""
        words = pc.split_pattern(prepared, " ")
        found = pc.index_in(words.flatten().cast(self.vocabulary.type), self.vocabulary)
        token = pc.fill_null(found, -1).to_numpy().astype(np.int64)
        row = np.repeat(np.arange(len(prepared)), pc.list_value_length(words).to_numpy())
        token, row = np.append(token, -1), np.append(row, -1)  # so that every token has a next one
        pairs = []
        begin = after = np.flatnonzero(token >= 0)  # the first and the last token of each beginning
        node = token[begin]
        while len(node):
            counts = self.starts[node + 1] - self.starts[node]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            ids = self.ids[np.repeat(self.starts[node], counts) + within]
            pairs.append(np.repeat(row[begin], counts) << 32 | ids)

            on = self.goes_on[node]
            begin, after, node = begin[on], after[on] + 1, node[on]
            on = (token[after] >= 0) & (row[after] == row[begin])
            begin, after, key = begin[on], after[on], node[on] << 32 | token[after[on]]
            place = np.searchsorted(self.edges, key)
            on = np.append(self.edges, -1)[place] == key
            begin, after, node = begin[on], after[on], place[on] + len(self.vocabulary)
        matches = np.sort(np.concatenate([np.empty(0, np.int64), *pairs]))
        matches = matches[np.diff(matches, prepend=-1) > 0]  # each once (np.unique takes ten times as long)
        sizes = np.bincount(matches >> 32, minlength=len(prepared))
        return sizes, (matches & 0xFFFFFFFF).astype(np.int32)


def _batches(texts: pa.Array | pa.ChunkedArray) -> Iterator[pa.Array]:
    for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
        for start in range(0, len(chunk), _BATCH):
            yield chunk.slice(start, _BATCH)


def _fold_array(texts: pa.Array) -> pa.Array:
    lower = pc.ascii_lower(texts)
    is_other = pc.invert(pc.string_is_ascii(texts))
    if not pc.any(is_other).as_py():
        return lower
    others = [fold(text) for text in texts.filter(is_other).to_pylist()]
    return pc.replace_with_mask(lower, is_other, pa.array(others, texts.type))


def _buffers(forms: pa.LargeStringArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    offsets = np.zeros(1, np.int64)
    if len(forms):
        offsets = np.frombuffer(forms.buffers()[1], np.int64)[forms.offset : forms.offset + len(forms) + 1]
    content = forms.buffers()[2]
    data = np.frombuffer(content, np.uint8) if content is not None else np.empty(0, np.uint8)
    return data[offsets[0] : offsets[-1]], offsets - offsets[0]


def _map(folder: str, name: str) -> npt.NDArray:
    return storage.map_array(os.path.join(folder, f"{name}.npy"))
