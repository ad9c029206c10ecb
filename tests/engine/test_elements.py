"""The number of elements that a step gives to an engine: it follows the workers, and no row depends on it."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from hypothesis import given
from hypothesis import strategies as st

from pipeline import Options, build
from pipeline.engine import beam_steps, merging, work
from pipeline.engine.tasks import MOST_ELEMENTS, elements_for, units_of_element
from pipeline.engine.work import StepFolder
from pipeline.stages import grouping


@pytest.mark.parametrize(
    ("flags", "workers"),
    [
        (["--direct_num_workers=3"], 3),
        (["--runner=FlinkRunner", "--parallelism=700"], 700),
        (["--runner=FlinkRunner"], None),
        (["--runner=SparkRunner"], None),
        (["--runner=DataflowRunner", "--num_workers=2", "--max_num_workers=9"], 9),
        (["--runner=DataflowRunner", "--max_num_workers=9", "--number_of_worker_harness_threads=4"], 36),
    ],
)
def test_the_workers_that_the_options_name(flags: list[str], workers: int | None) -> None:
    assert beam_steps.workers_of(PipelineOptions(flags)) == workers


def test_the_elements_follow_the_workers() -> None:
    assert [elements_for(workers) for workers in (1, 16, 17, 1000, 10_000)] == [64, 64, 68, 4000, 40_000]
    assert elements_for(1_000_000) == MOST_ELEMENTS and elements_for(None) == 4096


class Units:
    """A task whose units are known now."""

    folder = StepFolder("/out/stages/stage/step", "")

    def units(self) -> int:
        return 90_000


def test_a_large_cluster_gets_more_elements_than_64() -> None:
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FlinkRunner", "--parallelism=1000"]))
    step = beam_steps.Step.__new__(beam_steps.Step)
    step._task, step._max_units = Units(), Units().units()
    beam.PTransform.__init__(step, "step")
    pipeline | step
    run = next(part for part in pipeline.transforms_stack[0].parts[0].parts if "Run" in part.full_label)
    assert run.transform.fn._elements == 4000


@given(st.integers(0, 40), st.integers(1, 50))
def test_each_unit_is_in_one_element_and_the_large_ones_come_first(units: int, elements: int) -> None:
    class Largest(Units):
        def units(self) -> int:
            return units

        def numbers(self) -> list[int]:
            return [*reversed(range(units))]

    for task in (Largest(), type("Plain", (Units,), {"units": lambda self: units})()):
        dealt = [list(units_of_element(task, element, elements)) for element in range(elements)]
        assert sorted(unit for some in dealt for unit in some) == list(range(units))
        order = list(units_of_element(task, 0, 1))
        assert all(some == sorted(some, key=order.index) for some in dealt)
        assert [some[0] for some in dealt if some] == order[: min(units, elements)]


def test_no_row_depends_on_the_number_of_elements_or_on_what_a_unit_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = tmp_path / "queries.txt"
    queries.write_text("red\nblue\nred dog\n")
    for part in range(9):
        urls = [f"http://h{row % 7}.example/{part % 5}/{row}.jpg" for row in range(40)]
        texts = [("a red dog", "blue sky", "red sun", "no such thing")[(part * row) % 4] for row in range(40)]
        pq.write_table(pa.table({"url": urls, "text": texts}), tmp_path / f"in-{part}.parquet")
    found = set()
    for elements, together, reads in ((1, 9, 10**6), (7, 1, 0), (64, 2, 10**6), (500, 4, 10**6)):
        monkeypatch.setattr(merging, "MOST_READS", reads)
        monkeypatch.setattr(grouping, "FROM_INPUTS", 1)
        monkeypatch.setattr(grouping, "MOST_INPUTS", together)
        monkeypatch.setattr(beam_steps, "elements_for", lambda workers, number=elements: number)
        options = Options(
            input=(str(tmp_path / "in-*.parquet"),),
            output=str(tmp_path / f"out-{elements}"),
            queries=str(queries),
            cap=30,
            stages="gather..balance",
            workers=1,
        )
        result = build(options, quiet=True)
        found.add(tuple(result.digests.items()))
    assert len(found) == 1


def test_an_input_that_a_worker_does_not_see_is_told_with_its_host(tmp_path: Path) -> None:
    with (
        pytest.raises(work.WorkerError, match=f"does not see the input {tmp_path}/in.tsv: all workers must"),
        work.sees_inputs(f"{tmp_path}/out"),
    ):
        (tmp_path / "in.tsv").open()
    with pytest.raises(FileNotFoundError), work.sees_inputs(f"{tmp_path}/out"):
        (tmp_path / "out/manifest.json").open()
