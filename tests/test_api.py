"""The Python API: names, signatures, what `build` gives and refuses, and where it can be called."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
import queries
from pipeline.engine import runners, work
from pipeline.errors import Busy, Damaged, JobFailed, MissingInput, NotFound, UsageError
from tests.places import ROOT
from tests.webserver import WebServer, picture

SIGNATURES = {
    pipeline.build: "(options: 'Options', *, quiet: 'bool' = False) -> 'Result'",
    pipeline.open_set: "(folder: 'str | os.PathLike[str]') -> 'OpenSet'",
    pipeline.Result.open: "(self) -> 'OpenSet'",
    pipeline.OpenSet.rows: (
        "(self, columns: 'Sequence[str] | None' = None, *, shard: 'int | None' = None) -> 'Iterator[pa.Table]'"
    ),
    pipeline.OpenSet.table: "(self, columns: 'Sequence[str] | None' = None) -> 'pa.Table'",
    pipeline.OpenSet.keys: "(self) -> 'Iterator[str]'",
    pipeline.OpenSet.row: "(self, key: 'str') -> 'dict[str, Any]'",
    pipeline.OpenSet.sample: "(self, key: 'str') -> 'Sample'",
    pipeline.OpenSet.member: "(self, row: 'Mapping[str, Any]', extension: 'str') -> 'bytes'",
    pipeline.OpenSet.verify: "(self, *, quick: 'bool' = False) -> 'list[Fault]'",
    queries.build: "(options: 'Options', *, quiet: 'bool' = False) -> 'Result'",
    queries.load_queries: "(path: 'str') -> 'QueryList'",
    queries.Result.open: "(self) -> 'QueryList'",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=[str(number) for number in range(len(SIGNATURES))])
def test_signatures(function: object) -> None:
    assert str(inspect.signature(function)) == SIGNATURES[function]  # type: ignore[arg-type, index]


def test_public_names() -> None:
    assert pipeline.__all__ == ["OpenSet", "Options", "Result", "Sample", "build", "errors", "open_set"]
    assert queries.__all__ == ["Options", "QueryError", "QueryList", "Result", "build", "load_queries"]
    for package in (pipeline, queries):
        assert set(package.__all__) <= set(dir(package)) and all(hasattr(package, name) for name in package.__all__)
        with pytest.raises(AttributeError, match="has no attribute 'bulid'"):
            _ = package.bulid
    assert pipeline.errors.Busy is Busy
    names = [field.name for field in dataclasses.fields(pipeline.Result)]
    assert names == ["root", "ledger", "digests", "digest", "queries", "records", "target", "misfits"]
    assert [field.name for field in dataclasses.fields(pipeline.Sample)] == ["key", "image", "text", "json", "row"]
    assert [field.name for field in dataclasses.fields(queries.Result)] == ["root", "info"]
    properties = {name for name, value in vars(pipeline.OpenSet).items() if isinstance(value, property)}
    assert properties == {"digest", "ledger", "queries", "schema"}


ORDERS = [
    "from PACKAGE import build",
    "import PACKAGE.build\nfrom PACKAGE import build",
    "from PACKAGE import build\nimport PACKAGE.build",
    "from PACKAGE.build import main\nfrom PACKAGE import build",
    "import PACKAGE\nbuild = PACKAGE.build\nimport PACKAGE.build\nassert PACKAGE.build is build",
    "from PACKAGE import *\nimport PACKAGE.build",
    "import pipeline.demo.__main__, queries.show\nfrom PACKAGE import build",
]


@pytest.mark.parametrize("package", ["pipeline", "queries"])
def test_build_is_a_function_and_a_module_in_any_order(package: str, tmp_path: Path) -> None:
    call = "Options(input=('x.parquet',), output='out')" if package == "pipeline" else "Options(output='out', size=0)"
    for order in ORDERS:
        program = f"{order}\nfrom PACKAGE import Options\nfrom pipeline import errors\nassert callable(build.main)\n"
        program += (
            f"try:\n    build({call})\nexcept (errors.MissingInput, errors.UsageError) as error:\n    print(error)"
        )
        out = subprocess.run(
            [sys.executable, "-c", program.replace("PACKAGE", package)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT)},
        )
        said = (
            "no file matches 'x.parquet'" if package == "pipeline" else "--size 0: must be a whole number of at least 1"
        )
        assert said in out.stdout and not out.stderr, (order, out.stdout, out.stderr)
    for name in (f"{package}.build", f"{package}.build --version"):
        out = subprocess.run([sys.executable, "-m", *name.split()], capture_output=True, text=True, cwd=ROOT)
        assert out.returncode == (2 if name.endswith("build") else 0) and "Traceback" not in out.stderr


def test_every_command_has_a_version(capsys: pytest.CaptureFixture[str]) -> None:
    import clip_train
    from clip_train.__main__ import main as train
    from pipeline import doctor, forget, inspect_shards
    from pipeline.demo.__main__ import main as demo
    from queries import show

    assert clip_train.__version__ == pipeline.__version__
    for main in (doctor.main, forget.main, inspect_shards.main, demo, show.main, train):
        with contextlib.suppress(SystemExit):
            main(["--version"])
        assert capsys.readouterr().out == f"openwit {pipeline.__version__}\n", main


def test_what_is_next_can_be_pasted() -> None:
    said = pipeline.Result("/tmp/w 23 ä", (), {}, None).summary()
    assert shlex.split(said.rpartition("info ")[2]) == ["/tmp/w 23 ä"]


def test_the_module_is_still_a_module() -> None:
    for module in (pipeline.build, queries.build):
        assert inspect.ismodule(module) and pickle.loads(pickle.dumps(module)) is module
        assert "options as the" not in module.__doc__ and module.build.__module__ == module.__name__


def test_the_packages_alone_are_light() -> None:
    program = "import sys\nbefore = set(sys.modules)\nimport pipeline, queries\nprint(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=ROOT, text=True)
    loaded = done.stdout.split()
    assert not {"numpy", "pyarrow", "dataclasses"} & set(loaded) and len(loaded) < 50, loaded


TYPED = """
from pipeline import Options, Result, build, errors, open_set
from queries import Options as ListOptions
from queries import build as build_list

result: Result = build(Options(input=("x.parquet",), output="out"), quiet=True)
image: bytes = open_set(result.root).sample("0").image
digest: str = build_list(ListOptions(output="x")).digest
try:
    build("out")
except errors.Busy:
    pass
"""


def test_a_type_checker_knows_the_names(tmp_path: Path) -> None:
    (tmp_path / "typed.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--config-file", "setup.cfg", str(tmp_path / "typed.py")]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
    assert 'Argument 1 to "build" has incompatible type "str"; expected "Options"' in out
    assert "Found 1 error in 1 file" in out


# ------------------------------------------------------------------------------------------------------- one build


def write_pairs(folder: Path, base: str = "http://a.example", count: int = 12) -> pipeline.Options:
    """A table of pairs and a query list in a folder; the options of a run on them."""
    folder.mkdir(exist_ok=True)
    urls = [f"{base}/img/{number}.jpg" for number in range(count)]
    texts = [f"a common red dog number {number}" for number in range(count)]
    pq.write_table(pa.table({"url": urls, "text": texts}), folder / "pairs.parquet")
    (folder / "queries.txt").write_text("red\ndog\n")
    return pipeline.Options(
        input=(str(folder / "pairs.parquet"),),
        output=str(folder / "out"),
        queries=str(folder / "queries.txt"),
        allow_address=("127.0.0.0/8",),
        workers=1,
    )


def test_a_build_gives_the_ledger_and_the_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with WebServer({f"{number}.jpg": picture(number) for number in range(12)}) as server:
        options = write_pairs(tmp_path, server.base)
        result = pipeline.build(options)
    shown = capfd.readouterr()
    assert shown.out == "" and "match parts" in shown.err
    stages = ("gather", "match", "dedup", "balance", "fetch", "dedup-images", "publish")
    assert result.root == options.output and tuple(result.digests) == stages
    assert [row["rows_out"] for row in result.ledger] == [12] * 7
    assert all(row.keys() == {"stage", "rows_in", "rows_out", "dropped"} for row in result.ledger)
    pairs = result.open()
    assert list(result.ledger) == pairs.ledger and result.digest == pairs.digest and len(pairs) == 12
    number = int(pairs.sample(next(pairs.keys())).text.split()[-1])
    assert pairs.sample(next(pairs.keys())).row["url"].endswith(f"/img/{number}.jpg") and pairs.verify() == []
    assert pairs.queries["query"].to_pylist() == ["dog", "red"]

    assert pipeline.build(options, quiet=True) == result  # nothing is left to do
    again = dataclasses.replace(options, redo="dedup-images")
    assert pipeline.build(again, quiet=True) == result
    assert capfd.readouterr() == ("", "")


def test_a_part_of_the_way_has_no_set(tmp_path: Path) -> None:
    options = dataclasses.replace(write_pairs(tmp_path), stages="gather..balance", cap=5)
    result = pipeline.build(options, quiet=True)
    assert list(result.digests) == ["gather", "match", "dedup", "balance"] and result.digest is None
    assert result.ledger[3]["dropped"] == {"over_cap": 12 - result.ledger[3]["rows_out"]}
    with pytest.raises(NotFound, match="is not a published folder: it has no manifest.json"):
        result.open()


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = dataclasses.replace(write_pairs(tmp_path), stages="gather..balance")
    with pytest.raises(UsageError, match="^--cap 0: must be"):
        pipeline.build(dataclasses.replace(options, cap=0))
    with pytest.raises(MissingInput, match="nowhere.parquet"):
        pipeline.build(dataclasses.replace(options, input=(str(tmp_path / "nowhere.parquet"),)))
    assert not (tmp_path / "out").exists()
    (tmp_path / "held").mkdir()
    with (
        work.lock_run_folder(str(tmp_path / "held")),
        pytest.raises(Busy, match=r"another run holds the output folder .*held \(process \d+ on .+\): wait"),
    ):
        pipeline.build(dataclasses.replace(options, output=str(tmp_path / "held")))
    import_beam = runners.import_beam  # the last call before the job

    def lose_the_input() -> object:
        (tmp_path / "pairs.parquet").unlink(missing_ok=True)
        return import_beam()

    monkeypatch.setattr(runners, "import_beam", lose_the_input)
    with pytest.raises(JobFailed, match="pairs.parquet"):
        pipeline.build(options, quiet=True)
    assert issubclass(Damaged, ValueError) and not issubclass(Damaged, NotFound)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_in_an_event_loop_and_in_a_thread(tmp_path: Path, workers: int) -> None:
    """As in a notebook, whose cells run in an event loop; and as in a service, off the main thread."""
    made = [write_pairs(tmp_path / name) for name in ("loop", "thread")]
    made = [dataclasses.replace(options, stages="gather..balance", workers=workers) for options in made]
    found: list[pipeline.Result] = []

    async def cell() -> None:
        found.append(pipeline.build(made[0], quiet=True))
        found.append(await asyncio.to_thread(pipeline.build, made[1], quiet=True))

    asyncio.run(cell())
    assert found[0].digests == found[1].digests and found[0].ledger[3]["rows_out"] == 12


def test_a_list_is_built_and_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("a red dog and a blue cat\n" * 20)
    options = queries.Options(output=str(tmp_path / "list"), text=(str(tmp_path),), min_count=10, min_articles=1)
    result = queries.build(dataclasses.replace(options, workers=1), quiet=True)
    assert capfd.readouterr() == ("", "")
    listed = result.open()
    assert result.root == options.output and result.digest == listed.digest and len(result) == len(listed) > 100
    assert {"dog", "cat", "7"} <= set(listed.queries.to_pylist()) and result.info["warnings"] == []
    assert queries.load_queries(f"{result.root}/queries.parquet").table.equals(listed.table)
    with pytest.raises(MissingInput, match="no source gave a query"):
        queries.build(queries.Options(output=str(tmp_path / "empty")))
    with pytest.raises(queries.QueryError, match="is empty"):
        (tmp_path / "empty.txt").write_text("")
        queries.load_queries(str(tmp_path / "empty.txt"))


def test_files_that_are_gone_are_an_error_of_the_api(tmp_path: Path) -> None:
    options = dataclasses.replace(write_pairs(tmp_path), stages="gather..balance", workers=1)
    pipeline.build(options, quiet=True)
    for path in (tmp_path / "out" / "stages" / "match" / "parts").glob("00000*"):
        path.unlink()
    with pytest.raises(pipeline.errors.DamagedError, match="stages/dedup is damaged .some of its files are gone: "):
        pipeline.build(dataclasses.replace(options, redo="balance"), quiet=True)
