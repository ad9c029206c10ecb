"""The wheel, installed as a user would do it: outside the checkout, with packages of an index, and also read-only.

The working directory is hostile: it has a `pipeline`, a `queries`, a `clip_train` and a `dataclasses` that raise. The
`dataclasses` package that a dependency installs must not hide that of the standard library either.
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.demo import smallweb
from tests.places import ROOT
from tests.processes import AS_ANYBODY
from tests.webserver import picture

PACKAGED = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "pipeline", "queries", "clip_train")
COMMANDS = tuple(f"openwit-{name}" for name in ("build", "doctor", "explore", "inspect", "queries", "train", "worker"))
NO_INDEX = re.compile(r"dns error|error sending request|Failed to fetch|Could not connect|timed out|No route to host")
PICTURES = 24
HAS_TORCH = importlib.util.find_spec("torch") is not None

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def uv(*arguments: str | Path, cwd: Path) -> None:
    """Runs uv. Skips the test if the package index cannot be reached."""
    command = [sys.executable, "-m", "uv", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=500)
    if done.returncode and NO_INDEX.search(done.stderr):
        pytest.skip(f"the package index cannot be reached: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and with the wheel that was built from the sdist."""
    if importlib.util.find_spec("uv") is None:
        pytest.skip("needs uv in this environment, as tools/setup.sh installs it")
    tmp = tmp_path_factory.mktemp("built")
    (tmp / "source").mkdir()
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp / "source" / name)
    uv("build", "--out-dir", tmp / "dist", tmp / "source", cwd=tmp)
    return tmp / "dist"


@dataclasses.dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and a hostile working directory beside a home of its own."""

    venv: Path
    work: Path
    prefix: tuple[str, ...] = ()

    def run(self, *command: str, code: int = 0, **variables: str) -> str:
        """Runs a command of the environment. Returns its output, which must not report a fault."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NUMBA", "XDG"))}
        environment = {**clean, "HOME": str(self.work / "home"), **variables}
        program = str(self.venv / "bin" / command[0])
        done = subprocess.run(
            [*self.prefix, program, *command[1:]],
            cwd=self.work, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert not re.search(r"Traceback|[Ww]arning|Error", done.stderr), done.stderr
        return done.stdout

    def build(self, out: str, *more: str, **variables: str) -> str:
        """Builds the archive. Returns the digest of the manifest."""
        arguments = ["--input", "images.warc.gz", "pairs.parquet", "--queries", "queries.txt", "--output", out]
        self.run("openwit-build", *arguments, "--rows-per-shard", "12", *more, **variables)
        return json.loads((self.work / out / "manifest.json").read_text())["digest"]


def make_work(folder: Path) -> Path:
    """Makes a working directory with the inputs, and with packages that must not be found."""
    (folder / "home").mkdir(parents=True)
    for name in ("pipeline", "queries", "clip_train"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('of the working directory')")
    (folder / "dataclasses.py").write_text("raise RuntimeError('of the working directory')")
    urls = [f"http://pictures.example/{number}.jpg" for number in range(PICTURES)]
    texts = [f"a red dog number {number} beside a tree" for number in range(PICTURES)]
    pq.write_table(pa.table({"url": urls, "text": texts}), folder / "pairs.parquet")
    records = [
        smallweb.record("response", url, smallweb.response(picture(number), "image/jpeg"))
        for number, url in enumerate(urls)
    ]
    (folder / "images.warc.gz").write_bytes(b"".join(gzip.compress(record, mtime=0) for record in records))
    (folder / "queries.txt").write_text("red\ndog\ntree\n")
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a fresh environment, with the trainer where this environment has torch."""
    tmp = tmp_path_factory.mktemp("installed")
    (wheel,) = built.glob("*.whl")
    uv("venv", "--python", os.environ.get("OPENWIT_TEST_PYTHON", sys.executable), tmp / "venv", cwd=tmp)
    install(tmp, f"{wheel}[train]" if HAS_TORCH else str(wheel))
    assert next((tmp / "venv").rglob("site-packages/dataclasses.py")), "img2dataset has it no more: remove this test?"
    return Installed(tmp / "venv", make_work(tmp / "work"))


@pytest.fixture(scope="module")
def digest(installed: Installed) -> str:
    """The digest of the set `two`, which two workers have built."""
    return installed.build("two", "--workers", "2")


def install(tmp: Path, *what: str | Path) -> None:
    """Installs into tmp/venv with the constraints."""
    python = tmp / "venv" / "bin" / "python"
    uv("pip", "install", "--python", python, "-c", ROOT / "constraints.txt", *what, cwd=tmp)


@pytest.fixture
def read_only(installed: Installed) -> Iterator[Installed]:
    """The same environment for a process that may not write there."""
    prefix = (sys.executable, "-c", AS_ANYBODY)
    folders = [installed.venv, *(path for path in installed.venv.rglob("*") if path.is_dir() and not path.is_symlink())]
    modes = [(folder, folder.stat().st_mode) for folder in folders]
    for folder, mode in modes:
        folder.chmod(mode & 0o555)
    try:
        if subprocess.run([*prefix, "test", "-w", str(installed.venv / "bin")]).returncode == 0:
            pytest.skip("this process may write into read-only folders, and cannot give that right up")
        yield dataclasses.replace(installed, prefix=prefix)
    finally:
        for folder, mode in modes:
            folder.chmod(mode)


def test_the_sdist_holds_what_a_build_needs(built: Path) -> None:
    """The wheel was built from the sdist. Both have the data files."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    data = {"pipeline/dataset/templates/card.md.j2", "queries/data/default.parquet"}
    data |= {"clip_train/data/vocabulary.txt.gz", "queries/data/WORDNET-LICENSE.txt", "queries/data/LICENSES.txt"}
    assert data | {"LICENSE", "README.md", "setup.cfg", "pyproject.toml"} <= packed
    (wheel,) = built.glob("*.whl")
    listed = subprocess.run([sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True)
    assert data <= set(listed.stdout.split()) and "licenses/LICENSE" in listed.stdout
    assert "tests/" not in listed.stdout


def test_the_sdist_installs(built: Path, tmp_path: Path) -> None:
    """Installs without the requirements, which the test of the wheel covers."""
    (sdist,) = built.glob("*.tar.gz")
    uv("venv", "--python", sys.executable, tmp_path / "venv", cwd=tmp_path)
    install(tmp_path, "--no-deps", sdist)
    assert {path.name for path in (tmp_path / "venv" / "bin").glob("openwit-*")} == set(COMMANDS)


def test_every_command_runs_in_a_hostile_working_directory(installed: Installed, digest: str) -> None:
    assert installed.build("one", "--workers", "1") == digest
    facts = json.loads(installed.run("openwit-inspect", "info", "two", "--json"))
    assert str(PICTURES) in json.dumps(facts)
    installed.run("openwit-inspect", "verify", "two")
    assert "packages                all " in installed.run("openwit-doctor", "--offline", "two")
    (installed.work / "text.txt").write_text("a red panda eats leaves\n" * 200)
    queries = ["--text", "text.txt", "--min-count", "50", "--export"]
    installed.run("openwit-queries", "--output", "list", *queries, "--workers", "1")
    assert "panda" in (installed.work / "list" / "queries.txt").read_text().splitlines()
    for command in COMMANDS:
        assert "usage" in installed.run(command, "--help").lower()


def test_the_trainer_runs(installed: Installed, digest: str) -> None:
    """Runs in one process, and in two: the processes of the launcher find the package too."""
    if not HAS_TORCH:
        pytest.skip("this environment has no torch, and the wheel's has none either")
    flags = ["--model", "ViT-Tiny", "--batch-size", "4", "--steps", "2", "--threads", "1", "--log-to", "none"]
    for processes in ("1", "2"):
        where = ["--data", "two", "--output", f"run-{processes}", "--processes", processes]
        installed.run("openwit-train", "train", *where, *flags, OMP_NUM_THREADS="1")
        assert len((installed.work / f"run-{processes}" / "log.jsonl").read_text().splitlines()) == 2


def test_it_runs_with_the_users_variables(installed: Installed, digest: str) -> None:
    assert installed.build("elsewhere", "--workers", "2", PYTHONPATH="/elsewhere") == digest
    for variables, flags in (({"PYTHONSAFEPATH": "1"}, ()), ({"PYTHONPATH": "/elsewhere"}, ("-P",))):
        installed.run("python", *flags, "-m", "pipeline.inspect_shards", "verify", "two", **variables)


def test_it_runs_from_a_read_only_folder(read_only: Installed, digest: str) -> None:
    """The kernels are cached in the user's cache folder. If that is read-only too, they are not cached.

    Neither prints a warning.
    """
    before = set(read_only.venv.rglob("*"))
    assert read_only.build("read-only", "--workers", "2") == digest
    warm = "from pipeline.text import language_kernel; language_kernel.warm()"
    read_only.run("python", "-P", "-c", warm)
    assert list((read_only.work / "home" / ".cache" / "openwit").glob("kernels-*/*/*.nbi"))
    read_only.run("python", "-P", "-c", warm, HOME="/proc/1/none")
    assert set(read_only.venv.rglob("*")) == before


def test_no_package_hides_the_standard_library_from_workers(installed: Installed) -> None:
    """Holds even if PYTHONPATH names site-packages, with its `dataclasses`, when workers start."""
    site_packages = next((installed.venv / "lib").glob("python*/site-packages"))
    program = f"""import os
from pipeline.engine import fork_server, forked_workers
os.environ["PYTHONPATH"] = {str(site_packages)!r}
server = forked_workers.ForkServer(fork_server.NOTHING)
assert server.spawn({{}}) in server.workers()
server.close()
print("started and ended")"""
    assert installed.run("python", "-P", "-c", program) == "started and ended\n"
