"""What an engine needs and this machine can tell. It is refused before a job is made.

Without these checks a missing part shows late: Beam downloads a jar, starts containers that do not hold this package,
or makes a job that waits for ever (docs/engines.md).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Mapping, Sequence

from pipeline.engine import clusters, fetched_engines
from pipeline.engine.cli import MissingInput, UsageError

JOB_SERVERS = ("flink", "spark")  # Beam starts a JVM for them
WORKER = "/opt/openwit/bin/openwit-worker"  # the example of docs/engines.md
DATAFLOW = ("project", "region", "temp_location")  # without them Dataflow refuses the job, after a minute of set-up
POOL, HERE = r"[\w.\-\[\]:]+:\d+", ("localhost:", "127.", "[::1]:")
START_POOL = "python -m apache_beam.runners.worker.worker_pool_main (docs/engines.md)"
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
    if _on_this_machine(runner, given):
        _check_worker(given)
    if kind == "dataflow":
        _check_dataflow(runner, flags, output)


def check_answers(runner: str, given: Sequence[str]) -> None:
    """Asks the cluster and the pool of workers that the flags name, each for at most 10 s.

    `localhost` is each worker's own host, so a pool there is asked only if all workers are on this machine.

    Raises:
        UsageError: one of them does not answer.
    """
    problem = clusters.Cluster(clusters.cluster_of(runner, given).address).problem()
    if problem:
        raise UsageError(f"--runner {runner}: {problem}. Start it, or correct the address")
    flags = clusters.values(given)
    pool = flags.get("environment_config", "") if flags.get("environment_type", "").upper() == "EXTERNAL" else ""
    if re.fullmatch(POOL, pool) and (_on_this_machine(runner, given) or not pool.startswith(HERE)):
        if problem := clusters.Cluster(pool).problem():
            raise UsageError(f"--environment_config: the worker pool at {problem}. Start it on each host: {START_POOL}")


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
    command = _worker_command(given)
    if kind == "PROCESS" and not config and not os.path.isabs(command):
        was = f" ({command} is relative)" if command else ""
        raise UsageError(
            f"--environment_type=PROCESS needs --environment_option=process_command=PATH, absolute and the same on "
            f"every host, such as {WORKER}{was}"
        )
    if kind == "EXTERNAL" and not config:
        raise UsageError("--environment_type=EXTERNAL needs --environment_config=HOST:PORT of the worker pool")


def _worker_command(given: Sequence[str]) -> str:
    """The program of a PROCESS environment; "" if it is not given so."""
    found = next((found for word in given if (found := re.search(r"process_command=([^,]*)", word))), None)
    return found[1] if found else ""


def _on_this_machine(runner: str, given: Sequence[str]) -> bool:
    """True if all workers are on this machine: those of a child of this process, or of a cluster on loopback."""
    kind, flags = runner.lower().removesuffix("runner"), clusters.values(given)
    if address := clusters.cluster_of(runner, given).address:
        return address.startswith(HERE)
    master = {"flink": flags.get("flink_master", ""), "spark": flags.get("spark_master_url", "")}.get(kind, "")
    return kind in ("prism", *JOB_SERVERS) and (master in ("", "[local]", "[auto]") or master.startswith("local"))


def _check_worker(given: Sequence[str]) -> None:
    """A program that is not there is not told by every engine: the job waits for its worker for ever."""
    command = _worker_command(given)
    if command and not shutil.which(command):
        raise MissingInput(
            f"--environment_option=process_command={command}: no such program. `pip install` makes openwit-worker"
        )


def _check_dataflow(runner: str, flags: Mapping[str, str], output: str) -> None:
    missing = [f"--{name}" for name in DATAFLOW if not flags.get(name)]
    if missing:
        raise UsageError(f"--runner {runner}: needs {', '.join(missing)}")
    if not any(flags.get(name) for name in (*IMAGES, "setup_file", "extra_package", "requirements_file")):
        raise UsageError(f"--runner {runner}: needs --sdk_container_image, an image that holds this package")
    if output and "://" not in output:
        raise UsageError(f"--output {output}: the workers of {runner} see no folder of this machine")
    if not flags["temp_location"].startswith("gs://"):
        raise UsageError(f"--temp_location {flags['temp_location']}: {runner} needs gs://BUCKET/FOLDER")
    if importlib.util.find_spec("apitools") is None:  # else Beam says it when OUT is made and the job is built
        raise UsageError(f"--runner {runner}: this machine needs Beam's client: pip install 'apache-beam[gcp]'")
