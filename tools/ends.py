"""How runs end on each engine: interrupts, kills, and workers that are left over. It prints a table.

    python tools/ends.py interrupt --engine local-2 prism --stage fetch    Ctrl-C and SIGTERM in each job
    python tools/ends.py kill --what worker task-manager client            kill -9 on a Flink cluster
    python tools/ends.py kill --engine prism-processes --what worker       and on an engine of the client's process
    python tools/ends.py kill --engine prism-processes --what program      its workers' program ends at once
    python tools/ends.py leftover --engine prism-processes                 a stopped worker beside a second run

Each run is one job on a small web of the demo on loopback: the jobs before it are done. What an engine needs comes from
`make engines`. A row says how the run ended, whether anything was left, and whether the same command then made the rows
of a run that nothing disturbed. The exit code is 1 if a row shows a fault. A row takes half a minute to some
minutes; it needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout that this file lies in, whatever is installed

from pipeline.demo import smallweb  # noqa: E402
from tests.processes import all_stats, descendants, group_members  # noqa: E402
from tools.cluster import ENGINES, JOB_MANAGER, KINDS, Cluster, Flink  # noqa: E402

WORKER = str(Path(sys.executable).parent / "openwit-worker")
PROCESSES = ["--environment_type=PROCESS", f"--environment_option=process_command={WORKER}"]
RUNS = {
    "local-1": ["--workers", "1"],
    "local-2": ["--workers", "2"],
    "portable": ["--runner", "PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"],
    "prism": ["--runner", "prism"],
    "prism-processes": ["--runner", "prism", *PROCESSES],
    "flink": ["--runner", "flink", "--parallelism=2"],
    "flink-processes": ["--runner", "flink", "--flink_master=[local]", "--parallelism=2", *PROCESSES],
    "flink-cluster": PROCESSES,
    "spark": ["--runner", "spark"],
    "spark-processes": ["--runner", "spark", "--spark_master_url=local[2]", *PROCESSES],
    "spark-cluster": PROCESSES,
}
JOBS = ("select", "fetch", "publish")
LAST = {"select": "balance", "fetch": "fetch", "publish": "publish"}  # the last stage of each job
ENDED = {"flink": ("CANCELED",), "spark": ("FINISHED", "KILLED")}  # states of a job after an interrupt
KILLS = ("worker", "pool", "task-manager", "task-manager-spare", "job-manager", "job-server", "client")
OF_PROCESSES = ("worker", "job-server", "client", "program")  # what `kill` has on an engine without a cluster
BROKEN = "#!/bin/sh\necho 'ImportError: a broken install' >&2\nexit 1\n"  # a program of workers that ends at once
LIMIT_S = 400  # of a run
QUIET_S = 10.0  # in which nothing may change in OUT
ANSWER_S = 0.4  # of the server, so that a fetch takes some seconds
JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


class Bench:
    """The small web, its archives, what a run that nothing disturbs publishes, and OUTs in which jobs are done."""

    def __init__(self, folder: Path, web: smallweb.SmallWeb) -> None:
        self.folder, self._number = folder, 0
        (folder / "in").mkdir()
        smallweb.write_wat(web, str(folder / "in" / "crawl-0.warc.wat.gz"), pages=slice(0, 12))
        smallweb.write_wat(web, str(folder / "in" / "crawl-1.warc.wat.gz"), pages=slice(12, None))
        words = [*smallweb.COLOURS, *smallweb.SHAPES, "a", "on", "of", "snow", "moon"]
        (folder / "queries.txt").write_text("\n".join(words))
        self._done = {"select": folder / "nothing"}
        for job, after in (("select", "fetch"), ("fetch", "publish")):
            self._done[after] = folder / f"{job}-done"
            if job == "fetch":
                shutil.copytree(folder / "select-done", folder / "fetch-done")
            self.run(self._done[after], "--workers", "2", "--stages", f"gather..{LAST[job]}")
        whole = folder / "whole"
        shutil.copytree(folder / "fetch-done", whole)
        self.run(whole, "--workers", "2")
        self.expected = {job: digest(whole, job) for job in JOBS}

    def out(self, job: str) -> Path:
        """A new OUT in which the jobs before this one are done."""
        self._number += 1
        out = self.folder / f"out-{self._number}"
        if self._done[job].exists():
            shutil.copytree(self._done[job], out)
        return out

    def start(self, out: Path, *more: str) -> subprocess.Popen[str]:
        """Starts a build in a process group of its own, as a terminal does."""
        command = [sys.executable, "-m", "pipeline.build", "--output", str(out), "--input", str(self.folder / "in")]
        command += ["--queries", str(self.folder / "queries.txt"), "--allow-address", "127.0.0.0/8", "--cap", "16"]
        env = os.environ | {"OPENWIT_ENGINES": str(ENGINES), "JAVA_TOOL_OPTIONS": JVM, "OPENWIT_STALL_SECONDS": "15"}
        said = open(self.folder / f"{out.name}.log", "a")
        with said:
            said.write(f"{' '.join(more)}\n")
            said.flush()
            return subprocess.Popen(
                [*command, *more],
                stdout=subprocess.DEVNULL,
                stderr=said,
                text=True,
                start_new_session=True,
                env=env | variables(),
                cwd=ROOT,
            )

    def run(self, out: Path, *more: str) -> float:
        """Runs a build to its end. Returns its seconds.

        Raises:
            RuntimeError: it failed.
        """
        began, process = time.monotonic(), self.start(out, *more)
        code = wait(process, LIMIT_S)
        if code != 0:
            raise RuntimeError(f"exit code {code}: {self.said(out)[-300:]}")
        return time.monotonic() - began

    def said(self, out: Path) -> str:
        """What the builds into an OUT said."""
        return (self.folder / f"{out.name}.log").read_text()


def variables() -> dict[str, str]:
    """Lets workers that an engine starts find this checkout."""
    return {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}


def wait(process: subprocess.Popen[str], seconds: float) -> int | None:
    """The exit code; None, and the process group is killed, if it does not end."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return None


def until(condition: Callable[[], Any], seconds: float, every: float = 0.01) -> Any:
    """Waits until a function returns something true, and returns it; what is false at the end."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(every)
    return found


def digest(out: Path, job: str) -> str:
    """The digest of what a job made: of the published set, or of the rows of its last stage; "": it is not done."""
    path = out / ("manifest.json" if job == "publish" else f"stages/{LAST[job]}/info.json")
    return str(json.loads(path.read_text())["digest"]) if path.exists() else ""


def tree(out: Path) -> str:
    """A hash of all names and bytes in OUT."""
    state = hashlib.sha256()
    for path in sorted(out.rglob("*")):
        state.update(f"{path}\0".encode() + (path.read_bytes() if path.is_file() else b""))
    return state.hexdigest()


def units(out: Path) -> set[Path]:
    """The files of units that are done, or that are being fetched."""
    return {path for end in ("json", "live") for path in out.glob(f"stages/*/*/*.{end}")}


def holders(out: Path) -> list[int]:
    """The processes that hold the lock of workers in OUT."""
    lock, found = str(out / ".workers"), []
    for pid in all_stats():
        with contextlib.suppress(OSError):
            if lock in {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}:
                found.append(pid)
    return found


def workers(out: Path) -> list[int]:
    """The processes of openwit-worker among them. A worker has helpers, and the client has a flag with this name."""
    found = []
    for pid in holders(out):
        with contextlib.suppress(OSError):
            if WORKER in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                found.append(pid)
    return found


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """A `Bench` while the block runs."""
    answer = smallweb._Handler.do_GET

    def slowly(handler: smallweb._Handler) -> None:
        time.sleep(ANSWER_S)
        answer(handler)

    smallweb._Handler.do_GET = slowly  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as name, smallweb.serve(pages=24) as web:
        yield Bench(Path(name), web)


@contextlib.contextmanager
def cluster(engine: str, folder: Path, workers: int = 2) -> Iterator[Cluster | None]:
    """The cluster of an engine while the block runs; None if it has none."""
    if not engine.endswith("-cluster"):
        yield None
        return
    os.environ.update(variables())
    found = KINDS[engine.removesuffix("-cluster")](folder / f"cluster-{random.getrandbits(32)}")
    found.start(workers, apart=False)
    try:
        yield found
    finally:
        found.stop()


def flags_of(engine: str, on: Cluster | None) -> list[str]:
    """The flags of an engine."""
    return [*(on.flags(2) if on is not None else []), *RUNS[engine]]


def states(on: Cluster | None) -> list[str]:
    """The states of the jobs on a cluster, the oldest first; one that is empty without a cluster."""
    if on is None:
        return [""]
    if isinstance(on, Flink):
        found, begun = on.get("/jobs/overview")["jobs"], "start-time"
    else:
        page = on.get("/json/")
        found, begun = [*page["activeapps"], *page["completedapps"]], "starttime"
    return [job["state"] for job in sorted(found, key=lambda job: job[begun])]


# ------------------------------------------------------------------------------------------------------- interrupts


def interrupt(made: Bench, engine: str, job: str, number: signal.Signals, on: Cluster | None) -> dict[str, Any]:
    """Interrupts a run in one of its jobs: Ctrl-C reaches the whole group, SIGTERM the client alone."""
    out, flags = made.out(job), [*flags_of(engine, on), "--stages", f"gather..{LAST[job]}"]
    before = units(out)
    process = made.start(out, *flags)
    reached = until(lambda: units(out) - before or process.poll() is not None, LIMIT_S)
    if process.poll() is not None or not reached:
        wait(process, 0)
        return {"fault": f"ended before it was interrupted: {made.said(out)[-200:]}"}
    began = time.monotonic()
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    code = wait(process, 90)
    row: dict[str, Any] = {"exit": code, "ended in": f"{time.monotonic() - began:.1f} s"}
    first = tree(out)
    left = [*group_members(process.pid), *map(str, holders(out))]
    gone = until(lambda: not group_members(process.pid) and not holders(out), 30, 0.1)
    row["processes gone in"] = f"{time.monotonic() - began:.1f} s" if gone else f"left: {left}"
    ended = ENDED[on.name] if on is not None else ("",)
    until(lambda: states(on)[-1] in ended, 10, 0.1)  # a master hears of its driver's end a moment later
    job_state = states(on)[-1]
    time.sleep(max(0.0, QUIET_S - (time.monotonic() - began)))
    faults = [] if gone else ["processes are left"]
    faults += [] if code == 130 else [f"exit code {code}"]
    faults += [] if tree(out) == first else ["OUT changed after the end"]
    faults += [] if job_state in ended else [f"the job is {job_state}"]
    with contextlib.suppress(RuntimeError):
        row["again"] = f"{made.run(out, *flags):.0f} s"
    faults += [] if digest(out, job) == made.expected[job] else [f"another digest: {made.said(out)[-200:]}"]
    return {**row, "on the cluster": job_state, "fault": ", ".join(faults)}


def interrupts(made: Bench, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each engine, job and signal."""
    for engine in options.engine:
        with cluster(engine, made.folder) as on:
            for job in options.stage:
                for name in options.signal:
                    number = signal.Signals[f"SIG{name}"]
                    yield {"engine": engine, "job": job, "signal": name, **interrupt(made, engine, job, number, on)}


# ------------------------------------------------------------------------------------------------------------ kills


def kill(
    made: Bench, what: str, flink: Flink | None, flags: Sequence[str], *, pool: int, managers: int, undisturbed: float
) -> dict[str, Any]:
    """Kills one part of an engine under way. What does not go on by itself is mended, and the command repeated."""
    out = made.out("fetch")
    before, began = units(out), time.monotonic()
    process = made.start(out, *flags)
    if not until(lambda: units(out) - before or process.poll() is not None, LIMIT_S) or process.poll() is not None:
        return {"fault": f"ended before anything was killed: {made.said(out)[-200:]}"}
    victim = find(what, process.pid, flink, pool, out)
    done = len(units(out))
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    code = wait(process, LIMIT_S)
    row: dict[str, Any] = {"units before": done, "exit": code, "after": f"{time.monotonic() - killed:.0f} s"}
    last = made.said(out).strip().splitlines()[-1][-110:] if code != 0 else ""
    if code != 0:
        if flink is not None:
            if what == "job-manager":
                flink._run(0, "job-manager", JOB_MANAGER, "JM")
            until(lambda: registered(flink) >= managers, 90, 0.5)
        with contextlib.suppress(RuntimeError):
            row["again"] = f"{made.run(out, *flags):.0f} s"
    row["seconds lost"] = f"{time.monotonic() - began - undisturbed:.0f}"
    jobs = states(flink)
    faults = [] if code == {"client": -9, "job-manager": 1}.get(what, 0) else [f"exit code {code}"]
    faults += [] if {*jobs} <= {"FINISHED", "CANCELED", "FAILED", ""} else ["a job is left"]
    same = digest(out, "fetch") == made.expected["fetch"]
    faults += [] if same else [f"another digest: {made.said(out)[-200:]}"]
    return {**row, "jobs on the cluster": " ".join(jobs), "said": last, "fault": ", ".join(faults)}


def registered(flink: Flink) -> int:
    """The task managers of a cluster; 0: it does not answer."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return flink.workers()
    return 0


def program(made: Bench, engine: str) -> dict[str, Any]:
    """A run whose workers' program ends at once, and then the same one with the right program."""
    out, broken = made.out("fetch"), made.folder / "broken-worker"
    broken.write_text(BROKEN)
    broken.chmod(0o755)
    flags = [word.replace(WORKER, str(broken)) for word in RUNS[engine]]
    began, process = time.monotonic(), made.start(out, *flags, "--stages", "gather..fetch")
    code = wait(process, LIMIT_S)
    row: dict[str, Any] = {"exit": code, "after": f"{time.monotonic() - began:.0f} s of the start"}
    last = made.said(out).strip().splitlines()[-1]
    with contextlib.suppress(RuntimeError):
        row["again"] = f"{made.run(out, *RUNS[engine], '--stages', 'gather..fetch'):.0f} s"
    faults = [] if code == 1 else [f"exit code {code}"]
    faults += [] if "ImportError: a broken install" in last else ["its last line is not told"]
    faults += [] if digest(out, "fetch") == made.expected["fetch"] else ["another digest"]
    return {**row, "said": last, "fault": ", ".join(faults)}


def find(what: str, client: int, flink: Flink | None, pool: int, out: Path) -> int:
    """The process to kill."""
    if what == "job-server":
        return next(pid for pid in descendants(client) if Path(f"/proc/{pid}/exe").resolve().name in ("java", "prism"))
    if flink is None:
        return client if what == "client" else until(lambda: workers(out), 30)[0]
    pids = {line.split()[2]: int(line.split()[0]) for line in (flink.folder / "pids").read_text().splitlines()}
    if what in ("pool", "job-manager", "client"):
        return {"pool": pool, "job-manager": pids["job-manager"], "client": client}[what]
    worker = until(lambda: workers(out), 30)[0]
    managers = [pid for name, pid in pids.items() if name.startswith("task") and worker in descendants(pid)]
    return worker if what == "worker" else managers[0]


@contextlib.contextmanager
def worker_pool(port: int) -> Iterator[int]:
    """Beam's worker pool of one host. It is started again when it is killed, as a service would be."""
    command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    command += [f"--container_executable={WORKER}"]
    keeper = f"while :; do {' '.join(command)}; sleep 1; done"
    process = subprocess.Popen(
        ["sh", "-c", keeper], start_new_session=True, env=os.environ | variables(), stderr=subprocess.DEVNULL
    )
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kills(made: Bench, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each engine and each part that is killed."""
    for engine in options.engine:
        what = [what for what in options.what if engine == "flink-cluster" or what in OF_PROCESSES]
        made_rows = kills_on_cluster if engine == "flink-cluster" else kills_of_processes
        for row in made_rows(made, what, engine, options.seconds):
            yield {"engine": engine, **row}


def kills_of_processes(made: Bench, parts: Sequence[str], engine: str, undisturbed: float) -> Iterator[dict[str, Any]]:
    """A row for each part of an engine that the client starts."""
    flags = [*RUNS[engine], "--stages", "gather..fetch"]
    if not undisturbed and {*parts} != {"program"}:
        undisturbed = made.run(made.out("fetch"), *flags)
        yield {"killed": "nothing", "seconds": f"{undisturbed:.0f}", "fault": ""}
    for what in parts:
        if what == "program":
            yield {"killed": what, **program(made, engine)}
        else:
            row = kill(made, what, None, flags, pool=0, managers=0, undisturbed=undisturbed)
            yield {"killed": what, **row}


def kills_on_cluster(made: Bench, parts: Sequence[str], engine: str, undisturbed: float) -> Iterator[dict[str, Any]]:
    """A row for each part of a Flink cluster."""
    for what in parts:
        if what == "program":
            continue
        managers = 1 if what == "pool" else 3 if what == "task-manager-spare" else 2
        with contextlib.ExitStack() as stack:
            flink = stack.enter_context(cluster(engine, made.folder, managers))
            assert isinstance(flink, Flink)
            flags, pool = [*flags_of(engine, flink), "--stages", "gather..fetch"], 0
            if not undisturbed:
                undisturbed = made.run(made.out("fetch"), *flags)
                yield {"killed": "nothing", "seconds": f"{undisturbed:.0f}", "fault": ""}
            if what == "pool":
                port = 50000 + random.randrange(10000)
                keeper = stack.enter_context(worker_pool(port))
                pool = until(functools.partial(descendants, keeper), 30)[0]
                flags = [word for word in flags if word not in PROCESSES and not word.startswith("--parallelism")]
                flags += ["--parallelism=1", "--environment_type=EXTERNAL", f"--environment_config=localhost:{port}"]
            row = kill(made, what, flink, flags, pool=pool, managers=managers, undisturbed=undisturbed)
            yield {"killed": what, **row}


# -------------------------------------------------------------------------------------------------------- left over


def leftover(made: Bench, engine: str, on: Cluster | None) -> dict[str, Any]:
    """Stops a worker in the middle of its work, kills the client, runs again, and wakes the worker up beside it."""
    out, flags = made.out("fetch"), flags_of(engine, on)  # the second run goes to the end
    before, process = units(out), made.start(out, *flags)
    until(lambda: units(out) - before and holders(out), LIMIT_S)
    workers = [pid for pid in holders(out) if pid != process.pid]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = made.start(out, *RUNS["local-2"])
    until(lambda: "do not end" in made.said(out) or again.poll() is not None, 60, 0.1)
    time.sleep(1)
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    code = wait(again, LIMIT_S)
    first = tree(out)
    gone = until(lambda: not holders(out), 60, 0.1)
    time.sleep(QUIET_S)
    good = code == 0 and digest(out, "publish") == made.expected["publish"]
    faults = [] if good else [f"exit {code}: {made.said(out)[-200:]}"]
    faults += [] if tree(out) == first else ["OUT changed after the end"]
    faults += [] if gone else ["workers are left"]
    return {"stopped workers": len(workers), "second run": f"exit {code}", "fault": ", ".join(faults)}


def leftovers(made: Bench, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each engine."""
    for engine in options.engine:
        with cluster(engine, made.folder) as on:
            yield {"engine": engine, **leftover(made, engine, on)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, rows in (("interrupt", interrupts), ("leftover", leftovers)):
        command = commands.add_parser(name)
        command.set_defaults(rows=rows)
        command.add_argument("--engine", nargs="+", choices=RUNS, default=list(RUNS) if name == "interrupt" else [])
    command = commands.choices["interrupt"]
    command.add_argument("--stage", nargs="+", choices=JOBS, default=list(JOBS), help="the jobs to interrupt")
    command.add_argument("--signal", nargs="+", choices=("INT", "TERM"), default=["INT", "TERM"])
    command = commands.add_parser("kill")
    command.set_defaults(rows=kills)
    command.add_argument("--what", nargs="+", choices=(*KILLS, "program"), default=list(KILLS))
    processes = [name for name in RUNS if name.endswith("-processes")]
    command.add_argument("--engine", nargs="+", choices=("flink-cluster", *processes), default=["flink-cluster"])
    command.add_argument("--seconds", type=float, default=0.0, help="of a run without a kill; 0: it is made first")
    options = parser.parse_args(argv)
    faults = 0
    with bench() as made:
        for row in options.rows(made, options):
            faults += bool(row["fault"])
            print(" | ".join(f"{name}: {value}" for name, value in row.items() if value or name != "fault"), flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
