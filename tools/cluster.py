"""Starts a real Flink cluster on this machine, and stops it: a job manager and task managers as processes of their own.

    python tools/cluster.py start FOLDER --task-managers 2
    python tools/cluster.py stop FOLDER

`make engines` brings Flink (.engines/flink). Everything listens on 127.0.0.1, on free ports. FOLDER holds the
configuration, the logs and the process ids. `start` prints the flags that a build needs, once every task manager is
registered. Flink's own start scripts are not needed: `bash-java-utils.jar` prints the memory flags of each JVM.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from contextlib import suppress
from pathlib import Path

ENGINES = Path(os.environ.get("OPENWIT_ENGINES", Path(__file__).resolve().parents[1] / ".engines"))
START_S = 90  # seconds until all task managers must be registered
JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
# Java 17 closes these packages, and Flink 1.19 still reaches into them.
OPENED = ["java.base/java.util", "java.base/java.lang", "java.base/java.nio", "java.base/java.util.concurrent"]
SETTINGS = {
    "jobmanager.memory.process.size": "1024m",
    "taskmanager.memory.process.size": "1900m",
    "taskmanager.memory.managed.fraction": "0.2",
    "taskmanager.memory.network.min": "64m",
    "taskmanager.memory.network.max": "128m",
    "taskmanager.memory.task.off-heap.size": "512m",  # gRPC's buffers: too little ends a job without a message
    "taskmanager.numberOfTaskSlots": "1",
    "execution.batch-shuffle-mode": "ALL_EXCHANGES_BLOCKING",
    "restart-strategy.type": "fixed-delay",
    "restart-strategy.fixed-delay.attempts": "5",
    "restart-strategy.fixed-delay.delay": "2 s",
    "cluster.uncaught-exception-handling": "FAIL",  # else a JVM without memory goes on for ever
    "heartbeat.timeout": "15000",
    "heartbeat.interval": "3000",
}


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Flink:
    """One cluster in one folder."""

    def __init__(self, folder: Path, flink: Path = ENGINES / "flink") -> None:
        self.folder, self.flink = folder.absolute(), flink
        self.pids = self.folder / "pids"
        self._started: list[subprocess.Popen] = []  # by this process

    @property
    def address(self) -> str:
        """HOST:PORT of the REST interface, for --flink_master."""
        return (self.folder / "address").read_text().strip()

    def start(self, task_managers: int, *, slots: int = 1) -> str:
        """Starts the cluster and waits for its task managers. Returns its address.

        Raises:
            SystemExit: Flink is not installed, or the cluster did not come up.
        """
        if not (self.flink / "lib").is_dir() or shutil.which("java") is None:
            sys.exit(f"cluster: needs java, and Flink in {self.flink}: run `make engines`")
        if self.pids.exists():
            sys.exit(f"cluster: {self.folder} has a cluster already: stop it first")
        for name in ("conf", "log", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        address = self._configure(slots)
        try:
            self.run("job-manager", JOB_MANAGER, "JM")
            for number in range(task_managers):
                self.start_task_manager(number)
            self._wait(task_managers)
        except BaseException:
            self.stop()
            raise
        return address

    def start_task_manager(self, number: int) -> int:
        """Starts one task manager. Returns its process id."""
        return self.run(f"task-manager-{number}", TASK_MANAGER, "TM", f"-Dtaskmanager.resource-id=tm{number}")

    def run(self, name: str, entry: str, kind: str, *more: str) -> int:
        """Starts one JVM in a process group of its own, and notes its process id."""
        flags, options = self._memory(kind)
        opened = [f"--add-opens={package}=ALL-UNNAMED" for package in OPENED]
        command = ["java", *flags, *opened, self._logging(), "-cp", self._classpath(), entry]
        with open(self.folder / "log" / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [*command, "--configDir", str(self.folder / "conf"), *options, *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)
        with open(self.pids, "a") as pids:
            pids.write(f"{process.pid} {name}\n")
        return process.pid

    def stop(self) -> None:
        """Ends all processes of the cluster, at once."""
        lines = self.pids.read_text().split("\n") if self.pids.exists() else []
        for pid in [int(line.split()[0]) for line in lines if line]:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for process in self._started:
            process.wait()
        self._started.clear()
        self.pids.unlink(missing_ok=True)

    def get(self, path: str) -> dict:
        """The answer of the REST interface."""
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=10) as answer:
            return json.load(answer)

    def _configure(self, slots: int) -> str:
        port, rpc = free_port(), free_port()
        own = {f"{name}.bind-host": "127.0.0.1" for name in ("jobmanager", "taskmanager")}
        own |= {"jobmanager.rpc.address": "127.0.0.1", "jobmanager.rpc.port": str(rpc), "taskmanager.host": "127.0.0.1"}
        own |= {"rest.address": "127.0.0.1", "rest.bind-address": "127.0.0.1", "rest.port": str(port)}
        own |= {"io.tmp.dirs": str(self.folder / "tmp")}
        lines = [f"{name}: {value}" for name, value in {**SETTINGS, **own}.items()]
        lines[lines.index("taskmanager.numberOfTaskSlots: 1")] = f"taskmanager.numberOfTaskSlots: {slots}"
        (self.folder / "conf" / "config.yaml").write_text("\n".join(lines) + "\n")
        (self.folder / "conf" / "log4j.properties").write_text(
            "rootLogger.level = WARN\nrootLogger.appenderRef.c.ref = C\nappender.c.name = C\n"
            "appender.c.type = CONSOLE\nappender.c.layout.type = PatternLayout\n"
            "appender.c.layout.pattern = %d{HH:mm:ss} %-5p %c{1} %m%n\n"
        )
        (self.folder / "address").write_text(f"127.0.0.1:{port}\n")
        return self.address

    def _memory(self, kind: str) -> tuple[list[str], list[str]]:
        """(JVM flags, options) of a job manager (JM) or task manager (TM), as Flink computes them."""
        classpath = f"{self.flink / 'bin' / 'bash-java-utils.jar'}:{self._classpath()}"
        main = "org.apache.flink.runtime.util.bash.BashJavaUtils"
        command = ["java", "-cp", classpath, self._logging(), main, f"GET_{kind}_RESOURCE_PARAMS"]
        done = subprocess.run(
            [*command, "--configDir", str(self.folder / "conf")], capture_output=True, text=True, check=True
        )
        marker = "BASH_JAVA_UTILS_EXEC_RESULT:"
        found = [line.split(marker)[1] for line in done.stdout.splitlines() if marker in line]
        return found[0].split(), found[1].split()

    def _classpath(self) -> str:
        return ":".join(map(str, sorted((self.flink / "lib").glob("*.jar"))))

    def _logging(self) -> str:
        return f"-Dlog4j.configurationFile=file:{self.folder / 'conf' / 'log4j.properties'}"

    def _wait(self, task_managers: int) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            with suppress(OSError, ValueError):
                if self.get("/overview")["taskmanagers"] >= task_managers:
                    return
            time.sleep(0.3)
        sys.exit(f"cluster: not all task managers came up in {START_S} s; see {self.folder / 'log'}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task-managers", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument("--slots", type=int, default=1, metavar="N", help="slots of each task manager (default: 1)")
    options = parser.parse_args(argv)
    cluster = Flink(options.folder)
    if options.action == "stop":
        cluster.stop()
        return 0
    warnings.simplefilter("ignore", ResourceWarning)  # the processes outlive this one
    address = cluster.start(options.task_managers, slots=options.slots)
    worker = Path(sys.executable).parent / "openwit-worker"
    print(
        f"Flink is up: http://{address}\n"
        f"  python -m pipeline.build ... --runner FlinkRunner --flink_version=1.19 --flink_master={address} \\\n"
        f"      --parallelism={options.task_managers * options.slots} --environment_type=PROCESS \\\n"
        f"      --environment_option=process_command={worker}\n"
        f"  python tools/cluster.py stop {options.folder}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
