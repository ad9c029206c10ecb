"""What an engine needs and this machine can tell. It is refused before a job is made.

Without these checks a missing part shows late: Beam downloads a jar, starts containers that do not hold this package,
or makes a job that waits for ever (docs/engines.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from pipeline.engine import clusters, fetched_engines
from pipeline.engine.cli import MissingInput, UsageError

JOB_SERVERS = ("flink", "spark")  # Beam starts a JVM for them
WORKER = "/opt/openwit/bin/openwit-worker"  # the example of docs/engines.md
DATAFLOW = ("project", "region", "temp_location")  # without them Dataflow refuses the job, after a minute of set-up
IMAGES = ("sdk_container_image", "worker_harness_container_image")  # an image that holds this package


def check_flags(runner: str, given: Sequence[str], *, output: str = "") -> None:
    """Refuses flags of an engine that cannot work.

    Args:
        runner: as the user names it.
        given: Beam's own flags.
        output: OUT.

    Raises:
        UsageError: a flag is missing or wrong. The message says what to type.
        MissingInput: a flag names a file that is not there.
    """
    kind, flags = runner.lower().removesuffix("runner"), clusters.values(given)
    for name in ("flink_job_server_jar", "spark_job_server_jar", "prism_location"):
        path = flags.get(name, "")
        if path and "://" not in path and not os.path.isfile(path):
            raise MissingInput(f"--{name} {path}: no such file")
    if kind in JOB_SERVERS:
        _check_java(runner, flags)
        if clusters.cluster_of(runner, given).address:
            _check_environment(runner, flags, given)
    if kind == "dataflow":
        _check_dataflow(runner, flags, output)


def check_answers(runner: str, given: Sequence[str]) -> None:
    """Asks the cluster that the flags name, for at most 10 s.

    Raises:
        UsageError: it does not answer.
    """
    problem = clusters.Cluster(clusters.cluster_of(runner, given).address).problem()
    if problem:
        raise UsageError(f"--runner {runner}: {problem}. Start it, or correct the address")


def _check_java(runner: str, flags: Mapping[str, str]) -> None:
    """A job server runs on this host, unless Flink gets the jar itself."""
    if not fetched_engines.java() and "flink_submit_uber_jar" not in flags and "spark_submit_uber_jar" not in flags:
        raise UsageError(f"--runner {runner}: needs java (11 or 17) of JAVA_HOME or on the PATH, for Beam's job server")


def _check_environment(runner: str, flags: Mapping[str, str], given: Sequence[str]) -> None:
    """How a cluster starts workers. Beam's default, Docker, takes an image of Beam's own, without this package."""
    kind = flags.get("environment_type", "").upper()
    config, images = flags.get("environment_config", ""), [name for name in IMAGES if flags.get(name)]
    if kind in ("", "DOCKER") and not config and not images:
        raise UsageError(
            f"--runner {runner}: on a cluster give --environment_type=PROCESS --environment_option=process_command="
            f"{WORKER}. Beam's default is a container without this package"
        )
    command = next((found for word in given if (found := re.search(r"process_command=([^,]*)", word))), None)
    if kind == "PROCESS" and not config and not (command and os.path.isabs(command[1])):
        was = f" ({command[1]} is relative)" if command else ""
        raise UsageError(
            f"--environment_type=PROCESS needs --environment_option=process_command=PATH, absolute and the same on "
            f"every host, such as {WORKER}{was}"
        )
    if kind == "EXTERNAL" and not config:
        raise UsageError("--environment_type=EXTERNAL needs --environment_config=HOST:PORT of the worker pool")


def _check_dataflow(runner: str, flags: Mapping[str, str], output: str) -> None:
    missing = [f"--{name}" for name in DATAFLOW if not flags.get(name)]
    if missing:
        raise UsageError(f"--runner {runner}: needs {', '.join(missing)}")
    if not any(flags.get(name) for name in (*IMAGES, "setup_file", "extra_package", "requirements_file")):
        raise UsageError(f"--runner {runner}: needs --sdk_container_image, an image that holds this package")
    if output and "://" not in output:
        raise UsageError(f"--output {output}: the workers of {runner} see no folder of this machine")
