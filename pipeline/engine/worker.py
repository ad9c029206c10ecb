"""A worker process: Beam's SDK harness, started in one of two ways.

* The local runner forks it from the fork server (see `fork_server`), with all settings in the environment.
* An engine starts the command `openwit-worker` as the boot program of a PROCESS environment or of a worker pool
  (EXTERNAL), with the flags of Beam's container contract (--id, --provision_endpoint, ...). The worker then fetches the
  pipeline options from the provision service. It fetches no artifacts: the package must be installed on the host.

A worker dies within a second after its parent, however the parent ended.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

from pipeline.engine import fork_server, quiet_beam

PR_SET_PDEATHSIG = 1
CHATTY = ("aiobotocore", "botocore")
ENDPOINTS = ("logging_endpoint", "artifact_endpoint", "provision_endpoint", "control_endpoint")


def die_with(parent: int, *, by_kernel: bool) -> None:
    """Ends this process when `parent` is gone. It checks twice a second; with `by_kernel` a signal ends it at once.

    The kernel sends the signal when the *thread* ends that started us. An engine may start workers from a thread that
    ends early, so only our own runner uses `by_kernel`.
    """
    if by_kernel:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def fetch_options(worker_id: str, endpoints: argparse.Namespace) -> None:
    """Sets the environment variables that the harness reads, from the runner's provision service."""
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc, endpoints_pb2
    from google.protobuf import json_format, text_format

    control, log = endpoints.control_endpoint, endpoints.logging_endpoint
    if endpoints.provision_endpoint:
        channel = grpc.insecure_channel(endpoints.provision_endpoint)
        info = (
            beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
            .GetProvisionInfo(
                beam_provision_api_pb2.GetProvisionInfoRequest(), metadata=(("worker_id", worker_id),), timeout=60
            )
            .info
        )
        os.environ["PIPELINE_OPTIONS"] = json_format.MessageToJson(info.pipeline_options)
        os.environ["RUNNER_CAPABILITIES"] = " ".join(info.runner_capabilities)
        if info.status_endpoint.url:
            os.environ["STATUS_API_SERVICE_DESCRIPTOR"] = text_format.MessageToString(info.status_endpoint)
        control, log = control or info.control_endpoint.url, log or info.logging_endpoint.url
    for name, url in {"CONTROL": control, "LOGGING": log}.items():
        descriptor = endpoints_pb2.ApiServiceDescriptor(url=url)
        os.environ[f"{name}_API_SERVICE_DESCRIPTOR"] = text_format.MessageToString(descriptor)
    os.environ["WORKER_ID"] = worker_id
    os.environ["SEMI_PERSISTENT_DIRECTORY"] = endpoints.semi_persist_dir or tempfile.gettempdir()


def main() -> None:
    """Starts the harness."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--id", default="")
    parser.add_argument("--semi_persist_dir", default="")
    parser.add_argument("--fork-server", type=int, metavar="PID", help="process id of the starter")
    parser.add_argument("--load", type=json.loads, default=((), ()), help="JSON of fork_server.Preload")
    for name in ENDPOINTS:
        parser.add_argument(f"--{name}", default="")
    options, _ = parser.parse_known_args()
    if options.fork_server is not None:
        live_as_fork_server(options.fork_server, *options.load)
        return
    if options.id:
        os.dup2(2, 1)  # a print() in a worker must not fill a pipe that nobody reads
        fetch_options(options.id.strip("'\""), options)  # Prism passes the id with its quotes
        die_with(os.getppid(), by_kernel=False)
    run_harness()


def live_as_fork_server(parent: int, modules: Sequence[str], kernels: Sequence[str]) -> None:
    """Runs the fork server: the local runner's workers are forks of this process."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)  # the parent is already gone
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; our parent decides

    def prepare() -> None:
        quiet_beam.import_beam()

    def run_worker() -> None:
        die_with(os.getppid(), by_kernel=True)
        run_harness()

    load = fork_server.Preload(tuple(modules), tuple(kernels))
    fork_server.serve(load, prepare=prepare, run_worker=run_worker)


def run_harness() -> None:
    """Beam's SDK harness, until the job ends."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)  # Beam lets all others say what they do
    quiet_beam.import_beam()
    from apache_beam.runners.worker import sdk_worker, sdk_worker_main

    quiet_beam.quiet_readers()
    sdk_worker.print = quiet_beam.print_unless_expected  # type: ignore[attr-defined]  # it prints each traceback itself
    sdk_worker_main.main(sys.argv[:1])


if __name__ == "__main__":
    main()
