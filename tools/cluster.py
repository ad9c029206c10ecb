"""Starts a real Flink or Spark cluster on this machine, and stops it. Each process is a host, where root allows it.

    python tools/cluster.py start FOLDER --engine spark --workers 2
    python tools/cluster.py stop FOLDER

`make engines` brings Flink (.engines/flink) and Spark (.engines/spark). Host 0 has the job manager or the master, and
the build runs there, too. Each other host has a task manager or a worker. `start` prints the command of a build, once
all workers are registered. FOLDER holds the configuration, the logs, the process ids and the names of the hosts.
`tools/hosts.py` says what a host is.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
from tools.hosts import Hosts  # noqa: E402

ENGINES = Path(os.environ.get("OPENWIT_ENGINES", Path(__file__).resolve().parents[1] / ".engines"))
START_S = 90  # seconds until all workers must be registered
JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
MASTER, WORKER = "org.apache.spark.deploy.master.Master", "org.apache.spark.deploy.worker.Worker"
# Java 17 closes these packages, and Flink 1.19 still reaches into them.
OPENED = ["java.base/java.util", "java.base/java.lang", "java.base/java.nio", "java.base/java.util.concurrent"]
FLINK = {
    "jobmanager.memory.process.size": "1024m",
    "taskmanager.memory.process.size": "1900m",
    "taskmanager.memory.managed.fraction": "0.2",
    "taskmanager.memory.network.min": "64m",
    "taskmanager.memory.network.max": "128m",
    "taskmanager.memory.task.off-heap.size": "512m",  # gRPC's buffers: too little ends a job without a message
    "execution.batch-shuffle-mode": "ALL_EXCHANGES_BLOCKING",
    "restart-strategy.type": "fixed-delay",
    "restart-strategy.fixed-delay.attempts": "5",
    "restart-strategy.fixed-delay.delay": "2 s",
    "cluster.uncaught-exception-handling": "FAIL",  # else a JVM without memory goes on for ever
    "heartbeat.timeout": "15000",
    "heartbeat.interval": "3000",
}
SPARK = {
    "spark.worker.cleanup.enabled": "true",  # each job leaves the job server's jar in a folder of each worker
    "spark.worker.cleanup.interval": "60",
    "spark.worker.cleanup.appDataTtl": "60",
}
WORKER_MB = 1400  # an executor takes 1024


class Cluster:
    """One cluster in one folder."""

    name = ""
    runs = ""  # the part of the engine's folder that must be there

    def __init__(self, folder: Path, engine: Path | None = None, *, hide: Sequence[Path] = ()) -> None:
        self.folder, self.engine = folder.absolute(), engine or ENGINES / self.name
        self.hosts = Hosts(folder, hide)

    @property
    def address(self) -> str:
        """HOST:PORT of the cluster, for the flags of a build."""
        return (self.folder / "address").read_text().strip()

    @property
    def page(self) -> str:
        """HOST:PORT of the page that a person looks at, and that `get` asks."""
        return (self.folder / "page").read_text().strip()

    def start(self, workers: int, *, slots: int = 1, apart: bool = True) -> str:
        """Starts the cluster and waits for its workers. Returns its address.

        Args:
            workers: task managers or workers, each on a host of its own.
            slots: what each of them does at the same time.
            apart: as `Hosts.open` takes it.

        Raises:
            SystemExit: the engine is not installed, or the cluster did not come up.
        """
        if not (self.engine / self.runs).is_dir() or shutil.which("java") is None:
            sys.exit(f"cluster: needs java, and {self.name} in {self.engine}: run `make engines`")
        if self.hosts.exist:
            sys.exit(f"cluster: {self.folder} has a cluster already: stop it first")
        for name in ("conf", "log", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        try:
            self.hosts.open(1 + workers, apart=apart)
            self.start_head(slots)
            for number in range(1, workers + 1):
                self.start_worker(number, slots)
            self._wait(workers)
        except BaseException:
            self.stop()
            raise
        return self.address

    def start_head(self, slots: int) -> int:
        """Starts the job manager or the master on host 0, and notes `address` and `page`. Returns its process id."""
        raise NotImplementedError

    def start_worker(self, number: int, slots: int = 1) -> int:
        """Starts the task manager or worker of a host, from 1 on. Returns its process id."""
        raise NotImplementedError

    def workers(self) -> int:
        """How many task managers or workers are registered."""
        raise NotImplementedError

    def flags(self, slots: int) -> list[str]:
        """The flags of a build."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ends all processes of the cluster, and its hosts."""
        self.hosts.stop()

    def get(self, path: str) -> dict:
        """The JSON that the page answers, asked from host 0."""
        url = f"http://{self.page}{path}"
        if not self.hosts.apart:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)
        ask = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=10).read().decode())"
        command = [*self.hosts.prefix(0), sys.executable, "-S", "-c", ask]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr.strip().split("\n")[-1])
        return json.loads(done.stdout)

    def _note(self, address: str, page: str) -> None:
        (self.folder / "address").write_text(f"{address}\n")
        (self.folder / "page").write_text(f"{page}\n")

    def _wait(self, workers: int) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            with suppress(OSError, ValueError):
                if self.workers() >= workers:
                    return
            time.sleep(0.3)
        sys.exit(f"cluster: not all workers came up in {START_S} s; see {self.folder / 'log'}")


class Flink(Cluster):
    """A job manager and task managers. Flink's own start scripts are not needed.

    `bash-java-utils.jar` prints the memory flags of each JVM.
    """

    name, runs = "flink", "lib"

    def start_head(self, slots: int) -> int:
        host = self.hosts.address(0)
        page, rpc = self.hosts.port(8081), self.hosts.port(6123)
        everywhere = "0.0.0.0" if self.hosts.apart else host  # it also asks itself, as localhost, for a job's files
        own = {"jobmanager.rpc.address": host, "jobmanager.rpc.port": rpc, "jobmanager.bind-host": everywhere}
        own |= {"rest.address": host, "rest.bind-address": host, "rest.port": page}
        own |= {"io.tmp.dirs": self.folder / "tmp", "taskmanager.numberOfTaskSlots": slots}
        lines = [f"{name}: {value}\n" for name, value in {**FLINK, **own}.items()]
        (self.folder / "conf" / "config.yaml").write_text("".join(lines))
        (self.folder / "conf" / "log4j.properties").write_text(
            "rootLogger.level = WARN\nrootLogger.appenderRef.c.ref = C\nappender.c.name = C\n"
            "appender.c.type = CONSOLE\nappender.c.layout.type = PatternLayout\n"
            "appender.c.layout.pattern = %d{HH:mm:ss} %-5p %c{1} %m%n\n"
        )
        self._note(f"{host}:{page}", f"{host}:{page}")
        return self._run(0, "job-manager", JOB_MANAGER, "JM")

    def start_worker(self, number: int, slots: int = 1) -> int:
        host = self.hosts.address(number)
        own = (f"-Dtaskmanager.{name}" for name in (f"resource-id=tm{number}", f"host={host}", f"bind-host={host}"))
        return self._run(number, f"task-manager-{number}", TASK_MANAGER, "TM", *own)

    def workers(self) -> int:
        return self.get("/overview")["taskmanagers"]

    def flags(self, slots: int) -> list[str]:
        return ["--runner", "flink", f"--flink_master={self.address}", f"--parallelism={slots}"]

    def _run(self, number: int, name: str, entry: str, kind: str, *more: str) -> int:
        flags, options = self._memory(kind)
        opened = [f"--add-opens={package}=ALL-UNNAMED" for package in OPENED]
        command = ["java", *flags, *opened, self._logging(), "-cp", self._classpath(), entry]
        return self.hosts.start(number, name, [*command, "--configDir", str(self.folder / "conf"), *options, *more])

    def _memory(self, kind: str) -> tuple[list[str], list[str]]:
        """(JVM flags, options) of a job manager (JM) or task manager (TM), as Flink computes them."""
        classpath = f"{self.engine / 'bin' / 'bash-java-utils.jar'}:{self._classpath()}"
        main = "org.apache.flink.runtime.util.bash.BashJavaUtils"
        command = ["java", "-cp", classpath, self._logging(), main, f"GET_{kind}_RESOURCE_PARAMS"]
        done = subprocess.run(
            [*command, "--configDir", str(self.folder / "conf")], capture_output=True, text=True, check=True
        )
        marker = "BASH_JAVA_UTILS_EXEC_RESULT:"
        found = [line.split(marker)[1] for line in done.stdout.splitlines() if marker in line]
        return found[0].split(), found[1].split()

    def _classpath(self) -> str:
        return ":".join(map(str, sorted((self.engine / "lib").glob("*.jar"))))

    def _logging(self) -> str:
        return f"-Dlog4j.configurationFile=file:{self.folder / 'conf' / 'log4j.properties'}"


class Spark(Cluster):
    """A standalone master and workers. Spark's own start scripts are not needed."""

    name, runs = "spark", "jars"

    def start_head(self, slots: int) -> int:
        host = self.hosts.address(0)
        port, page = self.hosts.port(7077), self.hosts.port(8080)
        self._note(f"{host}:{port}", f"{host}:{page}")
        (self.folder / "conf" / "log4j2.properties").write_text(
            "rootLogger.level = warn\nrootLogger.appenderRef.c.ref = C\nappender.c.name = C\n"
            "appender.c.type = Console\nappender.c.target = SYSTEM_ERR\nappender.c.layout.type = PatternLayout\n"
            "appender.c.layout.pattern = %d{HH:mm:ss} %-5p %c{1} %m%n\n"
        )
        where = ["--host", host, "--port", str(port), "--webui-port", str(page)]
        return self._run(0, "master", MASTER, where)

    def start_worker(self, number: int, slots: int = 1) -> int:
        host, work = self.hosts.address(number), self.folder / "tmp" / f"worker-{number}"
        where = ["--host", host, "--webui-port", "0", "--work-dir", str(work)]
        share = ["--cores", str(slots), "--memory", f"{WORKER_MB}m"]
        return self._run(number, f"worker-{number}", WORKER, [*where, *share, f"spark://{self.address}"])

    def workers(self) -> int:
        return self.get("/json/")["aliveworkers"]

    def flags(self, slots: int) -> list[str]:
        return ["--runner", "spark", f"--spark_master_url=spark://{self.address}"]

    def _run(self, number: int, name: str, entry: str, options: list[str]) -> int:
        conf = self.folder / "conf"
        settings = [f"-D{key}={value}" for key, value in SPARK.items()]
        command = ["java", "-Xmx512m", *settings, "-cp", f"{conf}:{self.engine / 'jars'}/*", entry, *options]
        env = {"SPARK_LOCAL_IP": self.hosts.address(number), "SPARK_CONF_DIR": str(conf)}
        env |= {
            "SPARK_HOME": str(self.engine),
            "SPARK_LOCAL_DIRS": str(self.folder / "tmp"),
            "SPARK_SCALA_VERSION": "2.12",
        }
        return self.hosts.start(number, name, command, env)


KINDS = {kind.name: kind for kind in (Flink, Spark)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", choices=KINDS, default="flink", help="(default: flink)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="task managers or workers (default: 2)")
    parser.add_argument("--slots", type=int, default=1, metavar="N", help="what each does at a time (default: 1)")
    parser.add_argument("--one-host", action="store_true", help="all on 127.0.0.1, also where root allows namespaces")
    parser.add_argument(
        "--hide", type=Path, action="append", default=[], metavar="DIR", help="workers see an empty folder there (root)"
    )
    options = parser.parse_args(argv)
    if any(options.folder.absolute().is_relative_to(path.absolute()) for path in options.hide):
        parser.error(f"--hide: must not hold {options.folder}")
    if options.action == "stop":
        Hosts(options.folder).stop()
        return 0
    warnings.simplefilter("ignore", ResourceWarning)  # the processes outlive this one
    cluster = KINDS[options.engine](options.folder, hide=options.hide)
    cluster.start(options.workers, slots=options.slots, apart=not options.one_host)
    flags = shlex.join(cluster.flags(options.workers * options.slots))
    on_host = f"{shlex.join(cluster.hosts.prefix(0))} " if cluster.hosts.apart else ""
    print(
        f"{options.engine} is up: http://{cluster.page}\n"
        f"  {on_host}{sys.executable} -m pipeline.build ... {flags} \\\n"
        f"      --environment_type=PROCESS \\\n"
        f"      --environment_option=process_command={Path(sys.executable).parent / 'openwit-worker'}\n"
        f"  {sys.executable} {sys.argv[0]} stop {options.folder}"
    )
    if cluster.hosts.apart:
        print(f"Its hosts have no way out: what the build fetches must be served in {cluster.hosts.prefix(0)[-1]}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
