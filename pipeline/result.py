"""The result of a build."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pipeline.engine.ledger import lines_on_records
from pipeline.stages.base import Stage

if TYPE_CHECKING:
    from pipeline.dataset.open_set import OpenSet

COUNTED = ("stage", "rows_in", "rows_out", "dropped")
MOST_LOST = 0.8  # a larger share of the texts is lost: the lists hardly fit them
MANY_QUERIES = 1_000
MOST_LEFT_OUT = 0.01  # of the lines of a list: a larger share that cannot be read points to another encoding
BESIDE = ("records_dropped", "notes", "retryable", "damaged_inputs", "left_out")


@dataclasses.dataclass(frozen=True)
class Result:
    """The stages of a run that are done, by this call or by an earlier one.

    Attributes:
        root: the folder of the run, absolute.
        ledger: `stage`, `rows_in`, `rows_out` and `dropped` (rows by reason) of each stage, in order.
        digests: of the rows of each stage, by its name. Equal rows have equal digests.
        digest: over all published files; None if the run did not reach `publish`.
        target: a sentence on --target-pairs if the pairs cannot reach it, else "".
        records: `records_dropped` (lost records by reason), `notes`, `retryable` (failures of the fetch that may pass)
            `damaged_inputs` (`engine.ledger.damaged_inputs`) and `left_out` (names of inputs) of each stage that has
            some, by its name.
        misfits: sentences on query lists that do not fit the texts.
        queries: a sentence with the numbers of used and merged queries; "" if every query is used as given.
    """

    root: str
    ledger: tuple[dict[str, Any], ...]
    digests: dict[str, str]
    digest: str | None
    queries: str = ""
    records: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    target: str = ""
    misfits: tuple[str, ...] = ()

    @classmethod
    def of(cls, root: str, stages: Iterable[Stage]) -> Result:
        """The result, read from the folder."""
        from pipeline.dataset.open_set import read_manifest

        infos = [info for stage in stages if (info := stage.folder.info())]
        digests = {info["stage"]: info["digest"] for info in infos}
        digest = read_manifest(root)["digest"] if "publish" in digests else None
        ledger = tuple({name: info[name] for name in COUNTED} for info in infos)
        records = {info["stage"]: {name: info[name] for name in BESIDE if info.get(name)} for info in infos}
        records = {stage: counts for stage, counts in records.items() if counts}
        target = next(filter(None, map(sentence_on_target, infos)), "")
        misfits = tuple(sentence for info in infos if info["stage"] == "match" for sentence in sentences_on_fit(info))
        return cls(root, ledger, digests, digest, "".join(map(sentence_on_queries, infos)), records, target, misfits)

    @property
    def warnings(self) -> list[str]:
        """What the user should look at."""
        empty = [row["stage"] for row in self.ledger[-1:] if row["rows_out"] == 0]
        nothing = [f"no pair is left after {stage}: the ledger says where they fell" for stage in empty]
        return [sentence for sentence in (self.target, *self.misfits, *nothing) if sentence]

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        ledger = [
            row | self.records.get(row["stage"], {}) | {"digest": self.digests[row["stage"]]} for row in self.ledger
        ]
        return {"output": self.root, "ledger": ledger, "warnings": self.warnings}

    def summary(self) -> str:
        """The ledger as text, and what to type next."""
        lines = []
        for row in self.ledger:
            lines.append(f"{row['stage']:<14}{row['rows_in']:>14,} -> {row['rows_out']:>14,}")
            for reason, count in sorted(row["dropped"].items(), key=lambda item: -item[1]):
                lines.append(f"    {reason:<26}{count:>14,}")
            lines += [f"    {line}" for line in lines_on_records(self.records.get(row["stage"], {}))]
        lines += [sentence for sentence in (self.queries, *self.warnings) if sentence]
        return "\n".join([*lines, f"next: python -m pipeline.inspect_shards info {shlex.quote(self.root)}"])

    def open(self) -> OpenSet:
        """The published set.

        Raises:
            NotFound: the run did not reach `publish`.
        """
        from pipeline.dataset.open_set import open_set

        return open_set(self.root)


def sentence_on_queries(info: dict[str, Any]) -> str:
    """The numbers of used and merged queries, from the info.json of match; "" for another stage, or if all are used."""
    if not any(info.get(name) for name in ("queries_merged", "queries_dropped", "lines_left_out")):
        return ""
    return (
        f"queries: {info['queries_given']:,} given, {info['queries_merged']:,} of them equal to another one, "
        f"{info['queries_dropped']:,} without a letter, digit or symbol: {info['queries']:,} are used; "
        f"{info['lines_left_out']:,} lines of the list are not UTF-8, or longer than 1,000 bytes"
    )


def sentences_on_fit(info: dict[str, Any]) -> list[str]:
    """Warnings on texts that are lost because the lists are of other languages, from the info.json of match.

    A list of few queries is expected to miss most texts.
    """
    came, dropped, notes = info["rows_in"], info["dropped"], info.get("notes") or {}
    found = []
    left_out, given = info.get("lines_left_out", 0), info.get("queries_given", 0)
    if left_out > MOST_LEFT_OUT * (left_out + given):
        found.append(
            f"{left_out:,} of {left_out + given:,} lines of the query list are not UTF-8, or too long: a list in "
            "another encoding is converted by iconv -f ENCODING -t UTF-8"
        )
    foreign = dropped.get("language", 0)
    if foreign > MOST_LOST * came:
        found.append(
            f"{foreign:,} of {came:,} texts are clearly of another language than the query lists: "
            "give a list for it (--queries LANGUAGE=FILE), or --languages all"
        )
    missed = {name.removeprefix("no_query_"): count for name, count in notes.items() if name.startswith("no_query_")}
    lists = {code: (notes.get(f"texts_{code}", 0), count) for code, count in missed.items()}
    for code, (texts, count) in (lists or {"": (came - foreign, dropped.get("no_query", 0))}).items():
        if count > MOST_LOST * texts and info["queries"] >= MANY_QUERIES:
            whose = f" of the language {code}" if code else ""
            found.append(
                f"{count:,} of {texts:,} texts{whose} contain no query: is the list in the language of the texts?"
            )
    return found


def sentence_on_target(info: dict[str, Any]) -> str:
    """The number of pairs that can be had, where they are fewer or more than --target-pairs asks for; else ""."""
    if "least_pairs" in info:
        least = f"each query that a text contains picks one pair at least, {info['least_pairs']:,} pairs in all"
        return f"--target-pairs {info['target_pairs']} cannot be reached: {least}"
    if "reachable_pairs" not in info:
        return ""
    target, reachable = info["target_pairs"], info["reachable_pairs"]
    if info["stage"] == "publish":
        return (
            f"--target-pairs {target} is not reached: {reachable:,} pairs are left after the fetch "
            "(--expected-yield makes up for losses)"
        )
    more = f", and --expected-yield asks for {info['wanted_pairs']:,}" if info["wanted_pairs"] != target else ""
    return f"--target-pairs {target} cannot be reached: queries can pick {reachable:,} pairs{more}"
