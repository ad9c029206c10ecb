"""dedup-images: drops images of a poor shape or score. Of pairs whose images show the same, one stays.

First the fetched rows, without the failures and without the rows that `fetched_rules` drops, are written as parts like
those of match. Then the steps of `dedup` follow, for images with equal bytes. The hash of the image takes the place of
the URL. Of these rows, that with the most words stays, then that with the smallest hash of image and text.

Then near-duplicates are found among the rows that are left (`near_exchange`). Which row replaces which stands in
OUT/stages/dedup-images/duplicates.parquet. publish copies it. With `--captions N` the texts of the rows that are
replaced go to the row that stays (`cluster_texts`).
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import checks, hashing, storage
from pipeline.engine.cli import BelowThreshold, UsageError
from pipeline.engine.options import nearest, option, show
from pipeline.engine.progress import Watched
from pipeline.engine.rows import Rows
from pipeline.engine.steps import run_task
from pipeline.engine.work import Json, StepFolder
from pipeline.schema import CONTAMINATION_FILE, DUPLICATES_FILE, FETCHED
from pipeline.stages import embeddings, evaluation_embeddings, evaluation_images, near_exchange
from pipeline.stages.attempts import Attempts
from pipeline.stages.base import TABLES, Job, Outputs
from pipeline.stages.contamination import FOUND, Contamination, merge_found
from pipeline.stages.dedup_exchange import DedupPlan, DedupStage
from pipeline.stages.dedup_settings import DedupSettings
from pipeline.stages.evaluation_embeddings import Evaluated
from pipeline.stages.evaluation_images import HashImages
from pipeline.stages.fetched_rules import DROPPED, Rules, Shapes, drop_by_rules
from pipeline.stages.keep_rule import KeepRule
from pipeline.stages.near_exchange import NearPlan
from pipeline.stages.picture_hashes import MOST_DISTANCE
from pipeline.stages.row_pass import FETCHED_OK, KEY_BYTES, Keyed, PartWriter
from pipeline.stages.run import Run
from pipeline.stages.scores import OWN, column_names, read_scores, scores_of
from pipeline.stages.scores import TABLES as SCORE_TABLES
from pipeline.stages.tally import Rejects, Tally, unit_body
from pipeline.text.words import count_words

if TYPE_CHECKING:
    import apache_beam as beam

ROWS_PER_GROUP = 250_000
# What a user checks if all pairs fell, by reason.
CAUSES = {
    "too_small": "--min-image-side",
    "aspect": "--max-aspect",
    "score": "--keep",
    "no_score": "that these pairs have the columns that --keep names",
    "contaminated": "--decontaminate",
}
WRONG_SCORES = "that --scores has the keys of this set"


def parse_distance(text: str) -> int | None:
    """The value of --phash-distance; None: "none"."""
    if text == "none":
        return None
    if not re.fullmatch(r"\d{1,2}", text) or int(text) > MOST_DISTANCE:
        raise UsageError(f"must be a whole number from 0 to {MOST_DISTANCE}, or none")
    return int(text)


def parse_rule(text: str) -> str:
    """The value of --keep."""
    return KeepRule.parse(text).text


@dataclasses.dataclass(frozen=True, kw_only=True)
class DedupImagesSettings:
    """The options that say which fetched images are kept."""

    title: ClassVar[str] = "dedup-images"

    min_image_side: int = option(
        64, help="least short side of an image as served", unit="pixels", metavar="PX", within="[0, 65535]"
    )
    max_aspect: float = option(
        3.0, help="an image may be so many times longer than wide, or wider than long", metavar="X", within="[1, 1e6]"
    )
    phash_distance: int | None = option(
        2,
        help="images are near-duplicates if their perceptual hashes differ in at most so many bits, and their colours "
        "and shades agree; none: only equal bytes count",
        unit="bits",
        metavar="N|none",
        parse=parse_distance,
        within=f"[0, {MOST_DISTANCE}]",
    )
    embeddings: tuple[str, ...] = option(
        (),
        help="Parquet tables of a column key and a column embedding; images are near-duplicates by them too",
        default_text="none",
        metavar="TABLE",
        check=checks.readable_file,
        published=embeddings.TABLES.described,
    )
    embedding_threshold: float = option(
        0.99, help="the least cosine of the embeddings of near-duplicates", metavar="T", within="[0.5, 1]"
    )
    scores: tuple[str, ...] = option(
        (),
        help="tables (Parquet or CSV) of a column key and columns of numbers, which become columns of the metadata",
        default_text="none",
        metavar="TABLE",
        check=checks.readable_file,
        published=SCORE_TABLES.described,
    )
    keep: str | None = option(
        None,
        help="only pairs for which this is true are kept, such as 'clip_score >= 0.28 and nsfw < 0.1'",
        default_text="all",
        metavar="EXPRESSION",
        parse=parse_rule,
    )

    decontaminate: tuple[str, ...] = option(
        (),
        help="folders, tars or Parquet tables of evaluation images; pairs that show one of them are dropped",
        default_text="none",
        metavar="[NAME=]PATH",
        check=evaluation_images.check_source,
        published=evaluation_images.described,
    )
    decontaminate_distance: int = option(
        4,
        help="a pair shows an evaluation image if their perceptual hashes differ in at most so many bits, and their "
        "colours or all their looks agree; mirror images count, too",
        unit="bits",
        metavar="N",
        within=f"[0, {MOST_DISTANCE}]",
    )
    decontaminate_embeddings: tuple[str, ...] = option(
        (),
        help="Parquet tables of a column key (names of evaluation images) and a column embedding; pairs are dropped "
        "whose --embeddings are near one",
        default_text="none",
        metavar="[NAME=]TABLE",
        check=evaluation_embeddings.check_source,
        published=evaluation_embeddings.described,
    )
    decontaminate_threshold: float = option(
        0.99, help="the least cosine of a pair and an evaluation image that it shows", metavar="T", within="[0.5, 1]"
    )

    @staticmethod
    def check_together(o: Any) -> None:
        """Refuses an expression that names a column that no table has, and evaluation images without what they need."""
        if o.decontaminate_embeddings and not o.embeddings:
            raise UsageError(
                f"--decontaminate-embeddings {show(o.decontaminate_embeddings[0])}: needs --embeddings TABLE, the "
                "embeddings of the set by the same model"
            )
        known = column_names(o.scores)
        for name in KeepRule.parse(o.keep).names() if o.keep else ():
            if name not in known:
                columns = f"{nearest(name, known)} (columns: {', '.join(map(show, known))})"
                raise UsageError(f"--keep {show(o.keep)}: there is no column {show(name)!r}{columns}")
        if o.decontaminate:
            evaluation_images.find(o.decontaminate)


def evaluation_identity(o: DedupImagesSettings) -> dict[str, Json]:
    """What stands for the evaluation images in the fingerprint: the names and sizes of their files."""
    identity = evaluation_images.find(o.decontaminate).digest()
    return {"decontaminate": identity, "decontaminate_distance": o.decontaminate_distance}


def evaluation_tables(o: DedupImagesSettings) -> dict[str, Json]:
    """What stands for the embeddings of evaluation images in the fingerprint."""
    tables = evaluation_embeddings.digest(o.decontaminate_embeddings)
    bounds = {"decontaminate_threshold": o.decontaminate_threshold, "decontaminate_distance": o.decontaminate_distance}
    return {"decontaminate_embeddings": tables, **bounds}


@dataclasses.dataclass(frozen=True)
class FindEvaluated:
    """One unit for each unit of the fetch: good rows whose embedding shows an evaluation image, and their hashes."""

    attempts: Attempts
    evaluated: Evaluated
    shapes: Shapes

    @property
    def folder(self) -> StepFolder:
        return self.evaluated.found

    def units(self) -> int:
        return self.attempts.hosts

    def run(self, unit: int) -> dict[str, Any]:
        pieces = [FETCHED.empty_table()]
        for _, _, table in self.attempts.rows(unit):
            good = table.filter(pc.equal(table["status"], "ok"))
            shaped = self.shapes.codes(*(good[name].to_numpy() for name in ("original_width", "original_height"))) == 0
            pieces.append(good.select(FETCHED.names).filter(pa.array(shaped)))
        return {"found": self.evaluated.write(unit, pa.concat_tables(pieces).combine_chunks())}


@dataclasses.dataclass(frozen=True)
class KeepFetched:
    """One unit for each unit of the fetch: writes its good rows and their keys. The newest outcome of a row counts.

    Its ledger counts only the rows that it drops. The masks count the rows that it writes.
    """

    plan: DedupPlan
    attempts: Attempts
    rules: Rules

    @property
    def folder(self) -> StepFolder:
        return self.plan.rows.parts

    def units(self) -> int:
        return self.attempts.hosts

    def run(self, unit: int) -> dict[str, Any]:
        rejects = Rejects(self.plan.keep_rejected)
        tally = Tally(self.plan.folder.name, rejects)
        dropped, contaminated = [DROPPED.empty_table()], [FOUND.empty_table()]
        with PartWriter(self.folder, unit, FETCHED_OK, Keyed(keys_of_images, self.plan.key_bits)) as writer:
            for _, _, table in self.attempts.rows(unit):
                good = table.filter(pc.equal(table["status"], "ok"))
                codes, found = self.rules.apply(good)
                kept, bad = drop_by_rules(good, codes, tally)
                columns = [hashing.as_array(kept[name]) for name in FETCHED_OK.names]
                writer.write(pa.RecordBatch.from_arrays(columns, schema=FETCHED_OK))
                dropped.append(bad)
                contaminated.append(found)
        storage.write_table(self.folder.file(unit, "dropped"), pa.concat_tables(dropped))
        storage.write_table(self.folder.file(unit, "contaminated"), pa.concat_tables(contaminated))
        return {**unit_body(self.folder, unit, [tally], rejects), "parts": writer.parts, "rows": writer.rows}


def keys_of_images(rows: pa.RecordBatch) -> tuple[np.ndarray, ...]:
    """Keys by the bytes of the images as served. Of the rows of an image, that with the most words stays."""
    digests = b"".join(digest[:8] for digest in rows["image_sha256"].to_pylist())
    image, count = np.frombuffer(digests, ">u8").astype(np.uint64), rows.num_rows
    text = hashing.hash_strings(rows["text"])[:, 0]
    return image, text, count_words(rows["text"]), np.zeros(count, np.uint32), np.zeros(count, np.uint64)


@dataclasses.dataclass(frozen=True)
class DedupImages(DedupStage):
    """The stage."""

    name: ClassVar[str] = "dedup-images"
    job: ClassVar[Job] = "publish"
    options: ClassVar[type] = DedupImagesSettings

    attempts: Attempts
    rules: Rules
    distance: int | None
    score_tables: tuple[str, ...]
    evaluation: tuple[str, ...]
    embedding_tables: tuple[str, ...]
    cosine: float | None
    captions: int
    evaluation_tables: tuple[str, ...]
    tables: str

    @classmethod
    def plan(cls, run: Run, before: Outputs) -> Self:
        o, attempts = run.settings(DedupImagesSettings), Attempts(before.folder("fetch"), before.folder("balance"))
        folder = before.plan(run, cls)
        keep = None if o.keep is None else KeepRule.parse(o.keep)
        hashes = folder.step("evaluation")
        rules = Rules(
            Shapes(o.min_image_side, o.max_aspect),
            keep,
            scores_of(folder) if o.scores else None,
            Contamination(hashes, o.decontaminate_distance) if o.decontaminate else None,
            Evaluated(
                folder.step("evaluation-embeddings"),
                folder.step("embeddings"),
                o.decontaminate_threshold,
                folder.step("evaluated"),
                o.decontaminate_distance,
            )
            if o.decontaminate_embeddings
            else None,
        )
        distance = o.phash_distance
        tables, cosine = o.embeddings, o.embedding_threshold if o.embeddings else None
        captions = run.settings(DedupSettings).captions
        lists = os.path.join(before.folder("match").path, TABLES)
        given = o.scores, o.decontaminate, tables, cosine, captions, o.decontaminate_embeddings, lists
        return cls(folder, run.keep_rejected, run.exchange, attempts, rules, distance, *given)

    def check(self, run: Run) -> None:
        if self.embedding_tables:
            width = embeddings.check(self.embedding_tables).width
            if self.evaluation_tables:
                evaluation_embeddings.check_widths(self.evaluation_tables, width)
        if self.score_tables:
            self._check_rule(read_scores(self.score_tables).columns)
        else:
            self._check_rule()

    def _check_rule(self, scores: pa.Table | None = None) -> None:
        """Refuses a rule that cannot be true with the columns that there are.

        Args:
            scores: of --scores; None: not given.
        """
        rule = self.rules.keep
        if rule is None:
            return
        types = {} if scores is None else dict(zip(scores.column_names, scores.schema.types, strict=True))
        try:
            rule.check({**{name: FETCHED.field(name).type for name in OWN}, **types})
            if scores is not None and types.keys() >= {*rule.names()}:
                rows = pa.concat_tables([scores, pa.table({name: pa.nulls(1, kind) for name, kind in types.items()})])
                columns = {name: hashing.as_array(rows[name]) for name in rule.names()}
                if not pc.any(rule.keeps(columns, rows.num_rows)).as_py():
                    raise UsageError(f"is true for none of the {scores.num_rows:,} rows of --scores")
        except UsageError as error:
            raise UsageError(f"--keep {show(rule.text)}: {error}") from None

    def begin(self, run: Run) -> None:
        storage.remove(os.path.dirname(scores_of(self.folder)))
        if self.score_tables:
            read_scores(self.score_tables).write(scores_of(self.folder))
        if self.embedding_tables:
            embeddings.write(self.embedding_tables, self.near.embeddings)
        if self.rules.evaluated is not None:
            evaluated = self.rules.evaluated
            evaluation_embeddings.write(self.evaluation_tables, evaluated.folder, evaluated.cosine)

    def count(self, *, counted: Sequence[StepFolder] | None = None) -> dict[str, Any]:
        info = super().count(counted=counted)
        if info["rows_in"] and not info["rows_out"]:
            worst = sorted(info["dropped"].items(), key=lambda item: -item[1])
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in worst)
            said = {**CAUSES, "no_score": WRONG_SCORES} if self.score_tables else CAUSES
            causes = " and ".join(said[reason] for reason, _ in worst if reason in said)
            raise BelowThreshold(
                f"no pair is left after {self.name}: of {info['rows_in']:,} fell {reasons}. The set is not published. "
                f"Check {causes}."
            )
        known = self._embedded()
        if known and not known["rows"] and info["rows_out"]:
            raise BelowThreshold(
                f"--embeddings: none of the {known['other_keys']:,} keys is the key of a fetched pair. The set is not "
                "published. Check that the table was made of this set."
            )
        for name, found in self._evaluated().items():
            if not found["images"]:
                raise BelowThreshold(
                    f"--decontaminate: none of the {found['unreadable']:,} images of the set {show(name)} can be "
                    "decoded. The set is not published."
                )
        return info

    def _evaluated(self) -> dict[str, dict[str, Json]]:
        """The counts of each evaluation set. Of a set with files and embeddings, the larger number counts."""
        found: dict[str, dict[str, int]] = {}
        if self.evaluation_tables:
            images = evaluation_embeddings.check(self.evaluation_tables).images
            found = {name: {"images": count, "unreadable": 0} for name, count in images.items()}
        if self.rules.contamination is not None:
            hashes, sets = self.rules.contamination.hashes, evaluation_images.find(self.evaluation).sets
            for name, counted in evaluation_images.counts(hashes, sets).items():
                embedded = found.get(name, counted)["images"]
                found[name] = {**counted, "images": max(embedded, counted["images"])}  # most are in both
        return {name: {**counted} for name, counted in found.items()}

    def _embedded(self) -> dict[str, int]:
        """The rows with and without an embedding, and the keys of other sets; empty: there are no embeddings."""
        if self.cosine is None:
            return {}
        step = self.near.vectors
        rows, known = int(step.total("rows")), int(step.total("known"))
        others = embeddings.check(self.embedding_tables).rows - known
        return {"rows": known, "without": rows - known, "other_keys": others}

    def facts(self) -> dict[str, Json]:
        found, embedded = self._evaluated(), self._embedded()
        joined = {"joined_texts": int(self.duplicates.overlays.total("texts"))} if self.captions > 1 else {}
        return {
            **({"evaluation": found} if found else {}),
            **({"embeddings": embedded} if embedded else {}),
            **joined,
        }

    @property
    def duplicates(self) -> DedupPlan:
        """The exchange that finds equal images. The fetch must be done: the number of its rows sizes the exchange."""
        fetched = self._fetched()
        rows = Rows(self.folder.step("parts"), groups=min(1024, max(1, round(fetched / ROWS_PER_GROUP))))
        bits = min(12, max(0, (KEY_BYTES * fetched >> 26).bit_length()))
        captions = self.captions if self.captions > 1 else 0
        return DedupPlan(
            self.folder,
            rows,
            bits,
            near_exchange.REASONS,
            keep_rejected=self.keep_rejected,
            captions=captions,
            tables=self.tables,
        )

    @property
    def near(self) -> NearPlan:
        """The exchange that finds near-duplicates, and the one of equal images before it."""
        fetched = self._fetched()
        bits = near_exchange.bucket_bits(fetched, self.distance)
        return NearPlan(self.duplicates, self.distance, bits, self.cosine, near_exchange.cell_buckets(fetched))

    def _fetched(self) -> int:
        return self.attempts.folder.done()["rows_out"]

    @classmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        o = run.settings(DedupImagesSettings)
        return {
            "min_image_side": o.min_image_side,
            "max_aspect": o.max_aspect,
            "phash_distance": o.phash_distance,
            **({"embeddings": embeddings.TABLES.digest(o.embeddings)} if o.embeddings else {}),
            **({"embedding_threshold": o.embedding_threshold} if o.embeddings else {}),
            **({"scores": SCORE_TABLES.digest(o.scores)} if o.scores else {}),  # else as it was without the option
            **({"keep": o.keep} if o.keep else {}),
            **(evaluation_identity(o) if o.decontaminate else {}),
            **(evaluation_tables(o) if o.decontaminate_embeddings else {}),
            **({"captions": captions} if (captions := run.settings(DedupSettings).captions) > 1 else {}),
            **({"queries_of_texts": "each text"} if captions > 1 else {}),
        }

    def expand(self, done: Any) -> beam.PCollection:
        keep = KeepFetched(self.duplicates, self.attempts, self.rules)
        if self.rules.contamination is not None:
            hash_images = HashImages(self.rules.contamination.hashes, evaluation_images.find(self.evaluation).pieces)
            done = run_task(done, hash_images, max_units=hash_images.units())
        if self.rules.evaluated is not None:
            find = FindEvaluated(self.attempts, self.rules.evaluated, self.rules.shapes)
            done = run_task(done, find, max_units=find.units())
        done = run_task(done, keep, max_units=keep.units())
        return near_exchange.drop_duplicates(done, self.near, exchange=self.exchange)

    def steps(self) -> tuple[StepFolder, ...]:
        hashes = () if self.rules.contamination is None else (self.rules.contamination.hashes,)
        return *hashes, self.duplicates.rows.parts, *self.near.steps()

    def counted(self) -> tuple[StepFolder, ...]:
        return self.duplicates.rows.parts, *super().counted()

    def watched(self) -> list[Watched]:
        parts = Watched("dedup-images parts", self.duplicates.rows.parts)
        if self.rules.contamination is None:
            return [parts, *self.near.watched()]
        units = len(evaluation_images.find(self.evaluation).pieces)
        hashes = Watched("dedup-images evaluation images", self.rules.contamination.hashes, units)
        return [hashes, parts, *self.near.watched()]

    def complete(self) -> dict[str, Any]:
        table = near_exchange.merge_duplicates(self.near)
        storage.write_table(os.path.join(self.folder.path, DUPLICATES_FILE), table)
        if self.rules.contamination is not None or self.rules.evaluated is not None:
            found = merge_found(self.duplicates.rows.parts)
            storage.write_table(os.path.join(self.folder.path, CONTAMINATION_FILE), found)
        # The workers are done with the arrays of embeddings, and no `forget` need know them.
        if self.cosine is not None:
            storage.remove(os.path.dirname(self.near.embeddings.file(0, "keys")))
        if self.rules.evaluated is not None:
            for step in (self.rules.evaluated.folder, self.rules.evaluated.found):
                storage.remove(os.path.dirname(step.file(0, "names")))
        return super().complete()
