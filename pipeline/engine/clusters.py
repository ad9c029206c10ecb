"""The cluster that a job runs on: whether it answers, and how the job is ended there.

Beam's job server forgets a job that it has given to a Flink cluster: `cancel` ends the job server, and the job goes on.
So jobs on Flink carry a name of ours, and are cancelled through Flink's REST interface
(https://nightlies.apache.org/flink/flink-docs-release-1.19/docs/ops/rest_api/, `PATCH /jobs/:jobid?mode=cancel`).
`OUT/.job` names the job from before it is submitted until it ends. So the next run on the same folder can end a job
that a killed client left. The job server ends with its client, so a job that is not there after `LATE_S` never comes.

On Spark the job server is the driver, and the job ends with it. The driver's page tells of the job
(https://spark.apache.org/docs/3.5.0/monitoring.html#rest-api). The master's page does, too, but its address cannot be
known from that of the master.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.engine import log_file, storage

ANSWER_S = 10.0  # for one question to a cluster
CANCEL_S = 60.0  # until a cancelled job must be gone: Flink itself gives up after 180 s and kills the task manager
SILENT_S = 15.0  # until a cluster that does not answer is given up
LATE_S = 5.0  # until a job that the cluster does not know is taken for one that was not submitted
POLL_S = 0.5
ENDED = ("FINISHED", "CANCELED", "FAILED", "SUSPENDED")
NOTE = ".job"  # the file in OUT that names the job under way
DRIVER_PORTS = range(4040, 4057)  # Spark's drivers on one host take the first free one for their pages


@dataclass(frozen=True)
class Cluster:
    """A cluster that only answers at an address, or none at all (address ""): the job dies with this process."""

    address: str = ""  # HOST:PORT, several with commas between them where one of them is enough
    job: str = ""  # the name of our job
    cancel_s: ClassVar[float] = 0.0  # seconds that `cancel` takes, at most

    def problem(self) -> str:
        """What is wrong with the cluster or with the job on it; "" if nothing is known to be wrong."""
        problem = ""
        for address in filter(None, self.address.split(",")):
            try:
                socket.create_connection(_pair(address), timeout=ANSWER_S).close()
            except (OSError, ValueError) as error:
                problem = f"{self.address} does not answer ({error})"
            else:
                return ""
        return problem

    def cancel(self) -> str:
        """Ends the job on the cluster and waits until it is gone. Returns what is left to do; "" if nothing."""
        return ""

    def waits_with(self) -> int:
        """The slots of the cluster, if the job waits for more than it has; 0: it does not wait for slots."""
        return 0

    def page(self) -> str:
        """The address of the job's page in the web interface of the engine; "": none is known, or not yet."""
        return ""

    def variables(self) -> dict[str, str]:
        """Environment variables that the job server needs."""
        return {}


NONE = Cluster()


@dataclass(frozen=True)
class Flink(Cluster):
    """A Flink cluster, by the address of its REST interface."""

    cancel_s: ClassVar[float] = CANCEL_S

    def problem(self) -> str:
        """As `Cluster.problem`; a cluster without task managers and a job that is not running are problems."""
        try:
            if not self._ask("/overview")["taskmanagers"]:
                return f"the cluster at {self.address} has no task manager"
            states = [job["state"] for job in self._jobs()]
        except (OSError, ValueError, KeyError) as error:
            return f"Flink at {self.address} does not answer ({error})"
        slots = self.waits_with()
        if slots:
            return f"the job waits for slots, and Flink at {self.address} has {slots}"
        if states and states[-1] not in ("RUNNING", "CREATED", "INITIALIZING", "RECONCILING", "FINISHED"):
            return f"the job is {states[-1]} on Flink at {self.address}"
        return ""

    def cancel(self) -> str:
        """As `Cluster.cancel`, at most `CANCEL_S` seconds."""
        start = time.monotonic()
        while True:
            error, patience = "", CANCEL_S
            try:
                jobs = self._jobs()
                running = [job for job in jobs if job["state"] not in ENDED]
                if not running and (jobs or time.monotonic() > start + LATE_S):
                    return ""
                for job in running:
                    self._cancel(job)
            except (OSError, ValueError, KeyError) as raised:
                error, patience = f" ({raised})", SILENT_S
            if time.monotonic() > start + patience:
                return f"the job {self.job} may still run on Flink at {self.address}{error}: cancel it there"
            time.sleep(POLL_S)

    def waits_with(self) -> int:
        """As `Cluster.waits_with`: tasks are scheduled, none of them runs, and no slot is free."""
        try:
            jobs, overview = self._jobs(), self._ask("/overview")
            tasks = jobs[-1]["tasks"]
            waits = tasks["scheduled"] and not sum(tasks[name] for name in ("running", "deploying", "initializing"))
            return overview["slots-total"] if waits and not overview["slots-available"] else 0
        except (OSError, ValueError, KeyError, IndexError):
            return 0

    def page(self) -> str:
        """As `Cluster.page`."""
        try:
            jobs = self._jobs()
        except (OSError, ValueError, KeyError):
            return ""
        return f"http://{self.address}/#/job/running/{jobs[-1]['jid']}/overview" if jobs else ""

    def _cancel(self, job: dict[str, Any]) -> None:
        if job["state"] != "CANCELLING":
            with contextlib.suppress(urllib.error.HTTPError):  # it has just ended
                self._ask(f"/jobs/{job['jid']}?mode=cancel", method="PATCH")

    def _jobs(self) -> list[dict[str, Any]]:
        """The jobs with our name, the oldest first."""
        found = [job for job in self._ask("/jobs/overview")["jobs"] if job["name"] == self.job]
        return sorted(found, key=lambda job: job["start-time"])

    def _ask(self, path: str, *, method: str = "GET") -> dict[str, Any]:
        request = urllib.request.Request(f"http://{self.address}{path}", method=method)
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            return json.loads(answer.read() or b"{}")


@dataclass(frozen=True)
class Spark(Cluster):
    """A Spark master and its workers, or Spark in the job server (address "")."""

    def problem(self) -> str:
        """As `Cluster.problem`; a job that has no executor is one. In the job server only the driver is one."""
        if problem := super().problem():
            return problem
        page = self.page() if self.address else ""
        if not page:
            return ""
        try:
            (application,) = _read(f"{page}/api/v1/applications")
            executors = _read(f"{page}/api/v1/applications/{application['id']}/executors")
            if any(executor["isActive"] and executor["id"] != "driver" for executor in executors):
                return ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return f"the job has no executor on Spark at {self.address}: no worker lives, or none has cores and memory left"

    def page(self) -> str:
        """As `Cluster.page`: that of the driver on this host."""
        host = self._own_address()
        for port in DRIVER_PORTS:
            page = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if _read(f"{page}/api/v1/applications")[0]["name"].startswith(self.job):
                    return page
        return ""

    def variables(self) -> dict[str, str]:
        """As `Cluster.variables`: where the driver listens, the address by which this host reaches the master.

        Spark itself takes the first address of the host's name: on Debian that is 127.0.1.1, which no executor reaches.
        And its page would listen on every address of the host.
        """
        return {"SPARK_LOCAL_IP": self._own_address()}

    def _own_address(self) -> str:
        if given := os.environ.get("SPARK_LOCAL_IP"):
            return given
        for address in filter(None, self.address.split(",")):
            with contextlib.suppress(OSError, ValueError):
                family, kind, _, _, place = socket.getaddrinfo(*_pair(address), type=socket.SOCK_DGRAM)[0]
                with socket.socket(family, kind) as unsent:
                    unsent.connect(place)  # this sends nothing: it chooses the way
                    return unsent.getsockname()[0]
        return "127.0.0.1"


def problem_of_job_server(endpoint: str) -> str:
    """Why no job can be given to the job server at HOST:PORT; "": it answers. It is asked for at most 20 s."""
    import grpc

    if problem := Cluster(endpoint).problem():
        return problem
    with grpc.insecure_channel(endpoint) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            return f"what listens at {endpoint} does not answer as a job server does"
    return ""


def _pair(address: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT.

    Raises:
        ValueError: the port is no number.
    """
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:
        return json.load(answer)


def job_name(given: str = "") -> str:
    """A name for a job that no other job has. It begins with the name that the user gave."""
    return f"{given or f'openwit-{os.getpid()}'}-{secrets.token_hex(4)}"


def kind_of(runner: str) -> str:
    """The short name of a runner, as the user names it: `flink` for FlinkRunner."""
    return runner.lower().removesuffix("runner")


def is_child(runner: str, flags: Mapping[str, str]) -> bool:
    """True for an engine that this process starts. Its workers are in this process unless the flags say otherwise.

    A cluster at localhost is none.

    Args:
        runner: as the user names it.
        flags: as `values`.
    """
    kind = kind_of(runner)
    if "job_endpoint" in flags or kind not in ("prism", "flink", "spark"):
        return False
    if kind == "spark":
        return re.match(r"$|local(\[|-cluster|$)", flags.get("spark_master_url", "")) is not None
    return kind == "prism" or flags.get("flink_master", "") in ("", "[local]", "[auto]")


def cluster_of(runner: str, arguments: Sequence[str]) -> Cluster:
    """The cluster that Beam's flags name. An engine that lives in this process is no cluster.

    Args:
        runner: as the user names it.
        arguments: Beam's flags, `--job_name=NAME` among them.
    """
    flags = values(arguments)
    kind = kind_of(runner)
    address = {"flink": flags.get("flink_master", ""), "spark": flags.get("spark_master_url", "")}.get(kind, "")
    if kind == "spark" and address.startswith("local"):
        return Spark(job=flags.get("job_name", ""))
    address = re.sub(r"^\w+://", "", address).split("/")[0]
    if not re.fullmatch(r"([\w.\-\[\]:]+:\d+,?)+", address):  # [local], [auto], yarn
        return Cluster()
    return (Flink if kind == "flink" else Spark)(address, flags.get("job_name", ""))


def values(arguments: Sequence[str]) -> dict[str, str]:
    """Flag name -> value, of --name=value and of --name value."""
    found: dict[str, str] = {}
    for place, word in enumerate(arguments):
        if word.startswith("--"):
            name, given, value = word[2:].partition("=")
            following = arguments[place + 1] if place + 1 < len(arguments) else ""
            found[name] = value if given or following.startswith("--") else following
    return found


@contextlib.contextmanager
def noted(root: str, cluster: Cluster) -> Iterator[None]:
    """While the block runs, OUT/.job names the job. Whatever ends the block but success, the job is cancelled first."""
    note = os.path.join(root, NOTE)
    if not isinstance(cluster, Flink | Spark) or not cluster.address:
        yield
        return
    kind = type(cluster).__name__.lower()
    storage.write_plain(note, json.dumps({kind: cluster.address, "job": cluster.job}).encode())
    try:
        yield
    except BaseException:
        left = cluster.cancel()
        if left:
            print(f"{left}.", file=sys.stderr)
            log_file.note(left, level=logging.WARNING)
            raise
        _forget(note)
        raise
    _forget(note)


def job_of(root: str) -> str:
    """The job that OUT/.job names, such as "openwit-7-0a1b on Flink at HOST:8081"; "": none."""
    try:
        found = json.loads(storage.read(os.path.join(root, NOTE)))
        kind = "flink" if "flink" in found else "spark"
        return f"{found['job']} on {kind.capitalize()} at {found[kind]}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _forget(note: str) -> None:
    with contextlib.suppress(OSError):
        storage.remove(note)


def cancel_leftover(root: str) -> None:
    """Cancels the job that a killed client left on its cluster, if OUT/.job names one. One on Spark ended with it.

    Raises:
        RuntimeError: the job may still run, and would write into OUT beside the next one.
    """
    note = os.path.join(root, NOTE)
    try:
        found = json.loads(storage.read(note))
        cluster = Flink(str(found["flink"]), str(found["job"]))
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        _forget(note)
        return
    left = cluster.cancel()
    if left:
        raise RuntimeError(f"{left}. If it is gone, remove {note}")
    _forget(note)
