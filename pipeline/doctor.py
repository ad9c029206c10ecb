"""Says whether this machine is fit for a run: one line for each thing that a run needs.

    python -m pipeline.doctor                       this machine, and the current folder
    python -m pipeline.doctor OUT                   the disk of the folder that a run would write; s3:// and gs://, too
    python -m pipeline.doctor --offline             asks no server but the store of OUT
    python -m pipeline.doctor --json | jq .         for a script

Each line is ok, a warning or a fault. A warning or a fault says what to do. Exit code 3: there is a fault. Nothing is
changed: a few small files are written in OUT, or in the folder above it, and removed. On a store, small objects are.
"""

from __future__ import annotations

from pipeline.engine import interrupts

if __name__ == "__main__":
    interrupts.install("pipeline.doctor")  # before the imports, which take a second

import argparse
import dataclasses
import datetime
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import re
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import certifi

from pipeline import __version__
from pipeline.engine import checks, completion, fetched_engines, http_dates, jit, variables
from pipeline.engine.cli import BELOW, CRASHED, DONE, INTERRUPTED, USAGE, Parser, UsageError, check_flags, fail
from pipeline.engine.display import sanitize, size

OK, WARNING, FAULT = "ok", "warning", "fault"
LEVELS = (OK, WARNING, FAULT)
ARCHIVES = "https://data.commoncrawl.org/"
BUCKET = "https://commoncrawl.s3.amazonaws.com/"
GIB = 1 << 30
PATIENCE_S = 10.0  # of one question to a server
NEEDED_BY = "needed by --runner {} alone"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        name: what was looked at.
        level: one of LEVELS.
        found: what was found.
        advice: what to do. "" where all is well.
    """

    name: str
    level: str
    found: str
    advice: str = ""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the user asked for.

    Attributes:
        folder: that a run would write. It need not exist.
        archives, bucket: addresses of the archives over https and S3; "" asks no server.
    """

    folder: str
    archives: str = ARCHIVES
    bucket: str = BUCKET


# -------------------------------------------------------------------------------------------------- this installation


def python(_: Asked) -> Iterator[Finding]:
    """The interpreter, and the packages that setup.cfg names."""
    yield Finding("python", OK, f"{sys.version.split()[0]} at {sys.executable}")
    try:
        wanted = importlib.metadata.requires("openwit") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", WARNING, "openwit is not installed", "pip install -e . in the folder of the sources")
        return
    wrong = [text for line in wanted if "extra ==" not in line and (text := _unmet(line))]
    if wrong:
        yield Finding("packages", FAULT, "; ".join(wrong), "pip install --upgrade openwit")
    else:
        yield Finding("packages", OK, f"all {len([line for line in wanted if 'extra ==' not in line])} are here")


def _unmet(line: str) -> str:
    """Why a requirement is not met, or "". Versions are compared where `packaging` is installed."""
    name = re.split(r"[\s<>=!~;\[(]", line, maxsplit=1)[0]
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return ""
    met = Requirement(line).specifier.contains(version, prereleases=True)
    return "" if met else f"{name} {version} does not fit {line}"


def kernels(_: Asked) -> Finding:
    """Compiled kernels: without them the row stages are many times slower."""
    command = "python -m pipeline.engine.jit"
    if not jit.available():
        why = "OPENWIT_NO_KERNELS is set" if variables.is_on(variables.NO_KERNELS) else "numba is not installed"
        return Finding("kernels", WARNING, f"{why}: plain functions do the work, slowly", "pip install numba")
    root, compiled, total = jit.compiled()
    if root is None:
        return Finding("kernels", WARNING, "no folder for compiled kernels can be written: each process compiles them",
                       "set NUMBA_CACHE_DIR to a private folder that can be written")  # fmt: skip
    if compiled < total:
        return Finding("kernels", WARNING, f"{compiled} of {total} are compiled in {root}: the first run takes minutes "
                       "longer", command)  # fmt: skip
    return Finding("kernels", OK, f"all {total} are compiled in {root}")


def torch(_: Asked) -> Finding:
    """torch and its GPU, which clip_train alone needs. It is imported in a process of its own."""
    if importlib.util.find_spec("torch") is None:
        return Finding("torch", OK, "not installed; clip_train alone needs it (pip install 'openwit[train]')")
    code = (
        "import torch; cuda = torch.cuda; n = cuda.device_count() if cuda.is_available() else 0; "
        "print(torch.__version__, ', '.join(cuda.get_device_name(i) for i in range(n)), sep='|')"
    )
    done = _run([sys.executable, "-c", code], seconds=120)
    if done is None or done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1] if done else "it took longer than 120 s"
        return Finding("torch", WARNING, f"cannot be imported: {last}", "install it again for this machine")
    version, _bar, devices = done.stdout.strip().partition("|")
    if devices:
        return Finding("torch", OK, f"{version} with {devices}")
    if shutil.which("nvidia-smi"):
        return Finding("torch", WARNING, f"{version} sees no GPU, but this machine has nvidia-smi",
                       "install a torch for the CUDA of the driver that nvidia-smi shows")  # fmt: skip
    return Finding("torch", OK, f"{version}, no GPU: training runs on the CPU")


def engines(_: Asked) -> Iterator[Finding]:
    """What other runners than the local one need."""
    found = fetched_engines.java()
    done = _run([found, "-version"], seconds=30) if found else None
    first = (done.stderr.strip().splitlines() or [""])[0] if done and not done.returncode else ""
    if found and not first:
        yield Finding("java", WARNING, f"{found} does not run", "install Java 11 or 17, or leave it for --runner local")
    else:
        yield Finding("java", OK, first or f"not found; {NEEDED_BY.format('flink or spark')}")
    places = {
        "prism": fetched_engines.prism(),
        "flink": fetched_engines.flink_job_server(),
        "spark": fetched_engines.spark_job_server(),
    }
    for name, path in places.items():
        missing = f"not found; {NEEDED_BY.format(name)} (make engines)"
        yield Finding(name, OK, f"in {path.parent}" if path.exists() else missing)


# ------------------------------------------------------------------------------------------------------- this machine


def cores(_: Asked) -> Finding:
    """Cores that this process may use."""
    usable = len(os.sched_getaffinity(0))
    return Finding("cores", OK, f"{usable}, so many workers run at a time")


def memory(_: Asked) -> Finding:
    """Memory that is free, within the limit of a container."""
    free = _available_memory()
    if free is None:
        return Finding("memory", OK, "not known on this system")
    found = f"{size(free)} are free"
    if free < GIB:
        return Finding("memory", FAULT, found, "a run needs 1 GiB; end other programs, or take a larger machine")
    if free < 3 * GIB:
        return Finding("memory", WARNING, found, "select takes up to 1.2 GiB, and each fetching process 0.5 GiB: give "
                       "--workers 1")  # fmt: skip
    return Finding("memory", OK, found)


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        allowed = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return max(0, min(free, allowed - used))
    except (OSError, ValueError):  # no container, or "max"
        return free


def open_files(_: Asked) -> Finding:
    """The limit of open files. A fetch has a connection for each of hundreds of hosts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    if soft != resource.RLIM_INFINITY and soft < 1024:
        most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
        return Finding("open files", WARNING, f"at most {shown} a process", f"ulimit -n {most}")
    return Finding("open files", OK, f"at most {shown} a process")


def clock(_: Asked) -> Finding:
    """The year: certificates and Retry-After need a clock that is right."""
    now = datetime.datetime.now(datetime.UTC)
    if now.year < 2025:
        return Finding("clock", FAULT, f"it says {now:%Y-%m-%d %H:%M} UTC", "set the clock: no certificate holds then")
    return Finding("clock", OK, f"{now:%Y-%m-%d %H:%M} UTC")


def disk(asked: Asked) -> Iterator[Finding]:
    """The disk of OUT, or its store and the disk of the scratch folder; the disk of temporary files."""
    if "://" in asked.folder:
        yield from _store(asked.folder)
        folder = _nearest_folder(variables.scratch_folder())
        space = _space("disk of scratch folder", folder)
        yield dataclasses.replace(space, advice=space.advice and f"{space.advice} ({variables.SCRATCH})")
    else:
        folder = _nearest_folder(asked.folder)
        yield _space("disk of OUT", folder)
    yield _file_calls(folder)
    scratch = tempfile.gettempdir()
    if os.stat(scratch).st_dev != os.stat(folder).st_dev:
        yield _space("disk of temporary files", scratch)


def _store(url: str) -> Iterator[Finding]:
    """The bucket of OUT: is it there, and does it do what a run needs? Small objects are written there, and removed."""
    from pipeline.engine import store_probe  # here, since most folders are of this machine

    for found, advice in store_probe.probe(url.rstrip("/"), patience=PATIENCE_S):
        yield Finding("store of OUT", FAULT if advice else OK, found, advice)


def _nearest_folder(path: str) -> str:
    """The folder, or the nearest one above it that exists."""
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _space(name: str, folder: str) -> Finding:
    free = shutil.disk_usage(folder).free
    files = os.statvfs(folder)
    found = f"{size(free)} are free on {folder}"
    if files.f_files and files.f_favail < 10_000:
        return Finding(name, FAULT, f"{files.f_favail:,} more files fit on {folder}", "free some inodes")
    if free < GIB:
        return Finding(name, FAULT, found, "free some space, or name another folder")
    if free < 20 * GIB:
        return Finding(name, WARNING, found, "python -m pipeline.build ... --plan says what a set takes")
    return Finding(name, OK, found)


def _file_calls(folder: str) -> Finding:
    """Rename, fsync, hard links and locks, which a network file system may not have."""
    name, remedy = "file system", "name a folder on a local disk, or on NFS 4"
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as scratch:
            one, two, three = (os.path.join(scratch, letter) for letter in "abc")
            began = time.perf_counter()
            with open(one, "wb") as file:
                file.write(b"x" * 4096)
                file.flush()
                os.fsync(file.fileno())
            synced = time.perf_counter() - began
            os.replace(one, two)
            with open(two, "r+b") as file:  # NFS gives no such lock to one who only reads
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if file.read() != b"x" * 4096:
                    return Finding(name, FAULT, f"{folder} does not give back what was written", remedy)
            os.link(two, three)
    except OSError as error:
        return Finding(name, FAULT, f"{error.strerror or error} in {folder}", remedy)
    found = f"rename, fsync ({synced * 1e3:.1f} ms), hard links and locks work"
    if synced > 1:
        return Finding(name, WARNING, found, "each part of a run is written with an fsync: take a faster disk")
    return Finding(name, OK, found)


# -------------------------------------------------------------------------------------------------------- the network


def network(asked: Asked) -> Iterator[Finding]:
    """Names, proxies, the archives over https and S3, and the clock against a server's."""
    proxies = {name: value for name, value in urllib.request.getproxies().items() if name in ("http", "https", "all")}
    if proxies:
        named = ", ".join(f"{name}: {_host(value)}" for name, value in sorted(proxies.items()))
        yield Finding("proxies", WARNING, f"set ({named}), but the fetch never uses one",
                      "images are asked for directly: let this machine reach the web")  # fmt: skip
    else:
        yield Finding("proxies", OK, "none is set; the fetch would not use one")
    if not asked.archives:
        return
    yield _names(_host(asked.archives))
    for name, url in (("archives", asked.archives), ("S3", asked.bucket)):
        yield from _server(name, url)


def _host(url: str) -> str:
    try:
        return urllib.parse.urlsplit(url if "//" in url else f"//{url}").hostname or url
    except ValueError:
        return url


def _names(host: str) -> Finding:
    """Is there a server of names, and how fast does it answer? The first answers of a fetch are all new names."""
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM))
        except OSError as error:
            found.append(error)

    began = time.perf_counter()
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    took = time.perf_counter() - began
    if not found or isinstance(found[0], OSError):
        why = found[0] if found else f"no answer in {PATIENCE_S:.0f} s"
        return Finding("DNS", FAULT, f"{host}: {why}", "see /etc/resolv.conf: without names no image can be fetched "
                       "(--offline leaves this out)")  # fmt: skip
    if took > 1:
        return Finding("DNS", WARNING, f"{host} took {took:.1f} s", "a caching resolver here makes a fetch faster")
    return Finding("DNS", OK, f"{host} in {took * 1e3:.0f} ms")


def _server(name: str, url: str) -> Iterator[Finding]:
    """Does the server answer at all? Any status is an answer."""
    if not url:
        return
    trust = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=certifi.where()))  # as the fetch
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), trust)
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "openwit-doctor"})
    began = time.perf_counter()
    try:
        with direct.open(request, timeout=PATIENCE_S) as answer:
            status, date = answer.status, answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        status, date = error.code, error.headers.get("Date")
        error.close()
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        advice = "open outgoing https"
        if isinstance(why, ssl.SSLCertVerificationError):
            advice = "a proxy may replace certificates, or the clock is wrong"
        yield Finding(name, WARNING, f"{_host(url)}: {why}", f"{advice}; inputs on this machine need no server")
        return
    yield Finding(name, OK, f"{_host(url)} answers {status} in {time.perf_counter() - began:.1f} s")
    if name == "archives" and date:
        yield from _against(date)


def _against(date: str) -> Iterator[Finding]:
    try:
        apart = abs(time.time() - http_dates.timestamp(date))
    except (TypeError, ValueError, OverflowError):
        return
    if apart > 120:
        yield Finding("clock against a server", WARNING, f"{apart:,.0f} s apart", "set the clock: certificates need it")


# ------------------------------------------------------------------------------------------------------- the command

CHECKS: tuple[Callable[[Asked], Finding | Iterator[Finding]], ...] = (
    python, kernels, cores, memory, open_files, clock, disk, network, engines, torch,
)  # fmt: skip


def examine(asked: Asked) -> Iterator[Finding]:
    """All findings, one after another. A check that fails is a fault of its own."""
    for check in CHECKS:
        try:
            found = check(asked)
            yield from (found,) if isinstance(found, Finding) else found
        except Exception as error:
            yield Finding(check.__name__.replace("_", " "), FAULT, f"could not be checked: {error}", "report this")


def _run(words: Sequence[str], *, seconds: float) -> subprocess.CompletedProcess[str] | None:
    """A finished program; None if it took longer, or does not run."""
    try:
        return subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None


def line(finding: Finding, *, colour: bool) -> str:
    """The line of a finding, with its advice on the next."""
    shade = {OK: "32", WARNING: "33", FAULT: "31"}[finding.level]
    level = f"\x1b[{shade}m{finding.level:<8}\x1b[0m" if colour else f"{finding.level:<8}"
    advice = f"\n{'':<32}-> {sanitize(finding.advice)}" if finding.advice else ""
    return f"{level}{finding.name:<24}{sanitize(finding.found)}{advice}"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options."""
    assert __doc__ is not None
    parser = Parser(
        prog="pipeline.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("folder", nargs="?", default=".", metavar="OUT", help="the folder of a run (default: this one)")
    parser.add_argument("--offline", action="store_true", help="ask no server but the store of OUT")
    parser.add_argument("--json", action="store_true", help="print a JSON list of name, level, found and advice")
    parser.add_argument("--version", action="version", version=f"openwit {__version__}")
    completion.add_flag(parser, "openwit-doctor")
    check_flags(argv, parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 fit, 2 usage, 3 a fault was found."""
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        if checks.URL.match(args.folder):
            checks.flag("OUT", args.folder, lambda path: checks.output_folder(path, ours=lambda *_: True, stores=True))
    except UsageError as error:
        return fail("pipeline.doctor", error, USAGE)
    asked = Asked(args.folder, *(("", "") if args.offline else ()))
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    findings: list[Finding] = []
    try:
        for finding in examine(asked):
            findings.append(finding)
            if not args.json:
                print(line(finding, colour=colour), flush=True)
        if args.json:
            print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
        else:
            print(summary(findings))
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk
        return fail("pipeline.doctor", error, CRASHED)
    except KeyboardInterrupt:
        return INTERRUPTED
    return BELOW if any(finding.level == FAULT for finding in findings) else DONE


def summary(findings: Sequence[Finding]) -> str:
    """The last line."""
    faults, warnings = (sum(finding.level == level for finding in findings) for level in (FAULT, WARNING))
    if faults:
        return f"\n{faults} fault{'s' * (faults > 1)}: a run would fail or stand still. Mend what stands above."
    if warnings:
        return f"\nno fault, {warnings} warning{'s' * (warnings > 1)}. Next: python -m pipeline.demo"
    return "\nall is well. Next: python -m pipeline.demo"


if __name__ == "__main__":
    sys.exit(interrupts.ending(main()))
