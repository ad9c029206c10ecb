"""What an engine needs and this machine can tell. It is refused before a job is made.

Without these checks a missing part shows late: Beam downloads a jar, starts containers that do not hold this package,
or makes a job that waits for ever (docs/engines.md).
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import re
import shutil
import socket
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.engine import checks, clusters, engine_flags, fetched_engines, runners, variables
from pipeline.engine.cli import MissingInput, UsageError

JOB_SERVERS = ("flink", "spark")  # Beam starts a JVM for them
WORKER = "/opt/openwit/bin/openwit-worker"  # the example of docs/engines.md
ENVIRONMENTS = ("DOCKER", "EXTERNAL", "LOOPBACK", "PROCESS")
DATAFLOW = ("project", "region", "temp_location")  # without them Dataflow refuses the job, after a minute of set-up
POOL, HERE = r"[\w.\-\[\]:]+:\d+", ("localhost:", "127.", "[::1]:")
START_POOL = "python -m apache_beam.runners.worker.worker_pool_main (docs/engines.md)"
IMAGES = ("sdk_container_image", "worker_harness_container_image")  # an image that holds this package
JARS = ("flink_job_server_jar", "spark_job_server_jar")
NO_SERVER = ("flink_submit_uber_jar", "spark_submit_uber_jar", "job_endpoint")  # with them none is started here
PORTS = ("job_port", "artifact_port", "expansion_port")
# How a program begins: ELF, a script, Mach-O (two byte orders, and for several processors), or a zip that holds it.
PROGRAMS = (b"\x7fELF", b"#!", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"PK\x03\x04")


def check_flags(runner: str, given: Sequence[str], *, output: str = "") -> None:
    """Refuses flags of an engine that cannot work. Nothing is asked, and nothing written.

    Args:
        runner: as the user names it.
        given: Beam's own flags.
        output: OUT.

    Raises:
        UsageError: a flag is missing or wrong, or the runner does not read it. The message says what to type.
        MissingInput: a flag names a file that is not there.
    """
    engine_flags.check(runner, given)
    kind, flags = clusters.kind_of(runner), clusters.values(given)
    if kind in engine_flags.HERE:
        return
    _check_files(flags)
    if kind in JOB_SERVERS:
        _check_java(runner, flags)
    if "spark_submit_uber_jar" in flags and not flags.get("spark_rest_url"):
        raise UsageError("--spark_submit_uber_jar: needs --spark_rest_url=HOST:PORT")
    if kind == "dataflow":
        _check_dataflow(runner, flags, output)
    elif kind in ("prism", "portable", *JOB_SERVERS):
        _check_environment(runner, flags, given)
    engine_flags.check_as_beam(runner, [*given, *runners.engine_defaults(runner, given)] if given else ())


def check_answers(runner: str, given: Sequence[str]) -> None:
    """Asks the cluster and the pool of workers that the flags name, each for at most 10 s (a job server 20 s).

    `localhost` is each worker's own host, so a pool there is asked only if all workers are on this machine. The ports
    of a job server must be free. Beam downloads a missing engine here, so that OUT is made after it.

    Raises:
        UsageError: one of them does not answer, a port is taken, or there is no engine.
    """
    problem = clusters.Cluster(clusters.cluster_of(runner, given).address).problem()
    if problem:
        raise UsageError(f"--runner {runner}: {problem}. Start it, or correct the address")
    flags = clusters.values(given)
    server = flags.get("job_endpoint", "embed")
    if server != "embed" and (problem := clusters.problem_of_job_server(server)):
        raise UsageError(f"--job_endpoint: {problem}. Start the job server, or correct the address")
    pool = _pool(flags, given) if flags.get("environment_type") == "EXTERNAL" else ""
    if re.fullmatch(POOL, pool) and (_on_this_machine(runner, given) or not pool.startswith(HERE)):
        if problem := clusters.Cluster(pool).problem():
            raise UsageError(f"--environment_config: the worker pool at {problem}. Start it on each host: {START_POOL}")
    if clusters.kind_of(runner) in ("prism", *JOB_SERVERS) and not any(name in flags for name in NO_SERVER):
        _check_ports(flags)
        _check_engine(runner, given)


def _check_files(flags: Mapping[str, str]) -> None:
    """A job server that is no jar, or a Prism that is no program: what java or the kernel says of it is not shown."""
    for name in (*JARS, "prism_location"):
        path = flags.get(name, "")
        if not path or "://" in path:
            continue
        if not os.path.isfile(path):
            raise MissingInput(f"--{name} {path}: no such file")
        if name in JARS and not _is_jar(path):
            raise UsageError(f"--{name} {path}: must be the jar of a job server, with a main class in its manifest")
        if name not in JARS and not any(checks.begins_with(path, head) for head in PROGRAMS):
            raise UsageError(f"--{name} {path}: must be the program prism, or a zip that holds it")


def _is_jar(path: str) -> bool:
    """True for a zip whose manifest names a main class."""
    try:
        with zipfile.ZipFile(path) as jar:
            return b"\nMain-Class:" in b"\n" + jar.read("META-INF/MANIFEST.MF")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        return False


def _check_java(runner: str, flags: Mapping[str, str]) -> None:
    """A job server runs on this host, unless Flink gets the jar itself, or a job server runs elsewhere."""
    if not fetched_engines.java() and not any(name in flags for name in NO_SERVER):
        raise UsageError(f"--runner {runner}: needs java (11 or 17) of JAVA_HOME or on the PATH, for Beam's job server")


def _check_environment(runner: str, flags: Mapping[str, str], given: Sequence[str]) -> None:
    """How an engine starts workers. On a cluster Beam's default is its own image, without this package."""
    how, config = flags.get("environment_type", ""), flags.get("environment_config", "")
    if how not in ("", *ENVIRONMENTS) and not how.startswith("beam:env:"):
        raise UsageError(f"--environment_type {how}: must be {', '.join(ENVIRONMENTS[:-1])} or {ENVIRONMENTS[-1]}")
    image = config or _of_environment("docker_container_image", given) or any(flags.get(name) for name in IMAGES)
    if not how and not image and not clusters.is_child(runner, flags):
        raise UsageError(
            f"--runner {runner}: on a cluster give --environment_type=PROCESS --environment_option=process_command="
            f"{WORKER}. Beam's default is a container without this package"
        )
    if how == "DOCKER" and not image:
        raise UsageError(
            "--environment_type=DOCKER needs --environment_config=IMAGE, an image that holds this package "
            "(docs/engines.md). Beam's default is a container without this package"
        )
    if how == "PROCESS":
        _check_worker(runner, flags, given)
    if how == "EXTERNAL" and ":" not in _pool(flags, given):
        raise UsageError("--environment_type=EXTERNAL needs --environment_config=HOST:PORT of the worker pool")


def _of_environment(name: str, given: Sequence[str]) -> str:
    """The value of --environment_option=NAME=VALUE; "" if it is not given."""
    found = next((found for word in given if (found := re.search(rf"\b{name}=([^,]*)", word))), None)
    return found[1] if found else ""


def _pool(flags: Mapping[str, str], given: Sequence[str]) -> str:
    """The address of the worker pool; "" if none is given."""
    config = flags.get("environment_config", "")
    if config.startswith("{"):
        return str(_as_json(config).get("url") or "")
    return config or _of_environment("external_service_address", given)


def _as_json(config: str) -> Mapping[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(found := json.loads(config), dict):
            return found
    raise UsageError(f"--environment_config {config}: must be an object of JSON")


def _on_this_machine(runner: str, given: Sequence[str]) -> bool:
    """True if all workers are on this machine: those of a child of this process, or of a cluster on loopback."""
    flags = clusters.values(given)
    if address := clusters.cluster_of(runner, given).address:
        return address.startswith(HERE)
    return flags.get("job_endpoint") == "embed" or clusters.is_child(runner, flags)


def _check_worker(runner: str, flags: Mapping[str, str], given: Sequence[str]) -> None:
    """A program that is not there is not told by every engine: the job waits for its worker for ever."""
    config = flags.get("environment_config", "")
    command = str(_as_json(config).get("command") or "") if config else _of_environment("process_command", given)
    if not os.path.isabs(command):
        was = f" ({command} is relative)" if command else ""
        raise UsageError(
            f"--environment_type=PROCESS needs --environment_option=process_command=PATH, absolute and the same on "
            f"every host, such as {WORKER}{was}"
        )
    if _on_this_machine(runner, given) and not shutil.which(command):
        raise MissingInput(
            f"--environment_option=process_command={command}: no such program. `pip install` makes openwit-worker"
        )


def _check_ports(flags: Mapping[str, str]) -> None:
    """Refuses a port of the job server on which another process listens."""
    for name in PORTS:
        port = int(flags.get(name) or 0)
        if not port:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended is no hindrance
            try:
                probe.bind(("", port))
            except OSError as error:
                why = "taken by another process" if error.errno == errno.EADDRINUSE else error.strerror
                raise UsageError(f"--{name} {port}: {why}; without the flag a free one is taken") from None


def _check_engine(runner: str, given: Sequence[str]) -> None:
    """Finds the program of the engine. What `make engines` did not fetch, Beam downloads once."""
    kind = clusters.kind_of(runner)
    with_defaults = [*given, *runners.engine_defaults(runner, given)]
    name = "prism_location" if kind == "prism" else f"{kind}_job_server_jar"
    if clusters.values(with_defaults).get(name) and "://" not in clusters.values(with_defaults)[name]:
        return
    try:
        runners.download_engine(runner, with_defaults)
    except (RuntimeError, OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        url = re.search(r" at (\S+?):? ", said)  # the rest is about mirrors and caches
        raise UsageError(
            f"--runner {runner}: the engine is not in {fetched_engines.folder()}, and Beam could not download it "
            f"({url[1] if url else said}). `make engines` in the checkout fetches it; then "
            f"{variables.ENGINES} names its folder. Or give --{name}"
        ) from None


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
