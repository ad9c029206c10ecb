"""Where a Beam pipeline runs: our local runner, or any runner that Beam knows.

`local` is Beam's FnApiRunner with three corrections: its worker processes get the pipeline options, find this package
wherever it lies, and die with their parent. `DirectRunner` is mapped to it, because Beam's DirectRunner first tries to
download an engine. Every other name is passed to Beam, with Beam's own flags.

Beam is imported inside the functions: it takes two seconds, and `--help` must not wait for it.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.engine import (
    child,
    clusters,
    engine_output,
    fence,
    fetched_engines,
    forked_workers,
    interrupts,
    live_job,
    log_file,
    object_view,
    progress,
    storage,
    watchdog,
)
from pipeline.engine.cli import BelowThreshold, MissingInput, UsageError
from pipeline.engine.fork_server import NOTHING, Preload
from pipeline.engine.quiet_beam import EXPECTED, hush, import_beam, quiet_loopback, quiet_readers

LOCAL = ("local", "direct", "directrunner", "localrunner")
# A copy of Beam's StandardOptions.ALL_KNOWN_RUNNERS: reading it would mean importing Beam. A test compares them.
BEAM_RUNNERS = (
    "BundleBasedDirectRunner",
    "DataflowRunner",
    "DirectRunner",
    "FlinkRunner",
    "FnApiRunner",
    "InteractiveRunner",
    "KafkaStreamsRunner",
    "PortableRunner",
    "PrismRunner",
    "PythonRPCDirectRunner",
    "SparkRunner",
    "SwitchingDirectRunner",
    "TestDataflowRunner",
    "TestDirectRunner",
)
# After a signal a command ends within this, whatever Beam does. A job on an engine is cancelled first.
LOCAL_END_S, ENGINE_END_S = 1.5, 15.0
# What Prism says of a job whose worker is gone, and where a stack of Go begins in its messages.
GONE_FROM_PRISM = ("SDK worker disconnected", "send on closed channel")
GO_STACK = r"(?i),?\s*stack ?trace:|\bgoroutine \d+ \["
GONE_S, GONE_LOOKS = 0.5, 5  # so long, and so often, a job server that may have died is looked for
WORKER_DEATHS = 2  # how often a job is resumed after a worker died
CANCEL_S = 5.0  # until a job server that does not answer is ended all the same


class JobFailed(RuntimeError):
    """The pipeline failed. The message is the stage's own, if there is one."""


class InputGone(JobFailed, MissingInput):
    """An input is missing or unreadable: one that planning did not check, or one that has changed since then."""


class InputAway(JobFailed, BelowThreshold):
    """A remote input could not be read to its end. It may be read later."""


class FileDamaged(JobFailed, storage.DamagedError):
    """A file of the run is not as it was written."""


class NetworkAway(JobFailed, BelowThreshold):
    """The network went away and did not come back."""


class WorkerDied(JobFailed):
    """A worker process ended without a message. Most often it was killed because memory ran out."""


class ServerDied(WorkerDied):
    """The job server of an engine ended without a message. It is started anew with the next job."""


def check_name(name: str) -> None:
    """Refuses a runner that neither we nor Beam know. The full name of a class is left to Beam.

    Raises:
        UsageError: there is no such runner.
    """
    known = {runner.lower(): runner for runner in ("local", *BEAM_RUNNERS)}
    short = {runner.removesuffix("runner"): runner for runner in known}
    if name.lower() in (*LOCAL, *known, *short) or "." in name.strip("."):
        return
    near = difflib.get_close_matches(name.lower(), [*known, *short], n=1)
    hint = f"; did you mean {known.get(near[0]) or known[short[near[0]]]}?" if near else ""
    raise UsageError(f"must be local, a Beam runner ({', '.join(BEAM_RUNNERS)}), or the full name of a class{hint}")


def make_options(
    name: str, workers: int | None, beam_args: Sequence[str] = (), *, load: Preload = NOTHING
) -> tuple[Any, Any]:
    """(runner, PipelineOptions) for a runner's name.

    Args:
        name: local, or a Beam runner, with or without "Runner", in any case.
        workers: processes of the local runner; None: one for each core. Other runners have flags of their own.
        beam_args: Beam's own flags.
        load: loaded by the local workers before they begin.

    Raises:
        UsageError: there is no such runner.
    """
    beam = import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    if name.lower() in LOCAL:
        if name.lower() not in ("local", "localrunner"):
            log_file.say("pipeline: DirectRunner would download an engine; using the local runner instead")
        count = max(1, workers if workers is not None else len(os.sched_getaffinity(0)))
        quiet_workers = [f"--default_sdk_harness_log_level={log_file.level_of_workers()}"]
        return local_runner(count, load), PipelineOptions([*quiet_workers, *beam_args, f"--direct_num_workers={count}"])
    quiet_readers()
    quiet_loopback()
    arguments = [f"--runner={name}", *beam_args, *engine_defaults(name, beam_args)]
    try:
        return beam.runners.create_runner(name), PipelineOptions(arguments)
    except (ValueError, ImportError, AttributeError) as error:
        raise UsageError(f"no runner {name!r}: {str(error).splitlines()[0]}") from error


def engine_defaults(name: str, given: Sequence[str]) -> list[str]:
    """Flags for an engine that `make engines` fetched, except those that the user gave: no download, no Docker."""
    flags = clusters.values(given)
    short = clusters.kind_of(name)
    wanted: list[str] = []
    if short == "prism" and (prism := fetched_engines.prism()).exists():
        wanted = [f"--prism_location={prism}"]
    servers = {
        "flink": (fetched_engines.flink_job_server(), fetched_engines.FLINK_VERSION),
        "spark": (fetched_engines.spark_job_server(), fetched_engines.SPARK_VERSION),
    }
    jar, version = servers.get(short, (Path(), ""))
    if short == "flink":
        wanted = [f"--flink_version={version}"]  # Beam's own default is a release that was never run
    if short in servers and jar.exists() and flags.get(f"{short}_version", version) == version:
        wanted = [f"--{short}_job_server_jar={jar}", f"--{short}_version={version}"]
        if short == "flink" and "flink_master" not in flags:
            wanted += ["--flink_master=[local]", "--environment_type=LOOPBACK", "--parallelism=2"]
        if short == "spark" and "spark_master_url" not in flags:
            wanted += ["--spark_master_url=local[2]", "--environment_type=LOOPBACK"]
    return [flag for flag in wanted if flag[2:].split("=")[0] not in flags]


def download_engine(name: str, flags: Sequence[str]) -> None:
    """Lets Beam download the program of Prism, Flink or Spark into its own cache, if it is not there.

    Raises:
        RuntimeError, OSError, ValueError: it cannot be had.
    """
    runner, options = make_options(name, None, flags)
    server = runner.default_job_server(options)
    inner = getattr(server, "_job_server", server)
    if hasattr(inner, "path_to_jar"):
        inner.local_jar(inner.path_to_jar(), inner._jar_cache_dir)
    else:
        inner.subprocess_cmd_and_endpoint()


def _own_name(name: str, given: Sequence[str]) -> list[str]:
    """The flag that gives a job a name that no other job on its cluster has. The last flag counts."""
    if clusters.kind_of(name) not in ("flink", "spark"):
        return []
    return [f"--job_name={clusters.job_name(clusters.values(given).get('job_name', ''))}"]


def local_runner(workers: int, load: Preload = NOTHING) -> Any:
    """Beam's FnApiRunner with our worker processes. A single worker runs in this process."""
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.runners.portability.portable_runner import JobServiceHandle

    class LocalRunner(fn_runner.FnApiRunner):
        def run_pipeline(self, pipeline: Any, options: Any) -> Any:
            encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
            info = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
            self._provision_info = fn_runner.ExtendedProvisionInfo(info)
            return super().run_pipeline(pipeline, options)

    if workers == 1:
        return LocalRunner()
    forked_workers.current(load)
    quiet_readers()
    return LocalRunner(default_environment=forked_workers.environment())


def run_job(
    construct: Callable[[Any], Any],
    asked: tuple[str, int | None, Sequence[str]],
    *,
    root: str,
    steps: Sequence[progress.Watched],
    program: str,
    load: Preload = NOTHING,
    quiet: bool = False,
) -> None:
    """Runs one pipeline to its end and shows its progress.

    If a worker or the job server dies, or a Flink cluster loses slots for good, the job is resumed, at most twice.

    Args:
        construct: builds the pipeline on a root.
        asked: the runner's name, its workers, and Beam's own flags, as `make_options` takes them.
        root: the work folder. Unfinished files of ended workers are removed from it after each attempt.
        steps: shown by the progress line.
        program: the name in front of the message about a worker's death on stderr.
        load: as `make_options` takes it.
        quiet: shows no progress.

    Raises:
        JobFailed, WorkerDied, KeyboardInterrupt: as `run_pipeline`; WorkerDied after the third death.
    """
    name, workers, given = asked
    for left in range(WORKER_DEATHS, -1, -1):
        flags = [*given, *engine_defaults(name, given), *_own_name(name, given)]
        fence.next_job(root)
        runner, options = make_options(name, workers, flags, load=load)
        cluster = clusters.cluster_of(name, flags)
        live = None if name.lower() in LOCAL else live_job.LiveJob(name, flags)
        try:
            with progress.watching(steps, quiet=quiet), watchdog.watching(steps, cluster, program, live) as stalled:
                return run_pipeline(construct, runner, options, root=root, cluster=cluster, live=live)
        except KeyboardInterrupt:
            if not stalled.reason:
                raise
            if stalled.death and stalled.death.resumes:
                if not left:
                    raise WorkerDied(stalled.reason) from None
                interrupts.go_on()
                _tell_resumed(program, stalled.reason)
                continue
            if not (stalled.slots and left):
                raise JobFailed(stalled.reason) from None
            interrupts.go_on()
            given = [*given, f"--parallelism={stalled.slots}"]
            said = f"the cluster has lost slots: the run is going on with --parallelism={stalled.slots}"
            print(f"{program}: {said}.", file=sys.stderr)
            log_file.note(said, level=logging.WARNING)
        except WorkerDied as error:
            if not left:
                raise
            _tell_resumed(program, str(error))
        finally:
            storage.remove_stale_files(root)


def _tell_resumed(program: str, reason: str) -> None:
    print(f"{program}: {reason}. The run is going on.", file=sys.stderr)
    log_file.note(f"{reason}. The run is going on.", level=logging.WARNING)


def run_pipeline(
    construct: Callable[[Any], Any],
    runner: Any,
    options: Any,
    *,
    root: str = "",
    cluster: clusters.Cluster = clusters.NONE,
    live: live_job.LiveJob | None = None,
) -> None:
    """Builds a pipeline with `construct(root)` and runs it to its end. `root`/.job names its job on a cluster.

    `live` gets the job, so that the watchdog can ask for it.

    Raises:
        JobFailed, WorkerDied: the job failed; see `explain_failure`.
        KeyboardInterrupt: on SIGINT or SIGTERM, after the job was cancelled on its engine.
    """
    beam = import_beam()
    pipeline = beam.Pipeline(runner=runner, options=options)
    construct(pipeline)
    result = None
    patience = LOCAL_END_S if type(runner).__name__ == "LocalRunner" else ENGINE_END_S + cluster.cancel_s
    noted = clusters.noted(root, cluster)
    # The job server ends before the job is looked for on its cluster: it may be about to submit it.
    servers, in_job = job_servers(runner), object_view.job(root)
    asked = live or live_job.LiveJob("local")
    with interruptible(patience) as interrupt, variables_for_engines(cluster), noted, servers as tied, in_job:
        asked.servers = tied
        try:
            result = asked.result = pipeline.run()
            interrupt.catch()
            result.wait_until_finish()
        except (KeyboardInterrupt, Exception) as error:
            if not interrupt.arrived:
                raise _of_worker(_of_server(explain_failure(error), tied, options), live) from error
            with contextlib.suppress(OSError):
                fence.next_job(root)  # from here on no worker changes the folder, whatever becomes of the job
            if result is not None:
                _cancel(result)
            raise KeyboardInterrupt from error
        finally:
            forked_workers.end_workers()


def _cancel(result: Any) -> None:
    """Cancels a job, if its job server answers soon."""

    def cancel() -> None:
        with contextlib.suppress(Exception):
            result.cancel()

    thread = threading.Thread(target=cancel, daemon=True, name="cancel")
    thread.start()
    thread.join(CANCEL_S)


@contextlib.contextmanager
def variables_for_engines(cluster: clusters.Cluster = clusters.NONE) -> Iterator[None]:
    """While a job runs, Python processes that an engine starts on this host find this package.

    The job server has what its cluster needs.
    """
    variables = child.variables() | cluster.variables()
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Interrupt:
    """SIGINT and SIGTERM while a job runs.

    Attributes:
        arrived: True after one of them.
    """

    def __init__(self, patience: float) -> None:
        self.arrived = False
        self._patience = patience

    def catch(self) -> None:
        """Sets the handlers. Outside the main thread it does nothing."""
        if threading.current_thread() is threading.main_thread():
            for number in interrupts.SIGNALS:
                signal.signal(number, self._raise)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self.arrived and interrupts.end_within(self._patience):
            return  # such as Ctrl-C from the terminal and from a wrapper: the end is under way
        self.arrived = True
        hush()
        interrupts.end_within(self._patience)
        raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible(patience: float) -> Iterator[Interrupt]:
    """SIGINT and SIGTERM raise KeyboardInterrupt in the block. A command then ends in `patience` seconds.

    Beam sets its own handler for SIGINT while it starts a job server. That handler ends the server at once. Then the
    job cannot be cancelled any more, and runs for ever on its cluster. `Interrupt.catch` sets our handlers again.
    """
    interrupt = Interrupt(patience)
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    interrupt.catch()
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _tidy(runner: Any) -> Iterator[None]:
    """The block leaves no lines of an engine on the screen, and no folders of Beam on the disk."""
    if type(runner).__name__ == "LocalRunner":
        yield
        return
    with engine_output.in_one_folder(), engine_output.kept():
        yield


@contextlib.contextmanager
def job_servers(runner: Any) -> Iterator[list[Tied]]:
    """Ends the job servers (a JVM, Prism) that the runner starts here; Beam would keep each until this process ends.

    A job server ends with this process, too, however it ends: it may hold a job that it is about to submit. The block
    gets a list of those that are started.
    """
    start: Any = getattr(runner, "default_job_server", None)
    started: list[Any] = []
    tied: list[Tied] = []

    def remember(options: Any) -> Any:
        started.append(start(options))
        tied.extend(_tie(started[-1]))
        return started[-1]

    if start is not None:
        runner.default_job_server = remember
    with _tidy(runner):
        try:
            yield tied
        finally:
            for server in started:
                with contextlib.suppress(Exception):
                    server.stop()


# Becomes the command in its arguments, which the kernel ends with the thread that started it (PR_SET_PDEATHSIG).
TIED = """import ctypes, os, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
except (OSError, AttributeError):
    pass
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])"""


class Tied:
    """The command of a job server, which then ends with this process.

    `endpoint` is its HOST:PORT, `words` its command, once it is started.

    Beam keeps one Prism for all jobs of a process, and asks for its command once.
    """

    def __init__(self, command: Callable[[], tuple[list[Any], str]]) -> None:
        self._command, self.endpoint, self.words = command, "", list[str]()

    def __call__(self) -> tuple[list[Any], str]:
        words, self.endpoint = self._command()
        self.words = list(map(str, words))
        return [sys.executable, "-I", "-S", "-c", TIED, str(os.getpid()), *words], self.endpoint


def _tie(server: Any) -> list[Tied]:
    """Lets the process of a job server end with this one. Returns its command; []: it is no process of ours."""
    inner = getattr(server, "_job_server", server)
    command = getattr(inner, "subprocess_cmd_and_endpoint", None)
    if command is None:
        return []
    if not isinstance(command, Tied):
        inner.subprocess_cmd_and_endpoint = command = Tied(command)
    return [command]


def _of_server(error: JobFailed, tied: Sequence[Tied], options: Any) -> JobFailed:
    """A failure of the connection as what it is, if the job server has gone: one of ours, or that of --job_endpoint."""
    from apache_beam.options.pipeline_options import PortableOptions

    if not isinstance(error, WorkerDied):
        return error
    if any(_gone(server.endpoint) for server in tied):
        return ServerDied("the job server of the engine died, perhaps because memory ran out")
    given = options.view_as(PortableOptions).job_endpoint
    if given and given != "embed" and _gone(given):
        return JobFailed(f"the job server at {given} is gone. When it is back, the same command continues the run")
    return error


def _of_worker(error: JobFailed, live: live_job.LiveJob | None) -> JobFailed:
    """A failure as the end of the worker's process, if the log of its engine tells how this ended."""
    if type(error) is not WorkerDied or live is None:
        return error
    death = live.death_of_failed()
    if death is None:
        return WorkerDied("a worker process of the engine died, perhaps because memory ran out")
    return _of_death(death)


def _of_death(death: live_job.Death) -> JobFailed:
    return WorkerDied(death.text) if death.resumes else JobFailed(death.text)


def _gone(endpoint: str) -> bool:
    """Whether nothing listens at HOST:PORT. A server that was killed may still have the port for a moment."""
    host, _, port = endpoint.rpartition(":")
    for _ in range(GONE_LOOKS):
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return True
        time.sleep(GONE_S / GONE_LOOKS)
    return False


def explain_failure(error: BaseException) -> JobFailed:
    """The failure in one sentence: the message of the worker's exception."""
    text = str(error)
    if missing := re.search(r"Unable to fetch remote (job server jar|prism binary) at (\S+?):? ", text + " "):
        return JobFailed(
            f"Beam could not download {missing[2]}. `make engines` fetches engines. Or give --flink_job_server_jar, "
            "--spark_job_server_jar or --prism_location the path of your own"
        )
    if failed := re.match(r"Service failed to start up with error (-?\d+)", text):
        said = engine_output.last_lines() or "it said nothing"
        return JobFailed(
            f"the job server ended with exit code {failed[1]} before it was ready: {said}. "
            "Mend this, then the same command continues the run"
        )
    if isinstance(error, forked_workers.StartFailed):
        return JobFailed(text)
    died = ("Channel closed prematurely", "Worker subprocess exited", "Socket closed", "UNAVAILABLE", *GONE_FROM_PRISM)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt|Busy|Exit|NoRows)\b.*", line)]
    causes = [cause for line in lines if (cause := re.match(r"Caused by: (?:[\w.$]+: )?(.+?)\.?$", line))]
    if panic := re.search(GO_STACK, text):
        said = re.sub(r"^Pipeline \S+ failed in state \w+: ", "", text[: panic.start()].partition(", stage: &")[0])
        lines = [line.strip() for line in said.splitlines() if line.strip()]
    if ended := re.search(r"Process died with (exit code \d+)", text):  # Flink and Spark say it of a worker
        return _of_death(live_job.end_of_worker(ended[1]))
    if any(word in text for word in died) and not own[1:]:
        return WorkerDied("a worker process died, perhaps because memory ran out: try fewer --workers")
    if not own and type(error) is not RuntimeError:  # raised in this process, with Beam's "[while running ...]"
        own = [f"{type(error).__name__}: {' '.join(lines)}"]
    if causes and not own:  # of the job server: the last lines are frames
        own = [": ".join(dict.fromkeys(cause[1] for cause in causes))]
    last = own[-1] if own else (lines[-1] if lines else type(error).__name__)
    last = last.removeprefix("RuntimeError: ") if EXPECTED.search(last) else last
    last = re.sub(r" \[while running '[^']*'\]", "", last)  # Beam puts it behind the first argument: text may follow
    of_input = re.match(r"(?:[\w.]+\.)?(?:(Missing|Refused|Unreadable)?Input|Reader|Transfer)Error: ", last)
    if of_input:
        away = InputAway if "TransferError: " in of_input[0] else JobFailed
        return (InputGone if of_input[1] else away)(last[of_input.end() :])
    of_file = re.match(r"(?:[\w.]+\.)?DamagedError: ", last)
    if of_file:
        return FileDamaged(last[of_file.end() :])
    of_worker = re.match(r"(?:[\w.]+\.)?(Fence|Lease|Worker)Error: ", last)
    if of_worker:
        said = last[of_worker.end() :]
        mend = ". When this is mended, the same command continues the run" if of_worker[1] == "Worker" else ""
        return JobFailed(said + mend)
    of_network = re.match(r"(?:[\w.]+\.)?NetworkError: ", last)
    if of_network:
        return NetworkAway(last[of_network.end() :])
    return JobFailed(last)
