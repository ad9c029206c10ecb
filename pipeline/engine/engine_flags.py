"""Beam's own flags: which runner reads a flag, and whether its value has the right form.

Beam parses all flags for all runners. It says nothing of a flag that the runner does not read, and answers a value of
the wrong form with its whole usage, after the job was begun.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from pipeline.engine import clusters
from pipeline.engine.cli import FLAG, UsageError
from pipeline.engine.quiet_beam import load_beam, no_new_handlers

HERE = ("local", "direct")  # the names of our local runner, as `clusters.kind_of` gives them
# Beam's classes of options whose flags one runner reads, and its name.
OF_ONE = {
    "FlinkRunnerOptions": "flink",
    "SparkRunnerOptions": "spark",
    "PrismRunnerOptions": "prism",
    "KafkaStreamsRunnerOptions": "kafkastreams",
}
EXCLUSIVE = (*HERE, "flink", "spark", "prism", "dataflow")  # runners that read no flags of another one
# Classes of options that our local runner does not read, but for READ_HERE.
OF_ENGINES = (
    "PortableOptions",
    "JobServerOptions",
    "WorkerOptions",
    "SetupOptions",
    "GoogleCloudOptions",
    "TestDataflowOptions",
    "AzureOptions",
    "HadoopFileSystemOptions",
    "S3Options",
)
READ_HERE = frozenset(
    (
        *("default_sdk_harness_log_level", "sdk_harness_log_level_overrides", "max_cache_memory_usage_mb"),
        *("element_processing_timeout_minutes", "beam_plugin", "beam_plugins", "pickle_library"),
        *("save_main_session", "no_save_main_session"),
    )
)
# Whole numbers that Beam does not check: least, most.
NUMBERS = {
    **dict.fromkeys(("parallelism", "max_parallelism"), (1, 32768)),  # of Flink: UPPER_BOUND_MAX_PARALLELISM
    **dict.fromkeys(("sdk_worker_parallelism", "environment_cache_millis"), (0, 2**31 - 1)),
    **dict.fromkeys(("job_port", "artifact_port", "expansion_port"), (0, 65535)),
}
MASTERS = ("flink_master", "spark_master_url")  # an empty one is a variable of a shell that is not set


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flag, _, problem = message.removeprefix("argument ").partition(": ")
        raise UsageError(f"{flag.split('/')[0]}: {problem}")


def _classes() -> Iterator[Any]:
    """Beam's classes of options."""
    load_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    todo: list[Any] = [PipelineOptions]
    while todo:
        found = todo.pop()
        todo += found.__subclasses__()
        if "_add_argparse_args" in found.__dict__:
            yield found


@functools.cache
def _parser(*classes: Any) -> argparse.ArgumentParser:
    parser = _Parser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for found in classes:
        found.__dict__["_add_argparse_args"].__get__(None, found)(parser)
    return parser


@functools.cache
def _owners(*classes: Any) -> dict[str, str]:
    """The flags without their dashes -> the name of the class that has it."""
    return {flag[2:]: found.__name__ for found in classes for flag in _flags(_parser(found))}


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [flag for action in parser._actions for flag in action.option_strings]


def known() -> list[str]:
    """All flags that Beam's options understand, such as "--parallelism"."""
    return _flags(_parser(*_classes()))


def check(runner: str, given: Sequence[str]) -> None:
    """Refuses a flag that the runner does not read, and a value that has not the form that Beam wants.

    A runner that is the full name of a class may read any flag. With an unknown flag nothing is looked at.

    Raises:
        UsageError: the message names the flag, and what to type.
    """
    if not given:
        return  # Beam takes two seconds to import
    classes = list(_classes())
    owners, flags = _owners(*classes), clusters.values(given)
    if not {word.split("=")[0] for word in given if FLAG.match(word)} <= {f"--{name}" for name in owners}:
        return  # the command line names the nearest flag, and this explains the rest
    for name, value in flags.items():
        _check_owner(runner, name, owners[name])
        if name in MASTERS and not value:
            raise UsageError(f"--{name}: must not be empty")
        least, most = NUMBERS.get(name, (0, 0))
        if most and not (value.isascii() and value.isdecimal() and least <= int(value) <= most):
            raise UsageError(f"{f'--{name} {value}'.rstrip()}: must be a whole number of {least} to {most}")
    _parser(*classes).parse_known_args(list(given))


def _check_owner(runner: str, name: str, owner: str) -> None:
    ours, needed = clusters.kind_of(runner), OF_ONE.get(owner, "")
    if needed and ours in EXCLUSIVE and ours != needed:
        raise UsageError(f"--{name}: needs --runner {needed}; --runner is {runner}")
    if ours not in HERE:
        return
    if name == "direct_num_workers":
        raise UsageError("--direct_num_workers: must be given as --workers")
    if owner in OF_ENGINES and name not in READ_HERE:
        raise UsageError(f"--{name}: needs --runner with an engine, such as flink; --runner is {runner}")


def check_as_beam(runner: str, given: Sequence[str]) -> None:
    """Makes the checks of Beam itself, which it makes when the pipeline is built.

    Raises:
        UsageError: the first of its errors.
    """
    if not given:
        return
    load_beam()
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator

    with no_new_handlers():
        errors = PipelineOptionsValidator(PipelineOptions(list(given)), None).validate()
    if errors:
        raise UsageError(f"--runner {runner}: {str(errors[0]).splitlines()[0].rstrip('.')}")
