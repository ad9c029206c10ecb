"""A stage that changes nothing, between dedup and balance: the rows of all other stages stay as they are.

This stage has a step of its own. The example in CONTRIBUTING.md works row by row. tests/test_docs.py runs it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build, options, schema, stages
from pipeline.engine.options import option
from pipeline.engine.progress import Watched
from pipeline.engine.rows import Rows
from pipeline.engine.steps import run_task
from pipeline.engine.work import Json, StepFolder
from pipeline.stages.base import Job, Outputs, Stage
from pipeline.stages.run import Run
from pipeline.stages.tally import Rejects, Tally, unit_body


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassSettings:
    """The options of the stage."""

    title: ClassVar[str] = "pass"
    pass_note: str = option("", help="a word for info.json")


@dataclasses.dataclass(frozen=True)
class CountRows:
    """The task: one unit counts all rows of the previous stage."""

    folder: StepFolder
    rows: Rows

    def units(self) -> int:
        return 1

    def run(self, unit: int) -> dict[str, Any]:
        rejects = Rejects()
        tally = Tally("pass", rejects)
        for table in self.rows.tables():
            tally.ledger.rows_in += table.num_rows
            tally.passed(table["row_hash"].to_numpy())
        return {**unit_body(self.folder, unit, [tally], rejects), "rows": tally.ledger.rows_in}


@dataclasses.dataclass(frozen=True)
class Pass(Stage):
    """The stage."""

    name: ClassVar[str] = "pass"
    job: ClassVar[Job] = "select"
    options: ClassVar[type] = PassSettings

    rows: Rows
    note: str

    @classmethod
    def plan(cls, run: Run, before: Outputs) -> Self:
        note = run.settings(PassSettings).pass_note
        return cls(before.plan(run, cls), run.keep_rejected, before.rows("dedup"), note)

    @classmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        return {"pass_note": run.settings(PassSettings).pass_note}

    def expand(self, done: Any) -> Any:
        return run_task(done, CountRows(self.folder.step("units"), self.rows), max_units=1)

    @property
    def output(self) -> Rows:
        return self.rows

    def steps(self) -> tuple[StepFolder, ...]:
        return (self.folder.step("units"),)

    def counted(self) -> tuple[StepFolder, ...]:
        return self.steps()

    def facts(self) -> dict[str, Json]:
        return {"note": self.note}

    def watched(self) -> list[Watched]:
        return [Watched("pass units", self.folder.step("units"), 1)]


def write_pairs(folder: Path) -> list[str]:
    """Writes a table with a duplicate and a text without a query. Returns the arguments that select from it."""
    texts = ["a red dog", "a red dog", "a blue dog", "a dog and a cat", "nothing of it"]
    urls = [f"http://a.example/{number}.jpg" for number in (1, 1, 2, 3, 4)]
    pq.write_table(pa.table({"url": urls, "text": texts}), folder / "pairs.parquet")
    (folder / "queries.txt").write_text("dog\ncat\n")
    return ["--input", str(folder / "pairs.parquet"), "--queries", str(folder / "queries.txt"), "--workers", "1"]


def infos(out: Path) -> dict[str, dict[str, Any]]:
    """info.json of all stages."""
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("stages/*/info.json")}


@pytest.fixture
def with_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the stage behind dedup: one entry in the list, and its name in the contract's."""
    place = [stage.name for stage in stages.STAGES].index("dedup") + 1
    listed = (*stages.STAGES[:place], Pass, *stages.STAGES[place:])
    names = tuple(stage.name for stage in listed)
    select = names[: names.index("balance") + 1]
    monkeypatch.setattr(build, "STAGES", listed)

    @dataclasses.dataclass(frozen=True)
    class Options(PassSettings, options.Options):
        """The options, including those of the new stage."""

        stages: tuple[str, ...] = option(names, help="all", parse=lambda given: select)

    line = dataclasses.replace(options.COMMAND_LINE, options=Options, groups=(*options.GROUPS, PassSettings))
    monkeypatch.setattr(options, "COMMAND_LINE", line)


def test_a_new_stage_leaves_the_rows_of_all_others(
    tmp_path: Path, with_pass: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = write_pairs(tmp_path)
    more = ["--stages", "gather..balance", "--output"]
    assert build.main([*given, "--pass-note", "hello", *more, str(tmp_path / "with")]) == build.DONE
    monkeypatch.undo()
    assert build.main([*given, *more, str(tmp_path / "without")]) == build.DONE
    found, plain = infos(tmp_path / "with"), infos(tmp_path / "without")
    added = found.pop("pass")
    assert (added["rows_in"], added["rows_out"], added["note"]) == (3, 3, "hello")
    assert added["digest"] == plain["dedup"]["digest"]
    assert {name: info["digest"] for name, info in found.items()} == {
        name: info["digest"] for name, info in plain.items()
    }


def test_the_names_of_the_contract_are_those_of_the_stages() -> None:
    assert tuple(stage.name for stage in stages.STAGES) == schema.STAGES
