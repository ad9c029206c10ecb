"""Builds without Beam: each step runs at once, in this process. A build of some rows takes a tenth of a second."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.engine.beam_steps import ExchangeStep, Step
from pipeline.engine.runners import JobFailed, explain_failure
from pipeline.engine.tasks import units_of_element
from pipeline.engine.work import run_unit


class Root:
    """Stands for a pipeline, and for the output of each step."""

    def __or__(self, step: Step | ExchangeStep) -> Root:
        task = step.by_files() if isinstance(step, ExchangeStep) else step._task
        for unit in units_of_element(task, 0, 1):
            run_unit(task.folder, unit, task.run)
        return self


def run_job(construct: Callable[[Any], Any], asked: object, **named: object) -> None:
    """In the place of `runners.run_job`.

    Raises:
        JobFailed: as it does.
    """
    try:
        construct(Root())
    except JobFailed:
        raise
    except Exception as error:
        raise explain_failure(RuntimeError(f"{type(error).__name__}: {error}")) from error


@pytest.fixture
def without_beam(monkeypatch: pytest.MonkeyPatch) -> None:
    """The builds of the test run without Beam, and do not wait for the disk: no test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr("pipeline.build.runners.run_job", run_job)
