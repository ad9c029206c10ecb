"""How a stage orders its steps, and the exchange of rows between them.

A *task* (`tasks`) is a small picklable object with `folder`, `units()` and `run(unit)`. `run_task` runs all units of a
task on the workers, when the step before it has ended.

An *exchange* gives each unit of a step the rows that all units of an earlier step put into its bucket. There are two
kinds. `files` reads each producer's bucket file in place; it is the default where the work folder is shared. `shuffle`
sends the same bytes through the engine's GroupByKey. Both give the same rows; a test compares them.

Beam is imported when the first step is put into a pipeline, never before: `--help` must not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.engine.merging import Merge, may_merge
from pipeline.engine.tasks import MOST_ELEMENTS, ExchangeTask, Task, units_of_element

if TYPE_CHECKING:
    import apache_beam as beam


def units_at_start(after: Any, task: Task) -> int:
    """An upper bound on the units of a task: their number if no step of this job runs before it."""
    from apache_beam import PCollection

    return MOST_ELEMENTS if isinstance(after, PCollection) else max(1, len(units_of_element(task, 0, 1)))


def run_task(after: Any, task: Task, *, max_units: int = MOST_ELEMENTS) -> beam.PCollection:
    """Runs all units of a task when `after` has ended. The output is one number per element, for the next barrier.

    Args:
        after: the pipeline's root, or the output of the step before, which must end first.
        task: what to run.
        max_units: an upper bound on the number of units, if one is known. No more elements than that are made.
    """
    from pipeline.engine.beam_steps import Step

    return after | Step(task, max_units=max_units)


def run_exchange(
    done: beam.PCollection, task: ExchangeTask, *, buckets: int, exchange: str, producers: int
) -> beam.PCollection:
    """Runs a task when `done` has ended. Its unit b gets bucket b of all units that `task.reads` names.

    Args:
        done: the output of the step before.
        task: what to run.
        buckets: how many there are, at most.
        exchange: "files" or "shuffle".
        producers: how many units `task.reads` names, about. Where they are many, files are merged first (`merging`).
    """
    from pipeline.engine.beam_steps import ExchangeStep

    if exchange == "files" and may_merge(producers, buckets):
        merge = Merge(task)
        done = run_task(done, merge)
        return done | ExchangeStep(task, buckets=buckets, exchange=exchange, merge=merge)
    return done | ExchangeStep(task, buckets=buckets, exchange=exchange)
