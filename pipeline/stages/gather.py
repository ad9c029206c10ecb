"""gather: sources -> PAIRS. Reads archives and tables, cleans texts and URLs, names the language.

CANDIDATES --clean_batch--> PAIRS        bad or empty text and URLs go, each with its reason; uid is computed
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import files, hashing
from pipeline.engine.ledger import Ledger
from pipeline.engine.steps import Step
from pipeline.engine.work import StepFolder, Work
from pipeline.sources.inputs import Input
from pipeline.stages.row_pass import (
    GATHERED_PART,
    MATCHED_PART,
    PartWriter,
    Rejects,
    RowStage,
    Tally,
    finish_manifest,
    run_pass,
)
from pipeline.text import clean

IMAGES = pa.schema(
    [
        pa.field("url", pa.string(), False),
        pa.field("source", pa.int32(), False),
        pa.field("offset", pa.int64(), False),
        pa.field("length", pa.int32(), False),
    ]
)


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """What a pair must be to leave the stage.

    Attributes:
        languages: ISO 639-1 codes to keep; empty: all.
        language_model: "own", a fastText model's path, or "none" (language and score stay null).
        min_language_score: least P(language) of a kept pair, if languages are asked for. A threshold and not the best
            guess: alt-texts are short.
        respect_opt_out: drops the pairs of pages that forbid AI training (noai, noimageai, tdm).
    """

    languages: tuple[str, ...] = ()
    language_model: str = "none"
    min_language_score: float = 0.2
    respect_opt_out: bool = True


OPT_OUTS = ("noai", "noimageai", "tdm-reservation")


def clean_batch(
    candidates: pa.RecordBatch, tally: Tally, *, source: int, name_hash: int, rules: Cleaning
) -> pa.RecordBatch:
    """CANDIDATES -> PAIRS with the hashes of GATHERED_PART; order kept, every dropped row counted in `tally`.

    Args:
        candidates: as a source yields them.
        tally: the stage's ledger and rejects.
        source: number of the input; name_hash: hash of its name (the rows' digest must not depend on numbers).
        rules: which pairs stay.
    """
    text, text_codes = clean.clean_text(candidates["text"])
    url, url_codes = clean.canonical_urls(candidates["url"])
    codes = np.where(text_codes > 0, text_codes, np.where(url_codes > 0, url_codes + len(clean.TEXT_REASONS), 0))
    reasons = [*clean.TEXT_REASONS, *clean.URL_REASONS]
    if rules.respect_opt_out and candidates["opt_out"].null_count < len(candidates):
        refused = pc.match_substring_regex(candidates["opt_out"], "|".join(OPT_OUTS)).fill_null(False)
        codes = np.where((codes == 0) & refused.to_numpy(zero_copy_only=False), len(reasons), codes)
        reasons.append("opt_out")
    found = pa.table({"url": candidates["url"], "text": candidates["text"]})
    for code in np.unique(codes[codes > 0]).tolist():
        dropped = found.filter(pa.array(codes == code)).combine_chunks()
        tally.drop(reasons[code], _column(dropped, "url"), _column(dropped, "text"))
    if codes.any():
        keep = pa.array(codes == 0)
        candidates, text, url = candidates.filter(keep), text.filter(keep), url.filter(keep)
    language, score = _languages(text, rules)
    if rules.languages:
        wanted = pc.and_(
            pc.is_in(language, pa.array(rules.languages)), pc.greater_equal(score, rules.min_language_score)
        )
        unwanted = pc.invert(wanted.fill_null(False))
        tally.drop("language", url.filter(unwanted), text.filter(unwanted))
        candidates, text, url, language, score = (
            column.filter(wanted.fill_null(False)) for column in (candidates, text, url, language, score)
        )
    return _pairs(candidates, text, url, language, score, tally, source, name_hash)


def _pairs(
    candidates: pa.RecordBatch,
    text: pa.Array,
    url: pa.Array,
    language: pa.Array,
    score: pa.Array,
    tally: Tally,
    source: int,
    name_hash: int,
) -> pa.RecordBatch:
    """The cleaned rows with their keys and hashes."""
    rows = len(text)
    keys = hashing.pair_keys(url, text)
    as_found = pc.if_else(pc.equal(candidates["text"], text), None, candidates["text"])
    codes = [candidates[name].to_numpy() for name in ("text_source", "url_source")]
    names = np.full(rows, name_hash, np.uint64)
    provenance = hashing.provenance_hash(candidates["page_url"], names, candidates["offset"].to_numpy(), *codes)
    high, low = hashing.uid_words(keys.uid)
    more = [hashing.column_hash(column) for column in (as_found, language, score, candidates["opt_out"])]
    row_hash = hashing.row_hash(high, low, provenance, *more, hashing.column_hash(candidates["license"]))
    tally.passed(row_hash)
    columns = [
        keys.uid,
        url,
        text,
        as_found,
        candidates["page_url"],
        pa.array(np.full(rows, source, np.int32)),
        candidates["offset"],
        candidates["text_source"],
        candidates["url_source"],
        language,
        score,
        candidates["opt_out"],
        candidates["license"],
        pa.array(keys.url_hash),
        pa.array(provenance),
        pa.array(row_hash),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=GATHERED_PART)


def _languages(text: pa.Array, rules: Cleaning) -> tuple[pa.Array, pa.Array]:
    """Language and P(language) of each text; nulls where it is not asked for."""
    if rules.language_model == "none":
        return pa.nulls(len(text), pa.string()), pa.nulls(len(text), pa.float32())
    model = _language_model(rules.language_model)
    if rules.languages:
        return model.scores(text, rules.languages)
    return model.predict(text)


@functools.lru_cache(maxsize=1)
def _language_model(path: str) -> Any:
    from pipeline.text.language import LanguageModel

    return LanguageModel.load(path)


def read_candidates(source: Input, ledger: Ledger, images: list, columns: tuple[str, str]) -> Iterator[pa.RecordBatch]:
    """The pairs of one input as found; images that lie in an archive are appended to `images` as record batches."""
    if source.format == "wat":
        from pipeline.sources.wat import read_wat

        yield from read_wat(source.path, ledger=ledger, name=source.name, size=source.bytes)
    elif source.format == "warc":
        from pipeline.sources.warc import ArchivedImages, read_warc

        sink = ArchivedImages()
        yield from read_warc(source.path, ledger=ledger, images=sink, name=source.name, size=source.bytes)
        images.append(sink.batch())
    else:
        from pipeline.sources.tables import read_table

        yield from read_table(source, ledger=ledger, url_column=columns[0], text_column=columns[1])


@dataclasses.dataclass(frozen=True)
class GatherInputs:
    """The task: one unit an input. With `then` the rows go on through the next stage in the same pass."""

    work: Work
    inputs: str  # path of the JSON list of inputs
    columns: tuple[str, str]
    rules: Cleaning
    keep_rejected: str
    then: RowStage | None = None
    key_bits: int | None = None

    @property
    def folder(self) -> StepFolder:
        return self.work.step(self.then.name if self.then else "gather", "parts")

    def units(self) -> int:
        return len(load_inputs(self.inputs))

    def run(self, unit: int) -> dict[str, Any]:
        inputs, names = load_inputs(self.inputs), source_names(self.inputs)
        source = inputs[unit]
        number = names.index(source.name)
        name_hash = int(hashing.hash_strings(pa.array([source.name]))[0, 0])
        rejects = Rejects(self.keep_rejected)
        tally = Tally("gather", rejects)
        images: list[pa.RecordBatch] = []
        rows = functools.partial(clean_batch, source=number, name_hash=name_hash, rules=self.rules)
        stages: list[tuple[Tally, Callable]] = [(tally, rows)]
        if self.then:
            stages.append((Tally(self.then.name, rejects), self.then.open()))
        schema = MATCHED_PART if self.then else GATHERED_PART
        with PartWriter(self.folder, unit, schema, self.key_bits if self.then else None) as writer:
            body = run_pass(read_candidates(source, tally.ledger, images, self.columns), stages, writer)
        self._write_images(unit, number, images)
        return finish_manifest(self.folder, unit, body, writer, rejects) | {"images": sum(map(len, images))}

    def _write_images(self, unit: int, number: int, images: list[pa.RecordBatch]) -> None:
        """Where the images of the archive lie, by canonical URL."""
        for batch in images:
            if batch.num_rows:
                url, codes = clean.canonical_urls(batch["url"])
                table = pa.table(
                    [url, pa.array(np.full(len(url), number, np.int32)), batch["offset"], batch["length"]],
                    schema=IMAGES,
                )
                files.write_table(self.folder.file(unit, "images"), table.filter(pa.array(codes == 0)))


@functools.lru_cache(maxsize=2)
def load_inputs(path: str) -> list[Input]:
    """The run's inputs as `save_inputs` wrote them."""
    return [Input(**{**item, "part": tuple(item["part"]) if item["part"] else None}) for item in files.read_json(path)]


@functools.lru_cache(maxsize=2)
def source_names(path: str) -> list[str]:
    """The sorted names of the inputs; `source` is a place in this list."""
    return sorted({item.name for item in load_inputs(path)})


def save_inputs(path: str, inputs: list[Input]) -> None:
    """Writes the list for the workers and for later runs."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    files.write_json(path, [dataclasses.asdict(item) for item in inputs])
    load_inputs.cache_clear()
    source_names.cache_clear()


class Gather(beam.PTransform):
    """root | Gather(task): reads every input; with `task.then` it goes on through the next stage in the same pass."""

    def __init__(self, task: GatherInputs) -> None:
        super().__init__("Gather")
        self._task = task

    def expand(self, root: Any) -> beam.PCollection:
        return root | Step(self._task, work=self._task.work)


def _column(table: pa.Table, name: str) -> pa.Array:
    return hashing.as_array(table[name])
